"""Quantising that goes wrong (row A16), and hostile files of the Omni layout: each rule has its own message."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lluda.convert.gguf_writer import NewTensor, write_gguf
from lluda.convert.quantize import TypeChoice
from lluda.convert.quantize_model import quantize_model
from lluda.errors import CorruptFile, InvalidRequest, LludaError
from lluda.weights.checkpoint import read_config, read_generation_config
from lluda.weights.gguf.checkpoint import GGUFCheckpoint
from tests.conftest import TINY_QWEN3
from tests.convert.test_quantize import checkpoint

Q8_0 = TypeChoice("q8_0")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoint(tmp_path_factory.mktemp("source") / "m", TINY_QWEN3)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


KILL = """
import os, signal, sys
from pathlib import Path
from lluda.convert.quantize_model import quantize_model
from lluda.convert.quantize import TypeChoice
calls = 0
def kill(done, total):
    global calls
    calls += 1
    if calls == int(sys.argv[3]):
        os.kill(os.getpid(), signal.SIGKILL)
split = int(sys.argv[4]) or None
quantize_model(sys.argv[1], Path(sys.argv[2]), TypeChoice("q8_0"), split_bytes=split, threads=1, progress=kill)
"""


@pytest.mark.parametrize(("call", "split"), [(1, 0), (35, 0), (20, 50_000)], ids=["first", "last", "in a set"])
def test_a16_killed_midway_leaves_nothing_that_opens(tmp_path: Path, source: Path, call: int, split: int) -> None:
    before, out = contents(source), tmp_path / "q.gguf"
    command = [sys.executable, "-c", KILL, source, out, str(call), str(split)]
    assert subprocess.run(command, check=False, timeout=120).returncode == -signal.SIGKILL
    assert contents(source) == before
    left = [path for path in tmp_path.iterdir() if not path.name.startswith(".")]
    assert out not in left
    for path in left:  # whole parts of a set whose first is not there yet
        assert "-00001-" not in path.name
        with pytest.raises(CorruptFile, match="of a split model"):
            GGUFCheckpoint(path)
    if not split:
        quantize_model(source, out, Q8_0)
        assert [path.name for path in tmp_path.iterdir()] == ["q.gguf"]


@pytest.mark.parametrize("split", [None, 50_000], ids=["whole", "a set"])
def test_a16_a_disk_that_fills_up(tmp_path: Path, source: Path, split: int | None) -> None:
    before, limit = contents(source), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (36_000, limit[1]))
    try:
        with pytest.raises(LludaError, match=r"q.*\.gguf: cannot be written: File too large"):
            quantize_model(source, tmp_path / "q.gguf", Q8_0, split_bytes=split)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert not list(tmp_path.iterdir())
    assert contents(source) == before


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is read-only for root")
def test_a16_a_folder_that_is_read_only(tmp_path: Path, source: Path) -> None:
    (tmp_path / "locked").mkdir(mode=0o500)
    with pytest.raises(LludaError, match="check that the folder is writable"):
        quantize_model(source, tmp_path / "locked" / "q.gguf", Q8_0)


def test_a16_a_folder_that_is_a_file(tmp_path: Path, source: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(LludaError, match="cannot be written"):
        quantize_model(source, tmp_path / "file" / "q.gguf", Q8_0)
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("link", [None, os.link, os.symlink], ids=["itself", "hard link", "symbolic link"])
def test_a16_the_input_is_never_the_output(tmp_path: Path, source: Path, link: Any) -> None:
    quantize_model(source, tmp_path / "in.gguf", Q8_0)
    before, out = (tmp_path / "in.gguf").read_bytes(), tmp_path / "in.gguf"
    if link:
        out = tmp_path / "out.gguf"
        link(tmp_path / "in.gguf", out)
    with pytest.raises(InvalidRequest, match="exists; remove it first"):
        quantize_model(tmp_path / "in.gguf", out, TypeChoice("bf16"))
    assert (tmp_path / "in.gguf").read_bytes() == before


def test_a_source_that_changes_meanwhile_gives_no_file(tmp_path: Path) -> None:
    source = checkpoint(tmp_path / "m", TINY_QWEN3)

    def touch(done: int, _total: int) -> None:
        os.utime(source / "model.safetensors", ns=(done, done))

    with pytest.raises(CorruptFile, match="was written to after it was opened"):
        quantize_model(source, tmp_path / "q.gguf", Q8_0, progress=touch)
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


# Files of the Omni layout.

CONFIG = '{"model_type": "qwen3_omni_moe"}'


def omni(path: Path, tensors: dict[str, tuple[int, ...]], **keys: Any) -> Path:
    def zeros(shape: tuple[int, ...]) -> Any:
        return lambda file: (file.write(bytes(4 * int(np.prod(shape)))), "F32")[1]

    metadata = {"general.architecture": "lluda-qwen3-omni", "lluda.config": CONFIG} | {
        key.replace("__", "."): value for key, value in keys.items()
    }
    tensors_to_write = [NewTensor(name, shape, "F32", 1, zeros(shape)) for name, shape in tensors.items()]
    write_gguf(path, {key: value for key, value in metadata.items() if value is not None}, tensors_to_write)
    return path


KERNEL = "thinker.visual.patch_embed.proj.weight"
SHAPE = {KERNEL: [4, 3, 2, 2, 2]}
HOSTILE: dict[str, tuple[dict[str, Any], dict[str, tuple[int, ...]], str]] = {
    "no config": ({"lluda__config": None}, {"t": (1,)}, "the key lluda.config is missing"),
    "a number as config": ({"lluda__config": 5}, {"t": (1,)}, "lluda.config must be a string"),
    "a list as config": ({"lluda__config": "[]"}, {"t": (1,)}, "must be an object"),
    "config that is not JSON": ({"lluda__config": "{"}, {"t": (1,)}, "lluda.config: not JSON"),
    "config of 5 MB": ({"lluda__config": '{"a": "' + 5_000_000 * "x" + '"}'}, {"t": (1,)}, "at most 4194304"),
    "deep config": ({"lluda__config": 5000 * '{"a":' + "1" + 5000 * "}"}, {"t": (1,)}, "nested too deep"),
    "another kind of model": ({"lluda__config": '{"model_type": "llama"}'}, {"t": (1,)}, "must be qwen3_omni_moe"),
    "no kind of model": ({"lluda__config": "{}"}, {"t": (1,)}, "must be qwen3_omni_moe"),
    "shapes that are a list": ({"lluda__shapes": "[]"}, {"t": (1,)}, "lluda.shapes: the JSON must be an object"),
    "another number of values": ({"lluda__shapes": json.dumps(SHAPE)}, {KERNEL: (4, 25)}, "must be that of its values"),
    "another first dimension": ({"lluda__shapes": json.dumps(SHAPE)}, {KERNEL: (2, 48)}, "must be that of its values"),
    "few dimensions": ({"lluda__shapes": '{"t": [3, 4]}'}, {"t": (3, 4)}, "with over four dimensions"),
    "a negative size": ({"lluda__shapes": '{"t": [-3, -1, 4, 1, 1]}'}, {"t": (3, 4)}, "must be that of its values"),
    "a true size": ({"lluda__shapes": '{"t": [3, 4, true, 1, 1]}'}, {"t": (3, 4)}, "must be that of its values"),
    "a text as shape": ({"lluda__shapes": '{"t": "34111"}'}, {"t": (3, 4)}, "must be that of its values"),
    "many experts": ({}, {"thinker.blk.0.ffn_up_exps.weight": (300_000, 1, 1)}, "more matrices than lluda reads"),
    "two of a name": (
        {},
        {"talker.blk.0.attn_q.weight": (1, 1), "talker.model.layers.0.self_attn.q_proj.weight": (1, 1)},
        "two tensors are named",
    ),
}


@pytest.mark.parametrize(("keys", "tensors", "rule"), HOSTILE.values(), ids=HOSTILE)
def test_hostile_omni_files(tmp_path: Path, keys: dict[str, Any], tensors: Any, rule: str) -> None:
    path = omni(tmp_path / "m.gguf", tensors, **keys)
    with pytest.raises(CorruptFile, match=rule) as error:
        GGUFCheckpoint(path)
    assert str(path) in str(error.value)
    assert len(str(error.value)) < 1000


@pytest.mark.parametrize("value", [5, "[]", "{", "x" * 5_000_000])
def test_hostile_documents(tmp_path: Path, value: Any) -> None:
    path = omni(tmp_path / "m.gguf", {"t": (1,)}, lluda__generation_config=value)
    with pytest.raises(CorruptFile, match=r"lluda\.generation_config"):
        read_generation_config(path)


def test_the_reader_takes_what_is_right(tmp_path: Path) -> None:
    tensors = {
        KERNEL: (4, 24),
        "thinker.blk.0.ffn_up_exps.weight": (3, 2, 5),
        "code2wav.blk.1.attn_layer_scale.scale": (4,),
    }
    path = omni(tmp_path / "m.gguf", tensors, lluda__shapes=json.dumps(SHAPE))
    with GGUFCheckpoint(path) as file:
        shapes = {name: entry.shape for name, entry in file.entries.items()}
        assert file.tensor(KERNEL).shape == (4, 3, 2, 2, 2)
    experts = {f"thinker.model.layers.0.mlp.experts.{expert}.up_proj.weight": (2, 5) for expert in range(3)}
    scale = {"code2wav.pre_transformer.layers.1.self_attn_layer_scale.scale": (4,)}
    assert shapes == {KERNEL: (4, 3, 2, 2, 2), **experts, **scale}
    assert read_config(path) == {"model_type": "qwen3_omni_moe"}
