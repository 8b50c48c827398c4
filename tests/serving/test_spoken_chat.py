"""Answers in sound, and questions with sound, pictures and video, through chat."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from openai import OpenAI
from PIL import Image

from lluda.inputs.media.audio_file import open_audio
from lluda.outputs.wav_header import pcm16
from tests.inputs.media.synthetic_video import grey_frames, write_video
from tests.serving import openai_types
from tests.serving.oracle import check_error, check_well
from tests.serving.running import RunningServer
from tests.serving.test_chat import ASKED, MODEL, SUM, body, chunks_of
from tests.serving.test_tools import EMPTY

SPOKEN = {"modalities": ["text", "audio"], "audio": {"voice": "lark", "format": "wav"}}
STREAMED = {"modalities": ["text", "audio"], "audio": {"voice": "lark", "format": "pcm16"}}


@pytest.fixture(scope="module")
def said(server: RunningServer) -> np.ndarray[Any, np.dtype[np.float32]]:
    """The answer's samples as the model makes them in process."""
    events = server.model.speak(ASKED, speaker="lark")
    return np.concatenate([event.samples for event in events if hasattr(event, "samples") and hasattr(event, "codes")])


def frames(samples: Any) -> int:
    """Of 80 ms, the last of which may be cut."""
    return -(-len(samples) // 1920)


def test_a_spoken_answer_has_text_and_sound(server: RunningServer, said: Any) -> None:
    answer = server.post("/v1/chat/completions", body(**SPOKEN)).json()
    openai_types.chat_completion(answer)
    message = answer["choices"][0]["message"]
    assert message["content"] == message["audio"]["transcript"] == SUM
    assert message["audio"]["expires_at"] == answer["created"] + 3600
    samples, rate = soundfile.read(io.BytesIO(base64.b64decode(message["audio"]["data"])), dtype="int16")
    assert rate == 24000
    assert np.array_equal(samples, pcm16(said))
    details = answer["usage"]["completion_tokens_details"]
    assert details["audio_tokens"] == frames(samples)
    assert answer["usage"]["completion_tokens"] == details["audio_tokens"] + details["text_tokens"]


@pytest.mark.parametrize("sound_format", ["mp3", "flac", "opus", "aac", "pcm16"])
def test_sound_comes_in_each_format(server: RunningServer, sound_format: str, said: Any) -> None:
    audio = {"voice": {"id": "LARK"}, "format": sound_format}
    message = server.post("/v1/chat/completions", body(modalities=["audio"], audio=audio)).json()["choices"][0][
        "message"
    ]
    assert message["content"] is None
    data = base64.b64decode(message["audio"]["data"])
    if sound_format == "pcm16":
        assert data == pcm16(said).tobytes()
    else:
        heard = np.concatenate(list(open_audio(data, None, where="the answer").blocks(24000)))
        assert abs(len(heard) - len(said)) < 0.2 * 24000


def test_a_streamed_answer_is_the_whole_one(server: RunningServer, said: Any) -> None:
    chunks = chunks_of(server, **STREAMED, stream_options={"include_usage": True})
    for chunk in chunks:
        openai_types.chat_chunk(chunk)
    deltas = [choice["delta"] for chunk in chunks for choice in chunk["choices"]]
    sounds = [delta["audio"] for delta in deltas if "audio" in delta]
    assert b"".join(base64.b64decode(sound.get("data", "")) for sound in sounds) == pcm16(said).tobytes()
    assert "".join(sound.get("transcript", "") for sound in sounds) == SUM
    assert len({sound["id"] for sound in sounds}) == 1
    assert sum("data" in sound for sound in sounds) > 1
    assert "expires_at" in sounds[-1]
    assert chunks[-1]["usage"]["completion_tokens_details"]["audio_tokens"] == frames(said)


def test_a_later_message_may_refer_to_what_was_said(client: OpenAI, server: RunningServer) -> None:
    spoken: Any = {"modalities": ["text", "audio"], "audio": {"voice": "alloy", "format": "wav"}}
    first = client.chat.completions.create(model=MODEL, messages=ASKED, **spoken)
    audio = first.choices[0].message.audio
    assert audio is not None
    messages: list[Any] = [*ASKED, {"role": "assistant", "audio": {"id": audio.id}}, *ASKED]
    second = client.chat.completions.create(model=MODEL, messages=messages)
    written = [*ASKED, {"role": "assistant", "content": SUM}, *ASKED]
    assert second.choices[0].message.content == server.model.chat(written).text
    unknown = {"role": "assistant", "audio": {"id": "audio_unknown"}}
    answer = server.post("/v1/chat/completions", {"model": MODEL, "messages": [*ASKED, unknown, *ASKED]})
    check_error(answer, 404, "audio_not_found", "messages[1].audio.id")
    # A client sends the message back as it got it.
    again = client.chat.completions.create(model=MODEL, messages=[*ASKED, first.choices[0].message, *ASKED])  # type: ignore[list-item]
    assert again.choices[0].message.content == second.choices[0].message.content


def test_speech_is_bounded_and_seeded(server: RunningServer) -> None:
    def sound(**changes: Any) -> bytes:
        answer = server.post("/v1/chat/completions", body(**SPOKEN, **changes)).json()
        return base64.b64decode(answer["choices"][0]["message"]["audio"]["data"])

    short = server.post("/v1/chat/completions", body(**SPOKEN, max_audio_seconds=0.4)).json()
    assert short["usage"]["completion_tokens_details"]["audio_tokens"] == 5
    assert short["choices"][0]["finish_reason"] == "length"
    warm = {"speech_temperature": 1.5, "max_audio_seconds": 0.8}
    assert sound(speech_seed=1, **warm) == sound(speech_seed=1, **warm) != sound(speech_seed=2, **warm)
    assert sound(seed=1, **warm) == sound(speech_seed=1, **warm)


def test_a_call_is_not_spoken(server: RunningServer) -> None:
    tools = [{"type": "function", "function": {"name": "f", "parameters": EMPTY}}]
    answer = server.post(
        "/v1/chat/completions", body(**SPOKEN, tools=tools, tool_choice="required", parallel_tool_calls=False)
    ).json()
    assert answer["choices"][0]["finish_reason"] == "tool_calls"
    assert answer["usage"]["completion_tokens_details"]["audio_tokens"] == 0
    check_well(server)


BAD = [
    ({"modalities": ["audio"]}, "audio", "missing_required_parameter"),
    ({"modalities": ["video"]}, "modalities[0]", "invalid_value"),
    ({"modalities": []}, "modalities", "invalid_value"),
    ({"audio": {"voice": "lark", "format": "wav"}}, "audio", "invalid_value"),
    ({**SPOKEN, "audio": {"voice": "nobody", "format": "wav"}}, "audio.voice", "invalid_value"),
    ({**SPOKEN, "audio": {"voice": "lark", "format": "midi"}}, "audio.format", "invalid_value"),
    ({**SPOKEN, "audio": {"voice": "lark"}}, "audio.format", "missing_required_parameter"),
    ({**SPOKEN, "stream": True}, "audio.format", "unsupported_value"),
    ({**SPOKEN, "n": 2}, "n", "unsupported_value"),
    ({"speech_seed": 1}, "speech_seed", "invalid_value"),
]


@pytest.mark.parametrize(("changes", "param", "code"), BAD)
def test_what_cannot_be_spoken_is_refused_before_anything_runs(
    server: RunningServer, changes: dict[str, Any], param: str, code: str
) -> None:
    """C16."""
    submitted = server.model.engine.stats().submitted
    check_error(server.post("/v1/chat/completions", body(**changes)), 400, code, param)
    assert server.model.engine.stats().submitted == submitted
    check_well(server)


def test_known_voices_are_listed_where_one_is_unknown(server: RunningServer) -> None:
    changes = {**SPOKEN, "audio": {"voice": "nobody", "format": "wav"}}
    message = check_error(server.post("/v1/chat/completions", body(**changes)), 400)["message"]
    assert "lark" in message
    assert "alloy" in message


def wav(samples: Any) -> str:
    written = io.BytesIO()
    soundfile.write(written, samples, 24000, format="WAV", subtype="PCM_16")
    return base64.b64encode(written.getvalue()).decode()


def test_a_spoken_question_is_heard(client: OpenAI, server: RunningServer, said: Any) -> None:
    data = wav(said)
    messages: list[Any] = [
        {"role": "user", "content": [{"type": "input_audio", "input_audio": {"data": data, "format": "wav"}}]}
    ]
    answer = client.chat.completions.create(model=MODEL, messages=messages)
    inside = server.model.chat([{"role": "user", "content": [{"type": "audio", "audio": base64.b64decode(data)}]}])
    assert answer.choices[0].message.content == inside.text
    assert answer.usage is not None
    assert answer.usage.prompt_tokens_details is not None
    assert answer.usage.prompt_tokens == inside.prompt_tokens
    assert answer.usage.prompt_tokens_details.audio_tokens == round(len(said) / 24000 * 13)
    url = {"type": "audio_url", "audio_url": {"url": f"data:audio/wav;base64,{data}"}}
    same = server.post("/v1/chat/completions", body(messages=[{"role": "user", "content": [url]}])).json()
    assert same["choices"][0]["message"]["content"] == inside.text


def test_a_picture_is_seen_between_texts(client: OpenAI, server: RunningServer) -> None:
    written = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 96, 3), dtype=np.uint8)).save(written, "PNG")
    url = f"data:image/png;base64,{base64.b64encode(written.getvalue()).decode()}"
    parts = [
        {"type": "text", "text": "What is"},
        {"type": "image_url", "image_url": {"url": url, "detail": "low"}},
        {"type": "text", "text": "this?"},
    ]
    messages: list[Any] = [{"role": "user", "content": parts}]
    answer = client.chat.completions.create(model=MODEL, messages=messages, max_tokens=8)
    inside_parts = [parts[0], {"type": "image", "image": written.getvalue()}, parts[2]]
    inside = server.model.chat([{"role": "user", "content": inside_parts}], max_tokens=8)
    assert answer.choices[0].message.content == inside.text
    assert answer.usage is not None
    assert answer.usage.prompt_tokens_details is not None
    assert answer.usage.prompt_tokens_details.image_tokens == 64 * 96 // 32**2


