"""The conversation: items in, items out, and what the model reads of them."""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lluda.outputs.encoded_audio import encoded_audio
from tests.serving.realtime.talking import Talk, pcm, talking, user_text
from tests.serving.running import RunningServer

TEXT = {"output_modalities": ["text"]}


def create(talk: Talk, item: dict[str, Any], **place: Any) -> dict[str, Any]:
    """The event that tells of the new item."""
    talk.send("conversation.item.create", item=item, **place)
    added: dict[str, Any] = talk.until("conversation.item.added")
    done = talk.until("conversation.item.done")
    assert done["item"] == added["item"]
    return added


def order(talk: Talk) -> list[str]:
    """Ids by their predecessors."""
    found: list[str] = []
    for event in talk.events:
        if event["type"] == "conversation.item.added":
            before = event["previous_item_id"]
            found.insert(0 if before is None else found.index(before) + 1, event["item"]["id"])
        elif event["type"] == "conversation.item.deleted":
            found.remove(event["item_id"])
    return found


def test_items_have_places(server: RunningServer) -> None:
    with talking(server) as talk:
        for name, after in (("b", None), ("d", None), ("a", "root"), ("c", "b")):
            place = {} if after is None else {"previous_item_id": after}
            added = create(talk, {"id": name, **user_text(name)}, **place)
            assert added["item"]["id"] == name and added["item"]["status"] == "completed"
        assert order(talk) == ["a", "b", "c", "d"]
        talk.send("conversation.item.delete", item_id="c")
        talk.until("conversation.item.deleted", item_id="c")
        assert talk.refused("conversation.item.delete", item_id="c")["code"] == "item_delete_invalid_item_id"
        assert talk.refused("conversation.item.retrieve", item_id="c")["code"] == "item_retrieve_invalid_item_id"
        error = talk.refused("conversation.item.create", item={"id": "a", **user_text("x")})
        assert error["code"] == "item_create_duplicate_item_id"
        error = talk.refused("conversation.item.create", item=user_text("x"), previous_item_id="z")
        assert error["code"] == "item_create_invalid_previous_item_id"


def test_the_model_reads_the_conversation(server: RunningServer) -> None:
    """History, the system's words and instructions are what the model is asked with."""
    messages = [
        {"role": "system", "content": "Answer in one word."},
        {"role": "user", "content": "What is the capital of Norway?"},
        {"role": "assistant", "content": "Oslo."},
        {"role": "user", "content": "What is one plus two?"},
    ]
    with talking(server) as talk:
        talk.update(instructions=messages[0]["content"], **TEXT)
        talk.write(messages[1]["content"])
        said = {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "Oslo."}]}
        create(talk, said)
        response = talk.ask(messages[3]["content"])
        assert response["output"][0]["content"][0]["text"] == server.model.chat(messages).text
        prompt = server.model.chat_prompt(messages)
        assert response["usage"]["input_tokens"] == len(prompt.ids)


def test_the_second_turn_computes_only_what_is_new(server: RunningServer, spoken: Any) -> None:
    """A user's sound stays sound: its rows are not computed again."""
    with talking(server) as talk:
        talk.update(audio={"input": {"turn_detection": None}})
        usage = []
        for _ in range(2):
            talk.append(spoken)
            talk.send("input_audio_buffer.commit")
            talk.send("response.create")
            usage.append(talk.answer()["usage"])
        first, second = (one["input_token_details"] for one in usage)
        assert second["audio_tokens"] == 2 * first["audio_tokens"] > 0
        assert second["cached_tokens"] >= usage[0]["input_tokens"] - 1


def test_sound_is_kept_for_who_asks_for_it(server: RunningServer, spoken: Any) -> None:
    with talking(server) as talk:
        talk.update(audio={"input": {"turn_detection": None}})
        talk.append(spoken)
        talk.send("input_audio_buffer.commit")
        number = talk.until("conversation.item.done")["item"]["id"]
        talk.send("conversation.item.retrieve", item_id=number)
        part = talk.until("conversation.item.retrieved")["item"]["content"][0]
        kept = np.frombuffer(base64.b64decode(part["audio"]), "<i2") / 32768
        assert abs(len(kept) - len(spoken)) < 0.01 * 24000
        assert np.corrcoef(kept[:20000], spoken[:20000])[0, 1] > 0.8


def sounds(spoken: Any) -> dict[str, bytes]:
    return {
        "pcm": pcm(spoken),
        "wav": encoded_audio("wav", 24000, np.asarray(spoken, np.float32)),
        "mp3": encoded_audio("mp3", 24000, np.asarray(spoken, np.float32)),
    }


@pytest.mark.parametrize("kind", ["pcm", "wav", "mp3"])
def test_sound_may_come_in_an_item(server: RunningServer, spoken: Any, kind: str) -> None:
    audio = base64.b64encode(sounds(spoken)[kind]).decode()
    with talking(server) as talk:
        create(talk, {"type": "message", "role": "user", "content": [{"type": "input_audio", "audio": audio}]})
        talk.send("response.create", response=TEXT)
        usage = talk.answer()["usage"]["input_token_details"]
        assert abs(usage["audio_tokens"] - 13 * len(spoken) / 24000) < 2


def test_a_picture_may_come_in_an_item(server: RunningServer) -> None:
    file = io.BytesIO()
    Image.new("RGB", (64, 64), (200, 30, 30)).save(file, "PNG")
    url = f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
    content = [
        {"type": "input_image", "image_url": url, "detail": "low"},
        {"type": "input_text", "text": "What is it?"},
    ]
    with talking(server) as talk:
        create(talk, {"type": "message", "role": "user", "content": content})
        talk.send("response.create", response=TEXT)
        first = talk.answer()
        assert first["status"] == "completed" and first["usage"]["input_token_details"]["image_tokens"] > 0
        assert talk.ask("And now?")["usage"]["input_token_details"]["image_tokens"] > 0


