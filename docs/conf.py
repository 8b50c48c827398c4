"""Sphinx's settings for the pages in site/ (``make docs``).

The sources are the repository itself, so that links between docs/, journal/ and the files at its root are the same on a
page and in a checkout.
"""

from __future__ import annotations

import argparse
import os
import re
from importlib import import_module
from pathlib import PurePosixPath
from typing import Any

from sphinx.application import Sphinx

from lluda import __version__
from lluda.cli.main import VERBS

project = "lluda"
version = release = __version__
copyright = "the authors of lluda, Apache-2.0"

root_doc = "docs/index"
include_patterns = ["docs/**.md", "docs/*.md", "journal/*.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md"]
exclude_patterns = [
    ".*",
    "build",
    "dist",
    "models",
    "native",
    "site",
    "src",
    "tests",
    "tools",
    "training",
    "journal/data",
]

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
myst_heading_anchors = 3
suppress_warnings = ["myst.header"]  # the journal's tables begin below the level that a page's title has
default_role = "py:obj"
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_default_options = {"members": True, "inherited-members": True}
autodoc_preserve_defaults = True
python_use_unqualified_type_names = True
napoleon_google_docstring = True
napoleon_numpy_docstring = False

html_theme = "furo"
html_title = f"lluda {release}"
html_copy_source = False

_VERBS = "<!-- every verb's help -->"
_COLUMNS = "100"
_CODE = re.compile(r"(```.*?```|`[^`\n]+`|\]\([^)]*\))", re.DOTALL)
_NAMED_PAGE = re.compile(r"(?<![\w/.])((?:docs|journal)/[\w/-]+\.md)\b")


def setup(app: Sphinx) -> None:
    """Called by Sphinx."""
    app.connect("source-read", _read)


def _read(_app: Sphinx, page: str, source: list[str]) -> None:
    """A page that is named in a text, as docs/formats.md or journal/11-gpu.md, becomes a link, and `_VERBS` what it
    says."""
    up = "../" * (len(PurePosixPath(page).parts) - 1)
    pieces = _CODE.split(source[0].replace(_VERBS, _help_of_verbs()))
    pieces[::2] = [_NAMED_PAGE.sub(rf"[\1]({up}\1)", text) for text in pieces[::2]]
    source[0] = "".join(pieces)


def _help_of_verbs() -> str:
    os.environ["COLUMNS"] = _COLUMNS
    parts = []
    for verb, summary in VERBS.items():
        parser: Any = argparse.ArgumentParser(prog=f"lluda {verb}", allow_abbrev=False)
        import_module(f"lluda.cli.verbs.{verb}").add_arguments(parser)
        parts.append(f"## lluda {verb}\n\n{summary[0].upper()}{summary[1:]}.\n\n```text\n{parser.format_help()}```")
    return "\n\n".join(parts)
