"""Edges, loudness and rate of a clip."""

import numpy as np
import pytest

from training import clip

RATE = 48000


def _tone(seconds, rate=RATE, hertz=997.0, peak=1.0):
    return (peak * np.sin(2 * np.pi * hertz * np.arange(int(seconds * rate)) / rate)).astype(np.float32)


def test_a_full_tone_of_997_hz_is_3_lufs_below_full_scale():
    # BS.1770: 0 dBFS at 997 Hz in one channel reads -3.01 LKFS.
    assert clip.loudness(_tone(3), RATE) == pytest.approx(-3.01, abs=0.05)


@pytest.mark.parametrize("rate", [16000, 24000])
def test_loudness_does_not_depend_on_the_rate(rate):
    assert clip.loudness(_tone(3, rate), rate) == pytest.approx(-3.01, abs=0.1)


def test_levelled_to_the_target_or_to_its_peak():
    assert clip.loudness(clip.levelled(_tone(1, peak=0.01), RATE), RATE) == pytest.approx(clip.LOUDNESS, abs=0.05)
    sharp = np.zeros(RATE, np.float32)
    sharp[100] = 0.5
    assert np.abs(clip.levelled(sharp, RATE)).max() <= 0.9701


def test_quiet_edges_are_cut():
    sound = np.concatenate([np.zeros(RATE // 2, np.float32), _tone(1), np.full(RATE, 1e-4, np.float32)])
    kept, cut = clip.trimmed(sound, RATE)
    assert RATE <= len(kept) <= 1.06 * RATE
    assert 0.97 * RATE / 2 <= cut <= RATE / 2


def test_a_finished_clip_says_by_how_much_it_is_later():
    sound = np.concatenate([np.zeros(RATE // 2, np.float32), _tone(1)])
    stored, later = clip.finished(sound, RATE, 24000)
    loud = np.flatnonzero(np.abs(stored) > 1000)[0] / 24000
    assert loud == pytest.approx(0.5 + later, abs=0.01)


def test_silence_is_refused():
    with pytest.raises(ValueError, match="silent"):
        clip.trimmed(np.zeros(RATE, np.float32), RATE)


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e20])
def test_what_is_no_sound_is_refused(value):
    sound = _tone(1)
    sound[500] = value
    with pytest.raises(ValueError, match="has one of"):
        clip.trimmed(sound, RATE)


def test_another_rate_keeps_the_tone():
    lower = clip.resampled(_tone(1, 24000), 24000, 16000)
    assert len(lower) == 16000
    spectrum = np.abs(np.fft.rfft(lower))
    assert spectrum.argmax() == pytest.approx(997, abs=1)
