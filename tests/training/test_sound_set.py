"""A sound set's phonemes by place, and which clips are trained on."""

import json

import numpy as np
import pytest

from training.sound_set import FRAME, PLACES, read_sets


@pytest.fixture
def folder(tmp_path):
    """A clip of four frames to train on whose timing is known, one that says what a held-out one says, that one."""
    shared = {"voice": "lark", "samples": 4 * FRAME}
    sounds = [["ˈ", 0.02], ["a", 0.03], [" ", 0.04], ["b", 0.05], [" ", 0.07]]
    lines = [
        shared | {"text": "Ab.", "split": "train", "start": 0, "sounds": sounds, "starts": [0.02]},
        shared | {"text": "Held.", "split": "train", "start": 0},
        shared | {"text": "Held.", "split": "test", "start": 4 * FRAME},
    ]
    np.arange(8 * FRAME, dtype=np.int16).tofile(tmp_path / "sound.i16")
    (tmp_path / "index.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    (tmp_path / "set.json").write_text('{"rate": 24000}')
    return tmp_path


def test_what_a_held_out_clip_says_is_not_trained(folder):
    found = read_sets([folder])
    assert [(clip.text, clip.split) for clip in found.clips] == [("Ab.", "train"), ("Held.", "test")]
    assert found.sound[:3].tolist() == [0, 1, 2]
    assert found.sound[4 * FRAME] == 4 * FRAME


def test_a_phoneme_for_every_20_ms_where_they_are_known(folder):
    found = read_sets([folder])
    names = [found.symbols[index] if index >= 0 else "?" for index in found.phonemes.tolist()]
    # The last 0.24 of 0.32 s are silence. A stress mark's time is the next phoneme's, a short space's the last one's.
    assert names[: 4 * PLACES] == [" ", "a", "b", "b", *" " * 12]
    assert names[4 * PLACES :] == ["?"] * (4 * PLACES)
