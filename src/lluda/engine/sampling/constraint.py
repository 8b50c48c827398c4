"""What an answer's tokens must keep to: a grammar over token ids, as the sampler sees it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class ConstraintState(Protocol):
    """Where one answer stands. Used by one thread at a time."""

    def allowed(self) -> NDArray[np.bool_]:
        """Which ids may come next, bool ``[vocab]``; an id that would end the answer is not among them."""

    def accept(self, token: int) -> None:
        """``token``, one of `allowed`, was chosen."""

    @property
    def may_end(self) -> bool:
        """Whether the answer so far is whole."""

    @property
    def must_end(self) -> bool:
        """Whether it is whole and nothing can follow."""


class Constraint(Protocol):
    """Compiled once, for any number of answers."""

    def begin(self) -> ConstraintState:
        """The state of an answer without a token. May be called from several threads."""
