"""Questions about media, on the command line and in a chat."""

from __future__ import annotations

import json

import numpy as np
import pytest

import lluda as package
from lluda.api.model import Model
from lluda.errors import InvalidRequest, LimitExceeded
from tests.cli.omni import write_omni

Image = pytest.importorskip("PIL.Image")
soundfile = pytest.importorskip("soundfile")

GREEDY = ("-t", 0, "-n", 6)


@pytest.fixture(scope="module")
def omni(tmp_path_factory):
    return write_omni(tmp_path_factory.mktemp("omni") / "tiny")


@pytest.fixture(scope="module")
def loaded(omni):
    return package.load(omni)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("media")
    generator = np.random.default_rng(0)
    Image.fromarray(generator.integers(0, 256, (70, 90, 3), np.uint8)).save(folder / "p.png")
    soundfile.write(folder / "s.wav", generator.normal(0, 0.1, 24000), 16000)
    return folder


def content(files, *kinds, text="what?"):
    names = {"audio": "s.wav", "image": "p.png"}
    return [*({"type": kind, "path": str(files / names[kind])} for kind in kinds), {"type": "text", "text": text}]


def test_the_answer_is_that_of_the_library_and_media_come_in_the_order_given(lluda, omni, loaded, files, monkeypatch):
    asked = []
    real = Model.chat_stream
    monkeypatch.setattr(
        Model, "chat_stream", lambda self, messages, *a, **k: asked.append(messages) or real(self, messages, *a, **k)
    )
    media = ("--image", files / "p.png", "--audio", files / "s.wav", "--image", files / "p.png")
    printed = lluda("ask", "-m", omni, *GREEDY, "--json", *media, "what?")
    assert printed.code == 0
    found = json.loads(printed.out)
    messages = [{"role": "user", "content": content(files, "image", "audio", "image")}]
    assert asked == [messages]
    expected = loaded.chat(messages, temperature=0, max_tokens=6)
    assert found["token_ids"] == list(expected.token_ids)
    assert found["prompt_tokens"] == expected.prompt_tokens > 20


@pytest.mark.parametrize("kind", ["audio", "image"])
def test_media_alone_are_a_question_as_in_the_library(lluda, omni, loaded, files, kind):
    media = (f"--{kind}", files / ("s.wav" if kind == "audio" else "p.png"))
    printed = lluda("ask", "-m", omni, *GREEDY, "--json", "--logprobs", 1, *media)
    assert printed.code == 0, printed.err
    found = json.loads(printed.out)
    messages = [{"role": "user", "content": content(files, kind)[:-1]}]
    expected = loaded.chat(messages, temperature=0, max_tokens=6)
    assert found["token_ids"] == list(expected.token_ids)
    assert found["prompt_tokens"] == expected.prompt_tokens
    assert len(found["tokens"][0]["top"]) == 1


def test_neither_words_nor_media_are_no_question(lluda, omni):
    printed = lluda("ask", "-m", omni, "--system", "x")
    assert printed.code == 2
    assert "no prompt given" in printed.err


def test_a_question_may_be_text_alone_or_messages_or_begun(lluda, omni, loaded, files, tmp_path):
    messages = [{"role": "user", "content": content(files, "image")}, {"role": "assistant", "content": "he"}]
    (tmp_path / "m.json").write_text(json.dumps(messages))
    expected = loaded.chat(messages, temperature=0, max_tokens=6, continue_final_message=True).token_ids
    asked = ("ask", "-m", omni, *GREEDY, "--json")
    by_file = lluda(*asked, "--messages", tmp_path / "m.json", "--continue-final-message")
    by_words = lluda(*asked, "--image", files / "p.png", "what?", "--prefill", "he")
    assert [json.loads(one.out)["token_ids"] for one in (by_file, by_words)] == [list(expected)] * 2
    assert lluda(*asked, "hello").code == 0


def test_placeholders_that_a_user_types_are_text(loaded, files):
    plain = loaded.chat_prompt([{"role": "user", "content": content(files, "image")}])
    typed = loaded.chat_prompt([{"role": "user", "content": content(files, "image", text="<|image_pad|>?")}])
    pads = loaded.config.omni.tokens.image_pad
    assert list(typed.ids).count(pads) == list(plain.ids).count(pads) > 0
    assert len(typed.injected.rows) == len(plain.injected.rows)


