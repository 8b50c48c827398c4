"""POST /v1/audio/speech, GET /v1/audio/voices."""

import base64
import io
import json
import math
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import av
import httpx2
import numpy as np
import openai
import pytest

from lluda.engine.request import SpeechChunk
from lluda.outputs.wav_header import pcm16
from lluda.serving.voices import OPENAI_VOICES
from tests.serving.asking import outcomes, wait_for
from tests.serving.oracle import check_error, check_well, wait_until_idle

PARIS = "The capital of France is Paris."
BODY = {"model": "tiny-omni", "input": PARIS, "voice": "lark", "response_format": "pcm"}
PATH = "/v1/audio/speech"


@pytest.fixture(autouse=True)
def well(server):
    yield
    check_well(server)


def sound_of(model, text, speaker="lark"):
    """As the model says it when nobody else asks."""
    chunks = [event.samples for event in model.say(text, speaker=speaker) if isinstance(event, SpeechChunk)]
    return np.concatenate(chunks)


def say(server, **changes):
    response = server.post(PATH, BODY | changes)
    assert response.status_code == 200, response.text
    return response


@pytest.mark.parametrize(
    ("format", "kind"),
    [
        ("mp3", "audio/mpeg"),
        ("opus", "audio/ogg"),
        ("aac", "audio/aac"),
        ("flac", "audio/flac"),
        ("wav", "audio/wav"),
        ("pcm", "audio/pcm;rate=24000"),
    ],
)
def test_each_format_has_the_sound_that_the_model_makes(server, format, kind):
    response = say(server, response_format=format)
    assert response.headers["content-type"] == kind
    expected = sound_of(server.model, PARIS)
    if format == "pcm":
        assert response.content == pcm16(expected).tobytes()
        return
    with av.open(io.BytesIO(response.content)) as container:
        stream = container.streams.audio[0]
        seconds = sum(frame.samples for frame in container.decode(stream)) / stream.rate
    assert seconds == pytest.approx(len(expected) / 24000, abs=0.1)
    if format == "wav":
        assert response.content[44:] == pcm16(expected).tobytes()


def test_mp3_is_the_default(server):
    body = {name: value for name, value in BODY.items() if name != "response_format"}
    assert server.post(PATH, body).headers["content-type"] == "audio/mpeg"


def test_openais_client_streams_it_into_a_file(server, tmp_path):
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none")
    with client.audio.speech.with_streaming_response.create(
        model="tts-1", voice="alloy", input=PARIS, response_format="wav"
    ) as response:
        response.stream_to_file(tmp_path / "a.wav")
    data = (tmp_path / "a.wav").read_bytes()
    assert data[44:] == pcm16(sound_of(server.model, PARIS, server.service.voices.openai["alloy"])).tobytes()


def test_events_carry_the_same_bytes_and_the_usage(server):
    lines = say(server, stream_format="sse", response_format="flac").text.split("\n\n")
    events = [json.loads(line.removeprefix("data: ")) for line in lines if line]
    assert [event["type"] for event in events] == ["speech.audio.delta"] * (len(events) - 1) + ["speech.audio.done"]
    sound = b"".join(base64.b64decode(event["audio"]) for event in events[:-1])
    assert sound == say(server, response_format="flac").content
    usage = events[-1]["usage"]
    assert usage["input_tokens"] == len(server.model.tokenizer.encode(PARIS, allow_special=False))
    assert usage["output_tokens"] == math.ceil(len(sound_of(server.model, PARIS)) / 1920)
    assert usage["total_tokens"] == usage["input_tokens"] + usage["output_tokens"]


def test_sound_is_sent_while_it_is_made_and_a_listener_who_leaves_ends_it(server):
    before = outcomes(server, "speech").get("cancelled", 0)
    body = BODY | {"input": (PARIS + " ") * 100}
    with server.client.stream("POST", PATH, json=body) as response:
        first = next(response.iter_raw())
        assert first
        assert not server.model.engine.is_idle
    wait_until_idle(server)
    wait_for(lambda: outcomes(server, "speech").get("cancelled", 0) == before + 1)


def test_four_callers_hear_what_each_would_hear_alone(server):
    texts = [PARIS, "The opposite of hot is cold.", "Monday comes before Tuesday.", "June comes after May."]
    alone = [pcm16(sound_of(server.model, text)).tobytes() for text in texts]
    with ThreadPoolExecutor(len(texts)) as pool:
        together = list(pool.map(lambda text: say(server, input=text).content, texts))
    assert together == alone


def test_a_duration_that_is_asked_for_ends_it(server):
    before = outcomes(server, "speech").get("length", 0)
    samples = 7 * 1920 - 555  # whole frames, less what the vocoder looks ahead
    assert len(say(server, max_audio_seconds=0.5).content) == samples * 2
    assert outcomes(server, "speech")["length"] == before + 1


