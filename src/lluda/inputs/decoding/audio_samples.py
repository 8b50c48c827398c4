"""Samples of any rate and number of channels as the model takes them: mono float32 at one rate, block by block.

Channels are averaged and the rate is converted by soxr (quality HQ), as the released processor's helpers do through
librosa.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from lluda.config.audio import AUDIO_LIMITS, AudioLimits
from lluda.errors import InvalidRequest, LimitExceeded
from lluda.extras import require

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
    MissingDependency: the rates differ, and soxr is not installed (``lluda[media]``).
    """
    import numpy as np

    stream = _resampler(where, source_rate, rate) if source_rate != rate else None
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


def _resampler(where: str, source_rate: int, rate: int) -> Any:
    require(f"{where}: converting {source_rate} samples a second to {rate}", "media")
    import soxr

    return soxr.ResampleStream(source_rate, rate, 1, dtype="float32")


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
