"""Blocks of sound as they are said, from a device and from a recording in its place."""

from __future__ import annotations

import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import soundfile

from lluda.errors import InvalidRequest, LludaError
from lluda.inputs.media.microphone import BLOCK, RATE, microphone


def test_a_recording_comes_in_real_time(tmp_path: Path) -> None:
    """Both channels together, at another rate, the last block filled up."""
    path = tmp_path / "said.flac"
    time_line = np.arange(int(0.5 * 48_000)) / 48_000
    tone = 0.5 * np.sin(2 * np.pi * 200 * time_line)
    soundfile.write(path, np.stack([tone, 0 * tone], 1), 48_000)
    begin = time.monotonic()
    blocks = list(microphone(str(path)))
    assert time.monotonic() - begin >= 0.5
    assert {len(block) for block in blocks} == {BLOCK} and len(blocks) == -(-RATE // 2 // BLOCK)
    heard = np.concatenate(blocks)
    expected = 0.25 * np.sin(2 * np.pi * 200 * np.arange(RATE // 2) / RATE)
    np.testing.assert_allclose(heard[500:7500], expected[500:7500], atol=2e-3)
    assert not heard[RATE // 2 :].any()


def test_no_recording(tmp_path: Path) -> None:
    """Said at once, before anything is loaded."""
    with pytest.raises(InvalidRequest, match="there is no such file"):
        microphone(str(tmp_path / "none.wav"))


class Stream:
    """sounddevice's InputStream of a microphone that counts its blocks; ``failing``: there is none."""

    failing = False
    closed = False

    def __init__(self, *, samplerate: int, channels: int, dtype: str, blocksize: int, callback: Any) -> None:
        if Stream.failing:
            raise OSError("no device")
        assert (samplerate, channels, dtype, blocksize) == (RATE, 1, "float32", BLOCK)
        self.callback = callback

    def __enter__(self) -> None:
        buffer = np.zeros((BLOCK, 1), np.float32)

        def run() -> None:
            for number in range(3):
                buffer[:] = number  # the device uses its buffer again
                self.callback(buffer, BLOCK, None, None)

        threading.Thread(target=run).start()

    def __exit__(self, *_: object) -> None:
        Stream.closed = True


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sounddevice", SimpleNamespace(InputStream=Stream, PortAudioError=OSError))
    monkeypatch.setattr(Stream, "failing", False)
    monkeypatch.setattr(Stream, "closed", False)


def test_the_device(device: None) -> None:
    blocks = microphone(None)
    assert [set(next(blocks)) for _ in range(3)] == [{0.0}, {1.0}, {2.0}]
    blocks.close()
    assert Stream.closed


def test_no_device(device: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Stream, "failing", True)
    with pytest.raises(LludaError, match="no device; connect one, or --microphone"):
        next(microphone(None))
