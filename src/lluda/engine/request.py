"""What is asked of the engine, and what it answers: a request, its events, and how it may end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Literal

from lluda.engine.prompt_rows import PromptRows
from lluda.engine.sampling.constraint import Constraint
from lluda.engine.sampling.sampler import SampledToken
from lluda.engine.sampling.sampling_params import SamplingParams
from lluda.engine.speech.speech_params import SpeechParams

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Reuse = Literal["any", "prompt", "none"]
"""Which computed rows of others a prompt may begin with: ``any``; only those that were computed as rows of a prompt,
which in deterministic mode gives what a fresh prefill gives to the bit; ``none``."""


@dataclass(frozen=True, slots=True)
class Token:
    """One generated token of sequence ``index``: its ``id``, the ``text`` that became safe to show with it (may be
    empty) and, where log-probabilities were asked for, its own (``logprob``) and those of the most likely alternatives
    (``top``: ids and log-probabilities)."""

    index: int
    id: int
    text: str
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True)
class PromptLogprobs:
    """The prompt of sequence ``index``, where ``prompt_logprobs`` were asked for: each of its tokens with its
    log-probability after those before it, and the most likely ones there. The first has none."""

    index: int
    tokens: tuple[SampledToken, ...]


@dataclass(frozen=True, slots=True)
class Completion:
    """A finished answer, sequence ``index`` of the request: its ``text``, and its ``tokens`` with their ids by
    themselves (``token_ids``). ``finish_reason``: ``stop`` (end-of-text id, stop id or stop string, or a constraint
    that nothing can follow), ``length`` or ``cancelled``. Seconds: ``prefill_seconds`` from the sequence's start to its
    first token, ``decode_seconds`` from there to its last. Of the ``prompt_tokens``, ``reused_tokens`` were taken from
    an earlier request. ``prompt_logprobs``: the tokens of `PromptLogprobs`."""

    index: int
    text: str
    token_ids: tuple[int, ...]
    finish_reason: str
    prompt_tokens: int
    tokens: tuple[Token, ...]
    prefill_seconds: float
    decode_seconds: float
    reused_tokens: int = 0
    prompt_logprobs: tuple[SampledToken, ...] = ()

    @property
    def tokens_per_second(self) -> float:
        """Decode rate, the first token not counted (it belongs to the prefill)."""
        return (len(self.token_ids) - 1) / self.decode_seconds if self.decode_seconds > 0 else 0.0


@dataclass(frozen=True, slots=True)
class SpeechChunk:
    """The ``samples`` of sequence ``index`` that follow those of its chunk before, mono float32 ``[n]`` in [-1, 1]; the
    ``codes`` of the frames that completed them, 16 each; ``seconds`` since the request."""

    samples: NDArray[np.float32]
    codes: tuple[tuple[int, ...], ...]
    seconds: float
    index: int = 0


@dataclass(frozen=True, slots=True)
class SpeechCompletion:
    """The end of the speech ``index``, of ``frames`` and ``samples`` in all. ``finish_reason``: ``stop`` (the talker
    ended it), ``length`` (max_frames), ``runaway`` (the guard: so long a speech cannot be the text's), ``silent``
    (there was no text to speak) or ``cancelled``. Seconds since the request: of the first token
    (``first_text_seconds``), the first samples (``first_audio_seconds``; each None if there was none) and the end
    (``seconds``)."""

    frames: int
    samples: int
    finish_reason: str
    first_text_seconds: float | None
    first_audio_seconds: float | None
    seconds: float
    index: int = 0


SpeechEvent = Token | PromptLogprobs | Completion | SpeechChunk | SpeechCompletion


@dataclass(frozen=True, slots=True, eq=False)
class SpokenAnswer:
    """How an answer is spoken: ``params`` without None, the ``speaker``'s name (None: the config's first).

    The talker never hears what stands between an id of ``silent_spans`` and the id that it maps to, both included, nor
    anything from an id of ``ends_at`` on. ``total_frames``: of all parts of a given text together, where ``params``
    bound each.
    """

    params: SpeechParams
    speaker: str | None = None
    silent_spans: Mapping[int, int] = field(default_factory=dict)
    ends_at: frozenset[int] = frozenset()
    total_frames: int | None = None


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Request:
    """One answer to one prompt.

    ``sampling`` has no None left (``SamplingParams.with_defaults``); ``end_ids`` end the answer. ``speech``: it is
    spoken too. ``text``: ids of a text to be spoken as it stands, each with its text, in place of an answer of the
    model; the prompt is then the talker's. ``reuse``: None is ``prompt`` in deterministic mode, else ``any``.
    ``priority``: lower goes first; ``deadline``: of ``time.monotonic()``, after which a request that still waits is
    refused. ``index`` tells the events of several requests of one stream apart. ``prefill_only``: no token is wanted;
    the prompt's rows are computed for a later prompt that begins with them, and with ``captures`` what a talker needs
    of its media, for a later answer that is spoken.
    """

    prompt: PromptRows
    sampling: SamplingParams
    end_ids: frozenset[int] = frozenset()
    speech: SpokenAnswer | None = None
    text: Sequence[Sequence[tuple[int, str]]] | None = None
    constraint: Constraint | None = None
    reuse: Reuse | None = None
    priority: int = 0
    deadline: float | None = None
    index: int = 0
    prefill_only: bool = False
    captures: bool = False


class Status(Enum):
    """Where a request stands. Every accepted one ends exactly once, in one of the last three."""

    WAITING = "waiting"
    RUNNING = "running"
    DONE = "done"
    CANCELLED = "cancelled"
    FAILED = "failed"


_NEXT = {
    Status.WAITING: {Status.RUNNING, Status.CANCELLED, Status.FAILED},
    Status.RUNNING: {Status.DONE, Status.CANCELLED, Status.FAILED},
}


@dataclass(slots=True, eq=False)
class Lifetime:
    """The status of one request, changed only as it may be."""

    status: Status = field(default=Status.WAITING)

    def become(self, status: Status) -> None:
        """Go on to ``status``."""
        assert status in _NEXT.get(self.status, ()), f"a request that is {self.status.value} became {status.value}"
        self.status = status

    @property
    def ended(self) -> bool:
        """Whether nothing follows."""
        return self.status not in _NEXT
