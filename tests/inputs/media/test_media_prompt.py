"""Placeholders become rows, bound by position."""

from pathlib import Path

import pytest

from lluda.config.omni import MediaTokens
from lluda.errors import InvalidRequest, TemplateError
from lluda.inputs.media.media_parts import take_media
from lluda.inputs.media.media_positions import AudioSpan, ImageSpan, TextSpan, VideoSpan
from lluda.inputs.media.media_prompt import Layout, expand_placeholders

TOKENS = MediaTokens(audio_start=1, audio_pad=2, audio_end=3, vision_start=4, image_pad=5, video_pad=6, vision_end=7)


LAYOUT = Layout(TOKENS, merge_size=2, positions_per_second=13)


def test_each_placeholder_becomes_its_mediums_rows():
    ids = [10, 1, 2, 3, 11, 4, 5, 7, 4, 6, 7, 12]
    prompt = expand_placeholders(ids, [AudioSpan(3), ImageSpan((1, 2, 4)), VideoSpan((2, 2, 2), 1.0)], LAYOUT)
    assert prompt.ids == [10, 1, 2, 2, 2, 3, 11, 4, 5, 5, 7, 4, 6, 6, 7, 12]
    assert prompt.spans == [
        TextSpan(2),
        AudioSpan(3),
        TextSpan(3),
        ImageSpan((1, 2, 4)),
        TextSpan(2),
        VideoSpan((2, 2, 2), 1.0),
        TextSpan(2),
    ]
    assert prompt.counts == [2, 3, 3, 2, 2, 2, 2]


def test_a_heard_video_has_both_pairs_of_markers_and_is_in_order_of_time():
    span = VideoSpan((2, 2, 2), 0.25, audio_tokens=4)  # pictures at 0 and 3.25
    prompt = expand_placeholders([4, 6, 7], [span], LAYOUT)
    assert prompt.ids == [4, 1, 6, 2, 2, 2, 2, 6, 3, 7]
    assert prompt.spans == [TextSpan(2), span, TextSpan(2)]


def test_without_media_the_ids_stay():
    assert expand_placeholders([8, 9], [], LAYOUT).ids == [8, 9]


@pytest.mark.parametrize("media", [[], [ImageSpan((1, 2, 2))], [AudioSpan(1), AudioSpan(1)]])
def test_a_template_that_wrote_other_placeholders_is_refused(media):
    with pytest.raises(TemplateError, match="wrote placeholders for audio, but"):
        expand_placeholders([1, 2, 3], media, LAYOUT)


def user(*parts):
    return [{"role": "user", "content": list(parts)}]


def test_media_are_taken_out_of_messages_in_order():
    array = object()
    audio = {"type": "audio", "audio": array, "sampling_rate": 8000}
    video = {"type": "video", "path": Path("v.mp4"), "fps": 1.0, "use_audio": True}
    text = {"type": "text", "text": "What?"}
    messages, parts = take_media([*user(audio, text), *user(video)])
    assert messages == [*user({"type": "audio"}, text), *user({"type": "video"})]
    assert [(part.kind, part.source, dict(part.options)) for part in parts] == [
        ("audio", array, {"sampling_rate": 8000}),
        ("video", Path("v.mp4"), {"fps": 1.0, "use_audio": True}),
    ]
    assert parts[1].where == "messages[1].content[0]"


@pytest.mark.parametrize(
    ("part", "rule"),
    [
        ({"type": "image"}, "give one source"),
        ({"type": "image", "path": "a.png", "image": "b"}, "give one source"),
        ({"type": "image", "path": 7}, "path must be a file's path, not int"),
        ({"type": "image", "path": "a.png", "fps": 1}, "fps is no option of image; options: none"),
        ({"type": "audio", "path": "a.wav", "speed": 2}, "speed is no option of audio; options: sampling_rate"),
    ],
)
def test_a_part_that_cannot_be_is_refused(part, rule):
    with pytest.raises(InvalidRequest, match=rule):
        take_media(user(part))


@pytest.mark.parametrize("messages", ["hello", None, [7], [{"role": "user", "content": "hello"}], [{"content": [7]}]])
def test_what_holds_no_media_comes_back_as_it_is(messages):
    assert take_media(messages) == (messages, [])
