"""The import graph of a source tree, counted: folders, levels, cycles and imports hidden under ``TYPE_CHECKING``.

``python -m tools.import_graph NAME=SRC …`` prints a Markdown table with one column a tree; ``SRC`` is a folder that
holds one package, such as ``src``. Another commit's tree: ``git archive COMMIT src | tar x -C FOLDER``. ``--list``
names the parts, the longest chain, the cycles and the hidden imports as well.

A part is a folder directly below the package, or a module that lies there. Cycles are counted between parts, between
folders (``backends/cuda`` is one of its own) and between modules; levels are the longest chain of imports between
parts. Imports inside functions count, since the code needs them too. Those under ``if TYPE_CHECKING`` are counted by
themselves, and the cycles are counted without and with them.
"""

from __future__ import annotations

import argparse
import ast
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

Graph = Mapping[str, set[str]]


class Import(NamedTuple):
    """``importer`` and ``imported`` are dotted names of modules; ``hidden``: under ``if TYPE_CHECKING``."""

    importer: str
    imported: str
    hidden: bool


@dataclass(frozen=True)
class ImportGraph:
    """The modules of one package and what they import of each other."""

    package: str
    modules: Mapping[str, Path]
    imports: Sequence[Import]

    @classmethod
    def read(cls, source: Path) -> ImportGraph:
        """The graph of the one package in the folder ``source``. ValueError: none there, or several."""
        packages = sorted(path.parent for path in source.glob("*/__init__.py"))
        if len(packages) != 1:
            raise ValueError(f"{source}: holds {len(packages)} packages; give the folder of one")
        modules = {_module_name(path, source): path for path in sorted(packages[0].rglob("*.py"))}
        imports = [each for name, path in modules.items() for each in _imports(name, path, modules)]
        return cls(packages[0].name, modules, imports)

    def part(self, module: str) -> str:
        """The folder or module directly below the package that ``module`` belongs to."""
        names = module.split(".")
        return names[1] if len(names) > 1 else f"{self.package}/__init__"

    def folder(self, module: str) -> str:
        """The innermost folder that ``module`` lies in; a module directly below the package is one of its own."""
        inside = module if self.modules[module].name == "__init__.py" else module.rpartition(".")[0]
        return inside.partition(".")[2].replace(".", "/") or self.part(module)

    def graph(self, node_of: Callable[[str], str], *, hidden: bool = False) -> Graph:
        """Which node imports which; ``node_of`` gives a module's node. ``hidden``: imports under TYPE_CHECKING too."""
        found: dict[str, set[str]] = {node_of(module): set() for module in self.modules}
        for each in self.imports:
            importer, imported = node_of(each.importer), node_of(each.imported)
            if importer != imported and (hidden or not each.hidden):
                found[importer].add(imported)
        return found

    @property
    def folders(self) -> list[str]:
        """Every folder with modules, from the package on: ``backends/cuda`` is one of its own."""
        return sorted({str(path.parent) for path in self.modules.values()})

    @property
    def hidden_imports(self) -> list[Import]:
        """Those of the package itself under ``TYPE_CHECKING``."""
        return [each for each in self.imports if each.hidden]


def cycles(graph: Graph) -> list[list[str]]:
    """Groups of nodes that reach each other (strongly connected components of two and more), sorted."""
    reach = {node: _reachable(graph, node) for node in graph}
    groups = {tuple(sorted(other for other in reach[node] if node in reach[other])) for node in graph}
    return sorted([*group] for group in groups if len(group) > 1)


def longest_chain(graph: Graph) -> list[str]:
    """The longest path along imports, importer first; a cycle counts as one node, named after all of its members."""
    group_of = {node: node for node in graph}
    for group in cycles(graph):
        group_of |= {node: " + ".join(group) for node in group}
    merged: dict[str, set[str]] = {name: set() for name in group_of.values()}
    for node, targets in graph.items():
        merged[group_of[node]] |= {group_of[target] for target in targets} - {group_of[node]}
    chains: dict[str, list[str]] = {}

    def chain(node: str) -> list[str]:
        if node not in chains:
            chains[node] = [node, *max((chain(target) for target in sorted(merged[node])), key=len, default=[])]
        return chains[node]

    return max((chain(node) for node in sorted(merged)), key=len, default=[])


