"""One picture of a validation: error by layer, on a logarithmic scale."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from lluda.errors import InvalidRequest, MissingDependency
from lluda.evaluation.parity import DistanceToTruth, StageParity
from lluda.evaluation.validation import Validation

_MOST_LABELS = 24
Series = tuple[str, str, Callable[[StageParity], float]]


def plot_parity(validation: Validation, path: Path) -> None:
    """Write a PNG: the mean absolute error of each stage as a share of the mean absolute value there, of lluda and the
    reference against float64 where that was run, and of lluda against the reference. A stage without error has no
    point.

    Raises:
        InvalidRequest: a name that does not end in .png, a folder there is not, or a file that cannot be written.
        MissingDependency: matplotlib is not installed.
    """
    require_plot(path)
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4.8), dpi=150, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    stages = validation.stages
    for label, style, error in _series(validation):
        points = [
            (index, error(stage) / stage.mean_abs_value)
            for index, stage in enumerate(stages)
            if error(stage) > 0 and stage.mean_abs_value > 0
        ]
        if points:
            axes.plot(*zip(*points, strict=True), style, label=label, markersize=4, linewidth=1.4)
    axes.set_yscale("log")
    every = max(1, -(-len(stages) // _MOST_LABELS))
    layers = range(1, len(stages) - 2)
    ticks = [0, *(index for index in layers if (index - 1) % every == 0), *range(max(1, len(stages) - 2), len(stages))]
    axes.set_xticks(ticks, [stages[index].stage.removeprefix("layers.") for index in ticks], rotation=45, ha="right")
    axes.set_xlim(-0.5, len(stages) - 0.5)
    axes.set_xlabel("stage (numbers: residual stream after that layer)")
    axes.set_ylabel("mean |error| / mean |value|")
    axes.set_title(_title(validation), fontsize=11)
    axes.grid(visible=True, which="major", alpha=0.3)
    if axes.lines:
        axes.legend(frameon=False)
    else:
        axes.text(0.5, 0.5, "no error at any stage", transform=axes.transAxes, ha="center")
    try:
        canvas.print_png(str(path))
    except OSError as error:
        raise InvalidRequest(f"--plot {path}: cannot be written: {error.strerror}") from error


def require_plot(path: Path) -> None:
    """Find out before a long run whether its plot can be drawn. Errors as ``plot_parity``."""
    if path.suffix.lower() != ".png":
        raise InvalidRequest(f"--plot {path}: must end in .png")
    if not path.absolute().parent.is_dir() or not os.access(path.absolute().parent, os.W_OK):
        raise InvalidRequest(f"--plot {path}: its folder does not exist or cannot be written to")
    try:
        import matplotlib as _  # noqa: F401
    except ImportError:
        raise MissingDependency("--plot needs matplotlib; get it with: pip install 'lluda[validate]'") from None


def _series(validation: Validation) -> list[Series]:
    reference = validation.request.reference
    series: list[Series] = [(f"lluda against {reference}", "^:", lambda stage: stage.mean_abs_error)]
    if validation.logits.error_to_float64 is not None:
        series.append(("lluda against float64", "o-", lambda stage: _distance(stage).lluda))
        series.append((f"{reference} against float64", "s--", lambda stage: _distance(stage).reference))
    return series


def _distance(stage: StageParity) -> DistanceToTruth:
    assert stage.error_to_float64 is not None
    return stage.error_to_float64


def _title(validation: Validation) -> str:
    request = validation.request
    return f"{validation.model['name']}, {validation.dtype}, {len(request.ids)} tokens, {request.mode}"
