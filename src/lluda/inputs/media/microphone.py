"""Sound as it is said: the computer's microphone, or a recording that is played in its place."""

from __future__ import annotations

import queue
import time
from collections.abc import Generator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lluda.errors import InvalidRequest, LludaError, MissingDependency
from lluda.extras import missing, require

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

RATE = 16_000
BLOCK = 512
"""Samples handed out at once: 32 ms, a frame of voice activity detection."""


def microphone(source: str | None) -> Generator[NDArray[np.float32]]:
    """Blocks of mono samples ``[512]`` at 16 kHz in real time: of the default microphone (None; it never ends), or of
    the recording ``source``, whose last block is filled with silence. Closing it closes the microphone.

    InvalidRequest: no such recording. MissingDependency, LludaError: no sounddevice package, or no microphone.
    """
    return _device() if source is None else _in_real_time(_samples(Path(source)))


def _in_real_time(samples: NDArray[np.float32]) -> Generator[NDArray[np.float32]]:
    import numpy as np

    samples = np.concatenate([samples, np.zeros(-len(samples) % BLOCK, np.float32)])
    begin = time.monotonic()
    for end in range(BLOCK, len(samples) + 1, BLOCK):
        # As a microphone: a block is there when its last sample was said.
        time.sleep(max(0.0, begin + end / RATE - time.monotonic()))
        yield samples[end - BLOCK : end]


def _samples(path: Path) -> NDArray[np.float32]:
    require(f"reading {path}", "media")
    import soundfile
    import soxr

    try:
        samples, rate = soundfile.read(path, dtype="float32", always_2d=True)
    except (soundfile.SoundFileError, OSError) as error:
        reason = "there is no such file" if not path.exists() else str(error).rstrip(".")
        raise InvalidRequest(f"{path}: {reason}; the microphone may be a .wav or .flac file") from None
    resampled: NDArray[np.float32] = soxr.resample(samples.mean(axis=1), rate, RATE)
    return resampled


def _device() -> Generator[NDArray[np.float32]]:
    try:
        import sounddevice
    except ImportError:
        raise missing("the microphone", "sounddevice", otherwise="--microphone FILE.wav") from None
    except OSError:  # its wheels for Linux are without the library
        raise MissingDependency(
            "the microphone needs the PortAudio library (Debian: apt install libportaudio2); or --microphone FILE.wav"
        ) from None
    heard: queue.SimpleQueue[NDArray[np.float32]] = queue.SimpleQueue()

    def take(block: NDArray[np.float32], *_: Any) -> None:
        heard.put(block[:, 0].copy())

    try:
        stream = sounddevice.InputStream(samplerate=RATE, channels=1, dtype="float32", blocksize=BLOCK, callback=take)
        with stream:
            while True:
                yield heard.get()
    except sounddevice.PortAudioError as error:
        raise LludaError(f"the microphone cannot be used: {error}; connect one, or --microphone FILE.wav") from None
