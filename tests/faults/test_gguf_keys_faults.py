"""GGUF keys of the wrong type (D3): each known key with each wrong type is an error of ours or changes nothing, and a
split set may repeat any value."""

from __future__ import annotations

import json
import random
import struct
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lluda.config.model import ModelConfig
from lluda.errors import CorruptFile, LludaError, UnsupportedModel
from lluda.files.gguf_keys import GGUFKeys, same_value
from lluda.inputs.chat.chat_template import ChatTemplate
from lluda.inputs.text.tokenizer import Tokenizer
from lluda.weights.checkpoint import (
    DOCUMENT_KEYS,
    open_checkpoint,
    read_document,
)
from lluda.weights.gguf.checkpoint import GGUFCheckpoint
from tests.faults.test_gguf_faults import (
    ARRAY,
    BOOL,
    F32,
    STRING,
    U8,
    U32,
    U64,
    array,
    file,
    tensor,
    text,
    u32,
    u64,
)
from tests.inputs.conftest import tiny_gguf

I32, F64 = 5, 12
WRONG = {
    "u8": u32(U8) + b"\x05",
    "negative": u32(I32) + struct.pack("<i", -1),
    "2^63": u32(U64) + u64(2**63),
    "f32": u32(F32) + struct.pack("<f", 1.5),
    "nan": u32(F32) + struct.pack("<f", float("nan")),
    "inf": u32(F64) + struct.pack("<d", float("inf")),
    "true": u32(BOOL) + b"\1",
    "text": u32(STRING) + text("x"),
    "no text": u32(STRING) + text(""),
    "no numbers": u32(ARRAY) + array(U32, 0),
    "numbers": u32(ARRAY) + array(U32, 2, u32(1) + u32(2)),
    "bools": u32(ARRAY) + array(BOOL, 2, b"\0\1"),
    "floats": u32(ARRAY) + array(F32, 2, struct.pack("<ff", 1.0, float("nan"))),
    "texts": u32(ARRAY) + array(STRING, 2, text("a") + text("b")),
    "arrays": u32(ARRAY) + array(ARRAY, 2, array(STRING, 1, text("a")) + array(U8, 1, b"\1")),
}
TENSORS = [tensor("token_embd.weight", (32, 8)), tensor("output_norm.weight", (32,), offset=1024)]


def stored(value: Any) -> bytes:
    """A value's type and bytes, as converters write them."""
    if isinstance(value, bool):
        return u32(BOOL) + bytes([value])
    if isinstance(value, int):
        return u32(U32) + u32(value)
    if isinstance(value, float):
        return u32(F32) + struct.pack("<f", value)
    if isinstance(value, str):
        return u32(STRING) + text(value)
    if isinstance(value[0], str):
        return u32(ARRAY) + array(STRING, len(value), b"".join(map(text, value)))
    return u32(ARRAY) + array(I32, len(value), struct.pack(f"<{len(value)}i", *value))


def keys_of(architecture: str) -> dict[str, Any]:
    """Every key that lluda reads of ``architecture``."""
    numbers = {
        "vocab_size": 280,
        "context_length": 64,
        "embedding_length": 32,
        "block_count": 1,
        "feed_forward_length": 64,
        "attention.head_count": 2,
        "attention.head_count_kv": 1,
        "attention.key_length": 16,
        "attention.value_length": 16,
        "attention.layer_norm_rms_epsilon": 1e-6,
        "rope.freq_base": 1e6,
        "rope.dimension_count": 16,
        "rope.scale_linear": 1.0,
        "rope.scaling.type": "none",
        "rope.scaling.factor": 1.0,
        "rope.scaling.original_context_length": 64,
        "rope.scaling.finetuned": False,
    }
    if architecture == "qwen3moe":
        numbers |= {"expert_count": 4, "expert_used_count": 2, "expert_feed_forward_length": 32}
        numbers |= {"expert_weights_norm": True, "expert_gating_func": 1}
    config = {}
    if architecture == "lluda-qwen3-omni":  # says all by its config.json
        numbers, config = {}, {"model_type": "qwen3_omni_moe"}
    keys = {
        "general.architecture": architecture,
        "general.type": "model",
        "general.alignment": 32,
        "split.no": 0,
        "split.count": 1,
        "split.tensors.count": 2,
        **{f"{architecture}.{name}": value for name, value in numbers.items()},
        **({"lluda.config": json.dumps(config), "lluda.shapes": "{}"} if config else {}),
    }
    if architecture != "qwen3":  # the rest is read alike of every architecture
        return keys
    return keys | {
        **dict.fromkeys(DOCUMENT_KEYS.values(), "{}"),
        **tiny_gguf(bos_token_id=0, eos_token_id=1, eot_token_id=2, eom_token_id=3, add_bos_token=True),
        "tokenizer.ggml.unknown_token_id": 4,
        "tokenizer.ggml.padding_token_id": 5,
        "lluda.tokenizer.nfc": True,
        "tokenizer.chat_template": "{{ messages }}",
        "tokenizer.chat_template.tool_use": "{{ tools }}",
    }


