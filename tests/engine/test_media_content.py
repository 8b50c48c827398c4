"""Media are known by what they hold, not by where they are: a path or an array may hold something else at the next
question, and two paths the same."""

from __future__ import annotations

import itertools
import os
import shutil

import numpy as np
import pytest
from PIL import Image

import lluda
from lluda.errors import CorruptFile, InvalidRequest, LimitExceeded
from lluda.inputs.media.audio_file import Recording
from lluda.inputs.media.media_parts import MediaPart, with_sources
from tests.cli.omni import write_omni
from tests.inputs.media.recordings import sound, write
from tests.inputs.media.synthetic_video import write_video

GREEDY = {"temperature": 0, "max_tokens": 3}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return lluda.load(write_omni(tmp_path_factory.mktemp("omni") / "tiny"), dtype="f32")


def noise(seed, *shape):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def make_sound(path, seed):
    return write(path, sound(0.6, seed=seed))


def make_picture(path, seed):
    Image.fromarray(noise(seed, 64, 96, 3)).save(path)
    return path


def make_video(path, seed):
    return write_video(path, [*noise(seed, 4, 64, 96, 3)], 2)


FILES = {"audio": ("a.wav", make_sound), "image": ("a.png", make_picture), "video": ("a.mkv", make_video)}


def question(part):
    return [part, {"type": "text", "text": "what?"}]


def answer(talk, part):
    return [*talk.ask(question(part), **GREEDY)][-1]


def file_part(kind, path, **options):
    return {"type": kind, "path": str(path), **options}


@pytest.mark.parametrize("kind", FILES)
def test_a_file_that_was_written_anew_is_read_anew(model, tmp_path, kind):
    """The second answer is that of a fresh conversation in which the two contents are two files."""
    name, make = FILES[kind]
    path, first, second = tmp_path / name, tmp_path / f"first {name}", tmp_path / f"second {name}"
    make(first, 1), make(second, 2)
    talk = model.conversation()
    shutil.copy(first, path)
    said = answer(talk, file_part(kind, path))
    before = path.stat()
    shutil.copy(second, path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    found = answer(talk, file_part(kind, path))
    messages = [
        {"role": "user", "content": question(file_part(kind, first))},
        {"role": "assistant", "content": said.text},
        {"role": "user", "content": question(file_part(kind, second))},
    ]
    assert found.token_ids == model.chat(messages, **GREEDY).token_ids
    said = keys(talk)
    assert said == model.chat_prompt(messages).block_keys
    assert len(set(said.values())) == 2


def keys(talk):
    """Of the media that a conversation holds."""
    return talk.model.chat_prompt(talk.messages).block_keys


ARRAYS = {
    "audio": ({"sampling_rate": 16000}, lambda seed: sound(0.6, seed=seed)),
    "image": ({}, lambda seed: noise(seed, 64, 96, 3)),
    "video": ({"fps": 2.0}, lambda seed: noise(seed, 4, 64, 96, 3)),
}


@pytest.mark.parametrize("kind", ARRAYS)
def test_an_array_that_was_changed_in_place_is_read_anew(model, kind):
    options, make = ARRAYS[kind]
    values, talk = make(1), model.conversation()
    part = {"type": kind, kind: values, **options}
    said = answer(talk, part)
    values[:] = make(2)
    found = answer(talk, part)
    messages = [
        {"role": "user", "content": question(part | {kind: make(1)})},
        {"role": "assistant", "content": said.text},
        {"role": "user", "content": question(part | {kind: make(2)})},
    ]
    assert found.token_ids == model.chat(messages, **GREEDY).token_ids
    assert keys(talk) == model.chat_prompt(messages).block_keys


def test_what_was_heard_stays_though_its_file_is_gone(model, tmp_path, monkeypatch):
    talk, path = model.conversation(), make_sound(tmp_path / "a.wav", 1)
    answer(talk, file_part("audio", path))
    history = talk.messages[:2]
    path.unlink()
    monkeypatch.setattr(model.media, "encode", lambda _medium: pytest.fail("it was encoded again"))
    second = [*talk.ask("and?", **GREEDY)][-1]
    assert second.token_ids == model.chat([*history, {"role": "user", "content": "and?"}], **GREEDY).token_ids


@pytest.mark.parametrize("kind", FILES)
def test_the_same_content_is_encoded_once(model, tmp_path, monkeypatch, kind):
    """Under two names in one question, and again in the next."""
    name, make = FILES[kind]
    one = make(tmp_path / name, 1)
    other = shutil.copy(one, tmp_path / f"b{name}")
    encoded, real = [], model.media.encode
    monkeypatch.setattr(model.media, "encode", lambda medium: encoded.append(medium) or real(medium))
    talk = model.conversation()
    [*talk.ask([file_part(kind, one), file_part(kind, other)], **GREEDY)]
    answer(talk, file_part(kind, one))
    assert len(encoded) == 1


def part(kind, values, **options):
    return MediaPart(kind, values, options, "")


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (part("audio", sound(1), sampling_rate=16000), part("audio", sound(1), sampling_rate=8000)),
        (
            part("audio", np.zeros(9, np.int16), sampling_rate=16000),
            part("audio", np.zeros(9, np.uint16), sampling_rate=16000),
        ),
        (part("image", noise(0, 4, 6, 3)), part("image", noise(0, 6, 4, 3))),
        (part("video", noise(0, 4, 6, 6, 3), fps=1.0), part("video", noise(0, 4, 6, 6, 3), fps=2.0)),
    ],
)
def test_what_shapes_the_features_is_part_of_the_digest(one, other):
    assert one.digest("a") == one.digest("a")
    assert len({one.digest("a"), one.digest("b"), other.digest("a")}) == 3


