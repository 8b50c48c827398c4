"""Answers as OpenAI's chat objects: valid for its types, and the same streamed and whole."""

from __future__ import annotations

import base64
import json
from typing import Any

import msgspec
import numpy as np
import pytest

from lluda.engine.request import SpeechEvent
from lluda.outputs.wav_header import pcm16
from lluda.serving.answers.chat_answer import ChatChoice, ChatView, audio_object, chat_completion
from lluda.serving.answers.chat_chunks import ChatChunks, usage_chunk
from lluda.serving.answers.head import AnswerHead
from lluda.serving.answers.usage import PromptCounts, usage
from lluda.serving.reading.pieces import AnswerCounts
from tests.serving import openai_types
from tests.serving.reading.scripted import VOCABULARY, read, script, sound
from tests.serving.reading.test_answer_reader import BROKEN, CALL, TOOLS

HEAD = AnswerHead("chatcmpl-", "m", "lluda-test")
MEDIA = PromptCounts(audio=2, image=1)

ANSWERS: dict[str, tuple[list[SpeechEvent], dict[str, Any]]] = {
    "text": (script(["Os", "lo", "."]), {}),
    "empty": (script([]), {}),
    "length": (script(["Os"], reason="length"), {}),
    "thought": (script(["<think>", "hm", "</think>", "\n\n", "Oslo"]), {}),
    "call": (script(CALL), TOOLS),
    "calls": (script(["Yes.", "\n", *CALL, "\n", *CALL]), TOOLS),
    "logprobs": (script(["Os", b"\xc3", b"\xa9", "."], logprobs=True), {"logprobs": True}),
    "spoken": ([*script(["Os", "lo"]), *sound(1920, 1920)], {"spoken": True}),
    **{f"broken: {name}": (script(["<tool_call>", *parts, "</tool_call>"]), TOOLS) for name, parts in BROKEN.items()},
}


def view(form: dict[str, Any], *, text: bool = True) -> ChatView:
    top = 2 if form.get("logprobs") else None
    return ChatView(vocabulary=VOCABULARY, text=text, spoken=bool(form.get("spoken")), logprobs=top)


def whole(name: str, *, text: bool = True) -> dict[str, Any]:
    events, form = ANSWERS[name]
    choice = ChatChoice(0, view(form, text=text))
    for piece in read(events, **form):
        choice.add(piece)
    audio = None
    if choice.sounds:
        audio = audio_object(HEAD, pcm16(np.concatenate(choice.sounds)).tobytes(), choice.transcript)
    found: dict[str, Any] = json.loads(msgspec.json.encode(chat_completion(HEAD, [choice], MEDIA, audio)))
    return found


def streamed(name: str, *, text: bool = True) -> list[dict[str, Any]]:
    events, form = ANSWERS[name]
    chunks = ChatChunks(HEAD, 0, view(form, text=text), usage=True)
    made = [chunks.first(), *(chunk for piece in read(events, **form) for chunk in chunks.of(piece))]
    made.append(usage_chunk(HEAD, usage([[AnswerCounts(7, 3, 4)]], MEDIA)))
    return [json.loads(msgspec.json.encode(chunk)) for chunk in made]


@pytest.mark.parametrize("name", ANSWERS)
def test_a_whole_answer_is_of_openais_type(name: str) -> None:
    openai_types.chat_completion(whole(name))


@pytest.mark.parametrize("name", ANSWERS)
def test_each_chunk_is_of_openais_type(name: str) -> None:
    for chunk in streamed(name):
        openai_types.chat_chunk(chunk)


def _joined(chunks: list[dict[str, Any]]) -> dict[str, Any]:
    """What a client puts together."""
    found: dict[str, Any] = {"content": "", "reasoning": "", "calls": {}, "transcript": "", "data": b"", "logprobs": []}
    for chunk in chunks:
        for choice in chunk["choices"]:
            delta = choice["delta"]
            found["content"] += delta.get("content") or ""
            found["reasoning"] += delta.get("reasoning_content") or ""
            for call in delta.get("tool_calls", ()):
                kept = found["calls"].setdefault(call["index"], {"name": "", "arguments": ""})
                kept["name"] += call["function"].get("name", "")
                kept["arguments"] += call["function"]["arguments"]
            audio = delta.get("audio", {})
            found["transcript"] += audio.get("transcript", "")
            found["data"] += base64.b64decode(audio.get("data", ""))
            found["logprobs"] += (choice["logprobs"] or {"content": []})["content"]
            found["reason"] = choice["finish_reason"]
    return found


