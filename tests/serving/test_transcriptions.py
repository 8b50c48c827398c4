"""POST /v1/audio/transcriptions and /v1/audio/translations: tiny-omni writes down what tiny-omni says."""

import json
from dataclasses import replace
from difflib import SequenceMatcher
from itertools import pairwise

import numpy as np
import openai
import pytest
import soxr

from lluda.engine.request import SpeechChunk
from lluda.inputs.media.audio_file import Recording
from lluda.outputs.encoded_audio import encoded_audio
from lluda.serving.transcription.pieces import PAUSE_SECONDS, THRESHOLD
from lluda.serving.transcription.recording import read_recording
from tests.serving import openai_types
from tests.serving.asking import outcomes, wait_for
from tests.serving.oracle import check_error, check_well, wait_until_idle

PATH = "/v1/audio/transcriptions"
SENTENCES = (
    "The capital of France is Paris.",
    "The capital of Norway is Oslo.",
    "The capital of Italy is Rome.",
    "Monday comes before Tuesday.",
    "The capital of Japan is Tokyo.",
    "June comes after May.",
    "The opposite of hot is cold.",
)
PAUSE = 1.1
"""Seconds between two sentences."""

WINDOW = 4.0
"""Seconds that tiny-omni hears well: one sentence and the pauses around it."""


@pytest.fixture(autouse=True)
def well(server):
    yield
    check_well(server)


@pytest.fixture(scope="module")
def spoken(server):
    """Each sentence's samples at 24 kHz."""
    return [
        np.concatenate([e.samples for e in server.model.say(text, speaker="lark") if isinstance(e, SpeechChunk)])
        for text in SENTENCES
    ]


@pytest.fixture
def short_window(server, monkeypatch):
    limits = replace(server.service.limits, transcription_window_seconds=WINDOW)
    monkeypatch.setattr(server.service, "limits", limits)


def wav(samples, rate=24000):
    return encoded_audio("wav", rate, np.asarray(samples, np.float32))


def ask(server, content, path=PATH, **fields):
    data = {"model": "tiny-omni"} | fields
    return server.client.post(path, files={"file": ("a.bin", content)}, data=data)


def transcript(server, content, **fields):
    response = ask(server, content, response_format="verbose_json", **fields)
    assert response.status_code == 200, response.text
    openai_types.verbose_transcription(response.json())
    return response.json()


def long_recording(spoken, seconds):
    """Sentences with pauses between them, and from when to when each is said."""
    pause = np.zeros(int(PAUSE * 24000), np.float32)
    parts, said, time = [pause], [], PAUSE
    while True:
        number = len(said) % len(spoken)
        length = len(spoken[number]) / 24000
        if time + length > seconds:
            break
        said.append((number, time, time + length))
        parts += [spoken[number], pause]
        time += length + PAUSE
    samples = np.zeros(int(seconds * 24000), np.float32)
    joined = np.concatenate(parts)[: len(samples)]
    samples[: len(joined)] = joined
    return samples, said


def check_long(server, spoken, seconds):
    """No sentence is lost: each lies in a segment of its own, and its words are there, but for those that tiny-omni
    takes for others."""
    samples, said = long_recording(spoken, seconds)
    found = transcript(server, wav(samples))
    segments = found["segments"]
    assert found["duration"] == pytest.approx(seconds, abs=0.001)
    assert [segment["id"] for segment in segments] == list(range(len(said)))
    for segment, (_, start, end) in zip(segments, said, strict=True):
        assert segment["start"] <= start + 0.15
        assert segment["end"] >= end - 0.15
    for earlier, later in pairwise(segments):
        assert earlier["start"] < earlier["end"] <= later["start"]
    assert found["text"] == " ".join(segment["text"] for segment in segments)
    ratios = [
        SequenceMatcher(None, SENTENCES[number].split(), segment["text"].split()).ratio()
        for segment, (number, *_) in zip(segments, said, strict=True)
    ]
    assert sum(ratios) / len(ratios) > 0.75, found["text"]
    assert segments[-1]["text"] and max(ratios[-3:]) > 0.5, "nor are the last ones"


@pytest.mark.parametrize("seconds", [31, 61])
def test_a_recording_longer_than_the_window_is_written_down_to_its_end(server, spoken, short_window, seconds):
    check_long(server, spoken, seconds)


@pytest.mark.slow
def test_ten_minutes(server, spoken, short_window):
    check_long(server, spoken, 600)


def test_a_recording_of_31_seconds_without_a_pause_is_heard_whole(server, spoken):
    """With the window of 30 s: two pieces, whatever they hold."""
    samples = np.concatenate([spoken[0]] * 20)[: 31 * 24000]
    found = transcript(server, wav(samples))
    assert [segment["start"] for segment in found["segments"]][:1] == [0.0]
    assert found["segments"][-1]["end"] == pytest.approx(31, abs=0.001)
    assert found["segments"][0]["end"] == found["segments"][1]["start"]