def test_the_digest_of_a_view_does_not_fill_memory(tmp_path):
    """Of 230 million samples that are one in memory."""
    samples = np.broadcast_to(np.float32(0.5), 16000 * 3600 * 4)
    assert len(MediaPart("audio", samples, {"sampling_rate": 16000}, "").digest("")) == 32


def test_a_file_that_is_written_to_while_it_is_read_is_refused(model, tmp_path, monkeypatch):
    path = make_sound(tmp_path / "a.wav", 1)
    real = type(model.media)._features

    def features(self, part, room):
        found = real(self, part, room)
        make_sound(path, 2)
        return found

    monkeypatch.setattr(type(model.media), "_features", features)
    with pytest.raises(CorruptFile, match=r"a\.wav: the file was written to while it was read; try again"):
        model.chat([{"role": "user", "content": question(file_part("audio", path))}], **GREEDY)


def test_rows_are_shared_up_to_the_first_medium_of_another_content(model, tmp_path):
    one, two = (make_picture(tmp_path / f"{k}.png", k) for k in (1, 2))

    def prompt(*paths):
        return model.chat_prompt([{"role": "user", "content": [file_part("image", path) for path in paths]}])

    both, same, other = prompt(one, two), prompt(one, two), prompt(one, one)
    starts = sorted(both.block_keys)
    assert both.ids == other.ids
    assert both.shares_rows(same, 4096) == len(both)
    assert both.shares_rows(other, 4096) == starts[1]
    assert both.shares_rows(other, starts[1] - 1) == starts[1] - 1
    assert prompt(two).shares_rows(both, 4096) == starts[0]


def test_sources_take_the_place_of_media_and_of_nothing_else():
    text, sound_part = {"type": "text", "text": "a"}, {"type": "audio", "path": "a.wav"}
    messages = [
        {"role": "system", "content": "b"},
        {"role": "user", "content": [sound_part, text, {"type": "image", "path": "c"}]},
    ]
    changed = with_sources(messages, ["one", "two"])
    assert changed[0] == messages[0]
    assert changed[1]["content"] == [{"type": "audio", "audio": "one"}, text, {"type": "image", "image": "two"}]
    assert messages[1]["content"][0] is sound_part


def test_what_one_model_encoded_is_no_medium_for_another(model, small, tmp_path):
    talk = model.conversation()
    answer(talk, file_part("image", make_picture(tmp_path / "a.png", 1)))
    with pytest.raises(InvalidRequest, match=r"messages\[0\].content\[0\]: this image was encoded by another model"):
        small.chat(talk.messages[:1], **GREEDY)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return lluda.load(write_omni(tmp_path_factory.mktemp("small") / "tiny"), dtype="f32", max_context=200)


@pytest.mark.parametrize(("kind", "make"), [
    ("audio", lambda folder: write(folder / "a.flac", np.zeros(16000 * 3600, np.int16))),
    ("audio", lambda folder: write(folder / "a.mp3", np.zeros(16000 * 600, np.float32))),
    ("image", lambda folder: make_large(folder / "a.png")),
    ("video", lambda folder: write_video(folder / "a.mkv", [np.zeros((256, 256, 3), np.uint8)] * 100, 2)),
])  # fmt: skip
def test_the_context_is_asked_before_anything_is_decoded(small, tmp_path, monkeypatch, kind, make):
    """An hour of silence is 50 KB of flac, and would be 0.2 GB of features."""
    monkeypatch.setattr(
        "lluda.inputs.decoding.media_decoder.DecodingJob.arrays", lambda *_a, **_o: pytest.fail("it was decoded")
    )
    part = file_part(kind, make(tmp_path))
    with pytest.raises(
        LimitExceeded, match=r"with its media the prompt has at least \d+ tokens, but the context holds 200"
    ):
        small.chat([{"role": "user", "content": question(part)}], **GREEDY)


def make_large(path):
    Image.new("RGB", (1600, 1600)).save(path)
    return path


def test_sound_of_unknown_length_is_decoded_as_far_as_it_fits(small, monkeypatch):
    endless = Recording(None, lambda _rate: itertools.repeat(np.zeros(16000, np.float32)), lambda: None)
    monkeypatch.setattr("lluda.engine.media.open_audio", lambda *_args, **_options: endless)
    part = {"type": "audio", "audio": np.zeros(16000, np.float32), "sampling_rate": 16000}
    with pytest.raises(LimitExceeded, match="but the context holds 200"):
        small.chat([{"role": "user", "content": question(part)}], **GREEDY)
