"""Names that messages and documents give are names of something: extras, options, verbs, modules, files, targets."""

from __future__ import annotations

import argparse
import ast
import importlib
import importlib.util
import re
import tomllib
from functools import cache
from pathlib import Path

from lluda.bench.engines import ENGINES
from lluda.cli.main import VERBS
from lluda.formats.registry import FORMATS
from lluda.weights.safetensors.declared_formats import metadata_key

ROOT = Path(__file__).resolve().parents[1]
SOURCES = sorted((ROOT / "src").rglob("*.py"))
DOCUMENTS = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))

OPTIONS_OF_OTHERS = {
    *{"--revision", "--include", "--exclude", "--local-dir"},  # hf download
    *{"--abbrev", "--always", "--dirty", "--no-optional-locks", "--porcelain", "--short", "--untracked-files"},  # git
    *{"--index-url", "--no-deps"},  # pip
    "--kl-divergence",  # llama-perplexity
    *{"--address", "--generate", "--head"},  # ray
    "--nproc-per-node",  # torchrun
}
OPTIONS_OF_MODULES = {"--layers"}
"""Of ``python -m tools.journal``."""


@cache
def texts(path: Path) -> tuple[str, ...]:
    """The string constants of a module, docstrings and parts of f-strings among them; a document whole."""
    if path.suffix != ".py":
        return (path.read_text(encoding="utf-8"),)
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return tuple(
        node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)
    )


def mentions(pattern: str, *paths: Path) -> set[tuple[str, str]]:
    """What the pattern's group finds, and the file's name."""
    return {
        (found, str(path.relative_to(ROOT)))
        for path in paths
        for text in texts(path)
        for found in re.findall(pattern, text, re.MULTILINE)
    }


@cache
def options() -> frozenset[str]:
    """Of all verbs, ``--version`` and ``--help``."""
    found = {"--version"}
    for verb in VERBS:
        parser = argparse.ArgumentParser()
        importlib.import_module(f"lluda.cli.verbs.{verb}").add_arguments(parser)
        found |= {name for action in parser._actions for name in action.option_strings}
    return frozenset(found)


def unknown(found: set[tuple[str, str]], known: object) -> list[tuple[str, str]]:
    assert found, "the pattern finds nothing, so it proves nothing"
    return sorted(one for one in found if one[0] not in known)


def test_extras_exist():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert unknown(mentions(r"lluda\[(\w+)\]", *SOURCES, *DOCUMENTS), extras) == []


def test_options_exist():
    """One whose end is put in later, as in ``--{kind}``, is not looked at."""
    found = mentions(r"(?<![\w<-])(--[a-z][a-z0-9-]*[a-z0-9])(?![\w-])", *SOURCES, *DOCUMENTS)
    assert unknown(found, options() | OPTIONS_OF_OTHERS | OPTIONS_OF_MODULES) == []


def test_verbs_exist():
    """In documents: where a piece of code, or a line of one, begins with the command."""
    code = [(path, re.findall(r"```.*?```|`[^`]+`", text, re.DOTALL)) for path in DOCUMENTS for text in texts(path)]
    found = {
        (verb, path.name)
        for path, pieces in code
        for piece in pieces
        for verb in re.findall(r"^`?lluda ([a-z]+)\b", piece, re.MULTILINE)
    }
    assert unknown(found, VERBS) == []
    for verb in VERBS:
        assert importlib.util.find_spec(f"lluda.cli.verbs.{verb}")


def test_modules_exist():
    found = mentions(r"python3? -m (lluda[\w.]*)", *SOURCES, *DOCUMENTS)
    found |= {(engine.module, "ENGINES") for engine in ENGINES.values()}
    found |= {(engine.speech, "ENGINES") for engine in ENGINES.values() if engine.speech}
    assert unknown(found, {name for name, _ in found if importlib.util.find_spec(name)}) == []


def test_dotted_names_lead_somewhere():
    """Modules and what stands in them; else keys that lluda writes into files, which a source has as a string."""
    found = mentions(r"\b(lluda(?:\.[A-Za-z_]\w*)+)(?![\w.\[])", *SOURCES, *DOCUMENTS)
    keys = {text for path in SOURCES for text in texts(path)} | {metadata_key(each) for each in FORMATS.values()}
    assert unknown(found, keys | {name for name, _ in found if _leads_somewhere(name)}) == []


def _leads_somewhere(name: str) -> bool:
    """A module, or what stands in one."""
    parts = name.split(".")
    for end in range(len(parts), 0, -1):
        try:
            value: object = importlib.import_module(".".join(parts[:end]))
        except ModuleNotFoundError as error:
            if error.name and not error.name.startswith("lluda"):
                return True  # a package that this machine lacks
            continue
        for part in parts[end:]:
            if not hasattr(value, part):
                return False
            value = getattr(value, part)
        return True
    return False


def test_references_in_docstrings_lead_somewhere():
    """A name in single backticks is of a module, or of anything that a module defines or uses."""
    defined: set[str] = set()
    for path in SOURCES:
        defined |= {path.stem, path.name, path.parent.name, *texts(path)}
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = (getattr(node, field, None) for field in ("id", "attr", "name", "arg", "module"))
            defined |= {part for name in names if isinstance(name, str) for part in (name, *name.split("."))}
    found = mentions(r"(?<![`\w:])`~?([A-Za-z_][\w.]*)`(?!`)", *SOURCES)
    known = {name for name, _ in found if name in defined or all(part in defined for part in name.split("."))}
    assert unknown(found, known) == []


def test_files_that_are_named_exist():
    """By a path from the root or from the package; in a document by the name alone where its folder was named."""
    pattern = r"((?:journal|docs|native/include|native/src|tests|examples)/[\w/.-]+\.(?:md|hpp|h|py|json|cpp)\b)"
    found = mentions(pattern, *SOURCES, *DOCUMENTS) | mentions(r"`([\w/]+\.py)`", *DOCUMENTS)
    places = (ROOT, ROOT / "src/lluda", ROOT / "tests", ROOT / "training")
    here = {name for name, _ in found if any((place / name).is_file() for place in places)}
    assert unknown(found, here | {path.name for path in SOURCES}) == []


def test_targets_exist():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert unknown(mentions(r"(?:`|: )make ([a-z-]+)\b", *SOURCES, *DOCUMENTS), targets) == []


def test_examples_that_are_named_exist():
    assert EXAMPLES
    for path in EXAMPLES:
        named = mentions(r"(examples/\w+\.py)", path)
        assert named == {(f"examples/{path.name}", f"examples/{path.name}")}
