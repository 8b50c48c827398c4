"""Log-mel features against transformers' WhisperFeatureExtractor as the Omni processor calls it."""

from __future__ import annotations

import numpy as np
import pytest

from lluda.config.audio import RELEASED_MEL
from lluda.inputs.media.audio_features import LogMelStream, log_mel, mel_filters
from tests.inputs.media.recordings import RATE, read_audio, sound, voice, write

BAR = 1e-5
"""The promise is 1e-4; the same window and transform leave 1e-7."""


@pytest.fixture(scope="module")
def extractor():
    transformers = pytest.importorskip("transformers")
    return transformers.WhisperFeatureExtractor(feature_size=128, chunk_length=300, return_attention_mask=True)


def expected_features(extractor, samples: np.ndarray) -> np.ndarray:
    options = {"padding": "longest", "truncation": False, "return_attention_mask": True, "return_tensors": "np"}
    found = extractor(samples, sampling_rate=RATE, **options)
    assert found["attention_mask"].sum() == found["input_features"].shape[-1]
    return found["input_features"][0].T


def pieces(samples: np.ndarray, size: int) -> list[np.ndarray]:
    return [samples[start : start + size] for start in range(0, len(samples), size)]


def test_mel_filters_equal_slaneys(extractor):
    np.testing.assert_allclose(mel_filters(RELEASED_MEL), extractor.mel_filters, atol=1e-15)


SIGNALS = {
    "glide": lambda: sound(3.3),
    "pure tone": lambda: (0.5 * np.sin(2 * np.pi * 440 * np.arange(48123) / RATE)).astype(np.float32),
    "silence": lambda: np.zeros(2 * RATE, np.float32),
    "a tenth of a second": lambda: sound(0.1),
    "shortest": lambda: sound(1)[: RELEASED_MEL.min_samples],
    "65 s": lambda: sound(65) * np.linspace(0, 1, 65 * RATE, dtype=np.float32),
    "quiet after loud": lambda: np.concatenate([sound(1), 1e-5 * sound(1)]),
    "a frame and a half": lambda: sound(1)[:240],
}


@pytest.mark.parametrize("signal", SIGNALS)
@pytest.mark.parametrize("block", [777, 1 << 30])
def test_features_equal_transformers(extractor, signal, block):
    samples = SIGNALS[signal]()
    found = log_mel(pieces(samples, block))
    expected = expected_features(extractor, samples)
    assert found.shape == expected.shape == (len(samples) // 160, 128)
    assert found.dtype == np.float32
    assert np.abs(found - expected).max() <= BAR


def test_features_of_a_voice_equal_transformers(extractor, tmp_path):
    samples = read_audio(write(tmp_path / "voice.wav", voice(12), 22050))
    assert np.abs(log_mel([samples]) - expected_features(extractor, samples)).max() <= BAR


@pytest.mark.parametrize("seconds", [0.1, 5, 65])
def test_features_of_stereo_tones_equal_transformers(extractor, tmp_path, seconds):
    time = np.arange(round(44100 * seconds)) / 44100
    tones = 0.5 * np.stack([np.sin(2 * np.pi * 440 * time), np.sin(2 * np.pi * (1000 + 1500 * time / seconds) * time)])
    samples = read_audio(write(tmp_path / "tones.flac", tones.T, 44100))
    assert np.abs(log_mel([samples]) - expected_features(extractor, samples)).max() <= BAR


@pytest.mark.parametrize("size", [160, 1601, 20000])
def test_a_pushed_stream_equals_the_whole_where_the_peak_is_known(size):
    samples = sound(2.37)
    whole = log_mel([samples])
    stream = LogMelStream(peak=float(whole.max()) * 4 - 4)
    found = np.concatenate([*(stream.push(piece) for piece in pieces(samples, size)), stream.finish()])
    np.testing.assert_allclose(found, whole, atol=2e-6)


def test_an_open_stream_differs_only_below_the_floor_of_the_whole():
    """The one unavoidable difference: quiet frames before a louder one keep what the whole recording cuts off."""
    samples = np.concatenate([1e-4 * sound(1), sound(1)])
    whole, stream = log_mel([samples]), LogMelStream()
    found = np.concatenate([*(stream.push(piece) for piece in pieces(samples, 1600)), stream.finish()])
    floor = whole.max() - 2  # 8 in log10, a quarter of that once scaled
    above = whole > floor + 1e-4
    np.testing.assert_allclose(found[above], whole[above], atol=2e-6)
    assert 0.1 < np.abs(found - whole)[~above].max() <= 2.0
    assert (found <= whole + 2e-6).all()
    after = whole.max(axis=1).argmax() + 10  # the push that brought the peak is over
    np.testing.assert_allclose(found[after:], whole[after:], atol=2e-6)


def test_frames_come_as_soon_as_their_samples_do():
    stream, samples = LogMelStream(), sound(1)
    assert len(stream.push(samples[:200])) == 0
    assert len(stream.push(samples[200:360])) == 2
    assert len(stream.push(samples[360:])) == 97
    assert len(stream.finish()) == 1
