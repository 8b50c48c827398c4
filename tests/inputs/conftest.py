"""Tokenizers that several tests use: the released ones beside transformers' reading of them, and a tiny one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lluda.inputs.chat.chat_template import ChatTemplate
from lluda.inputs.text.byte_level import LETTERS
from lluda.inputs.text.tokenizer import Tokenizer

RELEASED = "Qwen3-Omni-30B-A3B-Instruct"
SPECIAL, NOT_SPECIAL = "<|end|>", "<think>"

TINY_MERGES = [["h", "e"], ["l", "l"], ["he", "ll"], ["Ġ", "w"], ["Ã", "©"], ["ð", "Ł"], ["ðŁ", "ĺ"]]


def tiny_vocabulary() -> dict[str, int]:
    """All byte letters, then the results of the merges."""
    tokens = [*sorted(LETTERS), *(left + right for left, right in TINY_MERGES)]
    return {token: number for number, token in enumerate(tokens)}


def tiny_tokenizer_json(**changes: Any) -> dict[str, Any]:
    """The content of a tokenizer.json: GPT-2's kind of split, two added tokens. ``changes`` replace top-level keys."""
    vocabulary = tiny_vocabulary()
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return {
        "version": "1.0",
        "added_tokens": [
            {"id": len(vocabulary), "content": SPECIAL, "special": True, **flags},
            {"id": len(vocabulary) + 1, "content": NOT_SPECIAL, "special": False, **flags},
        ],
        "normalizer": {"type": "NFC"},
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
        "post_processor": None,
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {"type": "BPE", "vocab": vocabulary, "merges": TINY_MERGES, "unk_token": None},
    } | changes


def write_tiny(folder: Path, **changes: Any) -> Path:
    """A folder with that tokenizer.json."""
    (folder / "tokenizer.json").write_text(json.dumps(tiny_tokenizer_json(**changes)), encoding="utf-8")
    return folder


def tiny_gguf(**changes: Any) -> dict[str, Any]:
    """GGUF metadata of the same tokens; keys of ``changes`` without their ``tokenizer.ggml.``, None to leave out."""
    vocabulary = tiny_vocabulary()
    values: dict[str, Any] = {
        "model": "gpt2",
        "pre": "gpt-2",
        "tokens": [*vocabulary, SPECIAL, NOT_SPECIAL],
        "token_type": [1] * len(vocabulary) + [3, 4],
        "merges": [" ".join(pair) for pair in TINY_MERGES],
    } | changes
    return {f"tokenizer.ggml.{key}": value for key, value in values.items() if value is not None}


@pytest.fixture(scope="session")
def tiny(tmp_path_factory) -> Tokenizer:
    return Tokenizer.from_folder(write_tiny(tmp_path_factory.mktemp("tiny")))


@pytest.fixture(scope="session")
def qwen_folder(released_configs) -> Path:
    return released_configs / RELEASED


@pytest.fixture(scope="session")
def qwen(qwen_folder) -> Tokenizer:
    return Tokenizer.from_folder(qwen_folder)


@pytest.fixture(scope="session")
def transformers_qwen(qwen_folder):
    return pytest.importorskip("transformers").AutoTokenizer.from_pretrained(qwen_folder)


@pytest.fixture(scope="session")
def qwen_template(qwen_folder) -> ChatTemplate:
    return ChatTemplate.from_folder(qwen_folder)


@pytest.fixture(scope="session")
def smollm2_metadata(smollm2):
    from lluda.weights.checkpoint import read_gguf_metadata

    return read_gguf_metadata(smollm2)


@pytest.fixture(scope="session")
def smollm(smollm2, smollm2_metadata) -> Tokenizer:
    return Tokenizer.from_gguf(smollm2_metadata, smollm2)


@pytest.fixture(scope="session")
def transformers_smollm(smollm2):
    """transformers' reading of the .gguf, which overlooks ``tokenizer.ggml.pre``: smollm cuts off each digit first."""
    transformers = pytest.importorskip("transformers")
    from tokenizers import pre_tokenizers

    found = transformers.AutoTokenizer.from_pretrained(smollm2.parent, gguf_file=smollm2.name)
    digits, words = pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)
    found.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, words])
    return found
