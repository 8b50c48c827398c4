"""What is played is what was given, in its order and in its time, until it is to be silent."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest

from lluda.errors import LludaError
from lluda.outputs.audio_sink import AudioSink
from lluda.outputs.player import Player

RATE = 8000


class Tape(AudioSink):
    """Holds what is written; ``broken`` writes raise; ``begun`` is set by the first."""

    def __init__(self) -> None:
        self.pieces: list[np.ndarray] = []
        self.broken = self.closed = False
        self.begun = threading.Event()

    def write(self, samples: np.ndarray) -> None:
        if self.broken:
            raise LludaError("unplugged")
        self.pieces.append(samples)
        self.begun.set()

    def close(self) -> None:
        self.closed = True


def test_all_of_it_in_its_time() -> None:
    tape, begun = Tape(), time.monotonic()
    with Player(tape, RATE) as player:
        for start in (0, 1000, 1001):
            player.play(np.arange(start, start + 1000, dtype=np.float32))
        player.play(np.empty(0, np.float32))
        player.wait()
        assert player.played == 3000 and not player.is_playing
        assert player.began is not None and player.began >= begun
    heard = np.concatenate(tape.pieces)
    np.testing.assert_array_equal(heard, np.concatenate([np.arange(start, start + 1000) for start in (0, 1000, 1001)]))
    assert max(map(len, tape.pieces)) <= RATE // 50
    assert time.monotonic() - begun > 0.25, "375 ms of sound, of which 60 ms are handed out before they are heard"
    assert tape.closed


def test_flush_is_silence() -> None:
    tape = Tape()
    with Player(tape, RATE) as player:
        player.play(np.ones(60 * RATE, np.float32))
        assert tape.begun.wait(10)
        player.flush()
        played = player.played
        assert not player.is_playing and 0 < played < 30 * RATE
        player.begin()
        assert player.played == 0 and player.began is None
        player.play(np.full(100, 2, np.float32))
        player.wait()
        assert player.played == 100
    heard = np.concatenate(tape.pieces)
    assert len(heard) == played + 100 and set(heard[:played]) == {1.0} and set(heard[played:]) == {2.0}


def test_a_sink_that_takes_no_more() -> None:
    tape = Tape()
    tape.broken = True
    with Player(tape, RATE) as player:
        player.play(np.ones(RATE, np.float32))
        player.wait()
        assert isinstance(player.error, LludaError)
    assert tape.closed


def test_closing_does_not_wait_for_the_rest() -> None:
    tape = Tape()
    with pytest.raises(KeyError), Player(tape, RATE) as player:
        player.play(np.ones(3600 * RATE, np.float32))
        raise KeyError
    assert tape.closed
