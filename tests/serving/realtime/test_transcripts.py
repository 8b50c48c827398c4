"""The user's words in writing, beside the answer."""

from __future__ import annotations

from difflib import SequenceMatcher
from typing import Any

import numpy as np

from tests.serving.realtime.conftest import QUESTION, silence
from tests.serving.realtime.talking import talking
from tests.serving.running import RunningServer

DELTA = "conversation.item.input_audio_transcription.delta"
COMPLETED = "conversation.item.input_audio_transcription.completed"
FAILED = "conversation.item.input_audio_transcription.failed"


def test_the_answer_does_not_wait_for_the_transcript(server: RunningServer, spoken: Any) -> None:
    with talking(server) as talk:
        talk.update(audio={"input": {"transcription": {"model": "whisper-1", "language": "en-GB", "prompt": "Paris"}}})
        talk.append(np.concatenate([silence(0.3), spoken, silence(0.9)]))
        done = talk.until(COMPLETED)
        if not talk.of("response.done"):
            talk.answer()
        kinds = [event["type"] for event in talk.events]
        first = next(index for index, kind in enumerate(kinds) if kind in (DELTA, COMPLETED))
        assert kinds.index("response.output_audio.delta") < first
        item = talk.of("input_audio_buffer.committed")[0]["item_id"]
        assert done["item_id"] == item and done["content_index"] == 0
        assert done["transcript"] == "".join(one["delta"] for one in talk.of(DELTA)).strip() != ""
        assert done["usage"]["type"] == "duration" and abs(done["usage"]["seconds"] - len(spoken) / 24000) < 0.8
        talk.send("conversation.item.retrieve", item_id=item)
        assert talk.until("conversation.item.retrieved")["item"]["content"][0]["transcript"] == done["transcript"]


def test_a_question_is_written_down_and_not_answered(server: RunningServer, spoken: Any) -> None:
    with talking(server) as talk:
        talk.update(audio={"input": {"transcription": {}, "turn_detection": None}})
        talk.append(spoken)
        talk.send("input_audio_buffer.commit")
        assert SequenceMatcher(None, talk.until(COMPLETED)["transcript"], QUESTION).ratio() > 0.9


def test_nothing_is_written_down_unasked(server: RunningServer, spoken: Any) -> None:
    with talking(server) as talk:
        talk.append(np.concatenate([spoken, silence(0.9)]))
        talk.answer()
        talk.write("One.")
        assert not talk.of(DELTA) and not talk.of(COMPLETED)


def test_turns_are_written_down_in_order(server: RunningServer, spoken: Any) -> None:
    with talking(server) as talk:
        talk.update(audio={"input": {"transcription": {}, "turn_detection": None}})
        items = []
        for _ in range(3):
            talk.append(spoken)
            talk.send("input_audio_buffer.commit")
            items.append(talk.until("input_audio_buffer.committed")["item_id"])
        for _ in range(3 - len(talk.of(COMPLETED))):
            talk.until(COMPLETED)
        assert [one["item_id"] for one in talk.of(COMPLETED)] == items


def test_what_cannot_be_written_down_is_told(server: RunningServer, spoken: Any, monkeypatch: Any) -> None:
    def broken(*_: Any) -> Any:
        raise RuntimeError("a secret of the server")

    monkeypatch.setattr("lluda.serving.realtime.conversation.transcripts.verbatim_prompt", broken)
    with talking(server) as talk:
        talk.update(audio={"input": {"transcription": {}, "turn_detection": None}})
        talk.append(spoken)
        talk.send("input_audio_buffer.commit")
        error = talk.until(FAILED)["error"]
        assert error["code"] == "internal_error" and "secret" not in error["message"]
        assert talk.ask("What is one plus two?")["status"] == "completed"
