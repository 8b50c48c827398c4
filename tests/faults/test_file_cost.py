"""What a small or large file may cost before it is refused (D6): its counts are bounded by themselves and by their
products, before anything is built from them. Each case took seconds or gigabytes, or would."""

from __future__ import annotations

import json
import re
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lluda.errors import CorruptFile
from lluda.files.json_file import MAX_CONTAINERS, MAX_VALUES, parse_json, read_json
from lluda.weights.gguf.checkpoint import GGUFCheckpoint
from lluda.weights.gguf.header import MAX_ARRAYS, MAX_KEYS, MAX_STRINGS, MAX_TENSORS
from lluda.weights.gguf.names import MAX_ENTRIES
from lluda.weights.safetensors import header as safetensors_header
from lluda.weights.safetensors.file import SafetensorsFile
from lluda.weights.safetensors.folder import ShardIndex
from tests.conftest import watchdog
from tests.faults.test_gguf_faults import ARRAY, STRING, U8, array, file, key, tensor, text, u64
from tests.faults.test_gguf_keys_faults import keys_of, stored
from tests.faults.test_safetensors_faults import raw

SECONDS = 2
"""Of the rule; a test fails at ten times as much."""

I8 = 24


def with_experts(experts: int, layers: int, architecture: str = "qwen3moe", prefix: str = "") -> bytes:
    """A file whose every expert's matrix has one byte."""
    keys = keys_of(architecture)
    keys |= {"qwen3moe.expert_count": experts} if architecture == "qwen3moe" else {}
    keys.pop("split.tensors.count")
    tensors, data = [], 0
    for layer in range(layers):
        for part in ("gate", "up", "down"):
            tensors.append(tensor(f"{prefix}blk.{layer}.ffn_{part}_exps.weight", (1, 1, experts), I8, data))
            data += -(-experts // 32) * 32
    return file([text(name) + stored(value) for name, value in keys.items()], tensors, bytes(data))


def many_tensors() -> bytes:
    count = MAX_TENSORS + 1
    return file([], [tensor(f"{number:x}", (1,), I8, 32 * number) for number in range(count)], bytes(32))


GGUFS: dict[str, tuple[Callable[[], bytes], str]] = {
    "3,000,000 experts": (lambda: with_experts(3_000_000, 1), "found 9000000"),
    "3,000,000 experts of an Omni model": (
        lambda: with_experts(3_000_000, 1, "lluda-qwen3-omni", "thinker."),
        "found 9000000",
    ),
    "many experts in many layers": (
        lambda: with_experts(4096, MAX_ENTRIES // 4096 // 3 + 1),
        f"more matrices than lluda reads (expected at most {MAX_ENTRIES}, found 2",
    ),
    "tensors": (many_tensors, f"number of tensors {MAX_TENSORS + 1} is more than lluda reads"),
    "keys": (
        lambda: file([key(f"{n:x}", U8, b"\0") for n in range(MAX_KEYS + 1)]),
        f"number of metadata keys {MAX_KEYS + 1} is more than lluda reads",
    ),
    "strings": (
        lambda: file([key("k", ARRAY, array(STRING, MAX_STRINGS + 1, u64(0) * (MAX_STRINGS + 1)))]),
        f"of length {MAX_STRINGS + 1} is more than lluda reads",
    ),
    "strings of two arrays": (
        lambda: file(
            [
                key("k", ARRAY, array(STRING, 1, text(""))),
                key("l", ARRAY, array(STRING, MAX_STRINGS, u64(0) * MAX_STRINGS)),
            ]
        ),
        f"the array 'l' of length {MAX_STRINGS} is more than lluda reads (expected at most {MAX_STRINGS - 1})",
    ),
    "arrays": (
        lambda: file([key("k", ARRAY, array(ARRAY, MAX_ARRAYS + 1, array(U8, 0) * (MAX_ARRAYS + 1)))]),
        f"of length {MAX_ARRAYS + 1} is more than lluda reads",
    ),
}


def peak_of(read: Callable[[], object], rule: str) -> int:
    """Bytes that were in use at once until ``read`` was refused by ``rule``."""
    tracemalloc.start()
    try:
        with watchdog(SECONDS), pytest.raises(CorruptFile, match=re.escape(rule)):
            read()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("case", GGUFS)
def test_d6_counts_of_a_gguf_file(tmp_path: Path, case: str) -> None:
    make, rule = GGUFS[case]
    path = tmp_path / "model.gguf"
    path.write_bytes(make())
    assert peak_of(lambda: GGUFCheckpoint(path), rule) < 10 * path.stat().st_size + 200 * 2**20


def test_d6_as_many_experts_as_released_models_have_are_read(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(with_experts(512, 96))  # more than any released model: 384 in 61 layers, 128 in 94
    with GGUFCheckpoint(path) as checkpoint:
        assert len(checkpoint.entries) == 3 * 512 * 96


def header(names: list[str]) -> bytes:
    """A file of one-byte tensors."""
    fields = ('"dtype":"U8"', '"shape":[1]', '"data_offsets":[%d,%d]')
    infos = (f'"{name}":{{{",".join(fields) % (at, at + 1)}}}' for at, name in enumerate(names))
    return raw(("{" + ",".join(infos) + "}").encode(), bytes(len(names)))


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1), (1, 2, 0)])
@pytest.mark.parametrize("separators", [(",", ":"), (", ", ": "), (" ,\n\t", " : ")])
def test_d6_a_plain_header_never_takes_the_slow_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, order: tuple[int, ...], separators: tuple[str, str]
) -> None:
    """Of a model of 30,000 tensors the JSON parser would take seconds."""
    monkeypatch.setattr(safetensors_header, "parse_json", lambda *_, **__: pytest.fail("parsed as JSON"))
    fields = [("dtype", "BF16"), ("shape", [2, 1]), ("data_offsets", [0, 4])]
    info = dict(fields[index] for index in order)
    empty = {"dtype": "F32", "shape": [], "data_offsets": [4, 8]}
    content = json.dumps({"a\\b\u00e9": info, "c": empty}, separators=separators, ensure_ascii=False).encode()
    path = tmp_path / "x.safetensors"
    path.write_bytes(raw(content, bytes(8)))
    with SafetensorsFile(path) as opened:
        assert {name: (e.dtype, e.shape, e.nbytes) for name, e in opened.entries.items()} == {
            "a\\b\u00e9": ("BF16", (2, 1), 4),
            "c": ("F32", (), 4),
        }


