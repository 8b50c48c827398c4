"""What is kept of a conversation, and what of it the model reads."""

from __future__ import annotations

import numpy as np
import pytest

from lluda.serving.http.errors import ApiError
from lluda.serving.limits import Limits
from lluda.serving.realtime.conversation.conversation import Conversation, user_sound
from lluda.serving.realtime.conversation.items import CallItem, CallOutputItem, MessageItem, Part


def user(text: str) -> MessageItem:
    return MessageItem("user", [Part("input_text", text)], text)


def test_samples_of_the_latest_turns_are_kept() -> None:
    conversation = Conversation(Limits(realtime_buffer_seconds=2.5))
    items = [MessageItem("user", [user_sound(np.zeros(16000, np.float32))]) for _ in range(4)]
    for item in items:
        conversation.add(item)
    assert [item.parts[0].samples is not None for item in items] == [False, False, True, True]
    assert all(item.parts[0].source is not None for item in items), "the model reads all of them"


def test_more_sound_than_may_be_heard_is_forgotten() -> None:
    conversation = Conversation(Limits(audio_seconds=3))
    parts = []
    for _ in range(5):
        parts.append(user_sound(np.zeros(16000, np.float32)))
        conversation.add(MessageItem("user", parts[-1:]))
        assert sum(part.source is not None for part in parts) <= 3
    assert parts[-1].source is not None


def test_text_is_bounded() -> None:
    conversation = Conversation(Limits(text_bytes=10))
    conversation.add(user("12345"))
    conversation.add(CallOutputItem("call", "1234"))
    with pytest.raises(ApiError, match="at most 10") as refused:
        conversation.add(user("ab"))
    assert refused.value.code == "conversation_full" and len(conversation) == 2
    conversation.remove("12345")
    conversation.add(user("ab"))


def test_the_earlier_half_is_forgotten() -> None:
    conversation = Conversation(Limits())
    for name in "abcd":
        conversation.add(user(name))
        conversation.add(MessageItem("assistant", [Part("output_audio", name.upper())]))
    assert conversation.forget()
    messages = conversation.reading("Be brief.").messages
    assert [message["content"] for message in messages if message["role"] != "user"] == ["Be brief.", "C", "D"]
    conversation.add(user("first"), "root")
    assert conversation.reading("").messages == messages[1:], "an item before them is forgotten as well"
    conversation.remove("a")
    assert conversation.reading("").messages == messages[1:]
    assert conversation.forget() and not conversation.forget()
    assert len(conversation.reading("").messages) == 2


def test_calls_belong_to_the_answer_that_made_them() -> None:
    conversation = Conversation(Limits())
    conversation.add(user("a"))
    conversation.add(MessageItem("assistant", [Part("output_audio", "One moment.")]))
    conversation.add(CallItem("f", '{"a": 1}', "call_1"))
    conversation.add(CallItem("g", "{", "call_2", status="incomplete"))
    conversation.add(CallOutputItem("call_1", "2"))
    conversation.add(MessageItem("assistant", [Part("output_audio", "")], status="incomplete"))
    _, answer, output = conversation.reading("").messages
    assert answer["content"] == "One moment."
    assert [call["function"] for call in answer["tool_calls"]] == [{"name": "f", "arguments": {"a": 1}}]
    assert output == {"role": "tool", "content": "2", "tool_call_id": "call_1"}


def test_the_last_pictures_are_seen() -> None:
    conversation = Conversation(Limits(images=2))
    for number in range(3):
        conversation.add(MessageItem("user", [Part("input_image", source=b"%d" % number)]))
    assert [item.parts[0].source for item in conversation if isinstance(item, MessageItem)] == [None, b"1", b"2"]
    messages = conversation.reading("").messages
    assert [message["content"] for message in messages] == [
        [{"type": "image", "image": b"1"}],
        [{"type": "image", "image": b"2"}],
    ]
