"""The counts of an import graph, on a small tree whose graph is known."""

from __future__ import annotations

from pathlib import Path

import pytest

from tools.import_graph import ImportGraph, counts, cycles, longest_chain, main

FILES = {
    "__init__.py": "",
    "errors.py": "import sys\n",
    "top/__init__.py": "",
    "top/verb.py": "def run():\n    from house.middle import one\n",
    "middle/__init__.py": "",
    "middle/one.py": (
        "from typing import TYPE_CHECKING\nfrom house.errors import Wrong\n"
        "if TYPE_CHECKING:\n    from house.middle.two import Name\n    from numpy import ndarray\n"
    ),
    "middle/two.py": "from house.middle import one\nimport house.middle.inner.part\n",
    "middle/inner/__init__.py": "",
    "middle/inner/part.py": "from house.middle import one\n",
}


@pytest.fixture
def tree(tmp_path):
    for name, text in FILES.items():
        path = tmp_path / "house" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path


def test_parts_chain_and_cycles_are_found(tree):
    graph = ImportGraph.read(tree)
    parts = graph.graph(graph.part)
    assert parts == {"house/__init__": set(), "errors": set(), "top": {"middle"}, "middle": {"errors"}}
    assert longest_chain(parts) == ["top", "middle", "errors"]
    assert cycles(graph.graph(graph.folder)) == [["middle", "middle/inner"]]
    assert cycles(graph.graph(str)) == []
    assert cycles(graph.graph(str, hidden=True)) == [
        ["house.middle.inner.part", "house.middle.one", "house.middle.two"]
    ]


def test_counts(tree):
    found = counts(ImportGraph.read(tree))
    assert found["modules"] == 9
    assert found["folders"] == 4
    assert found["imports under TYPE_CHECKING"] == 1
    assert found["levels (longest chain of parts)"] == 3
    assert found["cycles between folders"] == 1
    assert found["cycles between modules, with TYPE_CHECKING"] == 1


def test_a_chain_passes_a_cycle_as_one_node():
    assert longest_chain({"a": {"b"}, "b": {"c"}, "c": {"b", "d"}, "d": set()}) == ["a", "b + c", "d"]


def test_the_command_prints_one_column_a_tree(tree, capsys):
    assert main([f"now={tree}", f"before={tree}", "--list"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("| what | now | before |\n| --- | ---: | ---: |\n| modules | 9 | 9 |\n")
    assert "under TYPE_CHECKING: house.middle.one -> house.middle.two" in out


def test_a_folder_without_a_package_is_refused(tmp_path):
    with pytest.raises(ValueError, match="holds 0 packages"):
        ImportGraph.read(tmp_path)


def test_the_parts_of_lluda_are_few_and_without_cycles():
    """Imports under TYPE_CHECKING counted too."""
    graph = ImportGraph.read(Path(__file__).resolve().parents[2] / "src")
    parts = graph.graph(graph.part, hidden=True)
    assert cycles(parts) == []
    assert len(parts) <= 20
