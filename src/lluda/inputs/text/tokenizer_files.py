"""The tokenizer files of a model folder: tokenizer.json, or vocab.json with merges.txt as the Qwen2 family has them.

Added tokens may be in files beside both: in ``added_tokens_decoder`` of tokenizer_config.json, or without that key in
added_tokens.json (what transformers wrote before 4.34); transformers 5.23 reads them so.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from lluda.errors import CorruptFile, ModelNotFound, UnsupportedModel
from lluda.files.json_file import read_json_object
from lluda.inputs.text.added_tokens import AddedToken
from lluda.inputs.text.special_tokens import (
    CONFIG_NAME,
    MAX_CONFIG_BYTES,
    SpecialTokens,
    read_special_tokens,
    read_tokenizer_config,
)
from lluda.inputs.text.splitting import QWEN2
from lluda.inputs.text.text_file import read_text
from lluda.inputs.text.tokenizer_json import (
    MAX_FILE_BYTES,
    added_token,
    field,
    flag,
    named_ids,
    vocabulary_from_tokenizer_json,
)
from lluda.inputs.text.vocabulary import (
    MAX_ADDED_TOKENS,
    Vocabulary,
    check_added_count,
    check_merge_count,
    mark_special,
    merge_pairs,
    separate_added,
)

ADDED_NAME = "added_tokens.json"
_QWEN2_CLASSES = ("Qwen2Tokenizer", "Qwen2TokenizerFast")


def vocabulary_from_folder(folder: Path) -> Vocabulary:
    """The vocabulary in ``folder``.

    ModelNotFound: no tokenizer files. CorruptFile: a file breaks its format. UnsupportedModel: a kind of tokenizer
    other than byte-level BPE split by a rule of `splitting.SPLITTINGS`.
    """
    config = read_tokenizer_config(folder)
    special = read_special_tokens(folder, config)
    if os.path.lexists(folder / "tokenizer.json"):
        more = _added_beside(folder, config, special)
        return vocabulary_from_tokenizer_json(folder / "tokenizer.json", more, special)
    if os.path.lexists(folder / "vocab.json") and os.path.lexists(folder / "merges.txt"):
        return _from_vocab_and_merges(folder, config, special)
    raise ModelNotFound(
        f"{folder}: no tokenizer (tokenizer.json, or vocab.json with merges.txt); copy it from the released model"
    )


def _from_vocab_and_merges(folder: Path, config: dict[str, Any], special: SpecialTokens) -> Vocabulary:
    _require_qwen2(folder, config)
    path, merges_path = folder / "vocab.json", folder / "merges.txt"
    tokens, merges = read_json_object(path, max_bytes=MAX_FILE_BYTES), _merge_lines(merges_path)
    added = mark_special(_added_beside(folder, config, special), special.texts, tokens, merges)
    tokens, separate = separate_added(_added_path(folder, config), tokens, added)
    starts = [special.named.get("bos_token", "")] if config.get("add_bos_token") is True else []
    return Vocabulary(
        path, tokens, merges, separate, QWEN2, nfc=True, merges_path=merges_path,
        prefix_ids=named_ids(starts, separate, {}), end_ids=named_ids(special.ends, separate, tokens),
    )  # fmt: skip


def _require_qwen2(folder: Path, config: dict[str, Any]) -> None:
    """UnsupportedModel: the class that the folder names, or its model's class in transformers, is another; or it puts a
    space before every text."""
    if flag(config, "add_prefix_space", folder / CONFIG_NAME):
        raise UnsupportedModel(f"{folder / CONFIG_NAME}: add_prefix_space true is not implemented; only false is")
    kind = config.get("tokenizer_class")
    if kind is None and os.path.lexists(folder / "config.json"):
        model = read_json_object(folder / "config.json").get("model_type")
        kind = _QWEN2_CLASSES[0] if isinstance(model, str) and model.startswith(("qwen2", "qwen3")) else None
    if kind not in _QWEN2_CLASSES:
        raise UnsupportedModel(
            f"{folder / CONFIG_NAME}: tokenizer_class {kind!r:.60}: vocab.json with merges.txt is read for "
            "Qwen2Tokenizer only; use the model's tokenizer.json"
        )


def _merge_lines(path: Path) -> list[tuple[str, str]]:
    text = read_text(path, MAX_FILE_BYTES)
    check_merge_count(text.count("\n"), path)  # before a text is made of each
    lines = text.split("\n")  # splitlines would also cut at letters that encode bytes
    if lines and lines[0].startswith("#version"):
        lines.pop(0)
    while lines and not lines[-1]:
        lines.pop()
    return merge_pairs(lines, path)


def _added_path(folder: Path, config: dict[str, Any]) -> Path:
    """The file that numbers the added tokens beside a vocabulary."""
    is_legacy = "added_tokens_decoder" not in config and os.path.lexists(folder / ADDED_NAME)
    return folder / (ADDED_NAME if is_legacy else CONFIG_NAME)


def _added_beside(folder: Path, config: dict[str, Any], special: SpecialTokens) -> list[AddedToken]:
    path = _added_path(folder, config)
    return _added_decoder(config, path) if path.name == CONFIG_NAME else _added_legacy(path, special)


def _added_decoder(config: dict[str, Any], path: Path) -> list[AddedToken]:
    """``added_tokens_decoder`` of tokenizer_config.json: id as text -> token."""
    tokens, decoder = [], field(config, "added_tokens_decoder", dict, path, default={})
    check_added_count(len(decoder), path)
    for number, fields in decoder.items():
        if not (number.isascii() and number.isdecimal() and len(number) < 10 and isinstance(fields, dict)):
            raise CorruptFile(path, "added_tokens_decoder must map ids to tokens", found=number)
        tokens.append(added_token({**fields, "id": int(number)}, path))
    return tokens


def _added_legacy(path: Path, special: SpecialTokens) -> list[AddedToken]:
    """added_tokens.json: spelling -> id. Those that are not special are looked for in the normalised text."""
    # A comma inside a spelling counts as one between values.
    ids = read_json_object(path, max_bytes=MAX_CONFIG_BYTES, max_values=4 * MAX_ADDED_TOKENS)
    is_special = frozenset(special.texts)
    check_added_count(len(ids), path)
    return [
        added_token({"id": number, "content": text, "special": text in is_special}, path)
        for text, number in ids.items()
    ]
