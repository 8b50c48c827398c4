"""The engine's events as content, thoughts and calls."""

from __future__ import annotations

import pytest

from lluda.engine.request import SpeechCompletion, SpeechEvent
from lluda.errors import LludaError
from lluda.serving.http.errors import ApiError
from lluda.serving.reading.marks import Mark, Marks
from lluda.serving.reading.pieces import CallBroken, CallEnded, CallStarted, Content, Finished, Piece, Sound
from tests.serving.reading.scripted import END, VOCABULARY, arguments, content, read, script, sound, thought

CALL = ["<tool_call>", "\n", '{"name": "f", ', '"arguments": {"a"', ": 1}}", "\n", "</tool_call>"]
TOOLS = {"functions": {"f"}}


def last(pieces: list[Piece]) -> Finished:
    assert isinstance(pieces[-1], Finished)
    return pieces[-1]


def test_content_is_content() -> None:
    pieces = read(script(["Os", "lo", ". "]))
    assert content(pieces) == "Oslo. "
    assert (last(pieces).reason, last(pieces).counts.text, last(pieces).counts.prompt) == ("stop", 4, 7)
    assert last(pieces).counts.cached == 3


def test_a_thought_is_set_apart() -> None:
    pieces = read(script(["<think>", "\n", "Well", ", so", "\n\n", "</think>", "\n\n", "Oslo", "\n"]))
    assert (thought(pieces), content(pieces)) == ("Well, so", "Oslo\n")
    assert last(pieces).counts.reasoning == 6


def test_a_thought_that_the_prompt_opened() -> None:
    pieces = read(script(["Well", "</think>", "\n", "Oslo"]), in_thought=True)
    assert (thought(pieces), content(pieces)) == ("Well", "Oslo")


def test_a_thought_that_is_cut_off_stays_one() -> None:
    pieces = read(script(["<think>", "Well"], reason="length"))
    assert (thought(pieces), content(pieces), last(pieces).reason) == ("Well", "", "length")


def test_a_call_is_set_apart() -> None:
    pieces = read(script(["Let me see.", "\n", *CALL]), **TOOLS)
    assert (content(pieces), arguments(pieces)) == ("Let me see.", '{"a": 1}')
    started = [piece for piece in pieces if isinstance(piece, CallStarted)]
    assert [(one.index, one.name) for one in started] == [(0, "f")]
    assert last(pieces).reason == "tool_calls"


def test_arguments_come_while_they_are_written() -> None:
    pieces = read(script(CALL[:4], reason="length"), **TOOLS)
    assert arguments(pieces) == '{"a"'


def test_several_calls_have_ids_of_their_own() -> None:
    pieces = read(script([*CALL, "\n", *CALL]), **TOOLS)
    started = [piece for piece in pieces if isinstance(piece, CallStarted)]
    assert [one.index for one in started] == [0, 1]
    assert len({one.id for one in started}) == 2
    assert content(pieces) == ""
    assert arguments(pieces, 0) == arguments(pieces, 1) == '{"a": 1}'


def test_a_call_of_a_thought_ends_the_thought() -> None:
    pieces = read(script(["<think>", "so", "\n", *CALL]), **TOOLS)
    assert (thought(pieces), content(pieces), last(pieces).reason) == ("so", "", "tool_calls")


def test_without_tools_marks_of_calls_are_content() -> None:
    pieces = read(script(CALL))
    assert content(pieces) == "".join(map(str, CALL))
    assert last(pieces).reason == "stop"


def test_spellings_of_marks_are_text() -> None:
    parts = [VOCABULARY.plain(text) for text in ("<think>", "x", "</think>", "<tool_call>")]
    pieces = read(script(parts), **TOOLS)
    assert (content(pieces), thought(pieces)) == ("<think>x</think><tool_call>", "")
    assert not any(isinstance(piece, CallBroken) for piece in pieces)


