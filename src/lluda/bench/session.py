"""What an engine must do to be measured. One process measures one engine, so nothing here is shared or closed."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from lluda.engine.runner import Runner
from lluda.engine.sampling.sampling_params import SamplingParams


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """What was opened: the weights' ``format``, bytes that one weight takes on average (what decoding reads), the
    settings worth knowing in one line, and the name of lluda's ``backend``."""

    format: str
    bytes_per_weight: float
    settings: str
    backend: str = ""


RELEASED_SAMPLING = SamplingParams(temperature=0.6, top_k=20, top_p=0.95, seed=0)
"""What the released Qwen3 models' generation_config.json asks for, and so what a user gets who asks for nothing."""


class HasInfo(Protocol):
    """A session of any kind."""

    @property
    def info(self) -> EngineInfo:
        """What was opened; asked for only after the load has been timed."""


class Session(Protocol):
    """A loaded model that can be timed. Nothing stops at an end-of-text token."""

    samples: bool
    """Whether `decode` can choose by RELEASED_SAMPLING."""

    @property
    def runner(self) -> Runner | None:
        """Of lluda: what its engine runs on."""

    @property
    def info(self) -> EngineInfo:
        """What was opened; asked for only after the load has been timed."""

    def first_token(self, prompt: Sequence[int]) -> float:
        """Seconds to run ``prompt`` as a fresh sequence and choose the token after it."""

    def decode(self, prompts: Sequence[Sequence[int]], steps: int, *, sampled: bool = False) -> float:
        """Seconds of ``steps`` decode steps, each giving one token to each of ``prompts`` (of equal length), which have
        been run before the clock starts. Tokens are chosen greedily, or by RELEASED_SAMPLING if ``sampled``."""


class SteppingSession(ABC):
    """A session of an engine that is driven step by step: it says how to start and how to step, not how to time."""

    samples = False

    @property
    def runner(self) -> Runner | None:
        """See ``Session``."""
        return None

    @property
    @abstractmethod
    def info(self) -> EngineInfo:
        """See ``Session``."""

    @abstractmethod
    def start(self, prompts: Sequence[Sequence[int]]) -> list[int]:
        """Forget all sequences, run these prompts and return the token of highest logit after each; only last rows need
        logits. Steps choose greedily, until `sample` is called."""

    def sample(self, prompts: Sequence[Sequence[int]]) -> None:
        """From now on steps choose by RELEASED_SAMPLING, where ``samples``; these are the prompts that were started."""
        raise NotImplementedError(f"{type(self).__name__} chooses greedily")

    @abstractmethod
    def step(self, tokens: list[int]) -> list[int]:
        """One token for each sequence; returns the next ones."""

    def first_token(self, prompt: Sequence[int]) -> float:
        """See ``Session``."""
        begun = time.perf_counter()
        self.start([prompt])
        return time.perf_counter() - begun

    def decode(self, prompts: Sequence[Sequence[int]], steps: int, *, sampled: bool = False) -> float:
        """See ``Session``."""
        tokens = self.start(prompts)
        if sampled:
            self.sample(prompts)
        begun = time.perf_counter()
        for _ in range(steps):
            tokens = self.step(tokens)
        return time.perf_counter() - begun
