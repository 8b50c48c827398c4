"""Where a model folder keeps its chat template: the files of transformers, in its order.

Its processors take processor_config.json's ``chat_template``, then chat_template.json, then the jinja files; its
tokenizers take the jinja files, then tokenizer_config.json (5.23, ``ProcessorMixin.get_processor_dict`` and
``PreTrainedTokenizerBase._from_pretrained``).
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from lluda.errors import UnsupportedModel
from lluda.files.json_file import read_json_object
from lluda.inputs.text.special_tokens import CONFIG_NAME, read_tokenizer_config
from lluda.inputs.text.text_file import read_text

MAX_SOURCE = 2**22
"""Bytes of a template file."""

PROCESSOR_NAME, LEGACY_NAME, NAME = "processor_config.json", "chat_template.json", "chat_template.jinja"
TOOL_USE_NAME = "additional_chat_templates/tool_use.jinja"


def find_chat_template(folder: Path) -> tuple[Any, Path] | None:
    """What the file that counts says (one template, or several by name) and its path; None if there is no template.

    CorruptFile: a file breaks its format. UnsupportedModel: chat_template.json beside other jinja files, of which
    transformers' processors and tokenizers would not take the same one.
    """
    key = "chat_template"
    if (found := _json(folder / PROCESSOR_NAME).get(key)) is not None:
        return found, folder / PROCESSOR_NAME
    legacy, named = _json(folder / LEGACY_NAME).get(key), _jinja(folder)
    if legacy is not None:
        if named and (legacy != named.get("default") or len(named) > 1):
            other = NAME if "default" in named else TOOL_USE_NAME
            rule = f"{LEGACY_NAME} and {other} both hold a chat template; remove the one that is not wanted"
            raise UnsupportedModel(f"{folder}: {rule}")
        return legacy, folder / LEGACY_NAME
    if named:
        return named, folder / (NAME if "default" in named else TOOL_USE_NAME)
    found = read_tokenizer_config(folder).get(key)
    return None if found is None else (found, folder / CONFIG_NAME)


def _jinja(folder: Path) -> dict[str, str]:
    """The jinja files by the name of their template; of the additional ones the one that is used."""
    places = {"default": folder / NAME, "tool_use": folder / TOOL_USE_NAME}
    return {name: read_text(path, MAX_SOURCE) for name, path in places.items() if os.path.lexists(path)}


def _json(path: Path) -> dict[str, Any]:
    return read_json_object(path, max_bytes=2 * MAX_SOURCE) if os.path.lexists(path) else {}