BROKEN = {
    "unknown function": ['{"name": "g", "arguments": {}}'],
    "no JSON": ["call f"],
    "broken arguments": ['{"name": "f", "arguments": {"a": }}'],
    "nested": ["<tool_call>", '{"name": "f", "arguments": {}}'],
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_no_call_becomes_content_as_it_was_written(name: str) -> None:
    parts = ["Well.", "\n", "<tool_call>", *BROKEN[name], "</tool_call>", "\nSo."]
    pieces = read(script(parts), **TOOLS)
    assert content(pieces) == "".join(parts)
    broken = [piece for piece in pieces if isinstance(piece, CallBroken)]
    assert [(one.cut, one.index) for one in broken] == [(False, 0 if name == "broken arguments" else None)]
    assert not any(isinstance(piece, CallEnded) for piece in pieces)
    assert last(pieces).reason == "stop"


def test_a_call_that_the_limit_cut_off_is_told_apart() -> None:
    pieces = read(script(CALL[:4], reason="length"), **TOOLS)
    assert [piece.cut for piece in pieces if isinstance(piece, CallBroken)] == [True]
    assert (content(pieces), last(pieces).reason) == ("".join(CALL[:4]), "length")


def test_a_call_that_is_complete_needs_no_closing_mark() -> None:
    pieces = read(script(CALL[:5]), **TOOLS)
    assert (arguments(pieces), last(pieces).reason) == ('{"a": 1}', "tool_calls")


def test_the_closing_mark_may_end_the_answer() -> None:
    end = VOCABULARY.id_of("</tool_call>")
    assert end is not None
    pieces = read(script(CALL, ends=(END, end)), end_ids={END, end}, **TOOLS)
    assert (content(pieces), arguments(pieces), last(pieces).reason) == ("", '{"a": 1}', "tool_calls")


@pytest.mark.parametrize(
    ("stop", "shown", "thoughts"),
    [
        ("zzz", "a éc", "b"),
        ("k>b", "a é", ""),
        ("<thi", "a é", ""),
        ("</think>c", "a é", "b"),
        ("é<", "a ", ""),
        ("c", "a é", "b"),
        ("b", "a é", ""),
    ],
)
def test_what_the_engine_holds_back_does_not_shift_marks(stop: str, shown: str, thoughts: str) -> None:
    pieces = read(script(["a ", b"\xc3", b"\xa9", "<think>", "b", "</think>", "c"], stop=[stop]))
    assert (content(pieces), thought(pieces)) == (shown, thoughts)


def test_a_character_that_a_mark_cuts_off_is_replaced() -> None:
    pieces = read(script([b"\xc3", "<think>", "b", "</think>", "c"]))
    assert (content(pieces), thought(pieces)) == ("�c", "b")


@pytest.mark.parametrize("parts", [["a", " b", "c"], [b"\xe2\x82", b"\xac", "x"]])
def test_each_token_of_content_is_reported_once(parts: list[str | bytes]) -> None:
    events = script(["<think>", "t", "</think>", *parts], logprobs=True)
    pieces = read(events, logprobs=True)
    tokens = [token.id for piece in pieces if isinstance(piece, Content) for token in piece.tokens]
    assert tokens == [VOCABULARY.token(part) for part in parts]


def test_a_spoken_answer_ends_with_its_sound() -> None:
    text, speech = script(["Oslo"]), sound(1920, 3840)
    pieces = read([*text, *speech], spoken=True)
    assert [len(piece.samples) for piece in pieces if isinstance(piece, Sound)] == [1920, 3840]
    assert last(pieces).counts.frames == 3
    assert sum(isinstance(piece, Finished) for piece in pieces) == 1


@pytest.mark.parametrize(
    ("speech", "reason"), [("stop", "stop"), ("silent", "stop"), ("length", "length"), ("runaway", "length")]
)
def test_sound_that_was_cut_cuts_the_answer(speech: str, reason: str) -> None:
    assert last(read([*script(["Oslo"]), *sound(1920, reason=speech)], spoken=True)).reason == reason


@pytest.mark.parametrize(
    "events", [script(["Os"], reason="cancelled"), [*script(["Os"]), *sound(1920, reason="cancelled")]]
)
def test_an_answer_that_was_given_up_is_an_error(events: list[SpeechEvent]) -> None:
    with pytest.raises(ApiError) as error:
        read(events, spoken=isinstance(events[-1], SpeechCompletion))
    assert error.value.status == 503
    assert not isinstance(error.value, LludaError)


@pytest.mark.parametrize(
    ("prompt", "is_open"),
    [
        ([], False),
        (["<|start|>", "<think>", "\n"], True),
        (["<|start|>", "<think>", "\n", "</think>", "\n"], False),
        (["<think>", "old", "<|start|>", "answer"], False),
        (["x"], False),
    ],
)
def test_a_prompt_may_open_a_thought(prompt: list[str], is_open: bool) -> None:
    marks = Marks.find(VOCABULARY)
    ids = [VOCABULARY.token(part) for part in prompt]
    assert marks.thought_is_open(ids, VOCABULARY.token("<|start|>")) is is_open


def test_a_vocabulary_with_one_of_two_marks_has_none() -> None:
    class Half:
        def id_of(self, token: str) -> int | None:
            return {"<think>": 5, "<tool_call>": 6, "</tool_call>": 7}.get(token)

        def bytes_of(self, number: int, skip_special: bool = True) -> bytes:  # noqa: ARG002 (as `Vocabulary` has it)
            return b""

    assert Marks.find(Half()).by_id == {6: Mark.CALL, 7: Mark.CALL_END}
