"""A validation: what is asked for, what each component is held to, the outcome and its JSON document."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from lluda.errors import InvalidRequest
from lluda.evaluation.distribution import DistributionParity
from lluda.evaluation.inputs import ValidationInput
from lluda.evaluation.parity import GreedyParity, StageParity
from lluda.models.components import BY_NAME, COMPONENTS

REFERENCES = ("transformers", "llama.cpp", "mistralrs")

TOLERANCES = {"f32": 1e-4, "bf16": 0.25, "f64": 1e-6}
"""Error at a position, as a share of the reference's range there, from which on a stage counts as diverged."""

LLAMA_CPP_TOLERANCE = 0.1
"""The same for llama.cpp, which rounds activations to 8 bits where weights are quantised."""

LLAMA_CPP_THRESHOLDS = {"correlation": 0.998, "mean_kl": 0.02}

MISTRALRS_NATS = 1e-3
"""How far apart a log-probability may be that mistralrs gives of a likely id."""

DEFAULT_FRAMES = 40
"""Of speech: 3.2 s."""

_LOGITS = {"f32": 1e-3, "f64": 1e-5}


@dataclass(frozen=True, slots=True)
class Rung:
    """What a component is held to where its dtype is not BF16, whose distance to float64 is judged instead. ``ends``:
    the stages (by how their names begin) in which all that it computes ends, whose largest error must stay within
    ``limit`` by dtype, as a share of the stage's range or, ``absolute``, as it is. ``choices``: what it chooses
    greedily, all of which must be equal."""

    ends: tuple[str, ...]
    quantity: str
    limit: Mapping[str, float]
    absolute: bool = False
    choices: str = ""


RUNGS: Mapping[str, Rung] = {
    "text": Rung(("logits",), "largest logit error / logit range", _LOGITS, choices="greedy tokens"),
    "audio_encoder": Rung(("output",), "largest error of its rows / their range", {"f32": 1e-4, "f64": 1e-4}),
    "vision_encoder": Rung(
        ("output", "deepstack."), "largest error of its rows / their range", {"f32": 1e-4, "f64": 1e-4}
    ),
    "thinker": Rung(("logits",), "largest logit error / logit range", _LOGITS, choices="greedy tokens"),
    "talker": Rung(("logits",), "largest logit error / logit range", _LOGITS, choices="codes"),
    "code_predictor": Rung(("pass.",), "largest logit error / logit range", _LOGITS, choices="codes"),
    "code2wav": Rung(("waveform",), "largest error of a sample", {"f32": 1e-4, "f64": 1e-4}, absolute=True),
}
"""By the component's name (`lluda.models.components`), in the order of computation."""


@dataclass(frozen=True, slots=True)
class StageLimit:
    """The largest error that one stage may have, ``absolute`` or as a share of its range; in BF16 too if ``always``."""

    quantity: str
    limit: float
    absolute: bool
    always: bool


