"""Samples of any rate and number of channels as the model hears them: mono float32 at one rate, block by block.

Channels are averaged and the rate is converted by soxr (quality HQ), as the released processor's helpers do through
librosa.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from lluda.config.audio import AUDIO_LIMITS, AudioLimits
from lluda.errors import InvalidRequest, LimitExceeded

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

BLOCK_VALUES = 1 << 18
"""Values converted at once: 1 MiB of float32."""


def convert(
    blocks: Iterable[NDArray[np.float32]],
    source_rate: int,
    rate: int,
    *,
    where: str,
    limits: AudioLimits = AUDIO_LIMITS,
) -> Iterator[NDArray[np.float32]]:
    """Blocks ``[samples, channels]`` at ``source_rate`` as mono blocks ``[samples]`` at ``rate`` (both Hz).

    InvalidRequest: no sample at all, one that is not finite, or far beyond full scale. LimitExceeded: too long.
    """
    import numpy as np
    import soxr

    stream = soxr.ResampleStream(source_rate, rate, 1, dtype="float32") if source_rate != rate else None
    count = 0
    for block in blocks:
        mono = _checked(block, count / source_rate, where, limits).mean(axis=1, dtype=np.float32)
        count += len(mono)
        check_seconds(where, count / source_rate, limits)
        converted = mono if stream is None else stream.resample_chunk(mono)
        if len(converted):
            yield converted
    if not count:
        raise InvalidRequest(f"{where}: the recording holds no sound; it needs at least one sample")
    if stream is not None and len(rest := stream.resample_chunk(np.zeros(0, np.float32), last=True)):
        yield rest


def _checked(block: NDArray[np.float32], seconds: float, where: str, limits: AudioLimits) -> NDArray[np.float32]:
    import numpy as np

    peak = float(np.abs(block).max(initial=0))  # NaN if any sample is
    if not np.isfinite(peak):
        raise InvalidRequest(f"{where}: a sample near {seconds:.1f} s is NaN or infinite; samples must be finite")
    if peak > limits.max_amplitude:
        raise InvalidRequest(
            f"{where}: a sample near {seconds:.1f} s is {peak:.4g}, beyond {limits.max_amplitude:g}; full scale is 1: "
            "divide samples that were integers by their largest value"
        )
    return block


def sound_array(source: Any, sampling_rate: Any, where: str, limits: AudioLimits = AUDIO_LIMITS) -> NDArray[Any]:
    """An array of samples at ``sampling_rate`` Hz as ``[samples, channels]`` of its own type of numbers.

    InvalidRequest: it is none, or has no rate. LimitExceeded: beyond the limits.
    """
    if isinstance(sampling_rate, bool) or not isinstance(sampling_rate, int):
        raise InvalidRequest(f"{where}: an array of samples needs its sampling_rate in Hz, an integer")
    samples = _array(source, where)
    check_form(where, sampling_rate, samples.shape[1], limits)
    check_seconds(where, len(samples) / sampling_rate, limits)
    return samples


def _array(source: Any, where: str) -> NDArray[Any]:
    import numpy as np

    try:
        samples = np.asarray(source)
    except (TypeError, ValueError, RuntimeError):
        samples = np.zeros(0, np.object_)
    if samples.dtype.kind not in "fiu" or samples.ndim not in (1, 2):
        raise InvalidRequest(
            f"{where}: samples must be real numbers in one dimension, or in two with one for channels, "
            f"not {type(source).__name__} of {samples.ndim} dimensions and type {samples.dtype}"
        )
    if samples.ndim == 1:
        return samples[:, None]
    if samples.size and samples.shape[0] == samples.shape[1]:
        raise InvalidRequest(
            f"{where}: of {samples.shape} samples, which axis is time cannot be told; give mono samples"
        )
    return samples if samples.shape[0] > samples.shape[1] else samples.T


def array_blocks(samples: NDArray[Any]) -> Iterator[NDArray[np.float32]]:
    """What `sound_array` gave as float32 blocks ``[samples, channels]``; integers have the full scale of their type."""
    import numpy as np

    step = max(BLOCK_VALUES // max(samples.shape[1], 1), 1)
    kind, info = samples.dtype.kind, None if samples.dtype.kind == "f" else np.iinfo(samples.dtype)
    for start in range(0, len(samples), step):
        block = samples[start : start + step]
        if info is None:
            with np.errstate(over="ignore"):  # beyond float32 is infinite, and refused as such
                yield block.astype(np.float32)
        else:
            middle = 0.0 if kind == "i" else (info.max + 1) / 2
            scale = float(info.max + 1) / (1 if kind == "i" else 2)
            yield ((block - middle) / scale).astype(np.float32)


def check_form(where: str, rate: int, channels: int, limits: AudioLimits) -> None:
    """LimitExceeded if no recording has that ``rate`` (Hz) or that many ``channels``."""
    if not limits.min_rate <= rate <= limits.max_rate:
        raise LimitExceeded(f"{where}: {rate} samples a second; from {limits.min_rate} to {limits.max_rate} are taken")
    if not 1 <= channels <= limits.max_channels:
        raise LimitExceeded(f"{where}: {channels} channels; from 1 to {limits.max_channels} are taken")


def check_seconds(where: str, seconds: float, limits: AudioLimits) -> None:
    """LimitExceeded if a recording is longer than one may be."""
    if seconds > limits.max_seconds:
        raise LimitExceeded(
            f"{where}: {seconds:.0f} s of sound exceed the {limits.max_seconds} s of one recording; cut it up"
        )
