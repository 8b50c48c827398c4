"""Plain continuations as OpenAI's and lm-eval's objects."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import pytest

from lluda.engine.request import PromptLogprobs, SpeechEvent
from lluda.serving.answers.completion_answer import CompletionChoice, CompletionView, completion
from lluda.serving.answers.head import AnswerHead
from lluda.serving.answers.logprobs import CompletionLogprobs, spelling
from tests.serving import openai_types
from tests.serving.reading.scripted import VOCABULARY, script

HEAD = AnswerHead("cmpl-", "m", "lluda-test")


@dataclass(frozen=True)
class Scored:
    id: int
    logprob: float | None
    top: tuple[tuple[int, float], ...] = ()


def scored(*texts: str | bytes) -> PromptLogprobs:
    ids = [VOCABULARY.token(text) for text in texts]
    first, *rest = ids
    return PromptLogprobs(0, (Scored(first, None), *(Scored(one, -0.5, ((one, -0.5),)) for one in rest)))  # type: ignore[arg-type]


def choice_of(events: Sequence[SpeechEvent], **changes: Any) -> tuple[CompletionChoice, list[dict[str, Any]]]:
    view = CompletionView(vocabulary=VOCABULARY, **changes)
    choice = CompletionChoice(0, view, "ab" if changes.get("echo") else "")
    parts = [*choice.begin(), *(part for event in events for part in choice.add(event))]
    return choice, parts


CASES: dict[str, tuple[list[SpeechEvent], dict[str, Any]]] = {
    "text": (script(["x", "y"]), {}),
    "length": (script(["x"], reason="length"), {}),
    "echo": (script(["x", "y"]), {"echo": True}),
    "logprobs": (script(["x", b"\xc3", b"\xa9"], logprobs=True), {"logprobs": 2}),
    "echo and logprobs": (
        [scored("a", "b"), *script(["x"], reason="length", logprobs=True)],
        {"echo": True, "logprobs": 1},
    ),
    "echo and logprobs alone": ([scored("a", "b"), *script([], reason="length")], {"echo": True, "logprobs": 1}),
}


@pytest.mark.parametrize("name", CASES)
def test_a_completion_is_of_openais_type_whole_and_in_parts(name: str) -> None:
    events, view = CASES[name]
    choice, parts = choice_of(events, **view)
    made = json.loads(msgspec.json.encode(completion(HEAD, [[choice]])))
    openai_types.completion(made)
    for part in parts:
        chunk = HEAD.object("text_completion") | {"choices": [part]}
        openai_types.completion(json.loads(msgspec.json.encode(chunk)), chunk=True)


@pytest.mark.parametrize("name", CASES)
def test_the_parts_together_are_the_whole(name: str) -> None:
    events, view = CASES[name]
    choice, parts = choice_of(events, **view)
    whole = choice.whole()
    assert "".join(part["text"] for part in parts) == whole["text"]
    assert parts[-1]["finish_reason"] == whole["finish_reason"] != None  # noqa: E711
    if view.get("logprobs") is not None:
        for key in ("tokens", "token_logprobs", "top_logprobs", "text_offset"):
            assert [one for part in parts for one in part["logprobs"][key]] == whole["logprobs"][key]


def test_an_echo_with_logprobs_is_what_lm_eval_reads() -> None:
    choice, _ = choice_of(*CASES["echo and logprobs"][:1], **CASES["echo and logprobs"][1])
    whole = choice.whole()
    logprobs = whole["logprobs"]
    assert whole["text"] == "abx"
    assert logprobs["tokens"] == ["a", "b", "x"]
    assert logprobs["token_logprobs"] == [None, -0.5, -0.25]
    assert logprobs["top_logprobs"] == [None, {"b": -0.5}, {"x": -0.25}]
    assert logprobs["text_offset"] == [0, 1, 2]


def test_an_end_token_is_among_the_tokens() -> None:
    """lm-eval takes away one generated token, whatever it is."""
    choice, _ = choice_of(script(["x"], logprobs=True), logprobs=1)
    assert choice.whole()["logprobs"]["tokens"] == ["x", ""]
    assert choice.whole()["logprobs"]["text_offset"] == [0, 1]
    assert choice.counts is not None
    assert choice.counts.text == 2


def test_two_ids_of_one_spelling_do_not_hide_each_other() -> None:
    mark, text = VOCABULARY.token("<think>"), VOCABULARY.plain("<think>")
    lists = CompletionLogprobs(VOCABULARY, 5)
    lists.add([Scored(text, -2.0, ((mark, -0.1), (text, -2.0)))])
    (top,) = lists.take()["top_logprobs"]
    assert top == {"<think>": -2.0, f"token_id:{mark}": -0.1}
    assert max(top.values()) != -2.0  # so the token is not greedy, as it was not


def test_a_token_outside_the_most_likely_has_its_value_all_the_same() -> None:
    one, other = VOCABULARY.token("one"), VOCABULARY.token("other")
    lists = CompletionLogprobs(VOCABULARY, 1)
    lists.add([Scored(one, -3.0, ((other, -0.5),)), Scored(one, float("-inf"), ((other, 0.0),))])
    assert lists.take()["top_logprobs"] == [{"one": -3.0, "other": -0.5}, {"one": -9999.0, "other": 0.0}]


def test_bytes_that_are_no_text_are_spelled_out() -> None:
    assert spelling(VOCABULARY.token(b"\xc3"), VOCABULARY) == "bytes:\\xc3"
    assert spelling(VOCABULARY.token("é"), VOCABULARY) == "é"
