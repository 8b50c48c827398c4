"""Where long recordings are cut."""

from itertools import pairwise

import numpy as np
import pytest

from lluda.engine.listening.vad import CHUNK_SECONDS
from lluda.serving.transcription.pieces import cut

WINDOW = 30 / CHUNK_SECONDS  # chunks


def speech(seconds, pauses=()):
    """Probabilities of speech, with pauses ``(from, to)`` in seconds."""
    found = np.full(round(seconds / CHUNK_SECONDS), 0.95, np.float32)
    for start, end in pauses:
        found[round(start / CHUNK_SECONDS) : round(end / CHUNK_SECONDS)] = 0.02
    return found


def check_whole(pieces, count):
    """Nothing lost, nothing twice, and no piece longer than is heard at once."""
    assert pieces[0].start == 0
    assert pieces[-1].end == count
    for earlier, later in pairwise(pieces):
        assert earlier.end == later.start
    for piece in pieces:
        assert 0 < piece.end - piece.start <= WINDOW + 1


@pytest.mark.parametrize("seconds", [0.032, 1, 29.9, 30])
def test_what_fits_the_window_is_one_piece(seconds):
    probabilities = speech(seconds)
    (piece,) = cut(probabilities, 30)
    assert (piece.start, piece.end) == (0, len(probabilities))


def test_a_cut_lies_in_the_middle_of_the_longest_pause():
    pieces = cut(speech(45, [(10, 10.4), (20, 21), (27, 27.5)]), 30)
    assert [round(piece.end * CHUNK_SECONDS, 1) for piece in pieces] == [20.5, 45.0]


def test_pauses_outside_of_8_to_28_seconds_and_short_ones_are_no_place_to_cut():
    pieces = cut(speech(50, [(3, 7), (15, 15.3), (16, 16.1), (28.5, 30)]), 30)
    assert pieces[0].end * CHUNK_SECONDS == pytest.approx(15.15, abs=0.05)


def test_without_a_pause_the_least_likely_speech_is_cut():
    probabilities = speech(31)
    probabilities[500] = 0.4
    pieces = cut(probabilities, 30)
    assert [piece.end for piece in pieces] == [500, len(probabilities)]
    check_whole(cut(speech(600), 30), len(speech(600)))


@pytest.mark.parametrize("seconds", [31, 61, 600, 2400])
@pytest.mark.parametrize("seed", [1, 2])
def test_any_recording_is_cut_whole(seconds, seed):
    random = np.random.default_rng(seed)
    probabilities = random.random(round(seconds / CHUNK_SECONDS)).astype(np.float32) ** random.choice([0.2, 1, 5])
    check_whole(cut(probabilities, 30), len(probabilities))


def test_silence_is_known_and_speech_that_is_faint_is_not_taken_for_it():
    silence = np.full(100, 0.05, np.float32)
    faint = silence.copy()
    faint[50] = 0.36
    assert cut(silence, 30)[0].silent
    assert not cut(faint, 30)[0].silent
    assert cut(silence, 30)[0].speech == pytest.approx(0.05)


def test_no_sound_has_no_pieces():
    assert cut(np.zeros(0, np.float32), 30) == []


@pytest.mark.parametrize("window", [0.01, 0.1, 1])
def test_any_window_makes_progress(window):
    probabilities = speech(20, [(1, 2)])
    pieces = cut(probabilities, window)
    assert sum(piece.end - piece.start for piece in pieces) == len(probabilities)
