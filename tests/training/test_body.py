"""Bodies: what pitch and formants become, and what stays."""

import numpy as np
import pytest

from training.voices.body import BODIES, Body, body_of, in_body


def parts(bins=61, frames=3):
    levels = np.zeros((4, bins, frames), np.float32)
    levels[:, 40] = 1
    phase, pitch = np.ones((bins, frames), np.float32), np.array([200, 0, 220], np.float32)
    return [*levels, phase, pitch]


def test_lark_is_the_voice_as_it_is():
    for given, made in zip(parts(), in_body(BODIES["lark"], parts()), strict=True):
        np.testing.assert_array_equal(given, made)


@pytest.mark.parametrize(("factor", "bin"), [(0.5, 20), (0.8, 32), (1.25, 50)])
def test_formants_move_by_the_factor_and_the_pitch_apart_from_them(factor, bin):
    *levels, phase, pitch = in_body(Body(0.5, factor), parts())
    assert all((level.argmax(0) == bin).all() for level in levels)
    np.testing.assert_array_equal(pitch, [100, 0, 110])
    np.testing.assert_array_equal(phase, parts()[4])


def test_above_a_lowered_tract_the_last_bin_goes_on():
    rows = np.arange(61, dtype=np.float32)[:, None]
    made = in_body(Body(1, 0.5), [rows, rows, rows, rows, rows, rows[0]])[0]
    assert made.shape == rows.shape and made[30:].min() == 60


def test_rook_is_lower_than_lark_in_both():
    assert BODIES["rook"].pitch < 0.8 and BODIES["rook"].formants < 0.95


def test_a_body_is_named_by_its_factors():
    assert body_of("body-65-88") == BODIES["rook"] == body_of("rook")


@pytest.mark.parametrize("name", ["robin", "body-65"])
def test_another_name_is_refused_with_what_there_is(name):
    with pytest.raises(ValueError, match=f"'{name}'.*lark, rook or body-PITCH-FORMANTS"):
        body_of(name)
