"""What an answer consists of, in the order in which it comes: one vocabulary for all the forms that answers have."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from lluda.engine.request import Token


@dataclass(frozen=True, slots=True)
class Content:
    """Text for the reader; ``tokens`` are those of it that were sampled since the piece before (their text may still
    be held back, so either may be empty)."""

    text: str
    tokens: tuple[Token, ...] = ()


@dataclass(frozen=True, slots=True)
class Thought:
    """Text between the marks of thinking."""

    text: str


@dataclass(frozen=True, slots=True)
class CallStarted:
    """Call number ``index`` of the answer, of a function that there is."""

    index: int
    id: str
    name: str


@dataclass(frozen=True, slots=True)
class CallArguments:
    """More of the raw JSON text of a call's arguments."""

    index: int
    text: str


@dataclass(frozen=True, slots=True)
class CallEnded:
    """The call is complete, its arguments a JSON object."""

    index: int


@dataclass(frozen=True, slots=True)
class CallBroken:
    """What began as a call does not parse; its raw text follows as content. ``index``: None where it had not started.
    ``cut``: the answer ended within it."""

    index: int | None
    cut: bool


@dataclass(frozen=True, slots=True)
class Sound:
    """Samples of speech, mono float32 at 24 kHz, that follow those before."""

    samples: NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Finished:
    """Nothing follows. ``reason``: ``stop``, ``length`` or ``tool_calls``."""

    reason: str
    counts: AnswerCounts


@dataclass(frozen=True, slots=True)
class AnswerCounts:
    """Tokens of the answer and of its prompt, speech in frames of 80 ms; ``cached`` rows of the prompt were not
    computed."""

    prompt: int
    cached: int
    text: int
    reasoning: int = 0
    frames: int = 0


Piece = Content | Thought | CallStarted | CallArguments | CallEnded | CallBroken | Sound | Finished