def _reachable(graph: Graph, start: str) -> set[str]:
    found: set[str] = set()
    open_nodes = [start]
    while open_nodes:
        for target in graph[open_nodes.pop()] - found:
            found.add(target)
            open_nodes.append(target)
    return found


def _module_name(path: Path, source: Path) -> str:
    names = path.relative_to(source).with_suffix("").parts
    return ".".join(names[:-1] if names[-1] == "__init__" else names)


def _imports(module: str, path: Path, modules: Mapping[str, Path]) -> Iterator[Import]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    hidden = {
        node
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and "TYPE_CHECKING" in ast.unparse(block.test)
        for statement in block.body
        for node in ast.walk(statement)
    }
    for node in ast.walk(tree):
        for name in _names(node):
            if name.partition(".")[0] == module.partition(".")[0]:
                yield Import(module, _closest(name, modules), node in hidden)


def _names(node: ast.AST) -> Iterator[str]:
    """What an import statement may name: modules, and for ``from a import b`` also ``a.b``."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        assert not node.level and node.module, "relative imports are not used"
        yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _closest(name: str, modules: Mapping[str, Path]) -> str:
    """The module that ``name`` is, or is defined in."""
    while name not in modules:
        name = name.rpartition(".")[0]
    return name


def counts(graph: ImportGraph) -> dict[str, int]:
    """The rows of the table."""
    parts = graph.graph(graph.part)
    nodes: dict[str, Callable[[str], str]] = {"parts": graph.part, "folders": graph.folder, "modules": str}
    cycle_rows = {}
    for name, node_of in nodes.items():
        cycle_rows[f"cycles between {name}"] = len(cycles(graph.graph(node_of)))
        cycle_rows[f"cycles between {name}, with TYPE_CHECKING"] = len(cycles(graph.graph(node_of, hidden=True)))
    lines = sum(len(path.read_text(encoding="utf-8").splitlines()) for path in graph.modules.values())
    sizes = [sum(str(path.parent) == folder for path in graph.modules.values()) for folder in graph.folders]
    return {
        "modules": len(graph.modules),
        "lines": lines,
        "folders": len(graph.folders),
        "modules in the largest folder": max(sizes),
        "parts at the top (folders and modules)": len(parts),
        "imports between parts": sum(map(len, parts.values())),
        "levels (longest chain of parts)": len(longest_chain(parts)),
        **cycle_rows,
        "imports under TYPE_CHECKING": len(graph.hidden_imports),
    }


def markdown(named: Mapping[str, ImportGraph]) -> str:
    """One column a tree."""
    columns = {name: counts(graph) for name, graph in named.items()}
    rows = [f"| {label} | " + " | ".join(f"{column[label]:,}" for column in columns.values()) + " |"
            for label in next(iter(columns.values()))]  # fmt: skip
    return "\n".join([f"| what | {' | '.join(named)} |", "| --- |" + " ---: |" * len(named), *rows])


def details(graph: ImportGraph) -> str:
    """Names behind the counts."""
    parts = graph.graph(graph.part)
    lines = [f"parts: {', '.join(sorted(parts))}", f"longest chain: {' -> '.join(longest_chain(parts))}"]
    for label, node_of in (("folders", graph.folder), ("modules", str)):
        lines += [f"cycle of {label}: {', '.join(group)}" for group in cycles(graph.graph(node_of, hidden=True))]
    lines += [f"under TYPE_CHECKING: {each.importer} -> {each.imported}" for each in graph.hidden_imports]
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m tools.import_graph", description=__doc__)
    parser.add_argument("trees", nargs="+", metavar="NAME=SRC")
    parser.add_argument("--list", action="store_true", help="name parts, chain, cycles and hidden imports")
    chosen = parser.parse_args(arguments)
    named = {name: ImportGraph.read(Path(source)) for name, _, source in (tree.partition("=") for tree in chosen.trees)}
    print(markdown(named))
    if chosen.list:
        for name, graph in named.items():
            print(f"\n{name}\n{details(graph)}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