@pytest.mark.parametrize("format", ["wav", "flac", "mp3", "opus", "aac"])
def test_one_sentence_in_any_container(server, spoken, format):
    found = ask(server, encoded_audio(format, 24000, spoken[0])).json()
    openai_types.transcription(found)
    assert found["usage"] == {"type": "duration", "seconds": 2 if format in ("wav", "flac", "opus") else 3}
    if format in ("wav", "flac"):
        assert found["text"] == SENTENCES[0]


def test_forms_of_the_answer(server, spoken):
    content = wav(spoken[0])
    text = ask(server, content, response_format="text")
    assert (text.headers["content-type"], text.text) == ("text/plain; charset=utf-8", SENTENCES[0] + "\n")
    srt = ask(server, content, response_format="srt").text
    assert srt == f"1\n00:00:00,000 --> 00:00:01,977\n{SENTENCES[0]}\n\n"
    vtt = ask(server, content, response_format="vtt").text
    assert vtt == f"WEBVTT\n\n00:00:00.000 --> 00:00:01.977\n{SENTENCES[0]}\n\n"
    verbose = transcript(server, content, language="en", temperature="0")
    assert (verbose["task"], verbose["language"], verbose["duration"]) == ("transcribe", "english", 1.977)
    (segment,) = verbose["segments"]
    assert server.model.tokenizer.decode(segment["tokens"]) == segment["text"]
    assert -1 < segment["avg_logprob"] < 0
    assert 0 <= segment["no_speech_prob"] < 0.5


def events_of(response):
    assert response.status_code == 200, response.text
    found = []
    for block in response.text.split("\n\n"):
        if block:
            kind, data = block.split("\n")
            found.append(json.loads(data.removeprefix("data: ")))
            assert kind == "event: " + found[-1]["type"]
            openai_types.transcription_event(found[-1])
    return found


def test_a_stream_has_the_text_in_order_and_the_usage(server, spoken, short_window):
    samples, _ = long_recording(spoken, 13)
    whole = ask(server, wav(samples)).json()["text"]
    *deltas, done = events_of(ask(server, wav(samples), stream="true"))
    assert "".join(event["delta"] for event in deltas) == done["text"] == whole
    assert len(deltas) > 8
    usage = done["usage"]
    assert usage["input_tokens"] == sum(usage["input_token_details"].values())
    assert usage["total_tokens"] == usage["input_tokens"] + usage["output_tokens"]
    assert usage["input_token_details"]["audio_tokens"] == pytest.approx(13 * 12.5, abs=13)


def test_openais_client(server, spoken):
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none")
    content = ("a.wav", wav(spoken[0]))
    for form, found in (("json", lambda answer: answer.text), ("text", lambda answer: answer.strip())):
        answer = client.audio.transcriptions.create(model="whisper-1", file=content, response_format=form)
        assert found(answer) == SENTENCES[0]
    verbose = client.audio.transcriptions.create(
        model="whisper-1", file=content, response_format="verbose_json", timestamp_granularities=["segment"]
    )
    assert verbose.segments[0].text == SENTENCES[0]
    logged = client.audio.transcriptions.create(model="gpt-4o-transcribe", file=content, include=["logprobs"])
    assert "".join(one.token for one in logged.logprobs) == SENTENCES[0]
    streamed = client.audio.transcriptions.create(model="gpt-4o-transcribe", file=content, stream=True)
    assert [event.text for event in streamed if event.type == "transcript.text.done"] == [SENTENCES[0]]
    cut = {"type": "server_vad", "threshold": 0.4, "silence_duration_ms": 300, "prefix_padding_ms": 200}
    for strategy in ("auto", cut):
        answer = client.audio.transcriptions.create(model="whisper-1", file=content, chunking_strategy=strategy)
        assert answer.text == SENTENCES[0]


@pytest.mark.filterwarnings("ignore:deprecated:DeprecationWarning")  # of the client, for translations
def test_openais_client_translates(server, spoken):
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none")
    assert client.audio.translations.create(model="whisper-1", file=("a.wav", wav(spoken[0]))).text


def test_translations_ask_for_english(server, spoken, monkeypatch):
    asked = []
    read = server.model.read_prompt
    monkeypatch.setattr(server.model, "read_prompt", lambda *given: asked.append(given[0]) or read(*given))
    response = ask(
        server, wav(spoken[0]), "/v1/audio/translations", response_format="verbose_json", prompt="Paris, Oslo"
    )
    found = response.json()
    assert (found["task"], found["language"]) == ("translate", "english")
    (messages,) = asked
    text = messages[0]["content"][1]["text"]
    assert "into English" in text
    assert "Paris, Oslo" in text
    ask(server, wav(spoken[0]), language="de", prompt="Bern")
    assert "The language is German." in asked[1][0]["content"][1]["text"]
    assert "Bern" in asked[1][0]["content"][1]["text"]


