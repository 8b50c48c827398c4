"""Log-mel features against transformers' WhisperFeatureExtractor as the Omni processor calls it."""

from __future__ import annotations

import numpy as np
import pytest

from lluda.config.audio import RELEASED_MEL
from lluda.inputs.media.audio_features import GrowingLogMel, log_mel, mel_filters
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


GROWING = {
    "even": sound(2.37),
    "loud at last": np.concatenate([1e-4 * sound(1.5), sound(0.6)]),
    "silence first": np.concatenate([np.zeros(RATE + 31, np.float32), sound(1)]),
}


@pytest.mark.parametrize("size", [37, 160, 1601, 20000])
@pytest.mark.parametrize("signal", GROWING)
def test_a_growing_recording_has_the_features_of_the_whole_to_the_bit(signal, size):
    samples, growing = GROWING[signal], GrowingLogMel()
    for piece in pieces(samples, size):
        growing.push(piece)
    np.testing.assert_array_equal(growing.ending(len(samples)), log_mel([samples]))


@pytest.mark.parametrize("end", [201, 300, 16000, 16199, 16200, 31999, 32000, 33300])
def test_a_recording_may_end_before_what_was_pushed(end):
    growing = GrowingLogMel()
    growing.push(GROWING["loud at last"])
    np.testing.assert_array_equal(growing.ending(end), log_mel([GROWING["loud at last"][:end]]))


def test_frames_are_known_as_the_whole_would_have_them_if_nothing_louder_comes():
    samples, growing = GROWING["loud at last"], GrowingLogMel()
    whole = log_mel([samples])
    growing.push(samples[:24000])
    assert len(growing.known(1000)) == growing.frames_after(24000) == 100
    assert not np.array_equal(growing.known(100), whole[:100])
    growing.push(samples[24000:])
    assert len(growing.known(1000)) == growing.frames_after(len(samples)) == 200
    np.testing.assert_array_equal(growing.known(150), whole[:150])


def test_nothing_is_known_of_a_recording_that_has_hardly_begun():
    growing = GrowingLogMel()
    growing.push(sound(1)[:900])
    assert growing.known(10).shape == (0, 128)
