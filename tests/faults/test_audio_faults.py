"""Recordings that are broken, lying or beyond the limits: one clear error each, and never a library's own words."""

from __future__ import annotations

import re
import struct

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lluda.config.audio import AUDIO_LIMITS, AudioLimits
from lluda.errors import CorruptFile, InvalidRequest, LimitExceeded, LludaError
from lluda.inputs.media.audio_features import GrowingLogMel, log_mel
from lluda.inputs.media.audio_file import AudioFile
from tests.inputs.media.recordings import RATE, read_audio, sound, transcoded, write

pytest.importorskip("soundfile")
pytest.importorskip("soxr")


def refused(source, error=CorruptFile, **options) -> str:
    with pytest.raises(error) as caught:
        read_audio(source, **options)
    message = str(caught.value)
    assert "0x" not in message and "<" not in message and "\n" not in message
    return message


def wav(path, *, channels=1, rate=RATE, bits=16, data=b"\0\0" * 1600, size=None, tag=1):
    width = channels * bits // 8
    form = struct.pack("<HHIIHH", tag, channels, rate, rate * width & 0xFFFFFFFF, width & 0xFFFF, bits)
    size = len(data) if size is None else size
    body = b"WAVEfmt " + struct.pack("<I", 16) + form + b"data" + struct.pack("<I", size) + data
    path.write_bytes(b"RIFF" + struct.pack("<I", len(body) & 0xFFFFFFFF) + body)
    return path


@pytest.mark.parametrize("extension", ["wav", "flac", "mp3", "ogg", "m4a", "webm"])
@pytest.mark.parametrize("content", [b"", b"\0", b"hello, this is no sound", bytes(range(256)) * 40])
def test_what_is_no_recording(tmp_path, extension, content):
    path = tmp_path / f"a.{extension}"
    path.write_bytes(content)
    message = refused(path)
    expected = ("not a readable recording", "cannot be decoded") if content else ("empty",)
    assert any(words in message for words in expected)


@pytest.mark.parametrize(
    "head", [b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n", b"ffconcat version 1.0\nfile other.wav\n"]
)
def test_a_playlist_opens_nothing(tmp_path, head):
    write(tmp_path / "other.wav", sound(1))
    path = tmp_path / "list.m3u8"
    path.write_bytes(head)
    assert "not a readable recording" in refused(path)


def test_a_file_that_is_not_there(tmp_path):
    assert "no such recording" in refused(tmp_path / "absent.wav", InvalidRequest)


def test_a_folder(tmp_path):
    assert "regular file" in refused(tmp_path)


@pytest.mark.parametrize("extension", ["wav", "flac"])
@pytest.mark.parametrize("share", [0.9, 0.5, 0.1])
def test_cut_off_recordings(tmp_path, extension, share):
    path = write(tmp_path / f"a.{extension}", sound(10))
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    assert "cut off" in refused(path)


def test_a_cut_off_m4a(tmp_path):
    path = transcoded(tmp_path / "a.m4a", sound(10))
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    refused(path)
    path = transcoded(tmp_path / "b.m4a", sound(10), movflags="faststart")
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    assert "cut off" in refused(path)


def test_a_cut_off_webm(tmp_path):
    path = transcoded(tmp_path / "a.webm", sound(10))
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    assert "ends before its header says" in refused(path)


@pytest.mark.parametrize("extension", ["wav", "flac", "mp3", "ogg"])
@pytest.mark.parametrize("count", [1, 4, 12, 30, 44, 60])
def test_headers_cut_off(tmp_path, extension, count):
    path = write(tmp_path / f"a.{extension}", sound(1))
    path.write_bytes(path.read_bytes()[:count])
    refused(path, LludaError)


@pytest.mark.parametrize(("header", "words"), [
    ({"size": 1 << 30}, "promises more sound"),
    ({"data": b"", "size": 0}, "no sound"),
    ({"rate": 0}, ""), ({"rate": 1}, ""), ({"rate": 0xFFFFFFFF}, ""), ({"rate": 900_000}, "samples a second"),
    ({"channels": 0}, ""), ({"channels": 65535}, ""), ({"channels": 100, "data": b"\0" * 20000}, "100 channels"),
    ({"bits": 0}, ""), ({"bits": 17}, None), ({"tag": 0x7777}, ""),
])  # fmt: skip
def test_lying_wav_headers(tmp_path, header, words):
    path = wav(tmp_path / "a.wav", **header)
    if words is None:  # a format that may be read: then as finite samples
        assert np.isfinite(read_audio(path)).all()
    else:
        assert words in refused(path, LludaError)


def test_a_streamed_wav_that_does_not_know_its_size(tmp_path):
    assert len(read_audio(wav(tmp_path / "a.wav", size=0xFFFFFFFF))) == 1600


def test_a_flac_header_that_promises_hours(tmp_path):
    path = write(tmp_path / "a.flac", sound(1))
    content = bytearray(path.read_bytes())
    content[21] |= 0x0F  # the upper bits of STREAMINFO's 36-bit number of samples
    content[22:26] = b"\xff" * 4
    path.write_bytes(content)
    assert f"exceed the {AUDIO_LIMITS.max_seconds} s" in refused(path, LimitExceeded)


def test_a_decompression_bomb_is_stopped_by_its_length(tmp_path):
    path = write(tmp_path / "a.flac", np.zeros(RATE * 60, np.float32))
    assert path.stat().st_size < 100_000
    with pytest.raises(LimitExceeded, match="60 s of sound exceed the 10 s"):
        AudioFile(path, AudioLimits(max_seconds=10))


def test_a_file_over_the_limit(tmp_path):
    with pytest.raises(LimitExceeded, match=r"bytes exceed the 1000"):
        AudioFile(write(tmp_path / "a.wav", sound(1)), AudioLimits(max_file_bytes=1000))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e30])
