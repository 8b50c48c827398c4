"""Recordings of any kind as the model takes them: mono float32 at one rate, in bounded blocks.

Files are decoded in a process of their own (`media_decoder.py`); arrays of samples are converted here. Each block is
decoded, mixed and converted before the next is read, so memory does not grow with the duration.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from lluda.config.audio import AUDIO_LIMITS, AudioLimits
from lluda.inputs.decoding.audio_samples import convert
from lluda.inputs.decoding.media_decoder import DECODER
from lluda.inputs.decoding.media_file import MediaFile, MediaSource
from lluda.inputs.media.audio_array import array_blocks, audio_array

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

SAMPLING_RATE = 16000
"""Hz: the sampling rate of the released models."""


class AudioFile:
    """One open recording; ``kind``: which decoder reads it as what, ``rate`` (Hz) and ``channels`` as stored,
    ``seconds`` as its header says (None: it does not, or cannot be believed).

    Raises:
        InvalidRequest: no such file, or no permission to read it.
        LimitExceeded: beyond :class:`AudioLimits`, or more memory or time than a file of its size may take.
        CorruptFile: not a recording, without an audio track, empty, a header that cannot be true, or the decoder
            crashed on it.
    """

    def __init__(self, source: MediaSource, limits: AudioLimits = AUDIO_LIMITS, where: str = "audio") -> None:
        """``where`` names a content that is given in place of a path."""
        file = MediaFile(source, "recording", limits.max_file_bytes, where)
        self.path = file.path
        self._job = DECODER.open("audio", file, limits=asdict(limits))
        about = self._job.about
        self.kind: str = about["kind"]
        self.rate: int = about["rate"]
        self.channels: int = about["channels"]
        self.seconds: float | None = about["seconds"]

    def blocks(self, rate: int = SAMPLING_RATE) -> Iterator[NDArray[np.float32]]:
        """The recording from its beginning, once: mono float32 ``[samples]`` at ``rate`` Hz, full scale 1.

        Raises:
            CorruptFile: samples that cannot be decoded, are not finite or end before the header says.
            LimitExceeded: it goes on for longer than a recording may.
        """
        return self._job.arrays(rate=rate)

    def close(self) -> None:
        """Release the file. May be called twice."""
        self._job.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


@dataclass(frozen=True, slots=True)
class Recording:
    """A file or an array, open: its ``seconds`` as far as they are known before it is decoded, and its blocks."""

    seconds: float | None
    _read: Callable[[int], Iterator[NDArray[np.float32]]] = field(repr=False)
    _leave: Callable[[], None] = field(repr=False)

    def blocks(self, rate: int = SAMPLING_RATE) -> Iterator[NDArray[np.float32]]:
        """As :func:`audio_blocks`, once."""
        return self._read(rate)

    def close(self) -> None:
        """Release the file. May be called twice, and after decoding."""
        self._leave()


def open_audio(
    source: Any, sampling_rate: int | None = None, *, where: str = "audio", limits: AudioLimits = AUDIO_LIMITS
) -> Recording:
    """A file (its path or bytes) or an array of samples, of which nothing is decoded yet. Arguments and errors as
    :func:`audio_blocks`."""
    if isinstance(source, str | os.PathLike | bytes):
        file = AudioFile(source, limits, where)
        return Recording(file.seconds, file.blocks, file.close)
    samples = audio_array(source, sampling_rate, where, limits)
    assert isinstance(sampling_rate, int)
    return Recording(
        len(samples) / sampling_rate,
        lambda rate: convert(array_blocks(samples), sampling_rate, rate, where=where, limits=limits),
        lambda: None,
    )


def audio_blocks(
    source: Any,
    sampling_rate: int | None = None,
    *,
    rate: int = SAMPLING_RATE,
    where: str = "audio",
    limits: AudioLimits = AUDIO_LIMITS,
) -> Iterator[NDArray[np.float32]]:
    """A file (its path or bytes) or an array of samples as blocks ``[samples]``, mono float32 at ``rate`` Hz.

    An array is ``[samples]``, or two-dimensional with the longer axis in time; floats have full scale 1, integers that
    of their type. Its ``sampling_rate`` (Hz) must be given; ``where`` names it in errors.

    Raises:
        InvalidRequest: an array that is none or has no rate, samples that are not finite, a path that leads nowhere.
        LimitExceeded, CorruptFile: as :class:`AudioFile`.
    """
    recording = open_audio(source, sampling_rate, where=where, limits=limits)
    try:
        yield from recording.blocks(rate)
    finally:
        recording.close()