BAD: tuple[tuple[dict[str, Any], str, str], ...] = (
    (
        {"type": "message", "role": "user", "content": [{"type": "input_audio", "audio": "!"}]},
        "item.content[0].audio",
        "invalid_media",
    ),
    (
        {"type": "message", "role": "user", "content": [{"type": "input_audio", "audio": "AAAA"}]},
        "item.content[0].audio",
        "invalid_media",
    ),
    (
        {"type": "message", "role": "user", "content": [{"type": "input_image", "image_url": "http://x/a.png"}]},
        "item.content[0].image_url",
        "invalid_media",
    ),
    (
        {"type": "message", "role": "user", "content": [{"type": "output_text", "text": "a"}]},
        "item.content[0].type",
        "invalid_value",
    ),
    (
        {"type": "message", "role": "system", "content": [{"type": "input_image", "image_url": "data:,"}]},
        "item.content[0].type",
        "invalid_value",
    ),
    ({"type": "message", "role": "king", "content": []}, "item.role", "invalid_value"),
    ({"type": "mcp_call", "id": "x"}, "item", "unsupported_value"),
    ({"type": "function_call_output", "output": "3"}, "item.call_id", "missing_required_parameter"),
)


@pytest.mark.parametrize(("item", "param", "code"), BAD)
def test_items_that_cannot_be(server: RunningServer, item: dict[str, Any], param: str, code: str) -> None:
    with talking(server) as talk:
        error = talk.refused("conversation.item.create", item=item)
        assert (error["param"], error["code"]) == (param, code)


def test_a_picture_that_is_none_fails_its_answer_alone(server: RunningServer) -> None:
    url = f"data:image/png;base64,{base64.b64encode(b'no picture').decode()}"
    with talking(server) as talk:
        added = create(
            talk, {"type": "message", "role": "user", "content": [{"type": "input_image", "image_url": url}]}
        )
        talk.send("response.create")
        response = talk.answer()
        assert response["status"] == "failed"
        assert response["status_details"]["error"]["code"] == "invalid_media"
        talk.send("conversation.item.delete", item_id=added["item"]["id"])
        talk.until("conversation.item.deleted")
        assert talk.ask("What is one plus two?")["status"] == "completed"


def test_an_answer_beside_the_conversation(server: RunningServer) -> None:
    """Out of band: it may read given items, and leaves none."""
    with talking(server) as talk:
        talk.write("What is the capital of Norway?")
        kept = talk.of("conversation.item.done")[0]["item"]["id"]
        wish = {"conversation": "none", "metadata": {"client_event_id": "7"}, **TEXT}
        for given in ([user_text("What is one plus two?")], [{"type": "item_reference", "id": kept}]):
            talk.send("response.create", response={**wish, "input": given})
            response = talk.answer()
            assert response["metadata"] == {"client_event_id": "7"} and response["conversation_id"] is None
            question = given[0].get("content", [{"text": "What is the capital of Norway?"}])[0]["text"]
            expected = server.model.chat([{"role": "user", "content": question}]).text
            assert response["output"][0]["content"][0]["text"] == expected
        assert len(talk.of("conversation.item.added")) == 1
        gone = [{"type": "item_reference", "id": "gone"}]
        error = talk.refused("response.create", response={**wish, "input": gone})
        assert error["code"] == "item_reference_invalid_item_id"


def test_an_answer_as_it_is_wished(server: RunningServer) -> None:
    with talking(server) as talk:
        response = talk.ask("What is one plus two?", max_output_tokens=2, instructions="Count.", **TEXT)
        assert response["status"] == "incomplete"
        assert response["status_details"] == {"type": "incomplete", "reason": "max_output_tokens"}
        assert response["max_output_tokens"] == 2
        assert response["output"][0]["status"] == "incomplete"
        assert talk.ask("What is one plus two?")["output_modalities"] == ["audio"], "for that one alone"


def test_what_a_response_does_not_say_is_the_sessions(server: RunningServer) -> None:
    """Some clients write null for it."""
    with talking(server) as talk:
        talk.update(instructions="Answer in one word.", **TEXT)
        unsaid = {"instructions": None, "output_modalities": None, "audio": {"output": {"voice": None, "format": None}}}
        response = talk.ask("What is one plus two?", tools=None, metadata=None, **unsaid)
        prompt = server.model.chat_prompt(
            [
                {"role": "system", "content": "Answer in one word."},
                {"role": "user", "content": "What is one plus two?"},
            ]
        )
        assert response["usage"]["input_tokens"] == len(prompt.ids)
        assert response["output_modalities"] == ["text"]


def test_of_a_long_conversation_the_beginning_is_forgotten(server: RunningServer) -> None:
    context = server.model.runner.cache_options.max_length
    with talking(server) as talk:
        talk.update(**TEXT)
        for _ in range(8):
            talk.write("one two three four " * (context // 24))
        response = talk.ask("What is one plus two?")
        assert response["status"] == "completed"
        assert 0 < response["usage"]["input_tokens"] < context
        talk.update(truncation="disabled")
        for _ in range(8):
            talk.write("one two three four " * (context // 24))
        response = talk.ask("What is one plus two?")
        assert response["status_details"]["error"]["code"] == "context_length_exceeded"
