"""One picture of a validation: error by layer, on a logarithmic scale."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from lluda.evaluation.omni_validation import OmniValidation
from lluda.evaluation.parity import DistanceToTruth, StageParity
from lluda.evaluation.plot_file import require_plot, write_png
from lluda.evaluation.validation import Validation, ValidationRequest

_MOST_LABELS = 24
Series = tuple[str, str, Callable[[StageParity], float]]


Ticks = tuple[list[int], list[str]]


def plot_parity(validation: Validation | OmniValidation, path: Path) -> None:
    """Write a PNG: the mean absolute error of each stage as a share of the mean absolute value there, of lluda and the
    reference against float64 where that was run, and of lluda against the reference. A stage without error has no
    point. Errors as `require_plot` and `write_png`."""
    require_plot(path)
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9 if isinstance(validation, Validation) else 14, 4.8), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    stages = [stage[1] if isinstance(stage, tuple) else stage for stage in validation.stages]
    for label, style, error in _series(validation, stages):
        points = [
            (index, error(stage) / stage.mean_abs_value)
            for index, stage in enumerate(stages)
            if error(stage) > 0 and stage.mean_abs_value > 0
        ]
        if points:
            axes.plot(*zip(*points, strict=True), style, label=label, markersize=4, linewidth=1.4)
    axes.set_yscale("log")
    ticks, labels = _text_ticks(stages) if isinstance(validation, Validation) else _omni_ticks(validation)
    axes.set_xticks(ticks, labels, rotation=45, ha="right")
    axes.set_xlim(-0.5, len(stages) - 0.5)
    axes.set_xlabel("stage (numbers: residual stream after that layer)")
    for index in ticks if isinstance(validation, OmniValidation) else ():
        axes.axvline(index - 0.5, color="0.8", linewidth=0.8)
    axes.set_ylabel("mean |error| / mean |value|")
    axes.set_title(_title(validation), fontsize=11)
    axes.grid(visible=True, which="major", alpha=0.3)
    if axes.lines:
        axes.legend(frameon=False)
    else:
        axes.text(0.5, 0.5, "no error at any stage", transform=axes.transAxes, ha="center")
    write_png(figure, path)


def _text_ticks(stages: Sequence[StageParity]) -> Ticks:
    """The ends, and as many layers between as have room."""
    every = max(1, -(-len(stages) // _MOST_LABELS))
    layers = [index for index in range(1, len(stages) - 2) if (index - 1) % every == 0]
    ticks = [0, *layers, *range(max(1, len(stages) - 2), len(stages))]
    return ticks, [stages[index].stage.removeprefix("layers.") for index in ticks]


def _omni_ticks(validation: OmniValidation) -> Ticks:
    """Where each component begins."""
    ticks, end = [], 0
    for component in validation.components:
        ticks.append(end)
        end += len(component.stages)
    return ticks, [component.component for component in validation.components]


def _series(validation: Validation | OmniValidation, stages: Sequence[StageParity]) -> list[Series]:
    reference = validation.request.reference if isinstance(validation, Validation) else "transformers"
    series: list[Series] = [(f"lluda against {reference}", "^:", lambda stage: stage.mean_abs_error)]
    if any(stage.error_to_float64 is not None for stage in stages):
        series.append(("lluda against float64", "o-", lambda stage: _distance(stage).lluda))
        series.append((f"{reference} against float64", "s--", lambda stage: _distance(stage).reference))
    return series


def _distance(stage: StageParity) -> DistanceToTruth:
    return stage.error_to_float64 or DistanceToTruth(0.0, 0.0)


def _title(validation: Validation | OmniValidation) -> str:
    name = f"{validation.model['name']}, {validation.dtype}"
    request = validation.request
    if isinstance(validation, OmniValidation):
        return f"{name}, {validation.rows} rows of prompt, {validation.request.frames} frames of speech"
    assert isinstance(request, ValidationRequest)
    return f"{name}, {len(request.ids)} tokens, {request.mode}"
