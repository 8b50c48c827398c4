"""Log-mel features, equal to Whisper's (Radford et al. 2022) without its cut at 30 s: spec section 3.1.

Short-time Fourier transform of a centred periodic Hann window, ends mirrored, the last frame left out; power, Slaney's
mel bands (Auditory Toolbox 1998), log10 with a floor of 1e-10, then everything more than 8 below the recording's
largest value raised to there, and ``(x + 4) / 4``. That largest value is known only at the end: see GrowingLogMel.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from lluda.config.audio import RELEASED_MEL, MelConfig
from lluda.errors import InvalidRequest

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_FLOOR = 1e-10
_RANGE = 8.0  # in log10: what is 80 dB below the loudest value counts as silence
_FRAMES_AT_ONCE = 100
"""Transformed together, counted from a recording's first: however it comes in, all is summed in the same order."""

# Slaney's mel scale: linear up to 1 kHz (3 mel for 200 Hz), then 27 mel for a factor of 6.4.
_LINEAR_HZ, _KNEE_HZ, _OCTAVES, _OCTAVE_MEL = 200.0 / 3.0, 1000.0, 6.4, 27.0


def log_mel(blocks: Iterable[NDArray[np.float32]], config: MelConfig = RELEASED_MEL) -> NDArray[np.float32]:
    """Features ``[frames, num_mel_bins]`` float32 of a recording given as mono blocks ``[samples]`` at
    ``config.sampling_rate``; frames = samples // hop_length. Beside them, memory is taken for one block.

    InvalidRequest: shorter than ``config.min_samples``.
    """
    import numpy as np

    spectrum = _Spectrum(config)
    grown, peak = bytearray(), -np.inf  # a bytearray grows without a second copy
    for frames in spectrum.frames(blocks):
        peak = max(peak, float(frames.max()))
        grown += frames.data
    features = np.frombuffer(grown, np.float32).reshape(-1, config.num_mel_bins)
    return _normalise(features, peak)