INFOS = [
    '{"dtype":"U8","shape":[4],"data_offsets":[0,4]}',
    '{"dtype":"U8","shape":[2,2],"data_offsets":[0,4],}',
    '{,"dtype":"U8","shape":[2,2],"data_offsets":[0,4]}',
    '{"dtype":"U8""shape":[4],"data_offsets":[0,4]}',
    '{"dtype":"U8","dtype":"U8","data_offsets":[0,4]}',
    '{"dtype":"U8","dtype":"U8","shape":[4],"data_offsets":[0,4]}',
    '{"dtype":"U8","shape":[4]}',
    '{"dtype":"U8","shape":[04],"data_offsets":[0,4]}',
    '{"dtype":"U8","shape":[4,],"data_offsets":[0,4]}',
    '{"dtype":"U8","shape":[,4],"data_offsets":[0,4]}',
    '{"dtype":"U8","shape":[4 1],"data_offsets":[0,4]}',
    '{"dtype":"U8","shape":[ 4 , 1 ],"data_offsets":[ 0 , 4 ]}',
    '{"dtype":"U8","shape":[4],"data_offsets":[0,4,4]}',
    '{"dtype":"U8","shape":[4],"data_offsets":[00,4]}',
    '{"dtype":"U8","shape":[4.0],"data_offsets":[0,4]}',
    '{"dtype":"U8","shape":[-4],"data_offsets":[0,4]}',
    '{"dtype":"U8","shape":[9999999999999999999],"data_offsets":[0,4]}',
    '{"dtype":"U8","shape":[99999999999999999999],"data_offsets":[0,4]}',
    '{"dtype":"\\u0055\\u0038","shape":[4],"data_offsets":[0,4]}',
    '{"dtype":"u8","shape":[4],"data_offsets":[0,4]}',
    '{"dtype":"U8","shape":[4],"data_offsets":[0,4]\u00a0}',
    '{"dtype":"U8","shape":[\u0664],"data_offsets":[0,4]}',
]