def test_samples_that_are_no_sound(tmp_path, value):
    samples = sound(3).astype(np.float64)
    samples[40000] = value
    for source, rate in ((write(tmp_path / "a.wav", samples, subtype="DOUBLE"), None), (samples, RATE)):
        assert re.search(r"a sample near \d\.\d s is", refused(source, InvalidRequest, sampling_rate=rate))


def test_integers_that_nobody_divided():
    assert "full scale is 1" in refused(sound(1) * 32768, InvalidRequest, sampling_rate=RATE)


@pytest.mark.parametrize(("samples", "rate", "words"), [
    (sound(1), None, "sampling_rate"), (sound(1), 16000.0, "sampling_rate"), (sound(1), True, "sampling_rate"),
    (sound(1), 0, "samples a second"), (sound(1), -5, "samples a second"), (np.zeros(0), RATE, "no sound"),
    (np.zeros((2, 3, 4)), RATE, "3 dimensions"), (np.zeros(5, complex), RATE, "real numbers"),
    ("wrong", RATE, "no such recording"), (None, RATE, "real numbers"), ([[1], [2, 3]], RATE, "real numbers"),
    (np.zeros((7, 7)), RATE, "which axis is time"), (np.zeros((100, 1000)), RATE, "100 channels"),
    (np.zeros(RATE, bool), RATE, "real numbers"), (np.broadcast_to(np.float32(0), 1 << 40), RATE, "exceed the"),
])  # fmt: skip
def test_arrays_that_are_no_recording(samples, rate, words):
    assert words in refused(samples, InvalidRequest, sampling_rate=rate)


@pytest.mark.parametrize("count", [0, 1, 200])
def test_recordings_too_short_for_features(count):
    with pytest.raises(InvalidRequest, match="at least 201 at 16000 Hz"):
        log_mel([np.zeros(count, np.float32)])
    growing = GrowingLogMel()
    growing.push(np.zeros(count + 500, np.float32))
    with pytest.raises(InvalidRequest, match="too short"):
        growing.ending(count)


@given(data=st.data())
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@pytest.mark.parametrize("extension", ["wav", "flac", "mp3", "ogg"])
def test_damaged_bytes_are_refused_or_read_as_finite_samples(tmp_path, extension, data):
    path = tmp_path / f"a.{extension}"
    if not path.exists():
        write(path, sound(0.3))
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 5))):
        content[data.draw(st.integers(0, min(len(content), 400) - 1))] = data.draw(st.integers(0, 255))
    damaged = tmp_path / f"damaged.{extension}"
    damaged.write_bytes(content)
    try:
        assert np.isfinite(read_audio(damaged)).all()
    except LludaError as error:
        assert "0x" not in str(error)
