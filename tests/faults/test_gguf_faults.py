"""Broken GGUF files (rows A9, A13, A14, A15, A20): each rule has its own message, little time and little memory."""

from __future__ import annotations

import os
import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lluda.errors import CorruptFile, LludaError, ModelNotFound
from lluda.parameters import ParameterSpec
from lluda.weights.gguf.checkpoint import GGUFCheckpoint
from lluda.weights.gguf.file import GGUFFile
from lluda.weights.gguf.header import MAX_HEADER_BYTES
from lluda.weights.loader import load_tensors
from tests.conftest import watchdog

SECONDS = 0.2
U8, U32, F32, BOOL, STRING, ARRAY, U64 = 0, 4, 6, 7, 8, 9, 10
Q8_0 = 8


def u32(number: int) -> bytes:
    return struct.pack("<I", number)


def u64(number: int) -> bytes:
    return struct.pack("<Q", number)


def text(value: str | bytes, length: int | None = None) -> bytes:
    data = value.encode() if isinstance(value, str) else value
    return u64(len(data) if length is None else length) + data


def key(name: str | bytes, kind: int, value: bytes) -> bytes:
    return text(name) + u32(kind) + value


def array(kind: int, count: int, values: bytes = b"") -> bytes:
    return u32(kind) + u64(count) + values


def tensor(
    name: str | bytes = "t", dims: tuple[int, ...] = (32,), kind: int = 0, offset: int = 0, n_dims: int | None = None
) -> bytes:
    count = len(dims) if n_dims is None else n_dims
    return text(name) + u32(count) + b"".join(map(u64, dims)) + u32(kind) + u64(offset)


def head(tensors: int, keys: int, version: int = 3, magic: bytes = b"GGUF") -> bytes:
    return magic + u32(version) + u64(tensors) + u64(keys)


def file(keys: list[bytes] = [], tensors: list[bytes] = [], data: bytes = b"", align: int = 32) -> bytes:  # noqa: B006
    start = head(len(tensors), len(keys)) + b"".join(keys) + b"".join(tensors)
    return start + bytes(-len(start) % align) + data if tensors else start


def one_key(kind: int, value: bytes) -> bytes:
    return file([key("k", kind, value)])


def one_tensor(**fields: Any) -> bytes:
    return file([], [tensor(**fields)], bytes(128))


DEEP = array(ARRAY, 1) * 2000 + array(U8, 0)
ALIGNMENT = "general.alignment"
MANY_STRINGS = array(STRING, 10**7, text("some words") * 50_000)

