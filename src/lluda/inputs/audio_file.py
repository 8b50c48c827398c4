"""Recordings of any kind as the model hears them: mono float32 at one rate, in bounded blocks.

Channels are averaged and the rate is converted by soxr (quality HQ), as the released processor's helpers do through
librosa. An hour never lies in memory whole: each block is decoded, mixed and converted before the next is read.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from lluda.config_audio import AUDIO_LIMITS, AudioLimits
from lluda.errors import CorruptFile, InvalidRequest, LimitExceeded, ModelNotFound
from lluda.inputs.audio_decoders import BLOCK_VALUES, open_decoder
from lluda.mapped_file import open_regular

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

SAMPLING_RATE = 16000
"""Hz: what the released models hear."""


class AudioFile:
    """One open recording; ``kind``: which decoder reads it as what, ``rate`` (Hz) and ``channels`` as stored.

    Raises:
        InvalidRequest: no such file, or no permission to read it.
        LimitExceeded: beyond :class:`AudioLimits`.
        CorruptFile: not a recording, without a sound track, empty, or a header that cannot be true.
    """

    def __init__(self, path: str | os.PathLike[str], limits: AudioLimits = AUDIO_LIMITS) -> None:
        self.path, self._limits = Path(path), limits
        try:
            descriptor, status = open_regular(self.path)
        except ModelNotFound as error:
            raise InvalidRequest(f"{self.path}: no such recording, or no permission to read it") from error
        self._open = ExitStack()
        file = self._open.enter_context(os.fdopen(descriptor, "rb"))
        try:
            if status.st_size > limits.max_file_bytes:
                found, most = status.st_size, limits.max_file_bytes
                raise LimitExceeded(f"{self.path}: {found} bytes exceed the {most} of a recording; cut it up")
            self._decoder = self._open.enter_context(closing(open_decoder(self.path, file)))
            self.kind, self.rate, self.channels = self._decoder.kind, self._decoder.rate, self._decoder.channels
            _check_form(str(self.path), self.rate, self.channels, limits)
            _check_seconds(str(self.path), self._decoder.seconds or 0, limits)
        except BaseException:
            self.close()
            raise

    def blocks(self, rate: int = SAMPLING_RATE) -> Iterator[NDArray[np.float32]]:
        """The recording from its beginning, once: mono float32 ``[samples]`` at ``rate`` Hz, full scale 1.

        Raises:
            CorruptFile: samples that cannot be decoded, are not finite or end before the header says.
            LimitExceeded: it goes on for longer than a recording may.
        """
        return convert(self._samples(), self.rate, rate, where=str(self.path), limits=self._limits)

    def _samples(self) -> Iterator[NDArray[np.float32]]:
        count = 0
        for block in self._decoder.blocks():
            if block.shape[1] != self.channels:
                raise CorruptFile(self.path, "the number of channels changes", expected=self.channels)
            count += len(block)
            yield block
        promised, found = self._decoder.seconds, count / self.rate
        if count and promised is not None and found < promised - self._limits.missing_seconds:
            rule = "the sound ends before its header says; the file is cut off: copy it again"
            raise CorruptFile(self.path, rule, expected=f"{promised:.1f} s", found=f"{found:.1f} s")

    def close(self) -> None:
        """Let go of the file. May be called twice."""
        self._open.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


def audio_blocks(
    source: Any,
    sampling_rate: int | None = None,
    *,
    rate: int = SAMPLING_RATE,
    where: str = "audio",
    limits: AudioLimits = AUDIO_LIMITS,
) -> Iterator[NDArray[np.float32]]:
    """A file (str or path) or an array of samples as blocks ``[samples]``, mono float32 at ``rate`` Hz.

    An array is ``[samples]``, or two-dimensional with the longer axis in time; floats have full scale 1, integers that
    of their type. Its ``sampling_rate`` (Hz) must be given; ``where`` names it in errors.

    Raises:
        InvalidRequest: an array that is none or has no rate, samples that are not finite, a path that leads nowhere.
        LimitExceeded, CorruptFile: as :class:`AudioFile`.
    """
    if isinstance(source, str | os.PathLike):
        with AudioFile(source, limits) as file:
            yield from file.blocks(rate)
        return
    if isinstance(sampling_rate, bool) or not isinstance(sampling_rate, int):
        raise InvalidRequest(f"{where}: an array of samples needs its sampling_rate in Hz, an integer")
    samples = _array(source, where)
    _check_form(where, sampling_rate, samples.shape[1], limits)
    _check_seconds(where, len(samples) / sampling_rate, limits)
    yield from convert(_slices(samples), sampling_rate, rate, where=where, limits=limits)


def read_audio(source: Any, sampling_rate: int | None = None, **options: Any) -> NDArray[np.float32]:
    """All blocks of :func:`audio_blocks` in one array ``[samples]``, which grows in place; errors as there."""
    import numpy as np

    # A bytearray grows without a second copy of a long recording.
    grown = bytearray()
    for block in audio_blocks(source, sampling_rate, **options):
        grown += block.data
    return np.frombuffer(grown, np.float32)


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
        _check_seconds(where, count / source_rate, limits)
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


def _array(source: Any, where: str) -> NDArray[Any]:
    """``[samples, channels]`` of a type of numbers."""
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


def _slices(samples: NDArray[Any]) -> Iterator[NDArray[np.float32]]:
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


def _check_form(where: str, rate: int, channels: int, limits: AudioLimits) -> None:
    if not limits.min_rate <= rate <= limits.max_rate:
        raise LimitExceeded(f"{where}: {rate} samples a second; from {limits.min_rate} to {limits.max_rate} are taken")
    if not 1 <= channels <= limits.max_channels:
        raise LimitExceeded(f"{where}: {channels} channels; from 1 to {limits.max_channels} are taken")


def _check_seconds(where: str, seconds: float, limits: AudioLimits) -> None:
    if seconds > limits.max_seconds:
        raise LimitExceeded(
            f"{where}: {seconds:.0f} s of sound exceed the {limits.max_seconds} s of one recording; cut it up"
        )