@pytest.mark.parametrize("seconds", [0.5, 30])
def test_silence_has_no_text(server, seconds):
    """C18: in all forms; the model is not asked."""
    content = wav(np.zeros(int(seconds * 16000)), 16000)
    assert ask(server, content).json()["text"] == ""
    assert transcript(server, content)["segments"] == []
    assert ask(server, content, response_format="srt").text == ""
    assert ask(server, content, response_format="vtt").text == "WEBVTT\n\n"
    (done,) = events_of(ask(server, content, stream="true"))
    assert (done["type"], done["text"]) == ("transcript.text.done", "")


@pytest.mark.parametrize("samples", [1, 159, 160, 161, 800, 1599, 1600, 1601, 16000, 479_999, 480_000, 480_001])
def test_lengths_around_hops_seconds_and_the_window(server, samples):
    """D12: what is heard is loud noise; an answer, or silence, of the right length."""
    noise = np.random.default_rng(samples).normal(0, 0.2, samples).clip(-1, 1)
    found = transcript(server, wav(noise, 16000))
    assert found["duration"] == pytest.approx(samples / 16000, abs=0.001)
    for segment in found["segments"]:
        assert 0 <= segment["start"] < segment["end"] <= samples / 16000 + 0.001


@pytest.mark.parametrize(
    ("fields", "code", "param"),
    [
        ({"language": "zz"}, "unsupported_value", "language"),
        ({"language": "english"}, "unsupported_value", "language"),
        ({"language": ""}, "unsupported_value", "language"),
        ({"prompt": "é" * 5120}, "invalid_value", "prompt"),
        ({"temperature": ["0", "1"]}, "invalid_value", "temperature"),
        ({"temperature[]": ["0", "1"]}, "invalid_value", "temperature"),
        ({"temperature": "nan"}, "invalid_value", "temperature"),
        ({"temperature": "1.5"}, "invalid_value", "temperature"),
        ({"temperature": "warm"}, "invalid_value", "temperature"),
        ({"response_format": "diarized_json"}, "invalid_value", "response_format"),
        ({"response_format": "xml"}, "invalid_value", "response_format"),
        ({"stream": "maybe"}, "invalid_value", "stream"),
        ({"stream": "true", "response_format": "srt"}, "unsupported_value", "stream"),
        ({"timestamp_granularities[]": ["word"]}, "unsupported_value", "timestamp_granularities[0]"),
        ({"timestamp_granularities[]": ["letter"]}, "invalid_value", "timestamp_granularities[0]"),
        ({"timestamp_granularities": "segment"}, "invalid_value", "timestamp_granularities"),
        ({"include[]": ["everything"]}, "invalid_value", "include[0]"),
        ({"chunking_strategy": "never"}, "invalid_value", None),
        ({"chunking_strategy": "{"}, "invalid_value", "chunking_strategy"),
        ({"chunking_strategy": '{"type":"server_vad","threshold":2}'}, "invalid_value", None),
        ({"chunking_strategy[type]": "semantic_vad"}, "invalid_value", None),
        ({"chunking_strategy": "auto", "chunking_strategy[type]": "server_vad"}, "invalid_value", "chunking_strategy"),
        ({"known_speaker_names[]": ["a"]}, "unknown_parameter", "known_speaker_names"),
        ({"a[b][c]": "1"}, "unknown_parameter", "a"),
    ],
)
def test_fields_that_are_refused(server, fields, code, param):
    error = check_error(ask(server, wav(np.zeros(1600)), **fields), 400, code, param)
    assert len(error["message"]) < 600


@pytest.mark.parametrize(
    "content",
    [
        b"just text, which is no sound at all",
        b"<!doctype html><html></html>",
        b"RIFF",
        b"RIFF\x24\x00\x00\x00WAVEfmt ",
        b"%PDF-1.7",
        b"PK\x03\x04" + bytes(100),
        bytes(1000),
        np.random.default_rng(0).bytes(5000),
        b"#EXTM3U\n/etc/passwd\n",
    ],
)
def test_what_is_no_recording(server, content):
    error = check_error(ask(server, content), 400, "invalid_media")
    assert error["message"].startswith("file: ")


