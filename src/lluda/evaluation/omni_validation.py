"""The outcome of an Omni validation: the ladder of every component, what each is held to, and the JSON document."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from lluda.errors import InvalidRequest
from lluda.evaluation.omni_inputs import OmniInput
from lluda.evaluation.parity import GreedyParity, StageParity
from lluda.evaluation.validation import LOGIT_BARS, Bar, figures

COMPONENTS: Mapping[str, str] = {
    "audio": "thinker.audio_tower.",
    "vision": "thinker.visual.",
    "thinker": "thinker.",
    "talker": "talker.",
    "code_predictor": "talker.code_predictor.",
    "code2wav": "code2wav.",
}
"""What can be validated by itself, in the order in which it is computed, and how its tensors' names begin."""

SPEAKING = ("talker", "code_predictor", "code2wav")

DEFAULT_FRAMES = 40
"""Of speech: 3.2 s."""

LAST = {
    "audio": ("output",),
    "vision": ("output", "deepstack."),
    "thinker": ("logits",),
    "talker": ("logits",),
    "code_predictor": ("pass.",),
    "code2wav": ("waveform",),
}
"""The stages (by how their names begin) in which all that a component computes ends."""

ENCODER_BAR = 1e-4
"""Of encoders' rows and talkers' prompts: largest float32 error as a share of the range (issue of the thinker)."""

WAVEFORM_BAR = 1e-4
"""Largest float32 error of a sample."""

FEATURE_BAR = 1e-4
"""Largest error of a log-mel feature."""

