"""One clip of speech: its edges, its loudness, the silence around it, its rate. Arrays are float32 mono in [-1, 1]."""

import numpy as np
from scipy.signal import lfilter, resample_poly

LOUDNESS = -23.0
"""LUFS (BS.1770, without gating: a clip here is one sentence without pauses to leave out)."""

SILENCE_BEFORE, SILENCE_AFTER = 0.08, 0.24
"""Seconds of silence around a clip to speak from: three frames of 80 ms after it tell the talker to stop."""

_PEAK = 0.97
_EDGE_DECIBEL = -46.0
_WINDOW_SECONDS = 0.005
_FADE_SECONDS = 0.008


def trimmed(samples: np.ndarray, rate: int) -> np.ndarray:
    """The clip without what is quieter than 46 dB below its loudest 5 ms at both edges, with 15 ms kept and faded.

    Raises:
        ValueError: the clip is silent.
    """
    window = int(_WINDOW_SECONDS * rate)
    frames = len(samples) // window
    power = np.square(samples[: frames * window].reshape(frames, window)).mean(1) if frames else np.zeros(0)
    if not frames or power.max() < 1e-8:
        raise ValueError(f"the clip of {len(samples)} samples is silent")
    loud = np.flatnonzero(power > power.max() * 10 ** (_EDGE_DECIBEL / 10))
    first, last = max(0, (loud[0] - 3) * window), min(len(samples), (loud[-1] + 4) * window)
    clip = samples[first:last].astype(np.float32, copy=True)
    fade = np.linspace(0, 1, int(_FADE_SECONDS * rate), dtype=np.float32)
    clip[: len(fade)] *= fade
    clip[-len(fade) :] *= fade[::-1]
    return clip


def _k_weighted(samples: np.ndarray, rate: int) -> np.ndarray:
    """BS.1770's two filters: a shelf of 4 dB above 1.7 kHz and a high-pass at 38 Hz, made for any rate."""
    for frequency, quality, gain in (
        (1681.974450955533, 0.7071752369554196, 3.999843853973347),
        (38.13547087602444, 0.5003270373238773, None),
    ):
        k = np.tan(np.pi * frequency / rate)
        a0 = 1 + k / quality + k * k
        a = [1.0, 2 * (k * k - 1) / a0, (1 - k / quality + k * k) / a0]
        if gain is None:
            b = [1.0, -2.0, 1.0]
        else:
            high = 10 ** (gain / 20)
            band = high**0.4996667741545416
            b = [
                (high + band * k / quality + k * k) / a0,
                2 * (k * k - high) / a0,
                (high - band * k / quality + k * k) / a0,
            ]
        samples = lfilter(b, a, samples)
    return samples


def loudness(samples: np.ndarray, rate: int) -> float:
    """LUFS of the whole clip, ungated; -inf for silence."""
    power = float(np.square(_k_weighted(samples.astype(np.float64), rate)).mean())
    return -0.691 + 10 * np.log10(power) if power > 0 else -np.inf


def levelled(samples: np.ndarray, rate: int, target: float = LOUDNESS) -> np.ndarray:
    """The clip at a loudness, or less where its peak would pass 0.97."""
    gain = 10 ** ((target - loudness(samples, rate)) / 20)
    peak = float(np.abs(samples).max())
    return (samples * min(gain, _PEAK / peak)).astype(np.float32)


def resampled(samples: np.ndarray, rate: int, wanted: int) -> np.ndarray:
    """The clip at another rate (a polyphase filter)."""
    if rate == wanted:
        return samples
    divisor = np.gcd(rate, wanted)
    return resample_poly(samples, wanted // divisor, rate // divisor).astype(np.float32)


def padded(samples: np.ndarray, rate: int, before: float = SILENCE_BEFORE, after: float = SILENCE_AFTER) -> np.ndarray:
    """The clip with seconds of silence around it."""
    return np.pad(samples, (round(before * rate), round(after * rate)))


def finished(samples: np.ndarray, rate: int, wanted: int) -> np.ndarray:
    """What a set stores: trimmed, at the wanted rate, levelled, with silence around it, as int16."""
    clip = levelled(resampled(trimmed(samples, rate), rate, wanted), wanted)
    return np.round(padded(clip, wanted) * 32767).clip(-32768, 32767).astype("<i2")
