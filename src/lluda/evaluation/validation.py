"""The outcome of a validation, what it is held to, and its JSON document."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from lluda.errors import InvalidRequest
from lluda.evaluation.distribution import DistributionParity
from lluda.evaluation.parity import GreedyParity, StageParity

Reference = Literal["transformers", "llama.cpp"]
REFERENCES: tuple[Reference, ...] = ("transformers", "llama.cpp")

TOLERANCES = {"f32": 1e-4, "bf16": 0.25, "f64": 1e-6}
"""Error at a position, as a share of the reference's range there, from which on a stage counts as diverged."""

LLAMA_CPP_TOLERANCE = 0.1
"""The same for llama.cpp, which rounds activations to 8 bits where weights are quantised."""

LOGIT_BARS = {"f32": 1e-3, "f64": 1e-5}
"""Largest logit error as a share of the logits' range. BF16 is judged by its distance to float64 instead."""

LLAMA_CPP_BARS = {"correlation": 0.998, "mean_kl": 0.02}


@dataclass(frozen=True, slots=True, kw_only=True)
class ValidationRequest:
    """What to run. ``ids``: the sequence; ``source``: where it comes from, for the report; ``rows_per_step``: ids run
    at once (1: token by token through the cache); ``greedy``: tokens to continue by; ``float64``: whether to measure
    the distance to the float64 truth."""

    ids: tuple[int, ...]
    source: str
    reference: Reference = "transformers"
    rows_per_step: int = 512
    greedy: int = 16
    float64: bool = True

    def __post_init__(self) -> None:
        if self.reference not in REFERENCES:
            raise InvalidRequest(f"reference {self.reference!r:.40} is not one of {', '.join(REFERENCES)}")
        if not self.ids:
            raise InvalidRequest("nothing to run: give at least one token")
        if self.rows_per_step < 1:
            raise InvalidRequest(f"rows_per_step must be at least 1, not {self.rows_per_step}")
        if self.greedy < 0:
            raise InvalidRequest(f"greedy must be 0 (off) or a number of tokens, not {self.greedy}")

    @property
    def mode(self) -> str:
        """How the ids are run, in words."""
        if self.rows_per_step >= len(self.ids):
            return "one prefill"
        return "token by token" if self.rows_per_step == 1 else f"chunks of {self.rows_per_step}"


@dataclass(frozen=True, slots=True)
class Bar:
    """Something that must hold: ``value`` at most ``limit`` (``at_least``: at least)."""

    name: str
    value: float
    limit: float
    at_least: bool = False

    @property
    def passed(self) -> bool:
        """Whether it holds."""
        return self.value >= self.limit if self.at_least else self.value <= self.limit

    def describe(self) -> str:
        """In one line."""
        sign, verdict = (">=" if self.at_least else "<="), ("passed" if self.passed else "FAILED")
        return f"{verdict}: {self.name} {self.value:.4g} {sign} {self.limit:g}"


@dataclass(frozen=True, slots=True)
class Validation:
    """The outcome. ``stages`` end with the logits; ``passed`` is None where no bar could be judged."""

    model: dict[str, Any]
    request: ValidationRequest
    dtype: str
    backend: str
    tolerance: float
    stages: tuple[StageParity, ...]
    greedy: GreedyParity | None
    distribution: DistributionParity | None
    versions: dict[str, str]
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def logits(self) -> StageParity:
        """The last stage."""
        return self.stages[-1]

    @property
    def first_divergence(self) -> StageParity | None:
        """The first stage that leaves the tolerance."""
        return next((stage for stage in self.stages if stage.first_divergence is not None), None)

    @property
    def bars(self) -> tuple[Bar, ...]:
        """What this run is held to, as its reference and dtype have it."""
        if self.distribution:
            correlation, mean_kl = self.distribution.correlation, self.distribution.mean_kl
            return (
                Bar("correlation of the logits", correlation, LLAMA_CPP_BARS["correlation"], at_least=True),
                Bar("mean KL in nats", mean_kl, LLAMA_CPP_BARS["mean_kl"]),
            )
        if self.dtype == "bf16":
            distance = self.logits.error_to_float64
            if distance is None:
                return ()
            ratio = distance.ratio if distance.ratio is not None else (float("inf") if distance.lluda else 0.0)
            return (Bar("distance to float64, lluda / reference,", ratio, 1.0),)
        bars = [Bar("largest logit error / logit range", self.logits.relative_error, LOGIT_BARS[self.dtype])]
        if self.greedy:
            bars.append(Bar("share of equal greedy tokens", self.greedy.agreement, 1.0, at_least=True))
        return tuple(bars)

    @property
    def passed(self) -> bool | None:
        """Whether every bar holds."""
        return all(bar.passed for bar in self.bars) if self.bars else None

    def document(self) -> dict[str, Any]:
        """For JSON: the logits' figures at the top, the same for every stage under ``layers``."""
        divergence = self.first_divergence
        return {
            "kind": "validation",
            "model": self.model,
            "reference": self.request.reference,
            "dtype": self.dtype,
            "backend": self.backend,
            "tokens": len(self.request.ids),
            "input": self.request.source,
            "mode": self.request.mode,
            **figures(self.logits),
            "tolerance": self.tolerance,
            "first_divergence": divergence and {"stage": divergence.stage, "position": divergence.first_divergence},
            "layers": [{"stage": stage.stage, **figures(stage)} for stage in self.stages],
            "greedy": self.greedy and {**asdict(self.greedy), "agreement": self.greedy.agreement},
            "distribution": self.distribution and asdict(self.distribution),
            "bars": [{**asdict(bar), "passed": bar.passed} for bar in self.bars],
            "passed": self.passed,
            "versions": self.versions,
            "seconds": self.seconds,
        }


def figures(stage: StageParity) -> dict[str, Any]:
    """What a document says of a stage."""
    distance = stage.error_to_float64
    return {
        "argmax_agreement": stage.argmax_agreement,
        "max_abs_error": stage.max_abs_error,
        "mean_abs_error": stage.mean_abs_error,
        "range": stage.value_range,
        "mean_abs_value": stage.mean_abs_value,
        "relative_error": stage.relative_error,
        "error_to_float64": distance and {**asdict(distance), "ratio": distance.ratio},
        "first_divergence": stage.first_divergence,
    }
