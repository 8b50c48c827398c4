"""A recording to be written down: its samples, and its pieces."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lluda.engine.listening.vad import CHUNK, RATE, VoiceDetector
from lluda.errors import CorruptFile
from lluda.inputs.media.audio_file import open_audio
from lluda.serving.http.errors import ApiError, invalid, media_error
from lluda.serving.transcription.pieces import Piece, cut

_LEAST_SAMPLES = RATE // 10
"""A tenth of a second; what is shorter is filled up with silence."""

_AT_ONCE = 60 * RATE


@dataclass(frozen=True, slots=True)
class Recording:
    """``samples [n]``, mono at 16 kHz, and its ``pieces``."""

    samples: NDArray[np.float32]
    pieces: Sequence[Piece]

    @property
    def seconds(self) -> float:
        """How long it is."""
        return len(self.samples) / RATE

    def bounds(self, piece: Piece) -> tuple[float, float]:
        """Where ``piece`` begins and ends, in seconds."""
        return piece.start * CHUNK / RATE, min(piece.end * CHUNK / RATE, self.seconds)

    def sound(self, piece: Piece) -> NDArray[np.float32]:
        """The samples of ``piece``."""
        samples = self.samples[piece.start * CHUNK : piece.end * CHUNK]
        return np.pad(samples, (0, max(_LEAST_SAMPLES - len(samples), 0)))


def read_recording(
    content: bytes, *, max_seconds: float, window_seconds: float, threshold: float, pause_seconds: float
) -> Recording:
    """Decode a file and find its pieces; blocking.

    ApiError 400: it is damaged, or longer than ``max_seconds``, by its header or while it is decoded. LimitExceeded: as
    `open_audio`.
    """
    try:
        samples = _decoded(content, max_seconds)
    except CorruptFile as error:
        raise media_error(error) from None
    detector = VoiceDetector()
    found = [detector.push(samples[start : start + _AT_ONCE]) for start in range(0, len(samples), _AT_ONCE)]
    pieces = cut(np.concatenate([*found, detector.finish()]), window_seconds, threshold, pause_seconds)
    return Recording(samples, pieces)


def _decoded(content: bytes, max_seconds: float) -> NDArray[np.float32]:
    recording = open_audio(content, where="file")
    grown = bytearray()  # without a second copy of a long recording
    try:
        if (recording.seconds or 0) > max_seconds:
            raise _too_long(max_seconds)
        for block in recording.blocks(RATE):
            grown += block.data
            if len(grown) > max_seconds * RATE * block.itemsize:
                raise _too_long(max_seconds)
    finally:
        recording.close()
    return np.frombuffer(grown, np.float32)


def _too_long(max_seconds: float) -> ApiError:
    return invalid(f"file is longer than {max_seconds:g} s; cut it up", "file")
