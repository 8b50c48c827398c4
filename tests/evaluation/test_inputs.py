"""What a validation runs: the same for the same seed; of an Omni model without markers among its words."""

from __future__ import annotations

from dataclasses import asdict

import numpy as np
import pytest

from lluda.config.model import ModelConfig
from lluda.errors import InvalidRequest
from lluda.evaluation.inputs import omni_input, random_ids, synthetic_media
from tests.engine.speech.test_speech import config


@pytest.fixture(scope="module")
def parsed():
    return ModelConfig.from_hf(config())


def test_a_turn_of_the_user_with_media_and_the_header_of_the_assistants(parsed):
    omni, media = parsed.omni, synthetic_media(1)
    given = omni_input(omni, parsed.text.vocab_size, media=media, tokens=5, seed=3)
    marks, speech = omni.tokens, omni.speech.tokens
    assert given.ids[:2] == (speech.im_start, speech.user)
    assert given.ids[-3:-1] == (speech.im_start, speech.assistant)
    placeholders = [marks.audio_start, marks.audio_pad, marks.audio_end]
    placeholders += [marks.vision_start, marks.image_pad, marks.vision_end]
    placeholders += [marks.vision_start, marks.video_pad, marks.vision_end]
    assert list(given.ids[3:12]) == placeholders
    special = {*asdict(marks).values(), *asdict(speech).values()}
    assert special.isdisjoint(given.ids[12:-3])
    assert special.isdisjoint(given.spoken)
    assert (given.reaches_audio, given.reaches_vision, len(given.ids)) == (True, True, 3 + 9 + 5 + 3)


def test_a_seed_gives_the_same_input(parsed):
    made = [omni_input(parsed.omni, 160, media=[], seed=seed).ids for seed in (1, 1, 2)]
    assert made[0] == made[1] != made[2]
    sounds = [synthetic_media(seed)[0].source for seed in (1, 1, 2)]
    assert np.array_equal(sounds[0], sounds[1])
    assert not np.array_equal(sounds[0], sounds[2])


def test_text_comes_as_it_is_and_no_tokens_are_refused(parsed):
    given = omni_input(parsed.omni, 160, media=[], text=[40, 41], source="a prompt")
    assert given.ids[3:5] == (40, 41)
    assert (given.source, given.reaches_audio, given.reaches_vision) == ("a prompt", False, False)
    with pytest.raises(InvalidRequest, match="tokens must be at least 1, not 0"):
        omni_input(parsed.omni, 160, media=[], tokens=0)


def test_random_ids_follow_the_seed_and_the_vocabulary():
    assert random_ids(512, 40, 0) == random_ids(512, 40, 0)
    assert random_ids(512, 40, 0) != random_ids(512, 40, 1)
    assert set(random_ids(3, 200, 0)) == {0, 1, 2}
    with pytest.raises(InvalidRequest, match="at least 1"):
        random_ids(512, 0, 0)