MALFORMED = {
    "file of 0 bytes": (b"", "the file is empty"),
    "file of 23 bytes": (head(0, 0)[:-1], "too short for a GGUF file"),
    "magic": (head(0, 0, magic=b"GGXX"), "its first bytes are wrong"),
    "magic of a zip": (head(0, 0, magic=b"PK\3\4"), "not a GGUF file: the file is a zip archive"),
    "version 0": (head(0, 0, 0), "GGUF version 0 is not read"),
    "version 1": (head(0, 0, 1), "GGUF version 1 is not read"),
    "version 4": (head(0, 0, 4), "GGUF version 4 is not read"),
    "version 99": (head(0, 0, 99), "GGUF version 99 is not read"),
    "version swapped": (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "byte-swapped"),
    "tensor count 2^63": (head(2**63, 0), "number of tensors 9223372036854775808 reaches past the end"),
    "tensor count 1 of none": (head(1, 0), "number of tensors 1 reaches past the end"),
    "key count 2^63": (head(0, 2**63), "number of metadata keys 9223372036854775808 reaches past the end"),
    "key count 2 of 1": (head(0, 2) + key("k", U8, b"\0"), "number of metadata keys 2 reaches past the end"),
    "key length 2^63": (head(0, 1) + u64(2**63) + bytes(99), "metadata key 0 must have 1 to 65535 bytes"),
    "key length 65536": (file([key("k" * 65536, U8, b"\0")]), "metadata key 0 must have 1 to 65535 bytes"),
    "key empty": (file([key("", U8, b"\0"), key("kk", U8, b"\0")]), "metadata key 0 must have 1 to 65535 bytes"),
    "key not UTF-8": (file([key(b"\xff\xfe", U8, b"\0")]), "metadata key 0 is not UTF-8"),
    "key with an escape": (file([key("a\x1b[2J", U8, b"\0")]), "characters that cannot be printed"),
    "key duplicate": (file([key("k", U8, b"\0")] * 2), "the metadata key 'k' appears twice"),
    "key beyond the file": (head(0, 1) + text("kkkkkk", 20), "metadata key 0 reaches past the end"),
    "value type 13": (one_key(13, bytes(8)), "'k' has an unknown type"),
    "value type 2^32-1": (one_key(2**32 - 1, bytes(8)), "'k' has an unknown type"),
    "value cut short": (one_key(U64, bytes(7)), "the value of 'k' reaches past the end"),
    "bool of 2": (one_key(BOOL, b"\2"), "a bool that is neither 0 nor 1"),
    "string of 10^12": (one_key(STRING, text("abc", 10**12)), "the value of 'k' reaches past the end"),
    "string of 2^64-1": (one_key(STRING, text("abc", 2**64 - 1)), "the value of 'k' reaches past the end"),
    "string not UTF-8": (one_key(STRING, text(b"a\xc3(")), "the value of 'k' is not UTF-8"),
    "array of 10^12": (one_key(ARRAY, array(U8, 10**12)), "the array 'k' of length 1000000000000 reaches past the"),
    "array of 2^64-1": (one_key(ARRAY, array(U64, 2**64 - 1)), "reaches past the end"),
    "array of 10^7 numbers, truncated": (one_key(ARRAY, array(F32, 10**7, bytes(10**6))), "reaches past the end"),
    "array of 10^7 strings, truncated": (one_key(ARRAY, MANY_STRINGS), "reaches past the end"),
    "array whose last string is cut": (one_key(ARRAY, array(STRING, 2, text("a") + text("b", 9))), "reaches past"),
    "array whose last length is cut": (one_key(ARRAY, array(STRING, 2, text("abcdef") + b"\0")), "reaches past"),
    "array with a string not UTF-8": (one_key(ARRAY, array(STRING, 2, text("a") + text(b"\xff"))), "is not UTF-8"),
    "array of unknown type": (one_key(ARRAY, array(13, 1, bytes(8))), "the array 'k' has an unknown type"),
    "array of bools with 7": (one_key(ARRAY, array(BOOL, 3, b"\0\1\7")), "a bool that is neither 0 nor 1"),
    "array nested 2000 deep": (one_key(ARRAY, DEEP), "nested too deep"),
    "array nested 5 deep": (one_key(ARRAY, array(ARRAY, 1) * 4 + array(U8, 0)), "nested too deep"),
    "array of 10^12 arrays": (one_key(ARRAY, array(ARRAY, 10**12, array(U8, 0))), "reaches past the end"),
    "alignment 0": (file([key(ALIGNMENT, U32, u32(0))]), "general.alignment must be a u32 and a power of two"),
    "alignment 13": (file([key(ALIGNMENT, U32, u32(13))]), "general.alignment must be a u32 and a power of two"),
    "alignment string": (file([key(ALIGNMENT, STRING, text("32"))]), "general.alignment must be a u32"),
    "alignment u64": (file([key(ALIGNMENT, U64, u64(32))]), "general.alignment must be a u32"),
    "tensor name empty": (one_tensor(name=""), "the name of tensor 0 must have 1 to 64 bytes"),
    "tensor name of 65": (one_tensor(name="n" * 65), "the name of tensor 0 must have 1 to 64 bytes"),
    "tensor name length 2^63": (head(1, 0) + u64(2**63) + bytes(99), "the name of tensor 0 must have 1 to 64"),
    "tensor name not UTF-8": (one_tensor(name=b"\xff"), "the name of tensor 0 is not UTF-8"),
    "tensor name with a newline": (one_tensor(name="a\nb"), "characters that cannot be printed"),
    "tensor duplicate": (file([], [tensor(), tensor(offset=128)], bytes(256)), "the tensor 't' appears twice"),
    "n_dims 10^9": (one_tensor(n_dims=10**9), "must have 1 to 4 dimensions"),
    "n_dims 0": (one_tensor(dims=(), n_dims=0), "must have 1 to 4 dimensions"),
    "n_dims 5": (one_tensor(dims=(32, 1, 1, 1, 1)), "must have 1 to 4 dimensions"),
    "dims overflow": (one_tensor(dims=(2**32, 2**32)), "product below 2^63"),
    "dims overflow to a small product": (one_tensor(dims=(2**33, 2**33, 4)), "product below 2^63"),
    "dims 2^40": (one_tensor(dims=(2**40,)), "'t' reaches past the end"),
    "dims 0": (one_tensor(dims=(32, 0)), "every dimension must be at least 1"),
    "type 4": (one_tensor(kind=4), "one that ggml removed"),
    "type 9": (one_tensor(kind=9), "in memory only"),
    "type 250": (one_tensor(kind=250), "its type is unknown"),
    "row % 32": (one_tensor(dims=(33, 32), kind=Q8_0), "a row of Q8_0 must be a multiple of 32"),
    "row % 32 though the product is one": (one_tensor(dims=(16, 2), kind=Q8_0), "a row of Q8_0 must be a multiple"),
    "row % 256": (one_tensor(dims=(32,), kind=12), "a row of Q4_K must be a multiple of 256"),
    "offset past the end": (one_tensor(offset=4096), "'t' reaches past the end"),
    "offset 2^64-32": (one_tensor(offset=2**64 - 32), "'t' reaches past the end"),
    "offset unaligned": (one_tensor(offset=4, dims=(4,)), "must be a multiple of the alignment 32"),
    "tensors overlapping": (file([], [tensor("a"), tensor("b", offset=64)], bytes(256)), "'a' and 'b' overlap"),
    "tensors identical": (file([], [tensor("a"), tensor("b")], bytes(256)), "'a' and 'b' overlap"),
    "data short by one": (file([], [tensor()], bytes(127)), "'t' reaches past the end"),
    "data absent": (file([], [tensor()])[:-9], "'t' reaches past the end"),
    "tensor list cut": (head(1, 0) + tensor()[:-1], "reaches past the end"),
}
VALID = {
    "empty": (head(0, 0), {}, {}),
    "version 2": (b"GGUF" + u32(2) + one_key(U32, u32(7))[8:], {"k": 7}, {}),
    "nested arrays": (
        one_key(ARRAY, array(ARRAY, 2, array(STRING, 1, text("é")) + array(ARRAY, 1, array(STRING, 0)))),
        {"k": [["é"], [[]]]},
        {},
    ),
    "key of 65535": (file([key("k" * 65535, BOOL, b"\1")]), {"k" * 65535: True}, {}),
    "alignment last": (
        file([key("a", U8, b"\3"), key(ALIGNMENT, U32, u32(64))], [tensor("n" * 64)], bytes(128), align=64),
        {"a": 3, ALIGNMENT: 64},
        {"n" * 64: (32,)},
    ),
    "four dimensions": (file([], [tensor(dims=(4, 3, 2, 1))], bytes(96)), {}, {"t": (1, 2, 3, 4)}),
    "out of order, with a hole": (
        file([], [tensor("b", offset=256), tensor("a", offset=0)], bytes(384)),
        {},
        {"b": (32,), "a": (32,)},
    ),
}


