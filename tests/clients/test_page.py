"""The voice page in Chromium, its microphone a recording: with a server of a script, then with lluda's own."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import soxr

import lluda
from lluda.engine.request import SpeechChunk
from tests.clients.environments import require, run
from tests.clients.scripted_realtime import RATE, TEXT, Script, scripted_server
from tests.serving.oracle import check_well
from tests.serving.running import RunningServer

HERE = Path(__file__).parent
NAMES = ("chromium", "chromium-browser", "google-chrome")
HELD = "Spell the word elephant."
"""Its answer takes seconds to say, into which one can speak."""

SECOND = "What is the capital of France?"
WATCHDOG_SECONDS = 1.5
"""Ten times what it may take to stop; what it takes is in journal/20-realtime.md."""

Use = Callable[..., dict[str, Any]]


@pytest.fixture(scope="session")
def microphone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A question after 1 s, a second 2.5 s behind its end, then silence; said by a voice that tiny-omni knows."""
    model = lluda.load_speech("tiny-omni", threads=1)
    said = [
        np.concatenate([event.samples for event in model.speak(text) if isinstance(event, SpeechChunk)])
        for text in (HELD, SECOND)
    ]
    pauses = [np.zeros(int(seconds * RATE), np.float32) for seconds in (1.0, 2.5, 20.0)]
    whole = np.concatenate([pauses[0], said[0], pauses[1], said[1], pauses[2]])
    path = tmp_path_factory.mktemp("microphone") / "questions.wav"
    soundfile.write(path, soxr.resample(whole, RATE, 48_000), 48_000, subtype="PCM_16")
    return path


@pytest.fixture
def use(microphone: Path, tmp_path: Path) -> Use:
    """What is seen on the page after a deed of `page_session.py`; nothing on its console, no report of its policy."""
    python = require("browser") / "bin/python"
    chromium = next((found for found in map(shutil.which, NAMES) if found), None)
    if chromium is None:
        pytest.skip("there is no chromium here: apt-get install chromium")

    def use(url: str, deed: str, *, console: tuple[str, ...] = ()) -> dict[str, Any]:
        command = [python, HERE / "page_session.py", url, deed, chromium, microphone]
        found: dict[str, Any] = json.loads(run(command, tmp_path))
        assert [line for line in found["console"] if not any(part in line for part in console)] == []
        assert found["reports"] == []
        assert not found["wide"], "at 360 pixels nothing sticks out"
        return found

    return use


def test_a_question_spoken_into_the_answer(use: Use) -> None:
    script = Script()
    with scripted_server(script) as url:
        found = use(url, "interrupted")
    assert script.offered == ["realtime"]
    assert script.types()[:3] == ["session.update", "conversation.item.truncate", "left"]
    session = script.told[0]["session"]
    assert session["output_modalities"] == ["audio"] and session["audio"]["output"]["voice"] == "lark"
    assert session["audio"]["input"]["turn_detection"] == {
        "type": "semantic_vad",
        "eagerness": "medium",
        "create_response": True,
        "interrupt_response": True,
    }
    appended = script.of("input_audio_buffer.append")
    assert {event["audio"] for event in appended} == {960}
    seconds = appended[-1]["at"] - appended[0]["at"]
    assert sum(event["audio"] for event in appended) / RATE == pytest.approx(seconds, rel=0.1), "as it is made"
    first, second = [event for event in script.sent if event["type"] == "input_audio_buffer.speech_started"][:2]
    (truncate,) = script.of("conversation.item.truncate")
    assert truncate["at"] - second["at"] <= WATCHDOG_SECONDS
    answered = next(event for event in script.sent if event["type"] == "response.output_item.added")
    assert truncate["item_id"] == answered["item"]["id"] and truncate["content_index"] == 0
    heard = second["at"] - answered["at"]
    assert heard - 1.0 < truncate["audio_end_ms"] / 1000 < heard + 0.1, "what was played, not what was sent"
    assert first["at"] < answered["at"]
    user, cut, *_ = found["turns"]
    assert user["text"] == "what is the capital of france" and user["kind"] == "user"
    assert cut["kind"] == "assistant cut" and cut["text"].strip() == TEXT
    share = truncate["audio_end_ms"] / 1000 / script.seconds
    assert len(cut["heard"]) / len(TEXT) == pytest.approx(share, abs=0.12), "the words that were heard are bright"
    assert "first sound" in cut["note"] and cut["note"].endswith("interrupted")


def test_a_browser_that_resamples_no_microphone(use: Use) -> None:
    script = Script(seconds=1.0)
    with scripted_server(script) as url:
        use(url, "firefox")
    appended = script.of("input_audio_buffer.append")
    seconds = appended[-1]["at"] - appended[0]["at"]
    assert sum(event["audio"] for event in appended) / RATE == pytest.approx(seconds, rel=0.1)
    assert [event["type"] for event in script.sent].count("input_audio_buffer.speech_started") == 1


def test_hold_to_talk(use: Use) -> None:
    script = Script()
    with scripted_server(script) as url:
        found = use(url, "held")
    assert script.told[0]["session"]["audio"]["input"]["turn_detection"] is None
    clear, commit, create, *rest = script.types()[1:]
    assert [clear, commit, create] == ["input_audio_buffer.clear", "input_audio_buffer.commit", "response.create"]
    assert rest == ["response.cancel", "conversation.item.truncate", "left"]
    between = script.told[: script.told.index(script.of("input_audio_buffer.commit")[0])]
    held = sum(event["audio"] for event in between if event["type"] == "input_audio_buffer.append") / RATE
    assert 0.7 < held < 1.6, "nothing is sent but what is said while the key is down"
    assert found["state"] == "hold"


