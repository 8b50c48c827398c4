"""What a picture and sound are planned to take; that it is what they take, test_memory_peak.py shows."""

from __future__ import annotations

import pytest

from lluda.config.audio import MelConfig
from lluda.config.model import ModelConfig
from lluda.config.vision import VisionInputConfig
from lluda.engine.loading.media_plan import MediaLoad, plan_media
from lluda.errors import InvalidRequest


@pytest.fixture
def released(released_config):
    """Rows of the plan by name, for the released encoders, each on a device of its own where ``apart``."""
    omni = ModelConfig.from_hf(released_config("Qwen3-Omni-30B-A3B-Instruct")).omni

    def plan(image=None, audio=None, apart=False):
        rows = plan_media(
            omni,
            MediaLoad(image, audio),
            (VisionInputConfig(), MelConfig()),
            2,
            lambda name: ("cuda" if "visual" in name else "cpu") if apart else "cpu",
        )
        return {row.component: row for row in rows}

    return plan


def test_rows_of_media_are_the_prompt_s(released):
    """A 1,024 x 1,024 picture is 32 x 32 tokens, each with rows for three layers more (DeepStack); a second of sound 13
    tokens; 2,048 numbers of two bytes a row."""
    assert released(image=(1024, 1024))["rows of media"].nbytes == 1024 * (1 + 3) * 2048 * 2
    assert released(audio=60)["rows of media"].nbytes == 60 * 13 * 2048 * 2
    both = released(image=(1024, 1024), audio=60)["rows of media"].nbytes
    assert both == (1024 * 4 + 60 * 13) * 2048 * 2


def test_of_several_on_one_device_the_largest_counts(released):
    picture, sound = released(image=(1024, 1024)), released(audio=60)
    (large,) = [name for name in picture if name.startswith("encoding")]
    (small,) = [name for name in sound if name.startswith("encoding")]
    assert picture[large].nbytes > sound[small].nbytes
    assert set(released(image=(1024, 1024), audio=60)) == {large, "rows of media"}
    assert set(released(image=(1024, 1024), audio=60, apart=True)) == {large, small, "rows of media"}


def test_patches_are_those_of_the_picture_as_it_is_resized(released):
    """Sides become multiples of 32; 4 patches a token of 32 x 32 pixels."""
    assert "encoding a picture, 4096 patches" in released(image=(1020, 1030))
    small, large = (released(image=size)[f"encoding a picture, {count} patches"].nbytes
                    for size, count in (((512, 512), 1024), ((1024, 2048), 8192)))  # fmt: skip
    assert large == 8 * small


def test_an_hour_of_sound_takes_little_more_than_its_recording(released):
    """Blocks are encoded some at a time: beyond the first minute only the recording and its features grow."""
    minute, hour = (released(audio=seconds)[f"encoding {seconds} s of sound"].nbytes for seconds in (100, 3600))
    assert hour - minute < 3500 * 300_000


@pytest.mark.parametrize("wrong", [{"image": (0, 4)}, {"audio": 0}, {"audio": float("nan")}, {"audio": -1.0}, {}])
def test_what_is_no_medium_is_refused(wrong):
    with pytest.raises(InvalidRequest):
        MediaLoad(**wrong)