class GrowingLogMel:
    """Features of a recording that is still coming in: to the bit those that `log_mel` gives.

    Values more than 8 (in log10) below the recording's largest are raised to there, so features are of what a recording
    holds: a louder moment later changes those of quiet ones before it. Samples and frames are kept, 115 KB a second.
    """

    def __init__(self, config: MelConfig = RELEASED_MEL) -> None:
        self._config = config
        self._spectrum = _Spectrum(config)
        self._samples, self._log_mel = bytearray(), bytearray()
        self.peak = math.log10(_FLOOR)
        """The largest log10 value that is known, from which the floor of all is counted."""

    def frames_after(self, samples: int) -> int:
        """Frames that are known after so many samples, whatever follows them."""
        half, hop = self._config.n_fft // 2, self._config.hop_length
        frames = (samples - half) // hop + 1 if samples > half else 0
        return frames - frames % _FRAMES_AT_ONCE

    def push(self, samples: NDArray[np.float32]) -> None:
        """More of it, mono at ``config.sampling_rate``."""
        import numpy as np

        self._samples += np.ascontiguousarray(samples, np.float32).data
        for frames in self._spectrum.push(samples):
            self.peak = max(self.peak, float(frames.max()))
            self._log_mel += frames.data

    def known(self, frames: int) -> NDArray[np.float32]:
        """The first ``frames`` frames (fewer where so many are not known yet) ``[frames, num_mel_bins]``, if nothing
        louder comes than there was so far."""
        return _normalise(self._known()[:frames].copy(), self.peak)

    def ending(self, samples: int) -> NDArray[np.float32]:
        """All frames of the recording that ends before sample ``samples`` of those that came. InvalidRequest: shorter
        than ``config.min_samples``."""
        import numpy as np

        config = self._config
        assert samples <= len(self._samples) // 4, "the end is yet to come"
        first = self.frames_after(samples)
        rest = _Spectrum(config, first)
        begin = max(0, first * config.hop_length - config.n_fft // 2)
        heard = np.frombuffer(self._samples, np.float32)[begin:samples]
        frames = np.concatenate([self._known()[:first], *rest.frames([heard])])
        return _normalise(frames, float(frames.max()))

    def _known(self) -> NDArray[np.float32]:
        import numpy as np

        return np.frombuffer(self._log_mel, np.float32).reshape(-1, self._config.num_mel_bins)


class _Spectrum:
    """log10 mel powers of windows, in groups, as soon as all their samples are there. ``first``: the frame to begin
    with, a group's first; what is pushed then begins half a window before its middle."""

    def __init__(self, config: MelConfig, first: int = 0) -> None:
        import numpy as np
        import torch

        self._config = config
        self._half = config.n_fft // 2
        self._buffer = np.empty(0, np.float32)  # what later windows need: from the next frame's first sample on
        self._started, self._frames = first > 0, first
        self._samples = max(0, first * config.hop_length - self._half)
        # torch's own float32 window and transform, as in Whisper: 80 dB below a loud tone, rounding is the feature.
        self._window = torch.hann_window(config.n_fft).numpy()
        self._filters = mel_filters(config).astype(np.float32)

    def frames(self, blocks: Iterable[NDArray[np.float32]]) -> Iterator[NDArray[np.float32]]:
        """All frames of a whole recording."""
        for block in blocks:
            yield from self.push(block)
        yield from self.finish()

    def push(self, samples: NDArray[np.float32]) -> Iterator[NDArray[np.float32]]:
        import numpy as np

        self._samples += len(samples)
        self._buffer = np.concatenate([self._buffer, samples])
        if not self._started and self._samples > self._half:
            self._buffer = np.concatenate([self._buffer[self._half : 0 : -1], self._buffer])
            self._started = True
        if self._started:
            count = max(0, (len(self._buffer) - self._config.n_fft) // self._config.hop_length + 1)
            yield from self._transform(count - count % _FRAMES_AT_ONCE)

    def finish(self) -> Iterator[NDArray[np.float32]]:
        import numpy as np

        if self._samples < self._config.min_samples:
            least, rate = self._config.min_samples, self._config.sampling_rate
            raise InvalidRequest(
                f"a recording of {self._samples} samples is too short; it needs at least {least} at {rate} Hz "
                f"({1000 * least / rate:.1f} ms)"
            )
        self._buffer = np.concatenate([self._buffer, self._buffer[-2 : -self._half - 2 : -1]])
        yield from self._transform(self._config.frames(self._samples) - self._frames)

    def _transform(self, count: int) -> Iterator[NDArray[np.float32]]:
        """The next ``count`` frames, some at a time; samples that no later frame needs are released."""
        import numpy as np
        import torch

        hop, count = self._config.hop_length, max(count, 0)
        for start in range(0, count, _FRAMES_AT_ONCE):
            rows = min(_FRAMES_AT_ONCE, count - start)
            windows = np.lib.stride_tricks.sliding_window_view(self._buffer, self._config.n_fft)[start * hop :: hop][
                :rows
            ]
            spectrum = torch.fft.rfft(torch.from_numpy(windows * self._window))
            mel = (spectrum.abs() ** 2).numpy() @ self._filters
            yield np.log10(np.maximum(mel, np.float32(_FLOOR)))
        self._frames += count
        self._buffer = self._buffer[count * hop :].copy()


def mel_filters(config: MelConfig) -> NDArray[np.float64]:
    """Weights ``[n_fft // 2 + 1, num_mel_bins]``: triangles between points equally spaced on Slaney's mel scale from 0
    to half the sampling rate, each of area 2 over its width in Hz."""
    import numpy as np

    top = config.sampling_rate / 2
    knee = _KNEE_HZ / _LINEAR_HZ
    mels = np.linspace(0.0, _mel(top), config.num_mel_bins + 2)
    hz = np.where(mels < knee, mels * _LINEAR_HZ, _KNEE_HZ * np.exp((mels - knee) * (np.log(_OCTAVES) / _OCTAVE_MEL)))
    bins = np.linspace(0.0, top, config.n_fft // 2 + 1)[:, None]
    rising = (bins - hz[:-2]) / (hz[1:-1] - hz[:-2])
    falling = (hz[2:] - bins) / (hz[2:] - hz[1:-1])
    filters: NDArray[np.float64] = np.maximum(0.0, np.minimum(rising, falling)) * (2.0 / (hz[2:] - hz[:-2]))
    return filters


def _mel(hz: float) -> float:
    if hz < _KNEE_HZ:
        return hz / _LINEAR_HZ
    return _KNEE_HZ / _LINEAR_HZ + math.log(hz / _KNEE_HZ) * (_OCTAVE_MEL / math.log(_OCTAVES))


def _normalise(features: NDArray[np.float32], peak: float) -> NDArray[np.float32]:
    """Raise to the floor and scale, in place."""
    import numpy as np

    np.maximum(features, np.float32(peak) - np.float32(_RANGE), out=features)
    features += np.float32(4.0)
    features /= np.float32(4.0)
    return features
