"""Both ways to record launches."""

from __future__ import annotations

import ctypes

import numpy as np
import pytest

pytest.importorskip("wgpu", reason="wgpu-py is not installed")

from lluda.backends.wgpu import recorder as recorders
from lluda.backends.wgpu.recorder import CffiRecorder, NativeRecorder, best_recorder
from lluda.errors import NativeLibraryError


def test_the_native_one_is_taken_where_it_is_built(monkeypatch, tmp_path):
    assert best_recorder().name == "native"
    monkeypatch.setenv("LLUDA_NATIVE_DIR", str(tmp_path))
    assert best_recorder().name == "cffi"
    (tmp_path / "liblluda_native.so").write_bytes(b"no library")
    with pytest.raises(NativeLibraryError, match=r"records no launches.*make native"):
        NativeRecorder()
    assert best_recorder().name == "cffi"


def test_the_native_one_calls_what_it_is_given():
    seen = []
    pointers, words = ctypes.c_void_p, ctypes.c_uint32
    set_pipeline = ctypes.CFUNCTYPE(None, pointers, pointers)(lambda *call: seen.append(("pipeline", *call)))
    set_group = ctypes.CFUNCTYPE(None, pointers, words, pointers, ctypes.c_size_t, pointers)(
        lambda *call: seen.append(("group", *call))
    )
    dispatch = ctypes.CFUNCTYPE(None, pointers, words, words, words)(lambda *call: seen.append(("dispatch", *call)))
    recorder = NativeRecorder()
    recorder._functions = [ctypes.cast(each, pointers).value for each in (set_pipeline, set_group, dispatch)]
    ffi = recorders.ffi
    calls = [
        (ffi.cast("void *", 5), ffi.cast("void *", 6), 1, 2, 3),
        (ffi.cast("void *", 5), ffi.cast("void *", 7), 65535, 1, 1),
    ]
    recorder.record(ffi.cast("void *", 9), recorder.table(calls))
    recorder.record(ffi.cast("void *", 9), recorder.table([]))
    assert seen == [
        ("pipeline", 9, 5), ("group", 9, 0, 6, 0, None), ("dispatch", 9, 1, 2, 3),
        ("group", 9, 0, 7, 0, None), ("dispatch", 9, 65535, 1, 1),
    ]  # fmt: skip


@pytest.mark.parametrize("recorder", [CffiRecorder, NativeRecorder])
def test_what_is_recorded_computes(adapter, recorder):
    from lluda.backends.wgpu.gpu import Gpu
    from lluda.backends.wgpu.steps.launch import Commands, Launch, whole
    from lluda.backends.wgpu.wgsl import embedding

    gpu = Gpu(adapter, checked=True, recorder=recorder())
    table = np.arange(64, dtype=np.uint32)  # of BF16 numbers, two a word: the upper ones are zeros
    held, ids, x = gpu.buffer(256), gpu.buffer(8), gpu.buffer(4 * 2 * 32)
    gpu.write(held, 0, table << 16)
    gpu.write(ids, 0, np.array([3, 1], np.uint32))
    shader = embedding.lookup("bf16", 0, 4, 32)
    launch = Launch(shader, (whole(held), whole(ids), whole(x)), (1, 2, 1))
    commands = Commands(gpu, [launch, launch])
    for _ in range(2):
        gpu.wait(gpu.submit(commands.recorded()))
    rows = gpu.download(x, 256).view(np.uint32).reshape(2, 32)
    assert (rows[0, 1::2] == np.arange(48, 64) << 16).all() and (rows[1, 1::2] == np.arange(16, 32) << 16).all()
    assert not rows[:, ::2].any()
