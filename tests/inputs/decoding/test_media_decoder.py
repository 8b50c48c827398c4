"""The process that decodes media: it may crash, hang, or outlive its parent, and takes nothing along."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lluda.errors import CorruptFile, LimitExceeded, LludaError
from lluda.inputs.decoding import media_decoder, media_worker
from lluda.inputs.decoding.media_decoder import DECODER, MediaDecoder
from lluda.inputs.decoding.media_file import MediaFile
from lluda.inputs.decoding.media_limits import data_bytes, processor_seconds
from lluda.inputs.media.audio_file import AudioFile, open_audio
from lluda.inputs.media.image_file import read_image
from lluda.inputs.media.video_file import open_video
from tests.inputs.media.many_channels import write_channels
from tests.inputs.media.recordings import read_audio, sound, write
from tests.inputs.media.synthetic_video import grey_frames, write_video
from tests.inputs.media.test_audio_file import alike

WATCHDOG = 60


@pytest.mark.parametrize(("name", "codec"), [
    ("a.m4a", "aac"), ("a.mp4", "aac"), ("a.mov", "pcm_s16le"), ("a.mka", "libopus"), ("a.mka", "flac"),
    ("a.webm", "libopus"), ("a.ts", "aac"), ("a.avi", "pcm_s16le"), ("a.wav", "pcm_s16le"), ("a.flac", "flac"),
    ("a.ogg", "libopus"),
])  # fmt: skip
def test_eight_channels_of_every_container(tmp_path, name, codec):
    """PyAV reads planes of a planar frame that are not there: in most of these that ended the process."""
    expected = write_channels(tmp_path / name, codec, "7.1")
    with AudioFile(tmp_path / name) as file:
        assert file.channels == 8
        found = np.concatenate([*file.blocks(48000)])
    assert alike(found, expected) > 0.9  # of AAC's channel for low tones only those are left


@pytest.mark.parametrize(("name", "codec", "layout", "channels"), [
    ("a.m4a", "aac", "hexadecagonal", 16), ("a.mka", "pcm_f32le", "16 channels", 16),
    ("a.mov", "pcm_s16le", "32 channels", 32), ("a.mka", "pcm_s16le", "22.2", 24),
    ("a.wav", "pcm_s16le", "32 channels", 32),
])  # fmt: skip
def test_more_channels(tmp_path, name, codec, layout, channels):
    expected = write_channels(tmp_path / name, codec, layout)
    with AudioFile(tmp_path / name) as file:
        assert file.channels == channels
        found = np.concatenate([*file.blocks(48000)])
    assert alike(found, expected) > 0.9  # of AAC's channel for low tones only those are left


WORKER = f"""
import os, resource, signal, socket, sys, time
sys.path.insert(0, {str(Path(media_worker.__file__).parents[3])!r})
from lluda.inputs.decoding import media_jobs
def misbehave(path, file, request):
    {{}}
    yield {{{{}}}}
for name in media_jobs._JOBS:
    media_jobs._JOBS[name] = misbehave