def encoded(keys: dict[str, bytes]) -> bytes:
    return file([text(name) + value for name, value in keys.items()], TENSORS, bytes(1152))


def read_all(path: Path) -> None:
    """All that a start reads of a .gguf file."""
    with open_checkpoint(path) as checkpoint:
        assert isinstance(checkpoint, GGUFCheckpoint)
        if "qwen3-omni" not in str(checkpoint.metadata["general.architecture"]):
            ModelConfig.from_hf(checkpoint.config, str(path), allow_unknown=True)
        for name in DOCUMENT_KEYS:
            read_document(path, name)
        if "tokenizer.ggml.tokens" in checkpoint.metadata:
            Tokenizer.from_gguf(checkpoint.metadata, path)
        ChatTemplate.from_gguf(checkpoint.metadata, path)


ARCHITECTURES = ("llama", "qwen3", "qwen3moe", "lluda-qwen3-omni")


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_d3_each_key_with_each_wrong_type_is_refused_or_harmless(tmp_path: Path, architecture: str) -> None:
    path = tmp_path / "model.gguf"
    right = {name: stored(value) for name, value in keys_of(architecture).items()}
    path.write_bytes(encoded(right))
    read_all(path)
    refused = 0
    for name, wrong in product(right, WRONG.values()):
        path.write_bytes(encoded(right | {name: wrong}))
        try:
            read_all(path)
        except LludaError as error:
            refused += 1
            assert str(error).startswith(f"{path}: ")
            assert str(error).isprintable()
    assert refused > len(right) * len(WRONG) // 3


@pytest.mark.parametrize(
    ("name", "kind", "rule"),
    [
        # Each was a traceback: the eight places where a raw value was compared.
        ("general.architecture", "bools", r"general\.architecture must be a string \(found an array of 2 bool\)"),
        ("general.type", "numbers", r"general\.type must be a string \(found an array of 2 uint32\)"),
        ("qwen3.rope.scaling.type", "no numbers", r"rope\.scaling\.type must be a string"),
        ("qwen3.rope.scaling.factor", "floats", r"rope\.scaling\.factor must be a number"),
        ("qwen3.rope.scale_linear", "no numbers", r"rope\.scale_linear must be a number"),
        ("qwen3.expert_count", "numbers", r"expert_count is an array; lluda supports one value"),
        ("tokenizer.ggml.model", "bools", r"tokenizer\.ggml\.model must be a string"),
        ("tokenizer.ggml.pre", "texts", r"tokenizer\.ggml\.pre must be a string"),
        # These were taken for false, or for text.
        ("tokenizer.ggml.add_bos_token", "u8", r"add_bos_token must be true or false"),
        ("tokenizer.chat_template", "texts", r"tokenizer\.chat_template must be a string"),
        ("tokenizer.ggml.eos_token_id", "text", r"eos_token_id must be an id below"),
    ],
)
def test_d3_what_was_compared_unread_has_a_message(tmp_path: Path, name: str, kind: str, rule: str) -> None:
    path = tmp_path / "model.gguf"
    right = {name: stored(value) for name, value in keys_of("qwen3").items()}
    path.write_bytes(encoded(right | {name: WRONG[kind]}))
    with pytest.raises((CorruptFile, UnsupportedModel), match=rule):
        read_all(path)


def test_d3_seeded_mutations_of_whole_files(tmp_path: Path) -> None:
    """Bytes of a good file's head changed, cut out or doubled: refused by an error of ours, or read."""
    chosen, path = random.Random(3), tmp_path / "model.gguf"
    whole = encoded({name: stored(value) for name, value in keys_of("qwen3").items()})
    for _ in range(300):
        data = bytearray(whole)
        for _ in range(chosen.randint(1, 4)):
            at, size = chosen.randrange(len(data) - 1152), chosen.choice((0, 1, 4, 8))
            new = chosen.choice(
                (b"", chosen.randbytes(size), bytes(size), b"\xff" * size, bytes(data[at : at + size]) * 2)
            )
            data[at : at + size] = new
        path.write_bytes(data)
        try:
            read_all(path)
        except LludaError as error:
            assert str(error).startswith(f"{path}: ")