STAGE_LIMITS: Mapping[str, StageLimit] = {
    "features": StageLimit("largest error of a feature", 1e-4, absolute=True, always=True),
    # Position ids are equal; a video's steps in time need not be whole, and are rounded in float32.
    "positions": StageLimit("largest difference of a position", 1e-3, absolute=True, always=True),
    "rows": StageLimit("largest error of the prompt's rows / their range", 1e-4, absolute=False, always=False),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ValidationRequest:
    """What to run. ``only``: components of an Omni model (none: all that there are and that the input reaches);
    ``rows_per_step``: ids of the prompt run at once (1: token by token through the cache); ``greedy``: tokens to
    continue by; ``frames`` of speech; ``float64``: whether to measure the distance to the float64 truth."""

    given: ValidationInput
    reference: str = "transformers"
    only: tuple[str, ...] = ()
    rows_per_step: int = 512
    greedy: int = 16
    frames: int = DEFAULT_FRAMES
    speaker: str | None = None
    float64: bool = True

    def __post_init__(self) -> None:
        if self.reference not in REFERENCES:
            raise InvalidRequest(f"reference {self.reference!r:.40} is not one of {', '.join(REFERENCES)}")
        known = [component.name for component in COMPONENTS]
        for name in self.only:
            if name not in known:
                raise InvalidRequest(f"component {name!r:.40} is not one of {', '.join(known)}")
        if not self.given.ids:
            raise InvalidRequest("nothing to run: give at least one token")
        if self.rows_per_step < 1:
            raise InvalidRequest(f"rows_per_step must be at least 1, not {self.rows_per_step}")
        if self.reference == "mistralrs" and self.greedy < 1:
            raise InvalidRequest("mistralrs shows only the tokens it chooses; compare at least one (--greedy 16)")
        if self.greedy < 0:
            raise InvalidRequest(f"greedy must be 0 (off) or a number of tokens, not {self.greedy}")
        if self.frames < 1:
            raise InvalidRequest(f"frames must be at least 1, not {self.frames}")

    def require_components(self, *, speaks: bool) -> None:
        """InvalidRequest: a component is asked for that the checkpoint does not have, or that the input does not
        reach."""
        for name in self.only:
            if BY_NAME[name].speaks and not speaks:
                raise InvalidRequest(f"this checkpoint does not speak, so it has no {name}; take the Instruct model")
            if not self.reaches(name):
                raise InvalidRequest(f"the input gives the {name} nothing; add --audio, --image or --video")

    def reaches(self, component: str) -> bool:
        """Whether the input has anything for a component."""
        reached = {"audio_encoder": self.given.reaches_audio, "vision_encoder": self.given.reaches_vision}
        return reached.get(component, True)

    def mode(self, rows: int) -> str:
        """How so many rows of the prompt are run, in words."""
        if self.rows_per_step >= rows:
            return "one prefill"
        return "token by token" if self.rows_per_step == 1 else f"chunks of {self.rows_per_step}"


@dataclass(frozen=True, slots=True)
class Threshold:
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

    def document(self) -> dict[str, Any]:
        """For JSON."""
        return {**asdict(self), "passed": self.passed}


@dataclass(frozen=True, slots=True)
class ComponentParity:
    """One component. ``greedy``: tokens or codes chosen; ``distribution``: of llama.cpp, of which only logits are
    observed; ``of_likeliest``: the stage holds log-probabilities of the likeliest ids, which are all that mistralrs
    gives; ``corrections``: where the expectation is not what transformers itself would compute, and why."""

    component: str
    dtype: str
    stages: tuple[StageParity, ...]
    greedy: GreedyParity | None = None
    distribution: DistributionParity | None = None
    of_likeliest: bool = False
    corrections: tuple[str, ...] = ()

    @property
    def ends(self) -> tuple[StageParity, ...]:
        """The stages in which all that it computes ends; of a decoder its logits."""
        return tuple(stage for stage in self.stages if stage.stage.startswith(RUNGS[self.component].ends))

    @property
    def first_divergence(self) -> StageParity | None:
        """The first stage that leaves the tolerance."""
        return next((stage for stage in self.stages if stage.first_divergence is not None), None)

    @property
    def ratio(self) -> float | None:
        """Distance to the float64 truth at the end, lluda's over the reference's; None where it was not measured."""
        distances = [stage.error_to_float64 for stage in self.ends if stage.error_to_float64]
        if not distances:
            return None
        lluda, reference = sum(one.lluda for one in distances), sum(one.reference for one in distances)
        return lluda / reference if reference else (math.inf if lluda else 0.0)

    @property
    def thresholds(self) -> tuple[Threshold, ...]:
        """What it is held to, as its reference and dtype have it."""
        if self.distribution:
            correlation, mean_kl = self.distribution.correlation, self.distribution.mean_kl
            return (
                self._held("correlation of the logits", correlation, LLAMA_CPP_THRESHOLDS["correlation"], least=True),
                self._held("mean KL in nats", mean_kl, LLAMA_CPP_THRESHOLDS["mean_kl"]),
            )
        if self.of_likeliest:
            largest = max(stage.max_abs_error for stage in self.stages)
            return (
                self._held("largest difference of a likely id's log-probability in nats", largest, MISTRALRS_NATS),
                *self._of_greedy(),
            )
        found = list(self._of_stages())
        if self.dtype == "bf16":
            if self.ratio is not None:
                found.append(self._held("distance to float64, lluda / reference,", self.ratio, 1.0))
            return tuple(found)
        rung = RUNGS[self.component]
        errors = [stage.max_abs_error if rung.absolute else stage.relative_error for stage in self.ends]
        found.insert(0, self._held(rung.quantity, max(errors), rung.limit[self.dtype]))
        return (*found, *self._of_greedy())

    def _of_greedy(self) -> Iterator[Threshold]:
        if self.greedy:
            choices = RUNGS[self.component].choices
            yield self._held(f"share of equal {choices}", self.greedy.agreement, 1.0, least=True)

    def _of_stages(self) -> list[Threshold]:
        found = []
        for stage in self.stages:
            held = STAGE_LIMITS.get(stage.stage)
            if held and (held.always or self.dtype != "bf16"):
                error = stage.max_abs_error if held.absolute else stage.relative_error
                found.append(self._held(held.quantity, error, held.limit))
        return found

    def _held(self, name: str, value: float, limit: float, *, least: bool = False) -> Threshold:
        return Threshold(f"{self.component}: {name}", value, limit, least)

    def document(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "component": self.component,
            "stages": [_stage_document(stage) for stage in self.stages],
            "ends": [stage.stage for stage in self.ends],
            "ratio": self.ratio,
            "greedy": self.greedy and {**asdict(self.greedy), "agreement": self.greedy.agreement},
            "distribution": self.distribution and asdict(self.distribution),
            "corrections": list(self.corrections),
            "thresholds": [threshold.document() for threshold in self.thresholds],
        }


@dataclass(frozen=True, slots=True)
class Validation:
    """All components that were run, in the order of computation: of a text model one. ``rows``: of the prompt."""

    model: dict[str, Any]
    request: ValidationRequest
    dtype: str
    backend: str
    tolerance: float
    rows: int
    components: tuple[ComponentParity, ...]
    versions: dict[str, str]
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def thresholds(self) -> tuple[Threshold, ...]:
        """Those of every component."""
        return tuple(threshold for component in self.components for threshold in component.thresholds)

    @property
    def first_divergence(self) -> tuple[ComponentParity, StageParity] | None:
        """The first stage of all that leaves the tolerance."""
        found = ((component, component.first_divergence) for component in self.components)
        return next(((component, stage) for component, stage in found if stage), None)

    @property
    def passed(self) -> bool | None:
        """Whether every threshold holds; None where no end of a component could be judged."""
        if not all(threshold.passed for threshold in self.thresholds):
            return False
        unjudged = self.dtype == "bf16" and all(component.ratio is None for component in self.components)
        return None if unjudged else True

    def document(self) -> dict[str, Any]:
        """For JSON."""
        divergence = self.first_divergence
        return {
            "kind": "validation",
            "model": self.model,
            "reference": self.request.reference,
            "dtype": self.dtype,
            "backend": self.backend,
            "input": self.request.given.source,
            "media": [part.kind for part in self.request.given.media],
            "tokens": self.rows,
            "mode": self.request.mode(self.rows),
            "frames": self.request.frames if any(BY_NAME[one.component].speaks for one in self.components) else 0,
            "tolerance": self.tolerance,
            "first_divergence": divergence
            and {
                "component": divergence[0].component,
                "stage": divergence[1].stage,
                "position": divergence[1].first_divergence,
            },
            "components": [component.document() for component in self.components],
            "passed": self.passed,
            "versions": self.versions,
            "seconds": self.seconds,
        }


def _stage_document(stage: StageParity) -> dict[str, Any]:
    distance = stage.error_to_float64
    return {
        "stage": stage.stage,
        "argmax_agreement": stage.argmax_agreement,
        "max_abs_error": stage.max_abs_error,
        "mean_abs_error": stage.mean_abs_error,
        "range": stage.value_range,
        "mean_abs_value": stage.mean_abs_value,
        "relative_error": stage.relative_error,
        "error_to_float64": distance and {**asdict(distance), "ratio": distance.ratio},
        "first_divergence": stage.first_divergence,
    }