@pytest.mark.parametrize("heard", [False, True])
def test_a_video_is_seen_and_heard(server: RunningServer, tmp_path: Path, heard: bool) -> None:
    data = write_video(tmp_path / "v.mkv", grey_frames(8, 64, 64), rate=8, sound=True).read_bytes()
    url = f"data:video/x-matroska;base64,{base64.b64encode(data).decode()}"
    asked = {"type": "video_url", "video_url": {"url": url, "fps": 4, "use_audio_in_video": heard}}
    changes = {"messages": [{"role": "user", "content": [asked]}], "max_tokens": 6}
    answer = server.post("/v1/chat/completions", body(**changes)).json()
    part = {"type": "video", "video": data, "fps": 4, **({"use_audio": True} if heard else {})}
    inside = server.model.chat([{"role": "user", "content": [part]}], max_tokens=6)
    assert answer["choices"][0]["message"]["content"] == inside.text
    details = answer["usage"]["prompt_tokens_details"]
    assert answer["usage"]["prompt_tokens"] == inside.prompt_tokens
    ids, tokens = (
        list(server.model.chat_prompt([{"role": "user", "content": [part]}]).ids),
        server.model.config.omni.tokens,
    )
    assert details["image_tokens"] == ids.count(tokens.video_pad) > 0
    assert details["audio_tokens"] == ids.count(tokens.audio_pad)
    assert (details["audio_tokens"] > 0) == heard


def test_media_that_are_none_are_named_by_their_path(server: RunningServer) -> None:
    part = {"type": "input_audio", "input_audio": {"data": base64.b64encode(b"not a sound").decode(), "format": "wav"}}
    messages = [{"role": "system", "content": "x"}, {"role": "user", "content": [{"type": "text", "text": "a"}, part]}]
    error = check_error(server.post("/v1/chat/completions", body(messages=messages)), 400, "invalid_media")
    assert error["param"].startswith("messages[1].content[1]")
    items = [{"role": "user", "content": [part]}]
    error = check_error(
        server.post("/v1/responses", {"model": MODEL, "input": items, "instructions": "x"}), 400, "invalid_media"
    )
    assert error["param"].startswith("input[0].content[0]")
    check_well(server)
