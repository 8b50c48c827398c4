"""The files of a model folder beside its weights and config: their names, for all who copy, fetch or list them.

Which of them lluda reads and what for is in docs/checkpoints.md.
"""

from __future__ import annotations

from pathlib import Path

from lluda.weights.checkpoint import CONFIG_NAME, DOCUMENT_KEYS

TOOL_TEMPLATE = "additional_chat_templates/tool_use.jinja"
"""The one file that lies in a folder of its own."""

VOCABULARIES = ("tokenizer.json", "vocab.json")
"""A tokenizer has one of these at least."""

TOKENIZER_FILES = (
    *VOCABULARIES,
    "merges.txt",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.json",
    "chat_template.jinja",
    TOOL_TEMPLATE,
)

SETTINGS_FILES = tuple(DOCUMENT_KEYS)
"""Sampling defaults and settings of media."""

_COPIED_SUFFIXES = (".json", ".jinja", ".txt")


def tokenizer_files(folder: Path) -> dict[str, Path]:
    """The tokenizer files that ``folder`` holds, by name."""
    return _present(folder, TOKENIZER_FILES)


def settings_files(folder: Path) -> dict[str, Path]:
    """The settings files that ``folder`` holds, by name."""
    return _present(folder, SETTINGS_FILES)


def companion_files(folder: Path) -> dict[str, Path]:
    """All that a copy of the model in ``folder`` takes along: texts beside its weights and config."""
    plain = {path.name: path for path in sorted(folder.iterdir()) if path.suffix in _COPIED_SUFFIXES and path.is_file()}
    copied = {name: path for name, path in plain.items() if name != CONFIG_NAME and not name.endswith(".index.json")}
    return copied | _present(folder, (TOOL_TEMPLATE,))


def _present(folder: Path, names: tuple[str, ...]) -> dict[str, Path]:
    return {name: folder / name for name in names if (folder / name).is_file()}