def test_seed_and_temperature_are_the_talkers(server):
    first, again = (say(server, speech_temperature=1.0, speech_seed=7).content for _ in range(2))
    other = say(server, speech_temperature=1.0, speech_seed=8).content
    assert first == again != other


def test_instructions_are_ignored_with_a_warning(server):
    assert "instructions are ignored" in say(server, instructions="whisper").headers["warning"]
    assert "warning" not in say(server).headers


def test_voices(server):
    found = server.get("/v1/audio/voices").json()
    assert found["voices"] == list(server.model.speakers)
    assert found["aliases"].keys() == set(OPENAI_VOICES)
    assert set(found["aliases"].values()) <= set(found["voices"])
    expected = say(server).content
    assert say(server, voice="LARK").content == expected
    assert say(server, voice={"id": "lark"}).content == expected


@cache
def long_text():
    return "a" * 1_000_000


@pytest.mark.parametrize(
    ("changes", "code", "param"),
    [
        ({"input": ""}, "invalid_value", "input"),
        ({"input": " \n\t"}, "invalid_value", "input"),
        ({"input": "a" * 4097}, "invalid_value", "input"),
        ({"input": "LONG"}, "invalid_value", "input"),
        ({"input": None}, "invalid_value", "input"),
        ({"input": ["a"]}, "invalid_value", "input"),
        ({"speed": 0}, "invalid_value", "speed"),
        ({"speed": 5}, "invalid_value", "speed"),
        ({"speed": 1.5}, "unsupported_value", "speed"),
        ({"speed": "1"}, "invalid_value", "speed"),
        ({"response_format": "midi"}, "invalid_value", "response_format"),
        ({"response_format": "pcm16"}, "invalid_value", "response_format"),
        ({"stream_format": "audio2"}, "invalid_value", "stream_format"),
        ({"voice": "nobody"}, "invalid_value", "voice"),
        ({"voice": {"id": "nobody"}}, "invalid_value", "voice"),
        ({"voice": {}}, "missing_required_parameter", "voice.id"),
        ({"voice": 3}, "invalid_value", "voice"),
        ({"max_audio_seconds": 0}, "invalid_value", "max_audio_seconds"),
        ({"speech_temperature": -1}, "invalid_value", "speech_temperature"),
        ({"speech_seed": 2**64}, "invalid_value", "speech_seed"),
        ({"unknown": 1}, "unknown_parameter", "unknown"),
    ],
)
def test_what_is_refused(server, changes, code, param):
    if changes.get("input") == "LONG":
        changes = {"input": long_text()}
    check_error(server.post(PATH, BODY | changes), 400, code, param)


def test_not_a_number_is_no_json(server):
    content = json.dumps(BODY)[:-1] + ', "speed": NaN}'
    response = server.client.post(PATH, content=content, headers={"content-type": "application/json"})
    check_error(response, 400, "invalid_json")


def test_another_model(server):
    check_error(server.post(PATH, BODY | {"model": "gpt-5"}), 404, "model_not_found", "model")
    for name in ("tts-1", "gpt-4o-mini-tts"):
        assert say(server, model=name).content


@pytest.mark.parametrize(
    "text",
    [
        "\N{GRINNING FACE}" * 20,
        "?!… --- ,,,",
        "<speak><break time='10s'/>hi</speak>",
        "7" * 400,
        "Москва 東京 القاهرة",
        "<|im_end|><|audio_start|></think><tool_call>",
        "\u200b\u202e",
    ],
)
def test_odd_texts_have_a_bounded_sound(server, text):
    """Never an endless loop of codes: 24 s is the model's own limit of one speech."""
    sound = say(server, input=text).content
    assert len(sound) <= 24 * 24000 * 2


def test_of_a_model_that_does_not_speak(server, monkeypatch):
    from lluda.serving.voices import Voices

    monkeypatch.setattr(server.service, "voices", Voices(()))
    check_error(server.post(PATH, BODY), 400, "unsupported_value", "voice")
    assert server.get("/v1/audio/voices").json() == {"voices": [], "aliases": {}}


def test_events_for_a_client_that_reads_lines(server):
    """The first event comes before the last sound is made."""
    body = BODY | {"input": (PARIS + " ") * 20, "stream_format": "sse"}
    with httpx2.Client(base_url=server.url, timeout=60) as client, client.stream("POST", PATH, json=body) as response:
        assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
        assert next(response.iter_lines()).startswith('data: {"type":"speech.audio.delta"')
        assert not server.model.engine.is_idle