def test_arrays_are_taken_as_files_are(loaded, files):
    pixels = np.asarray(Image.open(files / "p.png"))
    samples, rate = soundfile.read(files / "s.wav", dtype="float32")
    parts = [
        {"type": "image", "image": pixels},
        {"type": "audio", "audio": samples, "sampling_rate": rate},
        {"type": "text", "text": "what?"},
    ]
    found = loaded.chat([{"role": "user", "content": parts}], temperature=0, max_tokens=6)
    messages = [{"role": "user", "content": content(files, "image", "audio")}]
    assert found.token_ids == loaded.chat(messages, temperature=0, max_tokens=6).token_ids


def test_a_second_turn_computes_only_what_is_new_and_answers_as_a_fresh_one(loaded, files, monkeypatch):
    talk = loaded.conversation()
    list(talk.ask(content(files, "audio", "image"), temperature=0, max_tokens=6))
    monkeypatch.setattr(loaded.media, "encode", lambda _medium: pytest.fail("a medium was encoded twice"))
    *_, second = talk.ask("and?", temperature=0, max_tokens=6)
    assert second.reused_tokens > 20, "the rows of both media among them"
    monkeypatch.undo()
    fresh = loaded.chat(talk.messages[:3], temperature=0, max_tokens=6)
    assert second.token_ids == fresh.token_ids


def test_in_a_chat_files_go_with_the_next_line(lluda, omni, loaded, files):
    lines = f"/image {files / 'p.png'}\nwhat?\n/image\n/audio {files / 'none.wav'}\nso?\nso?\n"
    printed = lluda("chat", "-m", omni, *GREEDY, stdin=lines.encode())
    talk = loaded.conversation()
    turns = (content(files, "image"), "so?")
    answers = [list(talk.ask(turn, temperature=0, max_tokens=6))[-1].text for turn in turns]
    assert printed.out.split("\n")[:2] == answers
    assert "lluda: /image needs the name of a file" in printed.lines
    assert any("none.wav: no such recording" in line for line in printed.lines)


def test_a_text_model_refuses_media_by_name(lluda, model, files):
    printed = lluda("ask", "-m", model, "--image", files / "p.png", "what?")
    assert printed.code == 2
    assert "a qwen3 model takes text only; image needs an Omni model" in printed.err
    printed = lluda("chat", "-m", model, stdin=b"/audio a.wav\n")
    assert "takes text only" in printed.err


@pytest.mark.parametrize(
    ("arguments", "rule"),
    [
        (("--image", "nowhere.png"), "--image nowhere.png: there is no such file"),
        (("--fps", 1), "--fps and --use-audio are about videos"),
        (("--use-audio",), "--fps and --use-audio are about videos"),
    ],
)
def test_what_can_be_refused_is_refused_before_loading(lluda, omni, monkeypatch, arguments, rule):
    monkeypatch.setattr("lluda.cli.verbs.ask.load_model", lambda _args: pytest.fail("it was loaded"))
    printed = lluda("ask", "-m", omni, *arguments, "what?")
    assert printed.code == 2
    assert rule in printed.err


def test_media_longer_than_the_context_are_refused_before_they_are_encoded(omni, files, monkeypatch):
    small = package.load(omni, max_context=24)
    monkeypatch.setattr(small.media, "encode", lambda _medium: pytest.fail("it was encoded"))
    with pytest.raises(LimitExceeded, match=r"with its media the prompt has .* but the context holds 24"):
        small.chat([{"role": "user", "content": content(files, "image", "audio")}])


def test_a_silent_array_of_frames_cannot_be_heard(loaded):
    frames = np.zeros((2, 64, 64, 3), np.uint8)
    part = {"type": "video", "video": frames, "fps": 2.0, "use_audio": True}
    with pytest.raises(InvalidRequest, match="no sound track"):
        loaded.chat([{"role": "user", "content": [part]}])