@pytest.mark.parametrize("name", [name for name in ANSWERS if name != "broken: broken arguments"])
def test_streamed_and_whole_say_the_same(name: str) -> None:
    choice, joined = whole(name)["choices"][0], _joined(streamed(name))
    message = choice["message"]
    assert joined["content"] == (message["content"] or "")
    assert joined["reasoning"] == (message["reasoning_content"] or "")
    assert list(joined["calls"].values()) == [call["function"] for call in message.get("tool_calls", ())]
    assert joined["reason"] == choice["finish_reason"]
    assert joined["logprobs"] == (choice["logprobs"] or {"content": []})["content"]
    if name == "spoken":
        assert joined["transcript"] == message["audio"]["transcript"] == "Oslo"
        assert joined["data"] == base64.b64decode(message["audio"]["data"])
        assert len(joined["data"]) == 2 * 3840


def test_arguments_that_were_streamed_and_do_not_parse_are_content_and_no_reason_to_call() -> None:
    """They cannot be taken back; the raw text follows, and the answer does not end as one that calls."""
    joined, message = _joined(streamed("broken: broken arguments")), whole("broken: broken arguments")
    choice = message["choices"][0]
    assert "tool_calls" not in choice["message"]
    assert joined["content"] == choice["message"]["content"]
    assert joined["reason"] == choice["finish_reason"] == "stop"


def test_an_answer_of_sound_alone_shows_its_text_as_transcript() -> None:
    message = whole("spoken", text=False)["choices"][0]["message"]
    assert (message["content"], message["audio"]["transcript"]) == (None, "Oslo")
    joined = _joined(streamed("spoken", text=False))
    assert (joined["content"], joined["transcript"]) == ("", "Oslo")


def test_a_call_alone_has_no_content() -> None:
    message = whole("call")["choices"][0]["message"]
    assert message["content"] is None
    assert whole("empty")["choices"][0]["message"]["content"] == ""


def test_a_stream_says_its_role_first_and_its_reason_last() -> None:
    chunks = streamed("spoken")
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    reasons = [choice["finish_reason"] for chunk in chunks for choice in chunk["choices"]]
    assert reasons == [None] * (len(reasons) - 1) + ["stop"]
    assert chunks[-2]["choices"][0]["delta"] == {}
    assert list(chunks[-3]["choices"][0]["delta"]["audio"]) == ["id", "expires_at"]
    assert [chunk["usage"] is None for chunk in chunks] == [True] * (len(chunks) - 1) + [False]
    assert len({(chunk["id"], chunk["created"], chunk["model"]) for chunk in chunks}) == 1


def test_logprobs_name_each_token_with_its_bytes() -> None:
    entries = whole("logprobs")["choices"][0]["logprobs"]["content"]
    assert [entry["bytes"] for entry in entries] == [list(b"Os"), [0xC3], [0xA9], list(b".")]
    assert [entry["token"] for entry in entries] == ["Os", "�", "�", "."]
    assert all(entry["top_logprobs"][0]["logprob"] == entry["logprob"] for entry in entries)


def test_usage_counts_a_prompt_once_and_frames_as_tokens() -> None:
    counts = [AnswerCounts(10, 4, 3, reasoning=1, frames=2), AnswerCounts(10, 9, 5)]
    assert usage([counts], MEDIA) == {
        "prompt_tokens": 10,
        "completion_tokens": 10,
        "total_tokens": 20,
        "prompt_tokens_details": {"cached_tokens": 4, "audio_tokens": 2, "image_tokens": 1, "text_tokens": 7},
        "completion_tokens_details": {"reasoning_tokens": 1, "audio_tokens": 2, "text_tokens": 8},
    }
