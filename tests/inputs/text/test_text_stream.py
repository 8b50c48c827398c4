"""The stream of a whole answer is its decoded text, whatever the tokens and stop strings."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lluda.errors import InvalidRequest
from lluda.inputs.text.text_stream import TextStream
from tests.inputs.conftest import NOT_SPECIAL, SPECIAL, tiny_vocabulary

relaxed = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
any_ids = st.lists(st.integers(0, len(tiny_vocabulary()) + 3), max_size=40)  # added tokens and unused ids among them
stops = st.lists(st.text("ab<", min_size=1, max_size=4), max_size=3)


def until_stop(text: str, stop: list[str]) -> tuple[str, str | None]:
    """By definition: the text before the stop string that is completed first, of several the longest."""
    for end in range(1, len(text) + 1):
        ending = [each for each in stop if text[:end].endswith(each)]
        if ending:
            longest = max(ending, key=len)
            return text[: end - len(longest)], longest
    return text, None


@relaxed
@given(any_ids)
def test_the_folded_stream_is_the_decoded_whole(tiny, ids):
    stream = TextStream(tiny)
    assert "".join([*map(stream.push, ids), stream.finish()]) == tiny.decode(ids)
    assert stream.stopped is None


@relaxed
@given(st.text("ab<é", max_size=30), stops)
def test_the_folded_stream_ends_before_the_stop_string(tiny, text, stop):
    stream = TextStream(tiny, tuple(stop))
    folded = "".join([*map(stream.push, tiny.encode(text, allow_special=False)), stream.finish()])
    assert (folded, stream.stopped) == until_stop(text, stop)


@pytest.mark.parametrize(("text", "stop"), [("xaaab", "aab"), ("ababac", "abac"), ("aabaabaaa", "aabaaa")])
def test_a_stop_string_is_found_behind_a_false_start_of_itself(tiny, text, stop):
    stream = TextStream(tiny, (stop,))
    folded = "".join([*map(stream.push, tiny.encode(text)), stream.finish()])
    assert (folded, stream.stopped) == (text.removesuffix(stop), stop)


@relaxed
@given(st.text("ab<é😀", max_size=30), stops)
def test_all_that_is_safe_is_shown_at_once(tiny, text, stop):
    stream, shown, ids = TextStream(tiny, tuple(stop)), "", []
    for number in tiny.encode(text, allow_special=False):
        shown += stream.push(number)
        ids.append(number)
        whole = tiny.decode(ids).rstrip("\ufffd")  # a character is shown when its last byte has come
        if stream.stopped is None:
            assert whole.startswith(shown)
            pending = whole[len(shown) :]
            assert not pending or any(each.startswith(pending) for each in stop)


def test_characters_are_never_split(qwen):
    text = "👩‍👩‍👧 漢字 é\u0301 𠜎🜨"
    ids = qwen.encode(text)
    stream = TextStream(qwen)
    parts = [stream.push(number) for number in ids]
    assert "".join(parts) + stream.finish() == text
    assert "" in parts  # at least one token was only a part of a character
    assert all("\ufffd" not in part for part in parts)


def test_incomplete_bytes_are_flushed_as_decode_has_them(tiny):
    ids = tiny.encode("é😀")[:-1]
    stream = TextStream(tiny)
    assert "".join(map(stream.push, ids)) == "é"
    assert "é" + stream.finish() == tiny.decode(ids) == "é\ufffd"
    assert stream.finish() == ""


def test_special_tokens_are_not_shown_and_others_are(tiny):
    stream = TextStream(tiny, ("zz",))
    assert stream.push(tiny.id_of(SPECIAL)) == ""
    assert stream.push(tiny.id_of(NOT_SPECIAL)) == NOT_SPECIAL


def test_nothing_comes_after_a_stop_string(tiny):
    stream = TextStream(tiny, ("STOP", "OP!"))
    assert "".join(map(stream.push, tiny.encode("xSTOP!y"))) == "x"
    assert stream.stopped == "STOP"
    assert stream.finish() == ""


def test_a_token_costs_the_same_at_the_end_of_a_long_text(tiny, monkeypatch):
    """Each token is looked up once, and never more than one stop string's length is pending."""
    looked_up = []
    monkeypatch.setattr(tiny, "bytes_of", lambda number: looked_up.append(number) or b"a")
    stream = TextStream(tiny, ("a" * 50 + "b",))
    shown = sum(len(stream.push(7)) for _ in range(5000))
    assert len(looked_up) == 5000
    assert shown == 5000 - 50


@pytest.mark.parametrize("stop", ["text", ("",), (7,), (None,)], ids=repr)
def test_what_is_no_stop_string_is_refused(tiny, stop):
    with pytest.raises(InvalidRequest, match="stop must be a list of non-empty strings"):
        TextStream(tiny, stop)
