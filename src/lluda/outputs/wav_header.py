"""The header of a mono wav, and samples as its 16-bit integers."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_UNKNOWN_SIZE = 0xFFFFFFFF
_FORM_BYTES = 36  # from behind the file's size to the first sample


def wav_header(rate: int, *, floats: bool = False, samples: int | None = None) -> bytes:
    """RIFF header (Multimedia Programming Interface and Data Specifications 1.0) of a mono wav at ``rate`` Hz with
    ``samples`` of 16 bits, or of float32. Without ``samples`` both sizes are the largest there are, as players expect
    of a stream whose end is unknown."""
    width, kind = (4, 3) if floats else (2, 1)
    size = _UNKNOWN_SIZE if samples is None else samples * width
    whole = _UNKNOWN_SIZE if samples is None else size + _FORM_BYTES
    form = struct.pack("<4sIHHIIHH", b"fmt ", 16, kind, 1, rate, rate * width, width, 8 * width)
    return struct.pack("<4sI4s", b"RIFF", whole, b"WAVE") + form + struct.pack("<4sI", b"data", size)


def pcm16(samples: NDArray[np.float32]) -> NDArray[np.int16]:
    """``samples`` as little-endian integers of 16 bits; what lies beyond [-1, 1] is clipped."""
    import numpy as np

    integers: NDArray[np.int16] = np.rint(samples.clip(-1, 1) * 32767).astype("<i2")
    return integers
