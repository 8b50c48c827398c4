"""Media given as the bytes of a file go the same way as the file."""

from __future__ import annotations

import gc
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest

import lluda
from lluda.config.audio import AudioLimits
from lluda.config.vision import VISION_LIMITS
from lluda.errors import CorruptFile, InvalidRequest, LimitExceeded
from lluda.inputs.media.audio_file import open_audio
from lluda.inputs.media.image_file import read_image
from lluda.inputs.media.media_parts import MediaPart
from lluda.inputs.media.video_file import open_video
from tests.cli.omni import write_omni
from tests.engine.test_media_content import FILES, GREEDY, question
from tests.inputs.media.recordings import read_audio, sound, transcoded, write

OPTIONS = {"audio": {}, "image": {}, "video": {"fps": 2.0}}
WHERE = "messages[0].content[0]"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return lluda.load(write_omni(tmp_path_factory.mktemp("omni") / "tiny"), dtype="f32")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("media")
    return {kind: make(folder / name, 1) for kind, (name, make) in FILES.items()}


@pytest.mark.parametrize("kind", FILES)
def test_an_answer_to_bytes_is_the_one_to_the_file_and_both_are_the_same_medium(model, files, kind):
    content = Path(files[kind]).read_bytes()
    parts = [{"type": kind, "path": str(files[kind])}, {"type": kind, kind: content}]
    parts += [{"type": kind, kind: kept(content)} for kept in (bytearray, memoryview)]
    messages = [[{"role": "user", "content": question(part | OPTIONS[kind])}] for part in parts]
    answers = [model.chat(each, **GREEDY, logprobs=3) for each in messages]
    assert len({answer.tokens for answer in answers}) == 1
    assert len({tuple(model.chat_prompt(each).block_keys.items()) for each in messages}) == 1


def test_the_same_bytes_as_another_kind_or_with_other_options_are_another_medium():
    content = b"the same bytes"
    parts = [
        MediaPart("audio", content, {}, WHERE),
        MediaPart("image", content, {}, WHERE),
        MediaPart("video", content, {}, WHERE),
        MediaPart("video", content, {"fps": 1.0}, WHERE),
        MediaPart("video", content, {"fps": 1.0, "use_audio": True}, WHERE),
    ]
    assert len({part.digest("settings") for part in parts}) == len(parts)
    assert parts[0].digest("a") != parts[0].digest("b")


@pytest.mark.parametrize(("name", "options"), [("a.wav", {}), ("a.flac", {}), ("a.ogg", {})])
def test_recordings_of_all_containers(tmp_path, name, options):
    path = write(tmp_path / name, sound(1))
    np.testing.assert_array_equal(read_audio(path.read_bytes()), read_audio(path))


def test_what_only_ffmpeg_reads_comes_from_bytes_too(tmp_path):
    path = transcoded(tmp_path / "a.m4a", sound(1))
    np.testing.assert_array_equal(read_audio(path.read_bytes()), read_audio(path))


@pytest.mark.parametrize(
    ("kind", "content", "words"),
    [
        ("audio", b"", "the file is empty"),
        ("audio", b"no recording at all", "not a readable recording"),
        ("image", b"%PDF-1.7\n", "this is a PDF"),
        ("image", b"\x89PNG\r\n\x1a\n" + bytes(40), "not a readable image"),
        ("video", b"no video", "not a readable video"),
    ],
)
def test_an_error_says_where_the_bytes_were_and_no_path(model, kind, content, words):
    with pytest.raises(CorruptFile, match=words) as caught:
        model.chat([{"role": "user", "content": question({"type": kind, kind: content})}], **GREEDY)
    text = str(caught.value)
    assert text.startswith(f"{WHERE}: ")
    assert "/" not in text.replace("PNG: pdftoppm", "") and "\n" not in text
    assert caught.value.rule in text


def test_limits_hold_for_bytes(files):
    content = Path(files["image"]).read_bytes()
    with pytest.raises(LimitExceeded, match=f"{len(content)} bytes exceed the 100 of one image"):
        read_image(content, limits=VISION_LIMITS.__class__(max_image_bytes=100))
    recording = Path(files["audio"]).read_bytes()
    with pytest.raises(LimitExceeded, match="exceed"):
        open_audio(recording, limits=AudioLimits(max_seconds=0.1))


def test_a_cut_off_file_is_refused_as_from_a_path(model, files):
    content = Path(files["video"]).read_bytes()
    with pytest.raises(CorruptFile, match=r"^messages\[0\]"):
        model.chat([{"role": "user", "content": question({"type": "video", "video": content[:200]})}], **GREEDY)


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="descriptors are counted in /proc")
@pytest.mark.parametrize("anonymous", [True, False])
def test_no_file_and_no_descriptor_is_left(files, tmp_path, monkeypatch, anonymous):
    def descriptors():
        gc.collect()
        return len(list(Path("/proc/self/fd").iterdir()))

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    if not anonymous:
        monkeypatch.setattr(sys, "platform", "other")
    contents = {kind: Path(path).read_bytes() for kind, path in files.items()}
    found = []
    for _ in range(3):
        read_audio(contents["audio"]), read_image(contents["image"]), list(open_video(contents["video"]).frames())
        with pytest.raises(CorruptFile):
            read_audio(b"nothing")
        found.append(descriptors())
    assert found[1] == found[2]
    assert not list(tmp_path.iterdir())


def test_bytes_and_a_path_together_are_refused(model, files):
    part = {"type": "audio", "audio": b"RIFF", "path": str(files["audio"])}
    with pytest.raises(InvalidRequest, match="an array or bytes"):
        model.chat([{"role": "user", "content": [part]}], **GREEDY)
