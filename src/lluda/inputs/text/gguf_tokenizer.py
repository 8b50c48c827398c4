"""The tokenizer in a .gguf file's metadata: keys ``tokenizer.ggml.*`` (GGUF specification, "Tokenizer").

The values of ``tokenizer.ggml.pre`` and ``token_type`` mean what they mean in llama.cpp (``llama-vocab.cpp``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lluda.errors import CorruptFile, UnsupportedModel
from lluda.files.gguf_keys import GGUFKeys
from lluda.inputs.text.added_tokens import AddedToken
from lluda.inputs.text.splitting import LLAMA3, QWEN2, SPLITTINGS, Splitting
from lluda.inputs.text.vocabulary import MAX_TOKENS, Vocabulary, mark_special, merge_pairs, separate_added

NFC_KEY = "lluda.tokenizer.nfc"
"""Whether text is brought into Unicode form NFC first: lluda's own, as GGUF does not say."""

_SPECIAL = {"bos": "bos_token", "eos": "eos_token", "unknown": "unk_token", "padding": "pad_token"}
_END_KEYS = ("eos", "eot", "eom")
_END_TEXTS = frozenset(
    {"<|im_end|>", "<|endoftext|>", "<|end_of_text|>", "<|eot_id|>", "<|eom_id|>", "<|end|>", "<end_of_turn>", "<EOT>"}
)
"""Spellings that end an answer whatever the keys say, as llama.cpp has it: a GGUF key names one end, and models have
several."""

_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED = 1, 2, 3, 4, 5  # 6, single bytes, is not for byte-level BPE


def vocabulary_from_gguf(metadata: Mapping[str, Any], path: Path) -> Vocabulary:
    """The vocabulary of a .gguf file with ``tokenizer.ggml.model`` gpt2 (byte-level BPE).

    CorruptFile: a key missing, of the wrong kind, or breaking a rule. UnsupportedModel: another kind of tokenizer, or
    a ``tokenizer.ggml.pre`` that is none of `splitting.SPLITTINGS`.
    """
    keys = GGUFKeys.of(metadata, path)
    splitting = _splitting(keys)
    spellings = keys.strings("tokenizer.ggml.tokens")
    kinds = keys.integers("tokenizer.ggml.token_type")
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
    merges = merge_pairs(keys.strings("tokenizer.ggml.merges"), path)
    # Converters mark some as ordinary text.
    special = {*special_token_texts(metadata, path).values(), *_END_TEXTS}
    tokens, separate = separate_added(path, tokens, mark_special(added, special, tokens, merges))
    return Vocabulary(
        path,
        tokens,
        merges,
        separate,
        splitting,
        # llama.cpp leaves text as it is; the released Qwen tokenizers normalise it.
        nfc=keys.boolean(NFC_KEY, default=splitting is QWEN2),
        ignore_merges=splitting is LLAMA3,
        prefix_ids=_prefix(keys, splitting, len(spellings)),
        end_ids=_ends(keys, separate, len(spellings)),
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
    keys = GGUFKeys.of(metadata, path)
    tokens = keys.strings("tokenizer.ggml.tokens") if "tokenizer.ggml.tokens" in keys else []
    found = {}
    for key, name in _SPECIAL.items():
        number = keys.token_id(f"tokenizer.ggml.{key}_token_id", len(tokens))
        if number is not None:
            found[name] = tokens[number]
    return found


def _ends(keys: GGUFKeys, added: Sequence[AddedToken], count: int) -> tuple[int, ...]:
    """Ids that end an answer."""
    named = [keys.token_id(f"tokenizer.ggml.{key}_token_id", count) for key in _END_KEYS]
    listed = keys.integers("tokenizer.ggml.eos_token_ids") if "tokenizer.ggml.eos_token_ids" in keys else []
    outside = next((number for number in listed if not 0 <= number < count), None)
    if outside is not None:
        raise CorruptFile(keys.path, f"tokenizer.ggml.eos_token_ids must hold ids below {count}", found=outside)
    spelled = [token.id for token in added if token.text in _END_TEXTS]
    return tuple(dict.fromkeys([*(number for number in named if number is not None), *listed, *spelled]))


def _splitting(keys: GGUFKeys) -> Splitting:
    kind = keys.text("tokenizer.ggml.model")
    if kind == "none":
        rule = "no tokenizer: tokenizer.ggml.model is none; write the file again with a tokenizer"
        raise CorruptFile(keys.path, rule)
    if kind != "gpt2":
        raise UnsupportedModel(f"{keys.path}: tokenizer.ggml.model {kind!r:.60} is not implemented; only gpt2 (BPE) is")
    rule = keys.text("tokenizer.ggml.pre", default="(absent)")
    if rule not in SPLITTINGS:
        raise UnsupportedModel(
            f"{keys.path}: tokenizer.ggml.pre {rule!r:.60} is not implemented; those that are: {', '.join(SPLITTINGS)}"
        )
    return SPLITTINGS[rule]


def _prefix(keys: GGUFKeys, splitting: Splitting, count: int) -> tuple[int, ...]:
    wanted = keys.boolean("tokenizer.ggml.add_bos_token", default=splitting is LLAMA3)
    number = keys.token_id("tokenizer.ggml.bos_token_id", count)
    return (number,) if wanted and number is not None else ()
