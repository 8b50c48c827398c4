"""How turns are counted against what is known of a recording; what Smart Turn hears."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from lluda.engine.listening.vad import RATE
from lluda.errors import CorruptFile, MissingDependency, ModelNotFound
from tools.turns.measure import Outcome, Turn, outcome
from tools.turns.smart_turn import HEARD, SmartTurn, features
from tools.turns.spoken import Spoken

SECOND = RATE
SPOKEN = Spoken(
    "", "", np.zeros(9 * SECOND, np.float32), SECOND, 4 * SECOND, pause_ms=1000, pause=(2 * SECOND, 3 * SECOND)
)


@pytest.mark.parametrize(
    ("turns", "expected"),
    [
        ([], Outcome(True, False, False, 0, False, None)),
        ([Turn(12_000, 16_000, 72_000)], Outcome(False, False, False, 0, False, 500.0)),
        ([Turn(16_500, 16_800, 72_000)], Outcome(False, False, True, 0, False, 500.0)),
        ([Turn(12_000, 16_000, None)], Outcome(False, False, False, 0, True, None)),
        ([Turn(12_000, 16_000, 40_000), Turn(44_000, 48_000, 72_000)], Outcome(False, True, False, 0, False, 500.0)),
        ([Turn(0, 2_000, 8_000), Turn(12_000, 16_000, 72_000)], Outcome(False, False, False, 1, False, 500.0)),
        ([Turn(0, 2_000, 72_000)], Outcome(True, False, False, 1, False, None)),
    ],
)
def test_outcomes(turns, expected):
    assert outcome(SPOKEN, turns) == expected


@pytest.mark.parametrize("seconds", [0.5, 8, 11])
def test_features_are_whispers(seconds):
    transformers = pytest.importorskip("transformers")
    sound = np.random.default_rng(0).normal(0.01, 0.1, int(seconds * RATE)).astype(np.float32)
    heard = np.pad(sound[-HEARD:], (max(0, HEARD - len(sound)), 0))
    extractor = transformers.WhisperFeatureExtractor(feature_size=80, chunk_length=8)
    expected = extractor(heard, sampling_rate=RATE, do_normalize=True, return_tensors="np").input_features[0]
    assert np.abs(features(sound) - expected).max() < 1e-4


class Session:
    def __init__(self, file, *_, **__):
        if Path(file).name == "broken":
            raise RuntimeError("INVALID_PROTOBUF")
        self.frames = 800 if Path(file).name == "turn" else 3000

    def get_inputs(self):
        return [SimpleNamespace(name="input_features", shape=["batch", 80, self.frames])]

    def get_outputs(self):
        return [SimpleNamespace(name="logits", shape=["batch", 1])]

    def run(self, _, inputs):
        assert inputs["input_features"].shape == (1, 80, 800)
        return [np.array([[0.25]], np.float32)]


def test_files_of_smart_turn(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MissingDependency, match="pip install onnxruntime"):
        SmartTurn(tmp_path)
    runtime = SimpleNamespace(SessionOptions=SimpleNamespace, InferenceSession=Session)
    monkeypatch.setitem(sys.modules, "onnxruntime", runtime)
    for name, error in (("none", ModelNotFound), ("broken", CorruptFile), ("whisper", CorruptFile)):
        if error is CorruptFile:
            (tmp_path / name).touch()
        with pytest.raises(error, match=name):
            SmartTurn(tmp_path / name)
    (tmp_path / "turn").touch()
    assert SmartTurn(tmp_path / "turn").probability(np.ones(100, np.float32)) == 0.25
