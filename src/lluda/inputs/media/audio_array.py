"""Recordings that are given as arrays of samples."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from lluda.config.audio import AUDIO_LIMITS, AudioLimits
from lluda.errors import InvalidRequest
from lluda.inputs.decoding.audio_samples import BLOCK_VALUES, check_form, check_seconds

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


def audio_array(source: Any, sampling_rate: Any, where: str, limits: AudioLimits = AUDIO_LIMITS) -> NDArray[Any]:
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
            f"{where}: of {samples.shape} samples, it is not clear which axis is time; give mono samples"
        )
    return samples if samples.shape[0] > samples.shape[1] else samples.T


def array_blocks(samples: NDArray[Any]) -> Iterator[NDArray[np.float32]]:
    """What `audio_array` gave as float32 blocks ``[samples, channels]``; integers have the full scale of their type."""
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
