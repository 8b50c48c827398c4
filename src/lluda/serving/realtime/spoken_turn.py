"""One turn of the user while it is being spoken."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


class SpokenTurn(Protocol):
    """Samples are numbered from the first that is pushed."""

    def push(self, samples: NDArray[np.float32]) -> None:
        """More of it, mono at 16 kHz; returns at once."""

    def expect_end(self, sample: int | None) -> None:
        """It may end before ``sample``; None: it goes on after all. Returns at once."""

    def finish(self, end: int) -> Any:
        """It ends before sample ``end``: what stands for its sound in a message to the model. Returns at once."""

    def discard(self) -> None:
        """It was nothing."""


class RecordedTurn:
    """A turn that is heard when it is over."""

    def __init__(self) -> None:
        self._pieces: list[NDArray[np.float32]] = [np.zeros(0, np.float32)]

    def push(self, samples: NDArray[np.float32]) -> None:
        """As `SpokenTurn` has it."""
        self._pieces.append(samples)

    def expect_end(self, sample: int | None) -> None:
        """As `SpokenTurn` has it."""

    def finish(self, end: int) -> Any:
        """As `SpokenTurn` has it."""
        return np.concatenate(self._pieces)[:end]

    def discard(self) -> None:
        """As `SpokenTurn` has it."""
        self._pieces.clear()