@pytest.fixture
def two_parts(tmp_path: Path) -> Callable[[bytes, bytes], Path]:
    """Writes a set whose second part repeats the key ``x``; the values are given as type and bytes."""

    def write(first: bytes, second: bytes) -> Path:
        right = {name: stored(value) for name, value in keys_of("qwen3").items()}
        del right["split.tensors.count"]
        for number, value in enumerate((first, second)):
            split = {"split.no": stored(number), "split.count": stored(2), "x": value}
            keys = right | split if number == 0 else split
            tensors = TENSORS if number == 0 else [tensor("blk.0.attn_norm.weight", (32,))]
            data = file([text(name) + one for name, one in keys.items()], tensors, bytes(1152))
            (tmp_path / f"m-{number + 1:05}-of-00002.gguf").write_bytes(data)
        return tmp_path / "m-00001-of-00002.gguf"

    return write


@pytest.mark.parametrize("kind", WRONG)
def test_d3_a_part_may_repeat_any_value(two_parts: Callable[[bytes, bytes], Path], kind: str) -> None:
    with GGUFCheckpoint(two_parts(WRONG[kind], WRONG[kind])) as checkpoint:
        assert len(checkpoint.files) == 2


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (array(ARRAY, 1, array(U8, 1, b"\1")), array(ARRAY, 1, array(U8, 1, b"\2"))),
        (array(ARRAY, 1, array(U8, 1, b"\1")), array(ARRAY, 1, array(STRING, 1, text("a")))),
        (array(U32, 1, u32(1)), array(U8, 1, b"\1")),
        (array(U32, 2, u32(1) + u32(2)), array(U32, 1, u32(1))),
    ],
    ids=["in an inner array", "an inner array's type", "an array's type", "an array's length"],
)
def test_d3_a_part_with_another_array_is_of_another_model(
    two_parts: Callable[[bytes, bytes], Path], first: bytes, second: bytes
) -> None:
    with pytest.raises(CorruptFile, match=r"part 2 of 2 is of another model: its x differs"):
        GGUFCheckpoint(two_parts(u32(ARRAY) + first, u32(ARRAY) + second))


def test_d3_equal_values_by_their_own_rules() -> None:
    numbers = np.array([1.0, float("nan")], dtype=np.float32)
    assert same_value([["a"], [numbers]], [["a"], [numbers.copy()]])
    assert same_value(float("nan"), float("nan"))
    assert not same_value(1, True)
    assert not same_value(numbers, numbers.astype(np.float64))
    assert not same_value(["a"], "a")


def test_d3_readers_name_key_and_type(tmp_path: Path) -> None:
    keys = GGUFKeys({"n": 3, "b": True, "a": np.array([1, 2], dtype=np.int32), "s": ["x"]}, tmp_path / "m.gguf")
    assert (keys.integer("n", 1, 5), keys.number("n", 0, 5), keys.boolean("b", default=False)) == (3, 3.0, True)
    assert (keys.integers("a"), keys.strings("s"), keys.token_id("n", 4), keys.token_id("absent", 4)) == (
        [1, 2],
        ["x"],
        3,
        None,
    )
    assert (keys.text("t", default="d"), keys.integer("t", 1, 2, default=9), keys.number("t", 0, 1, default=2.0)) == (
        "d",
        9,
        2.0,
    )
    for read, rule in (
        (lambda: keys.integer("b", 0, 5), "b must be an integer"),
        (lambda: keys.integer("n", 0, 2), "n must be from 0 to 2"),
        (lambda: keys.number("s", 0, 5), "s must be a number (found an array of 1 values)"),
        (lambda: keys.text("a"), "a must be a string (found an array of 2 int32)"),
        (lambda: keys.text("t"), "t is missing"),
        (lambda: keys.boolean("n", default=True), "n must be true or false"),
        (lambda: keys.token_id("n", 3), "n must be an id below 3"),
        (lambda: keys.strings("a"), "a must be an array of strings"),
        (lambda: keys.integers("s"), "s must be an array of integers"),
    ):
        with pytest.raises(CorruptFile) as caught:
            read()
        assert rule in str(caught.value)
        assert caught.value.path == str(tmp_path / "m.gguf")
