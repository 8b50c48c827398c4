"""The special tokens that a model folder names: tokenizer_config.json and special_tokens_map.json.

Read as transformers 5.23 reads them (``PreTrainedTokenizerBase._from_pretrained``): special_tokens_map.json counts only
where tokenizer_config.json has no ``added_tokens_decoder``, and there outranks it. A name says which texts are special;
ids come from the files that number tokens, and a text that none of them numbers is no token here (transformers would
give it the next free id, whatever the model was trained with).
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lluda.errors import CorruptFile
from lluda.files.json_file import read_json_object

CONFIG_NAME = "tokenizer_config.json"
MAP_NAME = "special_tokens_map.json"

MAX_CONFIG_BYTES = 16 * 2**20
"""Limit of each of the two files: the largest released have about 2 MB."""

NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_ENDS = ("eos_token", "eot_token", "eom_token")
_EXTRA = ("extra_special_tokens", "additional_special_tokens")


@dataclass(frozen=True, slots=True)
class SpecialTokens:
    """``named``: spellings by the names that chat templates have for them: `NAMES`, and a model's own such as
    ``image_token``. ``extra``: further spellings."""

    named: Mapping[str, str] = field(default_factory=dict)
    extra: tuple[str, ...] = ()

    @property
    def texts(self) -> tuple[str, ...]:
        """All spellings, each once."""
        return tuple(dict.fromkeys((*self.named.values(), *self.extra)))

    @property
    def ends(self) -> tuple[str, ...]:
        """Spellings of the tokens that end a text, a turn or a message."""
        return tuple(self.named[name] for name in _ENDS if name in self.named)


def read_tokenizer_config(folder: Path) -> dict[str, Any]:
    """tokenizer_config.json, empty where there is none."""
    return _document(folder / CONFIG_NAME)


def read_special_tokens(folder: Path, config: Mapping[str, Any] | None = None) -> SpecialTokens:
    """The special tokens of ``folder``, whose tokenizer_config.json is ``config`` (None: it is read). CorruptFile: a
    file, or a token in it, is of another form."""
    config = read_tokenizer_config(folder) if config is None else config
    documents: list[tuple[Path, Mapping[str, Any]]] = [(folder / CONFIG_NAME, config)]
    if "added_tokens_decoder" not in config:
        documents.append((folder / MAP_NAME, _document(folder / MAP_NAME)))
    named: dict[str, str] = {}
    extra: list[str] = []
    for path, document in documents:
        named |= _named(document, path)
        for key in _EXTRA:
            own_names, texts = _extra(document.get(key), key, path)
            named |= own_names
            extra += texts
    return SpecialTokens(named, tuple(dict.fromkeys(extra)))


def _document(path: Path) -> dict[str, Any]:
    return read_json_object(path, max_bytes=MAX_CONFIG_BYTES) if os.path.lexists(path) else {}


def _named(document: Mapping[str, Any], path: Path) -> dict[str, str]:
    """Keys that end in ``_token``; of a model's own names only texts are tokens (``add_bos_token`` is a switch)."""
    named = {name: _text(document[name], name, path) for name in NAMES if document.get(name) is not None}
    own = {key: value for key, value in document.items() if key.endswith("_token") and key not in NAMES}
    return named | {key: value for key, value in own.items() if isinstance(value, str)}


def _extra(value: object, key: str, path: Path) -> tuple[dict[str, str], list[str]]:
    """A list of tokens, or in ``extra_special_tokens`` also an object of named ones."""
    match value:
        case None:
            return {}, []
        case list():
            return {}, [_text(one, key, path) for one in value]
        case dict() if key == _EXTRA[0]:
            return {name: _text(one, key, path) for name, one in value.items()}, []
    raise CorruptFile(path, f"{key} must be a list of tokens", found=value)


def _text(value: object, key: str, path: Path) -> str:
    """The spelling of a token: a text, or an object with ``content``."""
    text = value.get("content") if isinstance(value, Mapping) else value
    if not isinstance(text, str):
        raise CorruptFile(path, f"{key} must be a text or an object with a text content", found=value)
    return text
