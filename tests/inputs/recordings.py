"""Recordings made for tests: with espeak-ng, sox and ffmpeg where they are installed, with numpy always."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

RATE = 16000


def sound(seconds: float, rate: int = RATE, seed: int = 0) -> np.ndarray:
    """Two gliding tones, noise, and a silent part in the middle: float32, full scale 1."""
    time = np.arange(round(seconds * rate)) / rate
    noise = np.random.default_rng(seed).standard_normal(len(time))
    signal = 0.4 * np.sin(2 * np.pi * (300 + 40 * time) * time) + 0.2 * np.sin(2 * np.pi * 1700 * time) + 0.02 * noise
    signal[len(time) // 2 : len(time) * 5 // 8] = 0
    return signal.astype(np.float32)


def run(program: str, *arguments: str | Path, stdin: bytes | None = None) -> bytes:
    """Run a program and return what it prints; skip the test where it is not installed or cannot make this format."""
    if shutil.which(program) is None:
        pytest.skip(f"{program} is not installed")
    done = subprocess.run([program, *map(str, arguments)], input=stdin, capture_output=True, timeout=120, check=False)
    if done.returncode:
        pytest.skip(f"{program} here cannot make this recording: {done.stderr[:200]!r}")
    return done.stdout


def write(path: Path, samples: np.ndarray, rate: int = RATE, **options: str) -> Path:
    soundfile = pytest.importorskip("soundfile")
    soundfile.write(path, samples, rate, **options)
    return path


def transcoded(path: Path, samples: np.ndarray, rate: int = RATE, *arguments: str) -> Path:
    """A file in the format of its name, by ffmpeg."""
    source = write(path.with_name(f"{path.name}.source.wav"), samples, rate)
    run("ffmpeg", "-y", "-loglevel", "error", "-i", source, *arguments, path)
    return path


def speech(path: Path, sentences: int = 1) -> Path:
    text = "The quick brown fox jumps over the lazy dog, and nobody knows why. " * sentences
    run("espeak-ng", "-w", path, text)
    return path
