"""A recording to be written down: its samples, and its pieces."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lluda.engine.vad import CHUNK, RATE, VoiceDetector
from lluda.inputs.media.audio_file import audio_blocks
from lluda.serving.errors import invalid
from lluda.serving.transcription.pieces import Piece, cut

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_LEAST_SAMPLES = RATE // 10
"""A tenth of a second; what is shorter is filled up with silence."""


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
        import numpy as np

        samples = self.samples[piece.start * CHUNK : piece.end * CHUNK]
        return np.pad(samples, (0, max(_LEAST_SAMPLES - len(samples), 0)))


def read_recording(
    content: bytes, *, max_seconds: float, window_seconds: float, threshold: float, pause_seconds: float
) -> Recording:
    """Decode a file and find its pieces; blocking.

    ApiError 400: it is longer than ``max_seconds``, found while it is decoded. CorruptFile, LimitExceeded: as
    `audio_blocks`.
    """
    import numpy as np

    detector = VoiceDetector()
    blocks: list[NDArray[np.float32]] = []
    found: list[NDArray[np.float32]] = []
    count = 0
    for block in audio_blocks(content, rate=RATE, where="file"):
        count += len(block)
        if count > max_seconds * RATE:
            raise invalid(f"file is longer than {max_seconds:g} s; cut it up", "file")
        blocks.append(block)
        found.append(detector.push(block))
    found.append(detector.finish())
    samples = np.concatenate(blocks) if blocks else np.zeros(0, np.float32)
    pieces = cut(np.concatenate(found), window_seconds, threshold, pause_seconds)
    return Recording(samples, pieces)