def test_typing_with_a_picture(use: Use) -> None:
    script = Script()
    with scripted_server(script) as url:
        found = use(url, "typed")
    order = ["conversation.item.create", "response.create", "response.cancel"]
    assert [kind for kind in script.types() if "truncate" not in kind] == ["session.update", *order * 2, "left"]
    assert len(script.of("conversation.item.truncate")) == 2
    picture, text = script.of("conversation.item.create")[0]["item"]["content"]
    assert picture["type"] == "input_image" and picture["image_url"].startswith("data:image/jpeg;base64,")
    assert text == {"type": "input_text", "text": "What is this?"}
    assert found["turns"][0]["pictures"] == [[1280, 427]], "scaled to at most 1,280 pixels"
    # A response.create while the old answer has not ended would be refused.
    ended = [event["at"] for event in script.sent if event["type"] == "response.done"]
    assert script.of("response.create")[1]["at"] >= ended[0]


def test_a_picture_of_the_camera(use: Use) -> None:
    """Chromium's fake camera has what it is asked for."""
    script = Script()
    with scripted_server(script) as url:
        found = use(url, "snapshot")
    (created,) = script.of("conversation.item.create")
    assert [part["type"] for part in created["item"]["content"]] == ["input_image"]
    assert found["turns"][0]["pictures"] == [[1280, 720]]


def test_muted_and_settings_that_stay(use: Use) -> None:
    script = Script()
    with scripted_server(script) as url:
        found = use(url, "muted")
    assert not [event for event in script.sent if event["type"] == "input_audio_buffer.speech_started"]
    assert sum(event["audio"] for event in script.of("input_audio_buffer.append")) > 3 * RATE, "silence goes on"
    last = script.of("session.update")[-1]["session"]
    assert last["audio"]["output"]["voice"] == "rms" and last["instructions"] == "Be brief."
    assert last["audio"]["input"]["turn_detection"]["eagerness"] == "high"
    assert script.types()[-1] == "left"
    assert found["voice"] == "rms" and found["state"] == "off"


def test_the_clock(use: Use) -> None:
    script = Script(calls=True)
    with scripted_server(script) as url:
        found = use(url, "tool")
    assert [tool["name"] for tool in script.told[0]["session"]["tools"]] == ["get_time"]
    assert script.types()[1:5] == ["conversation.item.create", "response.create"] * 2
    output = script.of("conversation.item.create")[1]["item"]
    assert output["type"] == "function_call_output" and output["call_id"] == "call_1"
    assert " at " in json.loads(output["output"])["time"]
    (line,) = [turn["text"] for turn in found["turns"] if turn["kind"] == "tool"]
    assert "answered in" in line and "went on after" in line and "Asia/Tokyo" in line


def test_a_text_model(use: Use) -> None:
    script = Script(modalities=(["text"], ["text"]))
    with scripted_server(script) as url:
        found = use(url, "chat")
    assert script.told[0]["session"]["output_modalities"] == ["text"] and script.told[0]["session"]["audio"] == {}
    assert [turn["heard"] for turn in found["turns"]] == ["What is the capital of France?", TEXT]
    assert "microphone" not in found["hint"]


def test_a_page_that_browsers_give_no_microphone(use: Use) -> None:
    script = Script()
    with scripted_server(script) as url:
        found = use(url, "insecure")
    assert not found["secure"]
    assert script.told[0]["session"]["output_modalities"] == ["text"]
    assert found["turns"][1]["heard"] == TEXT


def test_a_full_server(use: Use) -> None:
    script = Script(refusal=("all 4 sessions are taken: end one", 1013))
    with scripted_server(script) as url:
        found = use(url, "refused")
    assert found["error"] == "all 4 sessions are taken: end one" and found["state"] == "off"


def test_a_key(use: Use) -> None:
    script = Script(key="sk-right", modalities=(["text"], ["text"]))
    with scripted_server(script) as url:
        found = use(url, "with_key", console=("status of 401",))
    assert script.offered == ["realtime", "openai-insecure-api-key.sk-right"]
    assert found["error"] == "" and found["turns"][1]["heard"] == TEXT


def test_lluda_is_spoken_to(use: Use, server: RunningServer) -> None:
    """tiny-omni spells a word, and is asked something else while it does."""
    found = use(server.url, "interrupted")
    answers = [turn for turn in found["turns"] if turn["kind"].startswith("assistant")]
    assert answers[0]["kind"] == "assistant cut" and "elephant" in answers[0]["text"].lower()
    assert answers[1]["text"] == "The capital of France is Paris."
    assert found["error"] == ""
    check_well(server)


def test_lluda_is_written_to(use: Use, server: RunningServer) -> None:
    found = use(server.url, "typed")
    answers = [turn["text"] for turn in found["turns"] if turn["kind"].startswith("assistant")]
    assert answers[0] and "plus three" in answers[1], "behind a picture tiny-omni adds badly"
    assert found["turns"][0]["pictures"] == [[1280, 427]]
    assert found["error"] == ""
    check_well(server)
