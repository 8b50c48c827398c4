"""Speech written while it is made: what is on disk or in the pipe is a recording at every moment."""

import io
import struct
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
