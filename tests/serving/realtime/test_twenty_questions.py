"""Twenty held-out questions of tiny-omni's world, spoken over the websocket: how many are answered right word for word.

They are the first of a seed, said by tiny-omni's own voice, each in a session of its own. ``python -m
tests.serving.realtime.test_twenty_questions FOLDER`` also writes the answers' sound, for a recogniser, and judges.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lluda.engine.request import SpeechChunk
from tests.serving.realtime.conftest import silence
from tests.serving.realtime.talking import talking
from tests.serving.running import RunningServer, running_server
from training.world import held_out_turns

COUNT, SEED, BAR = 20, 20, 16


@dataclass(frozen=True)
class Asked:
    """One of them: the answer as it was written and as it should be, its sound at 24 kHz, what was written of the
    question."""

    question: str
    right: str
    answer: str
    sound: Any
    transcript: str


def said(server: RunningServer, text: str) -> Any:
    """Samples at 24 kHz."""
    events = server.model.say(text, speaker="lark")
    return np.concatenate([event.samples for event in events if isinstance(event, SpeechChunk)])


def ask_all(server: RunningServer, speak: Callable[[RunningServer, str], Any] = said) -> list[Asked]:
    asked = []
    for turn in held_out_turns(COUNT, SEED):
        with talking(server) as talk:
            talk.update(audio={"input": {"transcription": {"model": "tiny-omni"}}})
            talk.append(np.concatenate([silence(0.5), speak(server, turn.question), silence(1.5)]))
            answer = talk.answer()["output"][0]["content"][0]["transcript"]
            kind = "conversation.item.input_audio_transcription.completed"
            written = (talk.of(kind) or [talk.until(kind)])[0]["transcript"]
            sound = np.frombuffer(talk.sound(), "<i2").astype(np.float32) / 32768
        asked.append(Asked(turn.question, turn.answer, answer, sound, written))
    return asked


def test_twenty_questions(server: RunningServer) -> None:
    asked = ask_all(server)
    right = [one for one in asked if one.answer == one.right]
    assert len(right) >= BAR, [(one.question, one.right, one.answer) for one in asked if one not in right]
    assert all(len(one.sound) > 12_000 for one in asked), "each answer is spoken"


if __name__ == "__main__":
    import json

    import soundfile

    folder = Path(sys.argv[1])
    folder.mkdir(exist_ok=True)
    with running_server() as running:
        found = ask_all(running)
    for number, one in enumerate(found):
        soundfile.write(folder / f"{number:02}.wav", one.sound, 24_000, subtype="PCM_16")
    rows = [
        {"question": one.question, "right": one.right, "answer": one.answer, "transcript": one.transcript}
        for one in found
    ]
    (folder / "answers.json").write_text(json.dumps(rows, indent=1))
    print(sum(one.answer == one.right for one in found), "of", len(found), "answers are right")
