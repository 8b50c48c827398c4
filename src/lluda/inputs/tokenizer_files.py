"""Tokenizer files as the hub has them: ``tokenizer.json``, or Qwen's ``vocab.json`` with ``merges.txt``.

Each is read into a byte-level BPE without added tokens, and the added tokens as ``(id, spelling, special)``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers

from lluda.errors import CorruptFile, UnsupportedModel
from lluda.json_file import read_json_object

Added = tuple[int, str, bool]

# The pre-tokenizer patterns are facts of the released tokenizers (their tokenizer.json; llama.cpp names them alike).
QWEN2_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
MAX_VOCABULARY = 1 << 22
_MAX_FILE = 64 << 20


def byte_level_bpe(
    vocabulary: Mapping[str, int],
    merges: Sequence[tuple[str, str]],
    splits: Sequence[Any],
    source: Path,
    *,
    nfc: bool,
    ignore_merges: bool = False,
) -> tokenizers.Tokenizer:
    """A BPE over the byte-level alphabet; ``splits`` are the pre-tokenizers before it."""
    try:
        bpe = tokenizers.Tokenizer(models.BPE(vocab=dict(vocabulary), merges=list(merges), ignore_merges=ignore_merges))
    except Exception as error:  # the library raises bare Exceptions
        raise CorruptFile(source, f"the merges do not fit the vocabulary: {str(error)[:200]}") from None
    if nfc:
        bpe.normalizer = normalizers.NFC()
    bpe.pre_tokenizer = pre_tokenizers.Sequence([*splits, pre_tokenizers.ByteLevel(False, use_regex=False)])
    bpe.decoder = decoders.ByteLevel()
    return bpe


def read_bpe_files(folder: Path) -> tokenizers.Tokenizer:
    """``vocab.json`` and ``merges.txt`` of the Qwen2 family: NFC, Qwen2's pattern, byte-level.

    CorruptFile for ids that are no integers, repeat or leave gaps, and for merges of unknown tokens.
    """
    path = folder / "vocab.json"
    vocabulary = read_json_object(path, max_bytes=_MAX_FILE)
    check_vocabulary(vocabulary, path)
    merges = _read_merges(folder / "merges.txt")
    split = pre_tokenizers.Split(Regex(QWEN2_PATTERN), "isolated")
    return byte_level_bpe(vocabulary, merges, [split], folder / "merges.txt", nfc=True)


def check_vocabulary(vocabulary: Mapping[str, Any], path: Path) -> None:
    """CorruptFile unless the ids are 0, 1, … each once."""
    ids = list(vocabulary.values())
    wrong = next((i for i in ids if isinstance(i, bool) or not isinstance(i, int)), None)
    if wrong is not None:
        raise CorruptFile(path, "vocabulary ids must be integers", found=wrong)
    if len(set(ids)) != len(ids):
        raise CorruptFile(path, "two vocabulary entries share an id")
    if ids and (min(ids) != 0 or max(ids) != len(ids) - 1):
        raise CorruptFile(path, "the vocabulary's ids have gaps", expected=f"0 to {len(ids) - 1}", found=max(ids))


def read_added_tokens(path: Path) -> list[Added]:
    """``added_tokens_decoder`` of ``tokenizer_config.json``; none if the file is not there."""
    if not path.is_file():
        return []
    listed = read_json_object(path).get("added_tokens_decoder", {})
    if not isinstance(listed, dict) or not all(isinstance(token, dict) for token in listed.values()):
        raise CorruptFile(path, "added_tokens_decoder must map ids to objects")
    return [_added({"id": int(key) if key.isdecimal() else key, **token}, path) for key, token in listed.items()]


def read_tokenizer_json(path: Path) -> tuple[tokenizers.Tokenizer, list[Added]]:
    """``tokenizer.json``: the added tokens are taken out of it, the rest is the library's to build."""
    content = read_json_object(path, max_bytes=_MAX_FILE)
    added_list = content.pop("added_tokens", None) or []
    if not isinstance(added_list, list) or not all(isinstance(token, dict) for token in added_list):
        raise CorruptFile(path, "added_tokens must be a list of objects")
    added = [_added(token, path) for token in added_list]
    model = content.get("model")
    if not isinstance(model, dict) or model.get("type", "BPE") != "BPE" or model.get("byte_fallback"):
        raise _unsupported(path, "a tokenizer that is not byte-level BPE")
    if not isinstance(model.get("vocab"), dict):
        raise CorruptFile(path, "model.vocab must map tokens to ids")
    # Some files list added tokens in the vocabulary too; without one of those its ids have no gaps.
    if not any(content in model["vocab"] for _, content, _ in added):
        check_vocabulary(model["vocab"], path)
    # Padding, truncation and templates around a text are not the prompt's business here.
    content |= {"added_tokens": [], "post_processor": None, "padding": None, "truncation": None}
    try:
        bpe = tokenizers.Tokenizer.from_str(json.dumps(content, ensure_ascii=False))
    except Exception as error:  # the library raises bare Exceptions
        raise CorruptFile(path, f"not a tokenizer: {str(error)[:200]}") from None
    if "ByteLevel" not in json.dumps(content.get("decoder")):
        raise _unsupported(path, "a tokenizer without a byte-level decoder")
    return bpe, added


def _added(token: Mapping[str, Any], path: Path) -> Added:
    token_id, content = token.get("id"), token.get("content")
    if isinstance(token_id, bool) or not isinstance(token_id, int) or not 0 <= token_id < MAX_VOCABULARY:
        raise CorruptFile(path, "an added token's id must be a number", found=token_id)
    if not isinstance(content, str) or not content:
        raise CorruptFile(path, f"added token {token_id} must have a spelling", found=content)
    for flag in ("lstrip", "rstrip", "single_word"):
        if token.get(flag):
            raise _unsupported(path, f"added token {content!r} with {flag}")
    return token_id, content, bool(token.get("special", False))


def _read_merges(path: Path) -> list[tuple[str, str]]:
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise CorruptFile(path, f"not UTF-8 at byte {error.start}") from None
    except OSError as error:
        raise CorruptFile(path, f"cannot be read: {error.strerror}") from None
    merges = []
    for number, line in enumerate(lines, 1):
        if not line or line.startswith("#version"):
            continue
        left, _, right = line.rstrip("\r").partition(" ")
        if not left or not right or " " in right:
            raise CorruptFile(path, f"line {number} must be two tokens", found=line)
        merges.append((left, right))
    return merges


def _unsupported(path: Path, what: str) -> UnsupportedModel:
    return UnsupportedModel(
        f"{path}: {what} is not supported; supported: byte-level BPE (Qwen, SmolLM, GPT-2, Llama 3)"
    )
