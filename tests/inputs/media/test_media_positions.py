"""Position ids against transformers' get_rope_index and its processor's order of tokens, over many mixes."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lluda.engine.prompt_rows import PromptRows
from lluda.inputs.media.media_positions import (
    AudioSpan,
    ImageSpan,
    TextSpan,
    VideoSpan,
    media_positions,
    order_of_kinds,
)

NUMBERS = {"merge_size": 2, "positions_per_second": 13}
TEXT, AUDIO_START, AUDIO, AUDIO_END, VISION_START, IMAGE, VIDEO, VISION_END = range(8)


def positions(*spans):
    return media_positions(spans, **NUMBERS)


def frames_of(tokens):
    """Log-mel frames of which the audio encoder makes that many tokens."""
    return 100 * (tokens // 13) + 8 * (tokens % 13)


def marked(media):
    """Spans with the markers around each medium and a text token between, as a prompt has them."""
    spans = [TextSpan(2)]
    for medium in media:
        markers = 2 if isinstance(medium, VideoSpan) and medium.audio_tokens else 1
        spans += [TextSpan(markers), medium, TextSpan(markers), TextSpan(1)]
    return spans


def token_ids(media):
    ids = [TEXT] * 2
    for medium in media:
        if isinstance(medium, AudioSpan):
            ids += [AUDIO_START, *[AUDIO] * medium.tokens, AUDIO_END]
        elif isinstance(medium, ImageSpan):
            ids += [VISION_START, *[IMAGE] * (medium.grid[1] * medium.grid[2] // 4), VISION_END]
        elif not medium.audio_tokens:
            ids += [VISION_START, *[VIDEO] * (int(np.prod(medium.grid)) // 4), VISION_END]
        else:
            kinds = order_of_kinds(medium, **NUMBERS)
            ids += [
                VISION_START,
                AUDIO_START,
                *(VIDEO if k == "video" else AUDIO for k in kinds),
                AUDIO_END,
                VISION_END,
            ]
        ids.append(TEXT)
    return ids


def get_rope_index(media, use_audio_in_video):
    from transformers.models.qwen3_omni_moe import modeling_qwen3_omni_moe as theirs

    config = SimpleNamespace(
        image_token_id=IMAGE, video_token_id=VIDEO, audio_token_id=AUDIO, vision_start_token_id=VISION_START,
        audio_start_token_id=AUDIO_START, position_id_per_seconds=13, audio_config=SimpleNamespace(n_window=50),
    )  # fmt: skip
    model = theirs.Qwen3OmniMoePreTrainedModelForConditionalGeneration
    this = SimpleNamespace(config=config, spatial_merge_size=2)
    this.get_llm_pos_ids_for_vision = lambda *args: model.get_llm_pos_ids_for_vision(this, *args)
    videos = [m for m in media if isinstance(m, VideoSpan)]
    images = [m for m in media if isinstance(m, ImageSpan)]
    sounds = [m.tokens if isinstance(m, AudioSpan) else m.audio_tokens for m in media if not isinstance(m, ImageSpan)]
    ids = torch.tensor([token_ids(media)])
    rows, delta = model.get_rope_index(
        this,
        ids,
        torch.tensor([m.grid for m in images]) if images else None,
        torch.tensor([m.grid for m in videos]) if videos else None,
        torch.ones_like(ids),
        use_audio_in_video,
        torch.tensor([frames_of(n) for n in sounds if n]),
        torch.tensor([m.seconds_per_grid for m in videos]),
    )
    return rows[:, 0], delta.item()


def offset(rows):
    """Of the rows after a prompt with these positions."""
    return PromptRows([0] * len(rows[0]), torch.tensor(rows)).position_offset if rows[0] else 0


def assert_equal_to_transformers(media, exact, use_audio_in_video=False):
    found = media_positions(marked(media), **NUMBERS)
    rows, delta = get_rope_index(media, use_audio_in_video)
    tolerance = {"rtol": 0, "atol": 0} if exact else {"rtol": 1e-6, "atol": 1e-4}
    torch.testing.assert_close(torch.tensor(found), rows.float(), **tolerance)
    assert offset(found) == pytest.approx(delta, abs=0 if exact else 1e-3)


def grids(slices):
    even = st.integers(1, 6).map(lambda n: 2 * n)
    return st.tuples(slices, even, even)


AUDIO_SPANS = st.builds(AudioSpan, st.integers(1, 60))
IMAGE_SPANS = st.builds(ImageSpan, grids(st.just(1)))
EXACT_SECONDS = st.sampled_from([0.25, 0.5, 1.0, 2.0, 4.0])
ANY_SECONDS = st.floats(0.01, 5)


def video_spans(seconds, audio_tokens):
    return st.builds(VideoSpan, grids(st.integers(1, 5)), seconds, audio_tokens)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.one_of(AUDIO_SPANS, IMAGE_SPANS, video_spans(EXACT_SECONDS, st.just(0))), max_size=6))
def test_sound_pictures_and_silent_videos_equal_transformers(media):
    if all(isinstance(medium, AudioSpan) for medium in media):
        found = media_positions(marked(media), **NUMBERS)
        assert found[0] == found[1] == found[2] == list(range(len(token_ids(media))))
        assert offset(found) == 0
    else:
        assert_equal_to_transformers(media, exact=True)


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.one_of(AUDIO_SPANS, IMAGE_SPANS, video_spans(EXACT_SECONDS, st.integers(1, 80))), max_size=4),
    video_spans(EXACT_SECONDS, st.integers(1, 80)),
)
def test_videos_with_sound_equal_transformers(media, video):
    """transformers takes either all videos of a prompt with their sound or none, so no silent one is among these."""
    assert_equal_to_transformers([*media, video], exact=True, use_audio_in_video=True)


@settings(deadline=None, max_examples=40)
@given(st.lists(st.one_of(AUDIO_SPANS, IMAGE_SPANS, video_spans(ANY_SECONDS, st.just(0))), max_size=4), IMAGE_SPANS)
def test_uneven_steps_equal_transformers_to_its_float32(media, image):
    assert_equal_to_transformers([*media, image], exact=False)


@settings(deadline=None, max_examples=60)
@given(video_spans(ANY_SECONDS, st.integers(1, 80)))
def test_the_order_of_kinds_is_the_processors(video):
    """transformers merges again, in float32, for the positions, and may then disagree with itself; this cannot."""
    from transformers.models.qwen3_omni_moe.processing_qwen3_omni_moe import Qwen3OmniMoeProcessor

    tokens = SimpleNamespace(merge_size=2)
    this = SimpleNamespace(
        video_processor=tokens, audio_bos_token="", audio_eos_token="", video_token="v", audio_token="a"
    )
    text = Qwen3OmniMoeProcessor.replace_video_with_audio_token(
        this,
        {"video_grid_thw": np.array([video.grid]), "video_second_per_grid": [video.seconds_per_grid]},
        0,
        {"num_audio_tokens": np.array([video.audio_tokens])},
        0,
        position_id_per_seconds=13,
    )
    assert "".join(kind[0] for kind in order_of_kinds(video, **NUMBERS)) == text


def test_a_silent_video_beside_one_with_sound():
    """transformers cannot count these together (its switch is the prompt's); the rules of the spec still hold."""
    found = positions(VideoSpan((1, 2, 4), 1.0), TextSpan(1), VideoSpan((2, 2, 2), 1.0, audio_tokens=3))
    assert found[0] == [0, 0, 2, 3, 3, 4, 5, 16]
    assert offset(found) == 17 - 8


def test_worked_examples():
    """Spec section 5.2."""
    image = positions(TextSpan(3), ImageSpan((1, 4, 6)), TextSpan(1))
    assert [row[3:] for row in image] == [[3] * 6 + [6], [3, 3, 3, 4, 4, 4, 6], [3, 4, 5, 3, 4, 5, 6]]
    assert offset(image) == 7 - 10
    assert positions(TextSpan(2), VideoSpan((2, 4, 4), 1.0))[0][2:] == [2] * 4 + [15] * 4


def test_after_a_short_sound_the_next_position_follows_what_was_placed_last():
    found = positions(VideoSpan((1, 2, 40), 2.0, audio_tokens=3), TextSpan(1))
    assert max(found[2][:-1]) == 19
    assert found[0][-1] == 3
    assert offset(found) == 20 - len(found[0])


def test_nothing_and_empty_text_have_no_positions():
    assert positions() == positions(TextSpan(0))
    assert positions() == ([], [], [])
