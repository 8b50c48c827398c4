"""One clip of speech: its edges, its loudness, the silence around it, its rate. Arrays are float32 mono in [-1, 1]."""

import numpy as np

LOUDNESS = -23.0
"""LUFS (BS.1770, without gating: a clip here is one sentence without pauses to leave out)."""

SILENCE_BEFORE, SILENCE_AFTER = 0.08, 0.24
"""Seconds of silence around a clip to speak from: three frames of 80 ms after it tell the talker to stop."""

_PEAK = 0.97
_LOUDEST = 8.0
_K_FILTERS = (
    (1681.974450955533, 0.7071752369554196, 3.999843853973347),
    (38.13547087602444, 0.5003270373238773, None),
)
"""BS.1770's shelf and high-pass: hertz, quality, decibel."""

_EDGE_DECIBEL = -46.0
_WINDOW_SECONDS = 0.005
_FADE_SECONDS = 0.008


def trimmed(samples: np.ndarray, rate: int) -> tuple[np.ndarray, int]:
    """The clip without what is quieter than 46 dB below its loudest 5 ms at both edges, with 15 ms kept and faded.

    Returns:
        the clip, and how many samples were cut off before it.

    Raises:
        ValueError: the clip is silent, or is no sound at all: a number that is not finite, or above 8 full scales.
    """
    if not np.abs(samples).max(initial=0) < _LOUDEST:
        raise ValueError(f"the clip of {len(samples)} samples has one of {np.abs(samples).max()}")
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
    return clip, int(first)


def _k_weighting(rate: int, size: int) -> np.ndarray:
    """Power of BS.1770's two filters at the frequencies of an rfft: 4 dB more above 1.7 kHz, less below 38 Hz."""
    delay = np.exp(-2j * np.pi * np.arange(size // 2 + 1) / size)
    power = np.ones(len(delay))
    for frequency, quality, decibel in _K_FILTERS:
        k = np.tan(np.pi * frequency / rate)
        a = (1 + k / quality + k * k, 2 * (k * k - 1), 1 - k / quality + k * k)
        if decibel is None:
            b = (a[0], -2 * a[0], a[0])
        else:
            high = 10 ** (decibel / 20)
            band = high**0.4996667741545416
            b = (high + band * k / quality + k * k, 2 * (k * k - high), high - band * k / quality + k * k)
        power *= np.abs(np.polyval(b[::-1], delay) / np.polyval(a[::-1], delay)) ** 2
    return power


def loudness(samples: np.ndarray, rate: int) -> float:
    """LUFS of the whole clip, ungated; -inf for silence."""
    size = 2 * len(samples)
    spectrum = np.abs(np.fft.rfft(samples.astype(np.float64), size)) ** 2 * _k_weighting(rate, size)
    power = (2 * spectrum.sum() - spectrum[0] - spectrum[-1]) / size / len(samples)
    return -0.691 + 10 * np.log10(power) if power > 0 else -np.inf


def levelled(samples: np.ndarray, rate: int, target: float = LOUDNESS) -> np.ndarray:
    """The clip at a loudness, or less where its peak would pass 0.97."""
    gain = 10 ** ((target - loudness(samples, rate)) / 20)
    peak = float(np.abs(samples).max())
    return (samples * min(gain, _PEAK / peak)).astype(np.float32)


def resampled(samples: np.ndarray, rate: int, wanted: int) -> np.ndarray:
    """The clip at another rate: its spectrum cut, or filled with zeros. It should start and end quietly."""
    if rate == wanted:
        return samples
    divisor = int(np.gcd(rate, wanted))
    blocks = -(-len(samples) // (rate // divisor))
    size, wanted_size = blocks * (rate // divisor), blocks * (wanted // divisor)
    # An rfft of odd length has no Nyquist bin, one of even length has: even sizes keep the two alike.
    size, wanted_size = 2 * size, 2 * wanted_size
    spectrum = np.fft.rfft(samples, size)[: wanted_size // 2 + 1]
    clip = np.fft.irfft(spectrum, wanted_size) * (wanted_size / size)
    return clip[: round(len(samples) * wanted / rate)].astype(np.float32)


def padded(samples: np.ndarray, rate: int, before: float = SILENCE_BEFORE, after: float = SILENCE_AFTER) -> np.ndarray:
    """The clip with seconds of silence around it."""
    return np.pad(samples, (round(before * rate), round(after * rate)))


def finished(samples: np.ndarray, rate: int, wanted: int) -> tuple[np.ndarray, float]:
    """What a set stores: trimmed, at the wanted rate, levelled, with silence around it, as int16.

    Returns:
        the clip, and the seconds by which everything in it is later than in `samples` (negative: earlier).
    """
    kept, cut = trimmed(samples, rate)
    clip = padded(levelled(resampled(kept, rate, wanted), wanted), wanted)
    return np.round(clip * 32767).clip(-32768, 32767).astype("<i2"), SILENCE_BEFORE - cut / rate
