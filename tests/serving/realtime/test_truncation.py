"""What was heard of a text, by the seconds of its sound."""

from __future__ import annotations

import pytest

from lluda.serving.realtime.conversation.truncation import heard_text, likely_seconds


@pytest.mark.parametrize(
    ("text", "heard", "seconds", "expected"),
    [
        ("One two three four.", 1.0, 1.0, "One two three four."),
        ("One two three four.", 2.0, 1.0, "One two three four."),
        ("One two three four.", 0.5, 1.0, "One two"),
        ("One two three four.", 0.0, 1.0, ""),
        ("One two three four.", 0.05, 1.0, ""),
        ("It's a well-known one.", 0.5, 1.0, "It's a"),
        ("今天天气很好。", 0.5, 1.0, "今天天"),
        ("", 0.5, 1.0, ""),
        ("One.", 0.0, 0.0, ""),
    ],
)
def test_heard_text(text: str, heard: float, seconds: float, expected: str) -> None:
    assert heard_text(text, heard, seconds) == expected


def test_the_sound_of_a_text_that_was_not_spoken_to_its_end() -> None:
    assert likely_seconds("a" * 150, 2.0) == 10.0
    assert likely_seconds("a" * 150, 12.0) == 12.0
