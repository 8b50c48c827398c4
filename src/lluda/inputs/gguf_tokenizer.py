"""The tokenizer inside a GGUF file: vocabulary, merges, token types, and a name for the pre-tokenizer."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import Regex, pre_tokenizers

from lluda.errors import CorruptFile, UnsupportedModel
from lluda.inputs.tokenizer_files import QWEN2_PATTERN, Added, byte_level_bpe

_GPT2_PATTERN = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_LLAMA3_PATTERN = QWEN2_PATTERN.replace(r"|\p{N}|", r"|\p{N}{1,3}|").replace(r"|\p{N}| ", r"|\p{N}{1,3}| ")

_CONTROL, _USER_DEFINED = 3, 4
"""``tokenizer.ggml.token_type`` of tokens that are matched whole: control, and user-defined text."""


def _splits(pre: str) -> list[Any]:
    gpt2 = pre_tokenizers.Split(Regex(_GPT2_PATTERN), "isolated")
    return {
        "qwen2": [pre_tokenizers.Split(Regex(QWEN2_PATTERN), "isolated")],
        "smollm": [pre_tokenizers.Digits(individual_digits=True), gpt2],
        "gpt-2": [gpt2],
        "llama-bpe": [pre_tokenizers.Split(Regex(_LLAMA3_PATTERN), "isolated")],
    }[pre]


def read_gguf_tokenizer(metadata: Mapping[str, Any], path: Path) -> tuple[tokenizers.Tokenizer, list[Added]]:
    """The BPE and the added tokens. UnsupportedModel names a model or pre-tokenizer that is not implemented;
    CorruptFile a list that is missing or does not fit."""
    model, pre = metadata.get("tokenizer.ggml.model"), metadata.get("tokenizer.ggml.pre", "gpt-2")
    if model != "gpt2":
        raise UnsupportedModel(
            f"{path}: tokenizer model {model!r:.80} is not supported; supported: gpt2 (byte-level BPE)"
        )
    known = ("qwen2", "smollm", "gpt-2", "llama-bpe")
    if pre not in known:
        raise UnsupportedModel(f"{path}: pre-tokenizer {pre!r:.80} is not supported; supported: {', '.join(known)}")
    tokens = _strings(metadata, "tokenizer.ggml.tokens", path)
    kinds = [int(kind) for kind in metadata.get("tokenizer.ggml.token_type", [1] * len(tokens))]
    if len(kinds) != len(tokens):
        raise CorruptFile(
            path, "tokenizer.ggml.token_type must have one entry a token", expected=len(tokens), found=len(kinds)
        )
    vocabulary = {token: index for index, token in enumerate(tokens)}
    if len(vocabulary) != len(tokens):
        raise CorruptFile(path, "tokenizer.ggml.tokens repeats a token", found=_repeated(tokens))
    merges = [_merge(line, path) for line in _strings(metadata, "tokenizer.ggml.merges", path)]
    bpe = byte_level_bpe(vocabulary, merges, _splits(pre), path, nfc=pre == "qwen2", ignore_merges=pre == "llama-bpe")
    added = [
        (index, tokens[index], kind == _CONTROL)
        for index, kind in enumerate(kinds)
        if kind in (_CONTROL, _USER_DEFINED) and tokens[index]
    ]
    return bpe, added


def _strings(metadata: Mapping[str, Any], key: str, path: Path) -> list[str]:
    values = metadata.get(key)
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise CorruptFile(path, f"{key} must be a list of strings")
    return values


def _merge(line: str, path: Path) -> tuple[str, str]:
    # A token may itself begin with a space-like character, but the separator is the first space after its start.
    left, _, right = line[:1], "", line[1:]
    middle, _, right = right.partition(" ")
    if not right:
        raise CorruptFile(path, "tokenizer.ggml.merges must hold pairs of tokens", found=line)
    return left + middle, right


def _repeated(tokens: list[str]) -> str:
    seen: set[str] = set()
    return next(token for token in tokens if token in seen or seen.add(token))  # type: ignore[func-returns-value]
