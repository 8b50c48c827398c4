"""Speech written as it is generated: what is on disk or in the pipe is a recording at every moment."""

import io
import struct
import subprocess
import sys

import numpy as np
import pytest

from lluda.errors import InvalidRequest, LludaError, MissingDependency
from lluda.outputs import audio_sink
from lluda.outputs.audio_sink import open_audio_sink

soundfile = pytest.importorskip("soundfile")
TONE = np.sin(np.arange(4800) / 10).astype(np.float32) * 0.5


@pytest.mark.parametrize(
    ("name", "encoding", "tolerance"), [("a.wav", "pcm16", 2**-15), ("a.wav", "float", 0), ("a.flac", "pcm16", 2**-15)]
)
def test_a_file_holds_what_was_written(tmp_path, name, encoding, tolerance):
    path = tmp_path / name
    with open_audio_sink(str(path), 24000, encoding) as sink:
        for part in np.split(TONE, 4):
            sink.write(part)
    samples, rate = soundfile.read(path, dtype="float32")
    assert rate == 24000
    assert np.abs(samples - TONE).max() <= tolerance
    sink.close()


def test_a_file_can_be_read_while_it_grows(tmp_path):
    sink = open_audio_sink(str(tmp_path / "a.wav"), 24000)
    sink.write(TONE[:1000])
    assert len(soundfile.read(tmp_path / "a.wav")[0]) == 1000
    sink.write(TONE[1000:])
    assert len(soundfile.read(tmp_path / "a.wav")[0]) == 4800
    sink.close()


class Pipe:
    def __init__(self):
        self.buffer = io.BytesIO()


@pytest.mark.parametrize(("encoding", "kind"), [("pcm16", "<i2"), ("float", "<f4")])
def test_standard_output_is_a_wav_stream(monkeypatch, encoding, kind):
    monkeypatch.setattr(sys, "stdout", Pipe())
    with open_audio_sink("-", 24000, encoding) as sink:
        sink.write(TONE)
    data = sys.stdout.buffer.getvalue()
    assert (data[:4], data[8:12], data[36:40]) == (b"RIFF", b"WAVE", b"data")
    assert struct.unpack("<HI", data[22:28]) == (1, 24000)
    scale = 32767 if kind == "<i2" else 1
    assert np.abs(np.frombuffer(data[44:], kind) / scale - TONE).max() <= 1 / 32767


def test_samples_beyond_full_scale_are_clipped_not_wrapped(monkeypatch):
    monkeypatch.setattr(sys, "stdout", Pipe())
    open_audio_sink("-", 24000).write(np.array([2.0, -2.0], np.float32))
    assert np.frombuffer(sys.stdout.buffer.getvalue()[44:], "<i2").tolist() == [32767, -32767]


def test_a_reader_that_went_away_is_one_error(monkeypatch):
    class Closed(io.BytesIO):
        def write(self, _data):
            raise BrokenPipeError

    pipe = Pipe()
    pipe.buffer = Closed()
    monkeypatch.setattr(sys, "stdout", pipe)
    with pytest.raises(LludaError, match="closed by its reader"):
        open_audio_sink("-", 24000)


@pytest.mark.parametrize(
    ("target", "encoding", "rule"),
    [
        ("a.mp3", "pcm16", "written as .wav or .flac"),
        ("a", "pcm16", "written as .wav or .flac"),
        ("a.flac", "float", "flac stores no floats"),
        ("a.wav", "pcm24", "encoding 'pcm24'"),
        ("nowhere/a.wav", "pcm16", "the folder .*nowhere does not exist"),
    ],
)
def test_a_target_that_cannot_be_is_refused(tmp_path, target, encoding, rule):
    with pytest.raises(InvalidRequest, match=rule):
        open_audio_sink(str(tmp_path / target), 24000, encoding)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["a.wav", "a.flac"])
def test_a_request_that_fails_before_its_first_sound_leaves_the_folder_as_it_was(tmp_path, name):
    for before in (None, b"an older recording"):
        if before:
            (tmp_path / name).write_bytes(before)
        with pytest.raises(LludaError, match="no voice"), open_audio_sink(str(tmp_path / name), 24000):
            raise LludaError("no voice")
        assert (tmp_path / name).read_bytes() == before if before else not list(tmp_path.iterdir())


def test_what_was_said_before_an_error_is_kept(tmp_path):
    with pytest.raises(KeyboardInterrupt), open_audio_sink(str(tmp_path / "a.wav"), 24000) as sink:
        sink.write(TONE[:1000])
        raise KeyboardInterrupt
    assert len(soundfile.read(tmp_path / "a.wav")[0]) == 1000


def test_a_speech_without_a_sound_is_an_empty_recording(tmp_path):
    with open_audio_sink(str(tmp_path / "a.wav"), 24000):
        pass
    samples, rate = soundfile.read(tmp_path / "a.wav")
    assert (len(samples), rate) == (0, 24000)


@pytest.mark.parametrize(("limit", "remains"), [(20, False), (4000, True)])
def test_a_full_disk_is_an_error_and_leaves_no_empty_file(tmp_path, limit, remains):
    """A limit on the size of files (setrlimit, RLIMIT_FSIZE) stands for a full disk: both fail in write(2)."""
    code = f"""
import resource
import numpy as np
from lluda.errors import LludaError
from lluda.outputs.audio_sink import open_audio_sink
resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))
try:
    with open_audio_sink("a.wav", 24000) as sink:
        for _ in range(10):
            sink.write(np.zeros(1000, np.float32))
except LludaError as error:
    print(error)
"""
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert ended.stdout.startswith("a.wav: writing failed: ")
    assert ended.stdout.endswith("; free disk space, or raise the limit on the size of files (ulimit -f)\n")
    assert (tmp_path / "a.wav").exists() is remains


def test_a_folder_in_the_place_of_the_file_is_refused(tmp_path):
    (tmp_path / "a.wav").mkdir()
    with pytest.raises(InvalidRequest, match="cannot be written"):
        open_audio_sink(str(tmp_path / "a.wav"), 24000)


def test_without_sounddevice_the_remedy_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "sounddevice", None)
    with pytest.raises(MissingDependency, match="sounddevice"):
        open_audio_sink(audio_sink.DEVICE, 24000)


def test_without_a_sound_device_a_file_is_suggested(monkeypatch):
    class Device:
        class PortAudioError(Exception):
            pass

        @staticmethod
        def OutputStream(**_options):  # noqa: N802  (sounddevice's name)
            raise Device.PortAudioError

    monkeypatch.setitem(sys.modules, "sounddevice", Device)
    with pytest.raises(LludaError, match="no sound device"):
        open_audio_sink(audio_sink.DEVICE, 24000)
