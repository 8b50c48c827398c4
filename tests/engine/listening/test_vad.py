"""Silero VAD, written anew, against what ONNX Runtime makes of the released file."""

import importlib.util
import json
import time
from pathlib import Path

import numpy as np
import pytest

from lluda.engine.listening.vad import CHUNK, RATE, WEIGHTS, VoiceDetector
from tools.silero_vad import FOUND, onnx_probabilities, sample_sound

ORIGINAL = "data/silero_vad_16k_op15.onnx"


def original() -> Path | None:
    """The released file, if its package is installed; it is not imported, since it sets torch's threads."""
    found = importlib.util.find_spec("silero_vad")
    return Path(found.origin).parent / ORIGINAL if found and found.origin else None


def test_equal_to_what_onnx_runtime_found():
    found = VoiceDetector().push(sample_sound())
    expected = np.array(json.loads(FOUND.read_text()))
    assert expected.min() < 0.001
    assert expected.max() > 0.99
    assert np.abs(found - expected).max() < 2e-5


def test_equal_to_onnx_runtime_where_it_is_installed():
    pytest.importorskip("onnxruntime")
    path = original()
    if path is None:
        pytest.skip("the package silero-vad is not installed")
    sound = sample_sound() * 2
    assert np.abs(VoiceDetector().push(sound) - onnx_probabilities(path, sound)).max() < 2e-5


@pytest.mark.parametrize("size", [1, 37, CHUNK, 1000, 3 * RATE])
def test_in_pieces_as_in_one(size):
    sound = sample_sound()[3 * RATE : 4 * RATE]
    whole, pieces = VoiceDetector(), VoiceDetector()
    expected = np.concatenate((whole.push(sound), whole.finish()))
    found = np.concatenate([pieces.push(sound[start : start + size]) for start in range(0, len(sound), size)])
    found = np.concatenate((found, pieces.finish()))
    assert len(found) == -(-len(sound) // CHUNK)
    assert np.abs(found - expected).max() < 1e-5
    assert len(pieces.finish()) == 0


def test_two_streams_share_nothing():
    sound = sample_sound()
    alone = VoiceDetector().push(sound)
    one, other = VoiceDetector(), VoiceDetector()
    found = []
    for start in range(0, len(sound), 4096):
        found.append(one.push(sound[start : start + 4096]))
        other.push(np.random.default_rng(start).normal(0, 1, 3000).astype(np.float32))
    assert np.abs(np.concatenate(found) - alone).max() < 1e-5


@pytest.mark.parametrize("sound", [np.zeros(RATE), np.ones(RATE), np.full(RATE, -1e4), np.tile([1.0, -1.0], RATE // 2)])
def test_any_sound_has_probabilities(sound):
    found = VoiceDetector().push(sound.astype(np.float32))
    assert ((found >= 0) & (found <= 1)).all()


def test_cutting_a_recording_takes_a_fraction_of_hearing_it():
    """A watchdog, at many times what is needed."""
    sound = np.tile(sample_sound(), 4)
    start = time.monotonic()
    VoiceDetector().push(sound)
    assert time.monotonic() - start < 0.2 * len(sound) / RATE


def test_the_weights_come_with_their_licence():
    assert WEIGHTS.stat().st_size < 1_300_000
    text = WEIGHTS.with_suffix(".LICENSE").read_text()
    assert "MIT License" in text
    assert "Silero Team" in text
