"""Decoding recordings: every format, rate and number of channels gives the same mono samples at 16 kHz."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lluda.config.audio import AUDIO_LIMITS
from lluda.errors import InvalidRequest
from lluda.inputs.decoding.audio_decoders import BLOCK_VALUES
from lluda.inputs.media.audio_file import AudioFile, audio_blocks, convert
from tests.inputs.media.recordings import RATE, read_audio, sound, transcoded, voice, write

pytest.importorskip("soundfile")
pytest.importorskip("soxr")


def spectrum(samples: np.ndarray) -> np.ndarray:
    return np.abs(np.fft.rfft(samples * np.hanning(len(samples))))


def alike(found: np.ndarray, expected: np.ndarray) -> float:
    """Correlation of spectra: lossy codecs move samples, and add some at the ends."""
    length = min(len(found), len(expected))
    return float(np.corrcoef(spectrum(found[:length]), spectrum(expected[:length]))[0, 1])


@pytest.mark.parametrize("subtype", ["PCM_16", "PCM_24", "FLOAT", "DOUBLE"])
def test_a_16_khz_mono_wav_is_its_samples(tmp_path, subtype):
    samples = sound(1.3)
    found = read_audio(write(tmp_path / "a.wav", samples, subtype=subtype))
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, samples, atol=4e-5 if subtype == "PCM_16" else 1e-6)


@pytest.mark.parametrize(("extension", "options"), [
    ("wav", {}), ("flac", {}), ("aiff", {}), ("ogg", {}), ("opus", {"format": "OGG", "subtype": "OPUS"}),
])  # fmt: skip
def test_libsndfile_reads(tmp_path, extension, options):
    path = write(tmp_path / f"a.{extension}", sound(2, 48000), 48000, **options)
    with AudioFile(path) as file:
        assert file.kind.startswith("libsndfile") and file.rate == 48000
    found = read_audio(path)
    assert abs(len(found) - 2 * RATE) <= 0.1 * RATE
    assert alike(found, sound(2)) > 0.98


@pytest.mark.parametrize("extension", ["mp3", "m4a", "mp4", "webm", "mka", "aac", "wma"])
def test_ffmpeg_reads(tmp_path, extension):
    path = transcoded(tmp_path / f"a.{extension}", sound(2, 48000), 48000)
    with AudioFile(path) as file:
        assert file.kind.startswith("ffmpeg")
    found = read_audio(path)
    assert abs(len(found) - 2 * RATE) <= 0.1 * RATE
    assert alike(found, sound(2)) > 0.98


def test_an_mp3_of_changing_bit_rate_without_a_header_is_read_to_its_end(tmp_path):
    samples = np.concatenate([1e-3 * sound(5), sound(10)])
    path = transcoded(tmp_path / "a.mp3", samples, flags="+qscale", global_quality="590", write_xing="0")
    assert abs(len(read_audio(path)) - len(samples)) <= 0.2 * RATE


def test_the_sound_track_of_a_video(tmp_path):
    path = tmp_path / "a.mp4"
    assert alike(read_audio(transcoded(path, sound(2), picture=True)), sound(2)) > 0.98


@pytest.mark.parametrize(("real", "name"), [("mp3", "wav"), ("m4a", "wav"), ("wav", "mp3"), ("flac", "txt")])
def test_a_file_is_what_its_bytes_are(tmp_path, real, name):
    make = transcoded if real == "m4a" else write
    path = make(tmp_path / f"a.{real}", sound(1)).rename(tmp_path / f"b.{name}")
    assert alike(read_audio(path), sound(1)) > 0.98


def test_a_voice_at_its_own_rate(tmp_path):
    with AudioFile(write(tmp_path / "voice.wav", voice(2.5), 22050)) as file:
        assert file.rate == 22050
        found = np.concatenate([*file.blocks()])
    assert len(found) > 2 * RATE and 0.05 < np.abs(found).max() <= 1.0


@pytest.mark.parametrize("rate", [8000, 11025, 22050, 44100, 48000, 96000])
def test_rates_are_converted(rate):
    found = read_audio(sound(1, rate), rate)
    assert abs(len(found) - RATE) <= 1
    assert alike(found, sound(1)) > (0.9 if rate == 8000 else 0.99)


def test_a_tone_above_half_the_rate_is_gone():
    time = np.arange(48000) / 48000
    found = read_audio(np.sin(2 * np.pi * 11000 * time), 48000)
    assert np.abs(found[500:-500]).max() < 1e-3


def test_channels_are_averaged_whichever_axis_they_are(tmp_path):
    stereo = np.stack([sound(1), -0.5 * sound(1, seed=1)], axis=1)
    expected = stereo.mean(axis=1)
    np.testing.assert_allclose(read_audio(stereo, RATE), expected, atol=1e-7)
    np.testing.assert_allclose(read_audio(stereo.T, RATE), expected, atol=1e-7)
    np.testing.assert_allclose(read_audio(write(tmp_path / "a.wav", stereo, subtype="FLOAT")), expected, atol=1e-7)


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int32])
def test_integers_have_the_full_scale_of_their_type(dtype):
    info = np.iinfo(dtype)
    middle = 0 if info.min else (info.max + 1) // 2
    found = read_audio(np.array([info.min, middle, info.max], dtype), RATE)
    np.testing.assert_allclose(found, [-1, 0, 1], atol=1e-2)


@given(st.lists(st.integers(1, 5000), min_size=1, max_size=8), st.sampled_from([8000, 16000, 44100]))
@settings(max_examples=25, deadline=None)
def test_blocks_of_any_size_give_the_same_recording(sizes, rate):
    samples = sound(sum(sizes) / rate, rate)[: sum(sizes), None]
    cut = np.split(samples, np.cumsum(sizes)[:-1])
    whole = np.concatenate([*convert([samples], rate, RATE, where="a")])
    np.testing.assert_allclose(np.concatenate([*convert(cut, rate, RATE, where="a")]), whole, atol=1e-6)


def test_no_block_is_long(tmp_path):
    path = write(tmp_path / "a.flac", np.zeros(RATE * 120, np.float32))
    sizes = [len(block) for block in audio_blocks(path)]
    assert len(sizes) > 5 and max(sizes) <= BLOCK_VALUES


def test_limits_hold_for_what_a_header_does_not_say():
    limits = type(AUDIO_LIMITS)(max_seconds=2)
    with pytest.raises(InvalidRequest, match=r"3 s of sound exceed the 2 s"):
        [*convert((np.zeros((RATE, 1), np.float32) for _ in range(10)), RATE, RATE, where="a", limits=limits)]
