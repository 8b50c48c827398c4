"""Recordings made for tests, with numpy, libsndfile and the encoders that come with PyAV: nothing else is needed."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from lluda.inputs.media.audio_file import audio_blocks

RATE = 16000

CODECS = {"mp3": "libmp3lame", "webm": "libopus", "mka": "flac", "wma": "wmav2"}
"""By the extension; aac for the rest."""


def sound(seconds: float, rate: int = RATE, seed: int = 0) -> np.ndarray:
    """Two gliding tones, noise, and a silent part in the middle: float32, full scale 1."""
    time = np.arange(round(seconds * rate)) / rate
    noise = np.random.default_rng(seed).standard_normal(len(time))
    signal = 0.4 * np.sin(2 * np.pi * (300 + 40 * time) * time) + 0.2 * np.sin(2 * np.pi * 1700 * time) + 0.02 * noise
    signal[len(time) // 2 : len(time) * 5 // 8] = 0
    return signal.astype(np.float32)


def read_audio(source: object, sampling_rate: int | None = None, **options: Any) -> np.ndarray:
    """All blocks of a file or an array in one."""
    blocks = [np.zeros(0, np.float32), *audio_blocks(source, sampling_rate, **options)]
    return np.concatenate(blocks)


def write(path: Path, samples: np.ndarray, rate: int = RATE, **options: str) -> Path:
    soundfile = pytest.importorskip("soundfile")
    soundfile.write(path, samples, rate, **options)
    return path


def transcoded(path: Path, samples: np.ndarray, rate: int = RATE, *, picture: bool = False, **options: str) -> Path:
    """A file of mono ``samples`` in the format of its name; ``options`` are the container's and the codec's.
    ``picture``: moving pictures as well, all red."""
    extension = path.suffix[1:]
    form = {"wma": "asf", "aac": "adts", "mka": "matroska", "m4a": "ipod"}.get(extension, extension)
    of_container = {name: options.pop(name) for name in ("movflags", "write_xing") if name in options}
    with av.open(str(path), "w", format=form, options=of_container) as container:
        stream = container.add_stream(CODECS.get(extension, "aac"), rate=rate, layout="mono", options=options)
        if not options:
            stream.bit_rate = 64_000
        if picture:
            _add_red(container, len(samples) / rate)
        codec = stream.codec_context
        frame = av.AudioFrame.from_ndarray(samples.astype(np.float32)[None], format="flt", layout="mono")
        frame.rate, frame.pts, frame.time_base = rate, 0, Fraction(1, rate)
        size = codec.frame_size or None
        resampler = av.AudioResampler(format=codec.format, layout="mono", rate=codec.rate, frame_size=size)
        for part in (*resampler.resample(frame), *resampler.resample(None)):
            container.mux(stream.encode(part))
        container.mux(stream.encode(None))
    return path


def _add_red(container: av.container.OutputContainer, seconds: float) -> None:
    stream = container.add_stream("libx264", rate=10)
    stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
    red = np.zeros((32, 32, 3), np.uint8)
    red[..., 0] = 255
    for _ in range(round(10 * seconds)):
        container.mux(stream.encode(av.VideoFrame.from_ndarray(red, format="rgb24")))
    container.mux(stream.encode(None))


def voice(seconds: float, rate: int = 22050) -> np.ndarray:
    """What a voice is made of: harmonics of a wavering pitch, louder around formants that move, in syllables."""
    time = np.arange(round(seconds * rate)) / rate
    phase = 2 * np.pi * np.cumsum(120 + 15 * np.sin(2 * np.pi * 0.7 * time)) / rate
    formants = [(600 + 200 * np.sin(3 * time), 120), (1400 + 500 * np.sin(5 * time), 200), (2600 + 0 * time, 300)]
    signal = np.zeros(len(time))
    for harmonic in range(1, 40):
        pitch = 120 * harmonic
        weight = sum(np.exp(-(((pitch - centre) / width) ** 2)) for centre, width in formants)
        signal += weight * np.sin(harmonic * phase)
    syllables = np.clip(np.sin(2 * np.pi * 2.5 * time), 0, 1)
    return (0.1 * syllables * signal).astype(np.float32)