@pytest.mark.parametrize("info", INFOS)
def test_d6_both_ways_read_a_description_alike(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, info: str) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(raw(f'{{"x":{info}}}'.encode(), b"abcd"))

    def read() -> Any:
        try:
            with SafetensorsFile(path) as opened:
                return dict(opened.entries)
        except CorruptFile as error:
            return str(error)

    quick = read()
    monkeypatch.setattr(safetensors_header, "_PLAIN_INFO", re.compile(r"(?!)"))
    assert read() == quick


@pytest.mark.parametrize("kind", ["tensors", "metadata"])
def test_d6_counts_of_a_safetensors_header(tmp_path: Path, kind: str) -> None:
    """90 MB of them took 35 s."""
    path = tmp_path / "x.safetensors"
    if kind == "tensors":
        path.write_bytes(header([f"{number:x}" for number in range(safetensors_header.MAX_TENSORS + 1)]))
        rule = f"lists over {safetensors_header.MAX_TENSORS} tensors"
    else:
        keys = ",".join(f'"{number:x}":""' for number in range(safetensors_header.MAX_METADATA_KEYS + 1))
        path.write_bytes(raw(f'{{"__metadata__":{{{keys}}}}}'.encode(), b""))
        rule = f"__metadata__ has over {safetensors_header.MAX_METADATA_KEYS} keys"
    with watchdog(SECONDS), pytest.raises(CorruptFile, match=rule):
        SafetensorsFile(path)


def test_d6_an_index_of_too_many_names(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors.index.json"
    names = ",".join(f'"{number:x}":""' for number in range(2**18 + 2))
    path.write_text(f'{{"weight_map":{{{names}}}}}')
    assert peak_of(lambda: ShardIndex(path), "too many values in one JSON text") < 10 * path.stat().st_size


@pytest.mark.parametrize(
    ("content", "rule"),
    [
        ("[" + "[]," * MAX_CONTAINERS + "1]", "too many objects and arrays"),
        ("[" + "{}," * MAX_CONTAINERS + "1]", "too many objects and arrays"),
        ("[" + "1," * (MAX_VALUES + 1) + "1]", "too many values"),
    ],
    ids=["arrays", "objects", "values"],
)
def test_d6_values_of_a_json_file(tmp_path: Path, content: str, rule: str) -> None:
    path = tmp_path / "x.json"
    path.write_text(content)
    assert peak_of(lambda: read_json(path, max_bytes=2**24), rule) < 10 * len(content)


@pytest.mark.parametrize("number", ["1e400", "-1e999", "1E+0400", "9" * 41, "-" + "9" * 41, "1" + "0" * 400 + ".5"])
def test_d6_large_numbers_are_still_refused(number: str) -> None:
    """Numbers are judged one by one only where a text may hold a large one."""
    with pytest.raises(CorruptFile, match=r"too large for float64|an integer of \d+ digits"):
        parse_json(f'{{"a":[1,{number}]}}', Path("x.json"))


@pytest.mark.parametrize("number", ["1e99", "1e-400", "9" * 40, "1e308", "0.1"])
def test_d6_numbers_within_bounds_are_read_as_python_reads_them(number: str) -> None:
    assert parse_json(f"[{number}]", Path("x.json")) == [json.loads(number)]
