"""The tokenizer in a .gguf file's metadata: keys ``tokenizer.ggml.*`` (GGUF specification, "Tokenizer").

What the values of ``tokenizer.ggml.pre`` and ``token_type`` stand for is llama.cpp's (``llama-vocab.cpp``).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lluda.errors import CorruptFile, UnsupportedModel
from lluda.inputs.added_tokens import AddedToken
from lluda.inputs.splitting import LLAMA3, QWEN2, SPLITTINGS, Splitting
from lluda.inputs.vocabulary import MAX_TOKENS, Vocabulary, merge_pairs, separate_added

NFC_KEY = "lluda.tokenizer.nfc"
"""Whether text is brought into Unicode form NFC first: lluda's own, as GGUF does not say."""

_SPECIAL = {"bos": "bos_token", "eos": "eos_token", "unknown": "unk_token", "padding": "pad_token"}
_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED = 1, 2, 3, 4, 5  # 6, single bytes, is not for byte-level BPE


def vocabulary_from_gguf(metadata: Mapping[str, Any], path: Path) -> Vocabulary:
    """The vocabulary of a .gguf file with ``tokenizer.ggml.model`` gpt2 (byte-level BPE).

    CorruptFile: a key missing, of the wrong kind, or breaking a rule. UnsupportedModel: another kind of tokenizer, or
    a ``tokenizer.ggml.pre`` that is none of `splitting.SPLITTINGS`.
    """
    splitting = _splitting(metadata, path)
    spellings = _strings(metadata, "tokenizer.ggml.tokens", path)
    kinds = _integers(metadata, "tokenizer.ggml.token_type", path)
    if len(spellings) > MAX_TOKENS or len(spellings) != len(kinds):
        raise CorruptFile(
            path, f"tokenizer.ggml.tokens and token_type must be equally long, at most {MAX_TOKENS}",
            found=f"{len(spellings)} and {len(kinds)}",
        )  # fmt: skip
    tokens: dict[str, int] = {}
    added: list[AddedToken] = []
    for number, (text, kind) in enumerate(zip(spellings, kinds, strict=True)):
        if kind == _NORMAL:
            if tokens.setdefault(text, number) != number:
                raise CorruptFile(path, f"the token {text[:80]!a} has two ids", found=f"{tokens[text]} and {number}")
        elif kind in (_UNKNOWN, _CONTROL, _USER_DEFINED):
            added.append(AddedToken(number, text, special=kind != _USER_DEFINED))
        elif kind != _UNUSED:
            raise CorruptFile(path, f"tokenizer.ggml.token_type of token {number} must be 1 to 5", found=kind)
    tokens, separate = separate_added(path, tokens, added)
    return Vocabulary(
        path,
        tokens,
        merge_pairs(_strings(metadata, "tokenizer.ggml.merges", path), path),
        separate,
        splitting,
        # llama.cpp leaves text as it is; the released Qwen tokenizers normalise it.
        nfc=metadata.get(NFC_KEY, splitting is QWEN2) is True,
        ignore_merges=splitting is LLAMA3,
        prefix_ids=_prefix(metadata, splitting, len(spellings), path),
        unused=frozenset(number for number, kind in enumerate(kinds) if kind == _UNUSED),
    )


def tokenizer_metadata(vocabulary: Vocabulary, rows: int, special: Mapping[str, str]) -> dict[str, Any]:
    """The keys that say ``vocabulary`` for an embedding of ``rows`` rows, whose ids without a token are marked unused.

    ``special`` are texts by the name that chat templates have for them; ``bos_token`` and so on become ids.
    CorruptFile: more ids than rows.
    """
    import numpy as np

    if vocabulary.size > rows:
        rule = "the tokenizer has more ids than the model's embedding has rows; they belong to different models"
        raise CorruptFile(vocabulary.path, rule, expected=f"at most {rows}", found=vocabulary.size)
    texts = [f"[PAD{number}]" for number in range(rows)]
    kinds = np.full(rows, _UNUSED, dtype=np.int32)
    for text, number in vocabulary.tokens.items():
        texts[number], kinds[number] = text, _NORMAL
    for token in vocabulary.added:
        texts[token.id], kinds[token.id] = token.text, _CONTROL if token.special else _USER_DEFINED
    ids = {text: number for number, text in enumerate(texts)}
    ends = {key: ids[special[name]] for key, name in _SPECIAL.items() if special.get(name) in ids}
    if vocabulary.prefix_ids:
        ends["bos"] = vocabulary.prefix_ids[0]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": vocabulary.splitting.name,
        "tokenizer.ggml.tokens": texts,
        "tokenizer.ggml.token_type": kinds,
        "tokenizer.ggml.merges": [f"{left} {right}" for left, right in vocabulary.merges],
        "tokenizer.ggml.add_bos_token": bool(vocabulary.prefix_ids),
        NFC_KEY: vocabulary.nfc,
        **{f"tokenizer.ggml.{key}_token_id": number for key, number in ends.items()},
    }


def special_token_texts(metadata: Mapping[str, Any], path: Path) -> dict[str, str]:
    """``bos_token``, ``eos_token`` … as chat templates name them. CorruptFile: an id outside the vocabulary."""
    tokens = metadata.get("tokenizer.ggml.tokens", [])
    found = {}
    for key, name in _SPECIAL.items():
        number = _token_id(metadata, f"tokenizer.ggml.{key}_token_id", len(tokens), path)
        if number is not None:
            found[name] = str(tokens[number])
    return found


def _splitting(metadata: Mapping[str, Any], path: Path) -> Splitting:
    kind, rule = metadata.get("tokenizer.ggml.model"), metadata.get("tokenizer.ggml.pre")
    if kind is None:
        raise CorruptFile(path, "no tokenizer: the key tokenizer.ggml.model is missing")
    if kind == "none":
        raise CorruptFile(path, "no tokenizer: tokenizer.ggml.model is none; write the file again with a tokenizer")
    if kind != "gpt2":
        raise UnsupportedModel(f"{path}: tokenizer.ggml.model {kind!r:.60} is not implemented; only gpt2 (BPE) is")
    if rule not in SPLITTINGS:
        raise UnsupportedModel(
            f"{path}: tokenizer.ggml.pre {rule!r:.60} is not implemented; those that are: {', '.join(SPLITTINGS)}"
        )
    return SPLITTINGS[rule]


def _prefix(metadata: Mapping[str, Any], splitting: Splitting, count: int, path: Path) -> tuple[int, ...]:
    wanted = metadata.get("tokenizer.ggml.add_bos_token", splitting is LLAMA3)
    number = _token_id(metadata, "tokenizer.ggml.bos_token_id", count, path)
    return (number,) if wanted is True and number is not None else ()


def _token_id(metadata: Mapping[str, Any], key: str, count: int, path: Path) -> int | None:
    value = metadata.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < count:
        raise CorruptFile(path, f"{key} must be an id below {count}", found=value)
    return value


def _strings(metadata: Mapping[str, Any], key: str, path: Path) -> list[str]:
    values = metadata.get(key)
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise CorruptFile(path, f"{key} must be an array of strings", found="nothing" if values is None else None)
    return values


def _integers(metadata: Mapping[str, Any], key: str, path: Path) -> list[int]:
    values = metadata.get(key)
    if values is None:
        raise CorruptFile(path, f"the key {key} is missing; convert the model again", expected="one integer per token")
    listed = values.tolist() if hasattr(values, "tolist") else values  # numeric arrays come as numpy's
    if not isinstance(listed, list) or not all(type(value) is int for value in listed):
        raise CorruptFile(path, f"{key} must be an array of integers")
    return listed
