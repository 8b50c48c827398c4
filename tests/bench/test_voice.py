"""What the bench says is one turn to the detector that servers use by default."""

from __future__ import annotations

import numpy as np
import pytest

from lluda.bench.measured.voice import stillness, voice
from lluda.engine.listening.turn_detector import SpeechEnded, SpeechStarted, TurnDetector, TurnSettings

RATE = 16_000


@pytest.mark.parametrize("seconds", [1, 5, 60])
def test_it_is_one_turn(seconds):
    detector = TurnDetector(TurnSettings())
    events = detector.push(np.concatenate([voice(seconds, RATE), stillness(1, RATE)]))
    started, ended = (event for event in events if isinstance(event, SpeechStarted | SpeechEnded))
    assert started.sample < RATE / 4
    assert abs(ended.sample - seconds * RATE) < RATE / 2


def test_another_number_is_other_sound_and_nothing_is_louder_than_its_beginning():
    first, second = voice(3, RATE, 1), voice(3, RATE, 2)
    assert not np.array_equal(first, second)
    assert abs(first[RATE // 2 :]).max() < abs(first[: RATE // 2]).max() <= 1