media_jobs.serve(socket.socket(fileno=0))
"""


def misbehaving(tmp_path, monkeypatch, what):
    """A decoder whose process does ``what`` with every file."""
    script = tmp_path / "worker.py"
    script.write_text(WORKER.format(what))
    monkeypatch.setattr(media_worker, "__file__", str(script))
    decoder = MediaDecoder()
    file = MediaFile(write(tmp_path / "a.wav", sound(0.1)), "recording", 1 << 20)
    try:
        decoder.open("audio", file)
    finally:
        decoder.close()
        monkeypatch.undo()


@pytest.mark.parametrize(
    ("what", "error", "words"),
    [
        ("os.kill(os.getpid(), signal.SIGSEGV)", CorruptFile, "the decoder crashed on this recording (Segmentation"),
        ("os.abort()", CorruptFile, "the decoder crashed on this recording (Aborted"),
        (
            "os.write(2, b'[lib.c:1] error: bad at 0xfe12\\n'); os._exit(1)",
            CorruptFile,
            "the decoder says: [lib.c:1] er",
        ),
        ("raise IndexError('list index out of range')", CorruptFile, "a.wav: the decoder failed (IndexError)"),
        ("bytearray(10 ** 9)", LimitExceeded, "takes more memory than one recording of"),
        (
            "resource.setrlimit(resource.RLIMIT_CPU, (1, -1))\n    while True: pass",
            LimitExceeded,
            "s of processor time",
        ),
    ],
)
def test_what_a_decoder_does_is_one_line_about_the_file(tmp_path, monkeypatch, what, error, words):
    with pytest.raises(error) as caught:
        misbehaving(tmp_path, monkeypatch, what)
    text = str(caught.value)
    assert words in text
    assert str(tmp_path / "a.wav") in text
    assert "\n" not in text
    assert "0xfe12" not in text
    assert len(read_audio(tmp_path / "a.wav")) == 1600, "the next file is read by another process"


def test_a_process_that_says_nothing_is_stopped(tmp_path, monkeypatch):
    monkeypatch.setattr(media_decoder, "_SILENCE_SECONDS", 0.5)
    with pytest.raises(CorruptFile, match=r"it was stopped after 0\.5"):
        misbehaving(tmp_path, monkeypatch, "time.sleep(600)")


def test_what_libraries_write_to_stderr_reaches_nobody(tmp_path, capfd):
    """libtiff and mpg123 complain by themselves; their last words are in the error."""
    path = tmp_path / "a.tif"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)).save(path, compression="tiff_lzw")
    content = bytearray(path.read_bytes())
    content[8:200] = b"\xff" * 192
    path.write_bytes(content)
    with pytest.raises(CorruptFile) as caught:
        read_image(path)
    mp3 = tmp_path / "a.mp3"
    mp3.write_bytes(b"\xff\xfb\x90\x64" + bytes(300) + b"\xff\xfb\x90\x65" + bytes(5000))
    with pytest.raises(CorruptFile):
        read_audio(mp3)
    assert capfd.readouterr() == ("", "")
    assert "the decoder says: " in str(caught.value)


def test_files_may_be_read_by_turns_and_from_threads(tmp_path):
    paths = [write(tmp_path / f"{k}.flac", sound(20 + k, seed=k)) for k in range(3)]
    expected = [read_audio(path) for path in paths]
    streams = [open_audio(path).blocks() for path in paths]
    first = [next(stream) for stream in streams]
    for stream, start, whole in zip(streams, first, expected, strict=True):
        assert np.array_equal(np.concatenate([start, *stream]), whole)
    video = open_video(write_video(tmp_path / "a.mkv", grey_frames(60), 10))
    for one, other in zip(video.frames(), video.frames(), strict=True):
        assert np.array_equal(one, other)
    found = {}
    threads = [threading.Thread(target=lambda k=k: found.update({k: read_audio(paths[k])})) for k in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WATCHDOG)
    assert all(np.array_equal(found[k], expected[k]) for k in range(3))
    assert len(DECODER._idle) <= 2


def test_the_terminals_interrupt_does_not_reach_it(tmp_path):
    read_audio(write(tmp_path / "a.wav", sound(0.1)))
    assert os.getsid(DECODER._idle[0].pid) != os.getsid(0)


def test_an_interrupted_reading_leaves_no_half_used_process(tmp_path, monkeypatch):
    path = write(tmp_path / "a.flac", sound(30))
    blocks = open_audio(path).blocks()
    next(blocks)
    with pytest.raises(KeyboardInterrupt):
        blocks.throw(KeyboardInterrupt)
    assert len(read_audio(path)) == 30 * 16000


def script(tmp_path, text):
    path = tmp_path / "script.py"
    path.write_text(text)
    environment = os.environ | {"PYTHONPATH": str(Path(media_worker.__file__).parents[3])}
    return subprocess.Popen([sys.executable, path], stdout=subprocess.PIPE, cwd=tmp_path, env=environment)


def test_a_script_needs_no_main_guard_and_its_folder_is_not_searched(tmp_path):
    write(tmp_path / "a.wav", sound(0.5))
    (tmp_path / "av.py").write_text("raise SystemExit('a module of the folder was imported')")
    process = script(
        tmp_path,
        "from lluda.inputs.media.audio_file import audio_blocks\nprint(sum(map(len, audio_blocks('a.wav'))))\n",
    )
    assert process.communicate(timeout=WATCHDOG)[0].split() == [b"8000"]


def test_it_ends_with_its_parent(tmp_path):
    write(tmp_path / "a.flac", sound(60))
    process = script(
        tmp_path,
        "import os\nfrom lluda.inputs.media.audio_file import AudioFile\n"
        "file = AudioFile('a.flac')\nblocks = file.blocks()\n"
        "next(blocks)\nprint(file._job._worker.pid, flush=True)\nos.kill(os.getpid(), 9)\n",
    )
    pid = int(process.communicate(timeout=WATCHDOG)[0])
    assert process.returncode == -signal.SIGKILL
    end = time.monotonic() + WATCHDOG
    while time.monotonic() < end and Path(f"/proc/{pid}/stat").exists():
        if Path(f"/proc/{pid}/stat").read_text().split()[2] == "Z":
            break
        time.sleep(0.05)
    else:
        assert not Path(f"/proc/{pid}").exists(), "it outlived its parent"


@pytest.mark.parametrize(("size", "pixels", "expected"), [
    (0, 0, 200_000_000), (10_000, 33_000_000, 200_100_000), (10_000_000, 0, 300_000_000),
    (10_000_000, 48_000_000, 300_000_000 + 24 * 48_000_000), (1 << 40, 0, 8 << 30),
])  # fmt: skip
def test_memory_is_in_proportion_to_the_file(size, pixels, expected):
    assert data_bytes(size, pixels, 24) == expected
    assert processor_seconds(size) == 8 + size // 32768


def test_a_process_that_cannot_be_started_is_an_error(tmp_path, monkeypatch):
    file = MediaFile(write(tmp_path / "a.wav", sound(0.1)), "recording", 1 << 20)
    monkeypatch.setattr(media_worker, "__file__", str(tmp_path / "none.py"))
    with pytest.raises(LludaError, match=r"does not start: .*No such file"):
        MediaDecoder().open("audio", file)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "no python"))
    with pytest.raises(LludaError, match="does not start: the system starts no process: No such file"):
        MediaDecoder().open("audio", file)


def test_a_name_that_is_no_utf8_is_a_name(tmp_path):
    name = os.fsdecode(b"caf\xe9.wav")
    assert len(read_audio(write(tmp_path / "a.wav", sound(0.1)).rename(tmp_path / name))) == 1600
    (tmp_path / name).write_bytes(b"no sound at all")
    with pytest.raises(CorruptFile) as caught:
        read_audio(tmp_path / name)
    assert str(caught.value).count("caf\\udce9.wav: not a readable recording") == 1
    assert str(caught.value).count("caf") == 1