POSITION_BAR = 1e-3
"""Position ids are equal; a video's steps in time need not be whole, and are rounded in float32."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OmniRequest:
    """What to run. ``only``: components (none: all that there are and that the input reaches); ``greedy``: tokens of
    the thinker to compare; ``frames`` of speech; ``rows_per_step``: ids of the thinker's prompt run at once;
    ``float64``: whether to measure the distance to the float64 truth."""

    given: OmniInput
    only: tuple[str, ...] = ()
    greedy: int = 16
    frames: int = DEFAULT_FRAMES
    rows_per_step: int = 512
    speaker: str | None = None
    float64: bool = True

    def __post_init__(self) -> None:
        for name in self.only:
            if name not in COMPONENTS:
                raise InvalidRequest(f"component {name!r:.40} is not one of {', '.join(COMPONENTS)}")
        if self.rows_per_step < 1:
            raise InvalidRequest(f"rows_per_step must be at least 1, not {self.rows_per_step}")
        if self.greedy < 0:
            raise InvalidRequest(f"greedy must be 0 (off) or a number of tokens, not {self.greedy}")
        if self.frames < 1:
            raise InvalidRequest(f"frames must be at least 1, not {self.frames}")


@dataclass(frozen=True, slots=True)
class ComponentParity:
    """One component. ``greedy``: tokens or codes chosen; ``corrections``: where the expectation is not what
    transformers itself would compute, and why."""

    component: str
    dtype: str
    stages: tuple[StageParity, ...]
    greedy: GreedyParity | None = None
    corrections: tuple[str, ...] = ()

    @property
    def last(self) -> tuple[StageParity, ...]:
        """The stages that count for the component as a whole."""
        return tuple(stage for stage in self.stages if stage.stage.startswith(LAST[self.component]))

    @property
    def first_divergence(self) -> StageParity | None:
        """The first stage that leaves the tolerance."""
        return next((stage for stage in self.stages if stage.first_divergence is not None), None)

    @property
    def ratio(self) -> float | None:
        """Distance to the float64 truth at the end, lluda's over the reference's."""
        distances = [stage.error_to_float64 for stage in self.last if stage.error_to_float64]
        reference = sum(distance.reference for distance in distances)
        return sum(distance.lluda for distance in distances) / reference if reference else None

    @property
    def bars(self) -> tuple[Bar, ...]:
        """What it is held to, as its dtype has it."""
        found = [*self._exact_bars()]
        if self.dtype == "bf16":
            if self.ratio is not None:
                found.append(self._bar("distance to float64, lluda / reference,", self.ratio, 1.0))
            return tuple(found)
        worst = max(stage.relative_error for stage in self.last)
        match self.component:
            case "audio" | "vision":
                found.append(self._bar("largest error of its rows / their range", worst, ENCODER_BAR))
            case "code2wav":
                found.append(self._bar("largest error of a sample", self.last[0].max_abs_error, WAVEFORM_BAR))
            case _:
                found.append(self._bar("largest logit error / logit range", worst, LOGIT_BARS[self.dtype]))
        if self.component == "talker":
            rows = next(stage for stage in self.stages if stage.stage == "rows")
            found.append(
                self._bar("largest error of the prompt's rows / their range", rows.relative_error, ENCODER_BAR)
            )
        if self.greedy:
            what = "codes" if self.component in SPEAKING else "greedy tokens"
            found.append(self._bar(f"share of equal {what}", self.greedy.agreement, 1.0, at_least=True))
        return tuple(found)

    def _exact_bars(self) -> list[Bar]:
        """Of what no dtype excuses."""
        limits = {"features": FEATURE_BAR, "positions": POSITION_BAR}
        names = {"features": "largest error of a feature", "positions": "largest difference of a position"}
        return [
            self._bar(names[stage.stage], stage.max_abs_error, limits[stage.stage])
            for stage in self.stages
            if stage.stage in limits
        ]

    def _bar(self, name: str, value: float, limit: float, *, at_least: bool = False) -> Bar:
        return Bar(f"{self.component}: {name}", value, limit, at_least)

    def document(self) -> dict[str, Any]:
        """For JSON."""
        divergence = self.first_divergence
        return {
            "component": self.component,
            "stages": [{"stage": stage.stage, **figures(stage)} for stage in self.stages],
            "last": [stage.stage for stage in self.last],
            "first_divergence": divergence and {"stage": divergence.stage, "position": divergence.first_divergence},
            "ratio": self.ratio,
            "greedy": self.greedy and {**asdict(self.greedy), "agreement": self.greedy.agreement},
            "corrections": list(self.corrections),
            "bars": [{**asdict(bar), "passed": bar.passed} for bar in self.bars],
        }


@dataclass(frozen=True, slots=True)
class OmniValidation:
    """All components that were run, in the order of computation."""

    model: dict[str, Any]
    request: OmniRequest
    dtype: str
    backend: str
    tolerance: float
    rows: int
    components: tuple[ComponentParity, ...]
    versions: dict[str, str]
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def bars(self) -> tuple[Bar, ...]:
        """Those of every component."""
        return tuple(bar for component in self.components for bar in component.bars)

    @property
    def stages(self) -> tuple[tuple[str, StageParity], ...]:
        """Every stage with its component's name before it."""
        return tuple(
            (f"{component.component} {stage.stage}", stage)
            for component in self.components
            for stage in component.stages
        )

    @property
    def first_divergence(self) -> tuple[str, StageParity] | None:
        """The first stage of all that leaves the tolerance."""
        return next((found for found in self.stages if found[1].first_divergence is not None), None)

    @property
    def passed(self) -> bool | None:
        """Whether every bar holds; None where no end of a component could be judged."""
        if self.dtype == "bf16" and all(component.ratio is None for component in self.components):
            return None if all(bar.passed for bar in self.bars) else False
        return all(bar.passed for bar in self.bars)

    def document(self) -> dict[str, Any]:
        """For JSON."""
        divergence = self.first_divergence
        return {
            "kind": "omni validation",
            "model": self.model,
            "reference": "transformers",
            "dtype": self.dtype,
            "backend": self.backend,
            "input": self.request.given.source,
            "media": [part.kind for part in self.request.given.media],
            "prompt_rows": self.rows,
            "frames": self.request.frames,
            "tolerance": self.tolerance,
            "first_divergence": divergence and {"stage": divergence[0], "position": divergence[1].first_divergence},
            "components": [component.document() for component in self.components],
            "passed": self.passed,
            "versions": self.versions,
            "seconds": self.seconds,
        }


def require_components(names: Sequence[str], speaks: bool) -> None:
    """InvalidRequest: a component is asked for that the checkpoint does not have."""
    missing = [name for name in names if name in SPEAKING and not speaks]
    if missing:
        raise InvalidRequest(f"this checkpoint does not speak, so it has no {missing[0]}; take the Instruct model")