@pytest.mark.parametrize(("data", "rule"), MALFORMED.values(), ids=MALFORMED)
def test_a13_malformed(tmp_path: Path, data: bytes, rule: str) -> None:
    path = tmp_path / "bad.gguf"
    path.write_bytes(data)
    with pytest.raises(CorruptFile) as caught:
        GGUFFile(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert rule in message
    assert message.isprintable()
    assert len(message) < 600 + len(str(path))


@pytest.mark.parametrize("data", [data for data, _ in MALFORMED.values()], ids=MALFORMED)
def test_a13_cost(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "bad.gguf"
    path.write_bytes(data)
    tracemalloc.start()
    with watchdog(SECONDS), pytest.raises(CorruptFile):
        GGUFFile(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < len(data) + 200_000


@pytest.mark.parametrize(("data", "metadata", "shapes"), VALID.values(), ids=VALID)
def test_a13_valid(tmp_path: Path, data: bytes, metadata: dict[str, Any], shapes: dict[str, Any]) -> None:
    path = tmp_path / "good.gguf"
    path.write_bytes(data)
    with GGUFFile(path) as opened:
        assert opened.metadata == metadata
        assert {name: entry.shape for name, entry in opened.entries.items()} == shapes


def test_a13_head_over_the_limit(tmp_path: Path) -> None:
    path = tmp_path / "large.gguf"
    with path.open("wb") as target:
        target.write(head(0, 1) + text("k") + u32(ARRAY) + array(U8, MAX_HEADER_BYTES + 1))
        target.truncate(MAX_HEADER_BYTES + 4096)  # sparse
    with pytest.raises(CorruptFile, match=f"past the limit of {MAX_HEADER_BYTES} bytes"):
        GGUFFile(path)


def test_a13_not_a_file(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound, match="no such file"):
        GGUFFile(tmp_path / "absent.gguf")
    with pytest.raises(CorruptFile, match="a regular file is needed"):
        GGUFFile(tmp_path)


def test_a9_truncated_and_rewritten_after_opening(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(one_tensor())
    with GGUFFile(path) as opened:
        assert opened.tensor("t").tolist() == [0.0] * 32
        os.truncate(path, path.stat().st_size - 64)
        for read in (opened.tensor, opened.stored):
            with pytest.raises(CorruptFile, match="changed its size"):
                read("t")
    path.write_bytes(one_tensor())
    with GGUFFile(path) as opened:
        os.utime(path, ns=(0, 0))
        with pytest.raises(CorruptFile, match="was written to"):
            opened.tensor("t")


def q8_0_file(path: Path, scales: np.ndarray, quants: np.ndarray) -> GGUFFile:
    """One Q8_0 tensor ``t``: a row for each scale (float16 bits), each row one block of 32."""
    blocks = np.concatenate([scales.astype("<u2")[:, None].view(np.uint8), quants.view(np.uint8)], axis=1)
    path.write_bytes(file([], [tensor(dims=(32, len(scales)), kind=Q8_0)], blocks.tobytes()))
    return GGUFFile(path)


def test_a14_every_scale_is_defined(tmp_path: Path) -> None:
    """All 65536 float16 scales, subnormal, negative, NaN and infinite ones included, with q from -128 to 127."""
    scales = np.arange(65536, dtype=np.uint16)
    row = np.array([-128, -127, -1, 0, 1, 127, *range(-13, 13)], dtype=np.int8)
    quants = np.tile(row, (65536, 1))
    with q8_0_file(tmp_path / "q8.gguf", scales, quants) as opened:
        values = opened.tensor("t").numpy()
    assert values.dtype == np.float32
    with np.errstate(invalid="ignore"):
        exact = scales.view(np.float16).astype(np.float64)[:, None] * quants.astype(np.float64)
        assert np.array_equal(values, exact, equal_nan=True)
        theirs = gguf.quants.dequantize(
            np.concatenate([scales[:, None].view(np.uint8), quants.view(np.uint8)], axis=1),
            gguf.GGMLQuantizationType.Q8_0,
        )
    numbers = ~np.isnan(theirs)
    assert np.array_equal(values.view(np.uint32)[numbers], theirs.view(np.uint32)[numbers])
    assert values[0x7C00, 0] == -np.inf
    assert np.isnan(values[0x7C00, 3])  # infinity times zero
    assert values[1, 0] == -128 * 2.0**-24


@pytest.mark.parametrize("bits", [0x7E00, 0x7C00, 0xFC00], ids=["NaN", "infinity", "-infinity"])
def test_a14_odd_scales_are_flagged_by_the_loader(tmp_path: Path, bits: int) -> None:
    quants = np.ones((2, 32), dtype=np.int8)
    specs = [ParameterSpec("t", (2, 32), "matrix")]
    with q8_0_file(tmp_path / "q8.gguf", np.array([0x3C00, bits]), quants) as opened:
        assert len(load_tensors(opened, specs, take=lambda _, stored: (stored, True))[1].suspicious) == 1
        with pytest.raises(CorruptFile, match="t holds NaN or infinity"):
            load_tensors(opened, specs, take=lambda _, stored: (stored, True), check="fail")


@pytest.fixture
def split_set(tmp_path: Path) -> Callable[..., list[Path]]:
    """Writes a qwen3 model of six tensors in three parts."""

    def write(name: str = "model", layers: int = 1, value: float = 1.0) -> list[Path]:
        writer = gguf.GGUFWriter(tmp_path / f"{name}.gguf", "qwen3", split_max_tensors=2)
        writer.add_name(name)
        for add, number in (
            (writer.add_block_count, layers),
            (writer.add_context_length, 64),
            (writer.add_embedding_length, 32),
            (writer.add_feed_forward_length, 32),
            (writer.add_head_count, 2),
            (writer.add_vocab_size, 3),
            (writer.add_layer_norm_rms_eps, 1e-6),
            (writer.add_rope_freq_base, 1e6),
        ):
            add(number)
        for index in range(6):
            writer.add_tensor(f"blk.{index}.attn_norm.weight", np.full(32, value + index, dtype=np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return [tmp_path / f"{name}-{part:05}-of-00003.gguf" for part in (1, 2, 3)]

    return write


def swap(one: Path, other: Path) -> None:
    spare = one.with_suffix(".spare")
    one.rename(spare)
    other.rename(one)
    spare.rename(other)


def test_a15_the_first_part_opens_all(split_set: Callable[..., list[Path]]) -> None:
    parts = split_set()
    with GGUFCheckpoint(parts[0]) as checkpoint:
        assert [file.path for file in checkpoint.files] == parts
        assert len(checkpoint.entries) == 6
        for index in range(6):
            name = f"model.layers.{index}.input_layernorm.weight"
            assert checkpoint.entries[name].file == parts[index // 2]
            assert checkpoint.tensor(name).tolist() == [1.0 + index] * 32
        parts[2].write_bytes(parts[2].read_bytes() + b"\0")
        with pytest.raises(CorruptFile, match="00003-of-00003"):
            checkpoint.check_unchanged()


@pytest.mark.parametrize("part", [1, 2])
def test_a15_a_later_part_given(split_set: Callable[..., list[Path]], part: int) -> None:
    parts = split_set()
    with pytest.raises(CorruptFile, match=f"this is part {part + 1} of 3 .* open {parts[0]} instead"):
        GGUFCheckpoint(parts[part])


@pytest.mark.parametrize("part", [1, 2])
def test_a15_missing_part(split_set: Callable[..., list[Path]], part: int) -> None:
    parts = split_set()
    parts[part].unlink()
    with pytest.raises(CorruptFile, match=f"^{parts[part]}: part {part + 1} of 3 of the split model is missing"):
        GGUFCheckpoint(parts[0])


def test_a15_wrong_order(split_set: Callable[..., list[Path]]) -> None:
    parts = split_set()
    swap(parts[1], parts[2])
    with pytest.raises(CorruptFile, match=rf"^{parts[1]}: .*part 2 of 3 .*expected 1, found 2"):
        GGUFCheckpoint(parts[0])
    swap(parts[1], parts[2])
    swap(parts[0], parts[1])
    with pytest.raises(CorruptFile, match=r"this is part 2 of 3 .*restore the names"):
        GGUFCheckpoint(parts[0])


def test_a15_mixed_models(split_set: Callable[..., list[Path]]) -> None:
    parts, others = split_set(), split_set("other")
    others[1].replace(parts[1])
    with GGUFCheckpoint(parts[0]):
        pass  # nothing in such a part tells: GGUF gives later parts no identity
    # The same part written with another count of tensors, or repeating other metadata.
    data = parts[1].read_bytes()
    counted = b"split.tensors.count" + u32(5)
    at = data.index(counted) + len(counted)
    parts[1].write_bytes(data[:at] + u32(7) + data[at + 4 :])
    with pytest.raises(CorruptFile, match=rf"^{parts[1]}: part 2 of 3 is of another model: its split.tensors.count"):
        GGUFCheckpoint(parts[0])
    name = key("general.name", STRING, text("another"))
    longer = data[:16] + u64(int.from_bytes(data[16:24], "little") + 1) + name + data[24:] + bytes(256)
    parts[1].write_bytes(longer)
    with pytest.raises(CorruptFile, match=r"part 2 of 3 is of another model: its general\.name .*model, found another"):
        GGUFCheckpoint(parts[0])


def test_a15_part_twice(split_set: Callable[..., list[Path]]) -> None:
    parts = split_set()
    data = parts[1].read_bytes()
    number = b"split.no" + u32(2)
    at = data.index(number) + len(number)
    parts[2].write_bytes(data[:at] + struct.pack("<H", 2) + data[at + 2 :])
    with pytest.raises(CorruptFile, match=rf"^{parts[2]}: the tensor .* is also in {parts[1].name}"):
        GGUFCheckpoint(parts[0])


def test_a15_tensors_missing_in_all(split_set: Callable[..., list[Path]]) -> None:
    parts = split_set()
    counted = b"split.tensors.count" + u32(5)
    for part in parts:
        data = part.read_bytes()
        at = data.index(counted) + len(counted)
        part.write_bytes(data[:at] + u32(9) + data[at + 4 :])
    with pytest.raises(CorruptFile, match=r"do not hold as many tensors .*expected 9, found 6"):
        GGUFCheckpoint(parts[0])


def test_a15_renamed_first_part(split_set: Callable[..., list[Path]]) -> None:
    parts = split_set()
    renamed = parts[0].rename(parts[0].with_name("model.gguf"))
    with pytest.raises(CorruptFile, match=r"must be named so that the others can be found .*-00001-of-00003\.gguf"):
        GGUFCheckpoint(renamed)


@pytest.mark.parametrize("value", [key("split.count", U32, u32(0)), key("split.count", STRING, text("3"))])
def test_a15_split_count(tmp_path: Path, value: bytes) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(file([value]))
    with pytest.raises(CorruptFile, match=r"split\.count must be"):
        GGUFCheckpoint(path)


TINY = file(
    [
        key("general.architecture", STRING, text("qwen3")),
        key("qwen3.block_count", U32, u32(1)),
        key("x", ARRAY, array(STRING, 2, text("ab") + text("c"))),
        key("y", ARRAY, array(BOOL, 2, b"\0\1")),
        key(ALIGNMENT, U32, u32(8)),
    ],
    [tensor("token_embd.weight", (32, 2), Q8_0), tensor("output_norm.weight", (2,), 0, 72)],
    bytes(range(80)),
    align=8,
)


def corrupt_or_sane(path: Path) -> None:
    """Either refused as corrupt, or opened with every tensor inside the file and readable or of no known decoder."""
    try:
        opened = GGUFFile(path)
    except CorruptFile:
        return
    with opened:
        for name, entry in opened.entries.items():
            assert entry.offset + entry.nbytes <= path.stat().st_size
            assert opened.stored(name).nbytes == entry.nbytes
            try:
                assert opened.tensor(name).shape == entry.shape
            except LludaError as error:
                assert name in str(error)


def test_a20_every_truncation(tmp_path: Path) -> None:
    path = tmp_path / "cut.gguf"
    path.write_bytes(TINY)
    GGUFFile(path).close()
    for length in range(len(TINY)):
        path.write_bytes(TINY[:length])
        with pytest.raises(CorruptFile):
            GGUFFile(path)


def test_a20_every_bit(tmp_path: Path) -> None:
    path = tmp_path / "flipped.gguf"
    path.write_bytes(TINY)
    with path.open("r+b", buffering=0) as target:
        for at, byte in enumerate(TINY):
            for bit in range(8):
                os.pwrite(target.fileno(), bytes([byte ^ 1 << bit]), at)
                corrupt_or_sane(path)
            os.pwrite(target.fileno(), bytes([byte]), at)


@settings(max_examples=300, deadline=1000, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.tuples(st.integers(0, len(TINY) - 1), st.sampled_from([0, 1, 2, 4, 8]), st.integers(0, 2**64 - 1)),
        min_size=1,
        max_size=4,
    )
)
def test_a20_numbers_anywhere(tmp_path: Path, changes: list[tuple[int, int, int]]) -> None:
    """Numbers of 1 to 8 bytes written over, or bytes cut out (size 0)."""
    data = bytearray(TINY)
    for at, size, number in changes:
        data[at : at + max(size, 1)] = number.to_bytes(8, "little")[:size]
    path = tmp_path / "mutated.gguf"
    path.write_bytes(data)
    corrupt_or_sane(path)
    try:
        GGUFCheckpoint(path).close()
    except LludaError as error:
        assert str(error).startswith(str(tmp_path))