def test_an_empty_upload_and_none(server):
    check_error(ask(server, b""), 400, "invalid_media")
    missing = server.client.post(PATH, files={"other": ("a", b"x")}, data={"model": "tiny-omni"})
    check_error(missing, 400, "missing_required_parameter", "file")
    as_text = server.client.post(PATH, files={"model": (None, "tiny-omni"), "file": (None, "RIFF")})
    check_error(as_text, 400, "missing_required_parameter", "file")
    check_error(server.post(PATH, {"model": "tiny-omni"}), 415, "unsupported_media_type")


def test_forms_that_are_none(server):
    kind = {"content-type": "multipart/form-data; boundary=b"}
    for content in (b"", b"--b\r\n", b"--b\r\n\r\n", b"--b\r\nno disposition\r\n\r\nx\r\n--b--\r\n", b"\x00" * 1000):
        check_error(server.client.post(PATH, content=content, headers=kind), 400)
    without = server.client.post(PATH, content=b"--b--", headers={"content-type": "multipart/form-data"})
    check_error(without, 400, "invalid_value")
    part = b'--b\r\ncontent-disposition: form-data; name="%d"\r\n\r\n1\r\n'
    many = b"".join(part % number for number in range(100_000)) + b"--b--\r\n"
    check_error(server.client.post(PATH, content=many, headers=kind), 400, "invalid_value")
    long = b'--b\r\ncontent-disposition: form-data; name="' + b"n" * 1_000_000 + b'"\r\n\r\n1\r\n--b--\r\n'
    check_error(server.client.post(PATH, content=long, headers=kind), 400)
    two = server.client.post(PATH, files=[("file", ("a", b"x")), ("file", ("b", b"y"))], data={"model": "tiny-omni"})
    check_error(two, 400, "invalid_value")


def test_names_of_files_and_their_types_mean_nothing(server, spoken, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, kind in (("../../x.wav", "image/png"), ("/etc/passwd", "text/html"), ("\x00", "audio/wav")):
        files = {"file": (name, wav(spoken[0]), kind)}
        response = server.client.post(PATH, files=files, data={"model": "tiny-omni"})
        assert response.json()["text"] == SENTENCES[0]
    assert list(tmp_path.iterdir()) == []


def test_longer_and_larger_than_is_taken(server, monkeypatch):
    limits = replace(server.service.limits, audio_seconds=1.0, audio_file_bytes=100_000)
    monkeypatch.setattr(server.service, "limits", limits)
    check_error(ask(server, wav(np.zeros(24001), 24000)), 400, "invalid_value", "file")
    assert ask(server, wav(np.zeros(24000), 24000)).status_code == 200
    check_error(ask(server, wav(np.zeros(60_000), 24000)), 400, "invalid_value", "file")


@pytest.mark.parametrize("format", ["flac", "aac"])
def test_hours_of_silence_in_a_small_file_are_not_decoded(server, monkeypatch, format):
    """D11: where the header has the length, nothing is; else decoding stops at the limit."""
    monkeypatch.setattr(server.service, "limits", replace(server.service.limits, audio_seconds=2.0))
    content = encoded_audio(format, 8000, np.zeros(8000 * 600, np.float32))
    assert len(content) < 1_000_000
    decoded = []
    convert = Recording.blocks
    monkeypatch.setattr(
        Recording, "blocks", lambda *given: (decoded.append(len(block)) or block for block in convert(*given))
    )
    check_error(ask(server, content), 400, "invalid_value", "file")
    assert sum(decoded) < 60 * 16000


def test_a_client_that_leaves_ends_it(server, spoken, short_window):
    samples, _ = long_recording(spoken, 61)
    before = outcomes(server, "transcriptions").get("cancelled", 0)
    fields = {"model": "tiny-omni", "stream": "true"}
    with server.client.stream("POST", PATH, files={"file": ("a", wav(samples))}, data=fields) as response:
        assert "transcript.text.delta" in next(response.iter_lines())
    wait_until_idle(server)
    wait_for(lambda: outcomes(server, "transcriptions").get("cancelled", 0) == before + 1)


def test_of_a_model_that_hears_nothing(server, monkeypatch):
    monkeypatch.setattr(server.model, "media", None)
    check_error(ask(server, wav(np.zeros(1600))), 400, "unsupported_value", "model")


def test_another_model(server):
    check_error(ask(server, wav(np.zeros(1600)), model="gpt-5"), 404, "model_not_found", "model")


def test_pieces_hold_every_sample(spoken):
    """Of a recording at another rate: what is cut is what was decoded, from the first sample to the last."""
    samples, _ = long_recording(spoken, 20)
    recording = read_recording(
        wav(samples), max_seconds=60, window_seconds=WINDOW, threshold=THRESHOLD, pause_seconds=PAUSE_SECONDS
    )
    joined = np.concatenate([recording.sound(piece) for piece in recording.pieces])
    assert np.abs(joined - soxr.resample(samples, 24000, 16000)).max() < 1e-3
    assert recording.seconds == 20
