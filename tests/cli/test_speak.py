"""Speech on the command line: a text read aloud, and an answer in text and speech at once."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

import lluda as package
from lluda.inputs.text.speaking_parts import speaking_parts
from tests.cli.omni import write_omni, write_speaking_omni

soundfile = pytest.importorskip("soundfile")

SPEECH = ("--speech-temperature", 0, "--max-frames", 7)


@pytest.fixture(scope="module")
def speaking(tmp_path_factory):
    return write_speaking_omni(tmp_path_factory.mktemp("speaking") / "tiny")


def test_a_text_is_spoken_to_a_file(lluda, speaking, tmp_path):
    printed = lluda("speak", "-m", speaking, *SPEECH, "hello world", "-o", tmp_path / "a.wav", "--encoding", "float")
    assert printed.code == 0
    samples, rate = soundfile.read(tmp_path / "a.wav", dtype="float32")
    assert rate == 24000
    model = package.load_speech(speaking)
    params = package.SpeechParams(sampling=package.SamplingParams(temperature=0), max_frames=7)
    chunks = [event for event in model.speak("hello world", params) if isinstance(event, package.SpeechChunk)]
    expected = np.concatenate([chunk.samples for chunk in chunks])
    assert len(expected) == len(samples) == model.stack.code2wav.config.samples(7)
    np.testing.assert_allclose(samples, expected, atol=1e-6)
    assert "s of speech in" in printed.err
    assert "(stopped: max_frames)" in printed.err


def test_the_document_says_what_was_spoken(lluda, speaking, tmp_path):
    printed = lluda(
        "speak", "-m", speaking, *SPEECH, "--json", "hello", "-o", tmp_path / "a.flac", "--speaker", "Chelsie"
    )
    found = json.loads(printed.out)
    assert (found["frames"] == 7) == (found["finish_reason"] == "length")
    model = package.load_speech(speaking)
    assert soundfile.info(tmp_path / "a.flac").frames == model.stack.code2wav.config.samples(found["frames"]) > 0
    assert found["first_audio_seconds"] <= found["seconds"]
    assert soundfile.info(tmp_path / "a.flac").samplerate == 24000


def test_an_answer_is_written_and_spoken(lluda, speaking, tmp_path):
    soundfile.write(tmp_path / "q.wav", np.random.default_rng(0).normal(0, 0.1, 16000), 16000)
    arguments = ("-t", 0, "-n", 5, *SPEECH, "--audio", tmp_path / "q.wav", "what?")
    spoken = lluda("ask", "-m", speaking, "--speak", tmp_path / "a.wav", *arguments)
    written = lluda("ask", "-m", speaking, *arguments)
    assert spoken.code == written.code == 0
    assert spoken.out == written.out
    assert len(soundfile.read(tmp_path / "a.wav")[0]) > 0


@pytest.fixture
def endless(monkeypatch):
    """A talker that never says its end."""
    from lluda.engine.sampling.sampler import Sampler
    from lluda.engine.speech import frames

    def without_end(config, params):
        codes, vocabulary = config.code_predictor.vocab_size, config.decoder.vocab_size
        return Sampler(params, [], vocabulary, suppress=frozenset(range(codes, vocabulary)))

    monkeypatch.setattr(frames, "_talker_sampler", without_end)


def test_a_talker_without_an_end_is_stopped_and_it_is_said(lluda, speaking, tmp_path, endless):
    """Three tokens ("hell", "o" and "w" are letters and a merge of the tiny vocabulary) of 0.1 s after 0.2 s."""
    count = len(package.load_speech(speaking).tokenizer.encode("hello"))
    guard = ("--speech-guard", "0.2,0.1", "--speech-temperature", 0)
    printed = lluda("speak", "-m", speaking, "-o", tmp_path / "a.wav", *guard, "hello", "--json")
    found = json.loads(printed.out)
    stack = package.load_speech(speaking).stack
    assert found["finish_reason"] == "runaway"
    assert found["frames"] == stack.frames(0.2 + 0.1 * count)
    printed = lluda("ask", "-m", speaking, "--speak", tmp_path / "b.wav", *guard, "-t", 0, "-n", 2, "hello")
    assert printed.code == 0
    assert "speech may take 0.2 s and 0.1 s for each token of its text (--speech-guard)" in printed.err
    assert "the talker did not come to its end; --speech-guard allows more" in printed.err
    printed = lluda("chat", "-m", speaking, "--speak", tmp_path / "said", *guard, "-t", 0, "-n", 2, stdin=b"hello\n")
    assert "did not come to its end" in printed.err


def test_without_the_guard_max_frames_ends_it(lluda, speaking, tmp_path, endless):
    options = ("--speech-guard", "off", "--max-frames", 7, "--speech-temperature", 0)
    printed = lluda("speak", "-m", speaking, "-o", tmp_path / "a.wav", *options, "hello", "--json")
    assert "speech may take" not in printed.err
    assert (json.loads(printed.out)["frames"], json.loads(printed.out)["finish_reason"]) == (7, "length")


def test_a_text_through_a_pipe_is_the_text(lluda, speaking, tmp_path):
    options = ("--speech-temperature", 0, "--max-frames", 3)
    lluda("speak", "-m", speaking, "-o", tmp_path / "a.wav", *options, "hello w")
    lluda("speak", "-m", speaking, "-o", tmp_path / "b.wav", *options, "-", stdin=b"\xef\xbb\xbfhello w\r\n")
    assert (tmp_path / "a.wav").read_bytes() == (tmp_path / "b.wav").read_bytes()


def test_all_sampling_options_of_speech_are_passed_on(lluda, speaking, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(package.SpeechModel, "speak", lambda _, __, params, **___: seen.append(params) or iter(()))
    given = ("--speech-top-k", 7, "--speech-top-p", 0.5, "--speech-repetition-penalty", 1.2, "--speech-seed", 3)
    with pytest.raises(AssertionError, match="without a SpeechCompletion"):
        lluda("speak", "-m", speaking, "-o", tmp_path / "a.wav", *given, "--speech-temperature", 0.4, "x")
    sampling = package.SamplingParams(temperature=0.4, top_k=7, top_p=0.5, repetition_penalty=1.2, seed=3)
    assert seen == [package.SpeechParams(sampling=sampling)]


@pytest.mark.parametrize(
    ("verb", "options", "rule"),
    [
        ("speak", ("--speaker", "bob", "-o", "a.wav"), "speaker 'bob' does not exist; choose one of ethan, chelsie"),
        ("speak", ("-o", "a.mp3"), "written as .wav or .flac"),
        ("speak", ("-o", "-", "--json"), "both want stdout"),
        ("speak", ("-o", "a.wav", "--max-frames", 0), "max_frames must be at least 1"),
        ("speak", ("-o", "a.wav", "--speech-guard", "soon"), "neither off nor two numbers of seconds"),
        ("ask", ("--speak", "-"), "stdout is the text's"),
        ("ask", ("--speak", "a.wav", "--json"), "--json has no place for speech"),
        ("ask", ("--speak", "a.wav", "--speaker", "bob"), "speaker 'bob'"),
    ],
)
def test_what_cannot_be_is_refused(lluda, speaking, tmp_path, monkeypatch, verb, options, rule):
    monkeypatch.chdir(tmp_path)
    printed = lluda(verb, "-m", speaking, *options, "hello")
    assert printed.code == 2
    assert rule in printed.err
    assert not list(tmp_path.iterdir())


def test_a_checkpoint_without_a_talker_says_so(lluda, tmp_path):
    mute = write_omni(tmp_path / "mute")
    printed = lluda("speak", "-m", mute, "hello", "-o", tmp_path / "a.wav")
    assert printed.code == 2
    assert "has no talker, so it cannot speak" in printed.err


def test_a_text_of_any_length_is_spoken_in_parts(speaking):
    model = package.load_speech(speaking)
    params = package.SpeechParams(sampling=package.SamplingParams(temperature=0))
    text = "hello world. " * 120
    parts = list(speaking_parts(text))
    assert len(parts) > 1
    defaults = {"talker_max_new_tokens": 5}
    model.files = dataclasses.replace(model.files, generation_config=defaults)
    *events, completion = model.speak(text, params)
    alone = [list(model.speak(part, params)) for part in parts]
    # The first part that max_frames ends, and no voice but the synthetic one's cuts it, is the last.
    assert completion.frames == sum(part[-1].frames for part in alone[: 1 + ended_at(alone)])
    samples = np.concatenate([event.samples for event in events if isinstance(event, package.SpeechChunk)])
    assert len(samples) == completion.samples


def ended_at(speeches):
    reasons = [speech[-1].finish_reason for speech in speeches]
    return reasons.index("length") if "length" in reasons else len(reasons) - 1


def test_a_hundred_thousand_characters_take_no_time_to_begin(speaking):
    params = package.SpeechParams(sampling=package.SamplingParams(temperature=0), max_frames=3)
    events = package.load_speech(speaking).speak("z" * 100_000, params)
    assert next(event for event in events if isinstance(event, package.SpeechChunk)).samples.size > 0
    events.close()


def test_text_without_anything_speakable_is_spoken_all_the_same(speaking):
    params = package.SpeechParams(sampling=package.SamplingParams(seed=1), max_frames=3)
    *_, completion = package.load_speech(speaking).speak("\n\n", params)
    assert completion.frames <= 3


def test_a_speech_that_fails_leaves_no_recording_and_the_one_of_before(lluda, speaking, tmp_path):
    for before in (None, b"an older recording"):
        if before:
            (tmp_path / "a.wav").write_bytes(before)
        printed = lluda("speak", "-m", speaking, "hello", "-o", tmp_path / "a.wav", "--speaker", "nobody")
        assert (printed.code, printed.out) == (2, "")
        assert "speaker 'nobody' does not exist" in printed.lines[-1]
        found = [path.read_bytes() for path in tmp_path.iterdir()]
        assert found == ([before] if before else [])
