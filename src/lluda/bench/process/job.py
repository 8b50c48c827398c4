"""What the parent tells a worker and what the worker answers: one JSON object in, one JSON object a line out."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from lluda.errors import InvalidRequest

TESTS = ("load", "ttft", "pp", "tg", "memory", "streams")
"""Families of tests, in the order they are run (``memory`` is the peak of all before it)."""

ENGINE_TESTS = ("callers", "prompts")
"""Families of lluda's engine alone, run behind those if they are asked for."""

OMNI_TESTS = ("speech", "audio", "vision", "turn")
"""Families for Omni models alone, run after the others and only if asked for."""

LISTENING_TESTS = ("listen",)
"""Families of a whole Omni model, with its tokenizer and template; of lluda alone, last and only if asked for."""

PRODUCT_TESTS = ("products",)
"""Families of lluda's backend alone, behind all others; with them rows have a prediction (`bench.prediction`)."""

CALLERS_POSITIONS = 2064
"""Of the longest sequence of the ``callers`` tests."""

PROMPTS_POSITIONS = 16384
"""Of the longest sequence of the ``prompts`` tests, where the model has so many."""

DECODE_PROMPT = 128
"""Tokens in the cache before decoding starts, as far as the context allows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What to measure in one process: test families, prompt lengths in tokens, decode steps, streams decoding together
    and decode steps of a test with streams."""

    tests: tuple[str, ...] = TESTS + PRODUCT_TESTS
    prompts: tuple[int, ...] = (128, 512)
    generate: int = 128
    streams: tuple[int, ...] = (1, 2, 4, 8)
    stream_steps: int = 32

    def __post_init__(self) -> None:
        known = TESTS + ENGINE_TESTS + OMNI_TESTS + LISTENING_TESTS + PRODUCT_TESTS
        unknown = [test for test in self.tests if test not in known]
        if unknown or not self.tests:
            raise InvalidRequest(f"test {(unknown or [''])[0]!r:.40} does not exist; choose from {', '.join(known)}")
        for name in ("prompts", "streams"):
            if not getattr(self, name) or min(getattr(self, name)) < 1:
                raise InvalidRequest(f"{name} must be positive integers, not {getattr(self, name)}")
        for name in ("generate", "stream_steps"):
            if getattr(self, name) < 1:
                raise InvalidRequest(f"{name} must be at least 1, not {getattr(self, name)}")

    @property
    def text_tests(self) -> tuple[str, ...]:
        """Those that what answers in text is loaded for."""
        return tuple(test for test in self.tests if test in TESTS + ENGINE_TESTS)

    @property
    def omni_tests(self) -> tuple[str, ...]:
        """Those of speech and sound."""
        return tuple(test for test in self.tests if test in OMNI_TESTS)

    def decode_prompt(self, context: int) -> int:
        """Tokens before decoding, in a model of ``context`` positions."""
        return max(1, min(DECODE_PROMPT, context - max(self.generate, self.stream_steps) - 1))

    def positions(self, context: int) -> int:
        """Positions the longest sequence of any test takes."""
        decode = self.decode_prompt(context) + max(self.generate, self.stream_steps) + 1
        callers = min(CALLERS_POSITIONS, context) if "callers" in self.tests else 0
        prompts = min(PROMPTS_POSITIONS, context) if "prompts" in self.tests else 0
        return max(max(self.prompts) + 1, decode, callers, prompts)


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One engine's turn: ``model`` (what the engine opens: a folder, or a .gguf file; with ``random`` a folder whose
    config.json alone is read), ``format`` and ``backend`` for lluda, ``allow_unknown_config`` as `lluda.load` takes it,
    ``tensor_parallel`` processes share the text model, ``rounds`` of each test in this one process, ``started`` the
    parent's monotonic clock in seconds just before the process was made."""

    engine: str
    model: str
    random: bool = False
    format: str = "BF16"
    backend: str = "auto"
    device: str = "cpu"
    threads: int = 1
    tensor_parallel: int = 1
    vocab_size: int = 2
    context: int = 2048
    allow_unknown_config: bool = False
    plan: Plan = field(default_factory=Plan)
    rounds: int = 1
    started: float = 0.0

    def to_json(self) -> str:
        """One line."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Job:
        """The job of ``to_json``."""
        raw: dict[str, Any] = json.loads(text)
        plan = raw.pop("plan")
        return cls(**raw, plan=Plan(**{f.name: _frozen(plan[f.name]) for f in fields(Plan)}))

    @property
    def positions(self) -> int:
        """Positions the engine must have room for in one sequence."""
        return self.plan.positions(self.context)

    def prompt(self, length: int, stream: int = 0) -> list[int]:
        """The same ``length`` ids for every engine: a fixed pseudo-random walk through the vocabulary (a linear
        congruential generator; ids, because speed does not depend on what they mean)."""
        state = 12345 + 7919 * stream
        ids = []
        for _ in range(length):
            state = (state * 1103515245 + 12345) % 2**31
            ids.append((state >> 8) % self.vocab_size)
        return ids


@dataclass(frozen=True, slots=True)
class Sample:
    """One measured value of one test in one process. ``reads``: bytes of weights read in a time of that value, where
    they are known and not the runner's to count."""

    test: str
    value: float
    unit: str
    reads: float | None = None


def _frozen(value: Any) -> Any:
    return tuple(value) if isinstance(value, Sequence) and not isinstance(value, str) else value
