"""``--plot``: a validation, a perplexity run or a benchmark as a PNG."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lluda.errors import InvalidRequest
from lluda.extras import missing
from lluda.files.atomic_file import atomic_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from lluda.bench.report import Report, Row
    from lluda.evaluation.parity import StageParity
    from lluda.evaluation.perplexity import Comparison
    from lluda.evaluation.speech_agreement import SpeechAgreement
    from lluda.evaluation.validation import Validation

_MOST_LABELS = 24
_FLOOR = 1e-12  # of a divergence on a logarithmic axis

_OURS = ("#1b6ca8", "#4fa3d9", "#9ecae8", "#0b3c5d")  # one for each of lluda's formats
_THEIRS = {"transformers": "#d9a324", "llama.cpp": "#7a9e3d", "mistralrs": "#b0623c"}
_COLUMNS = 3
_PANELS = {
    "prefill, tok/s": ("pp",),
    "decode, tok/s": ("tg",),
    "streams together, tok/s": ("streams",),
    "time to first token, s": ("load", "start_to_first_token", "ttft"),
    "peak memory, GB": ("memory",),
    "speech, ms a frame": ("code_predictor", "talker", "speech_frame", "code2wav"),
    "first sound, s; work, s per s of sound": ("first_audio", "rtf", "turn_first_audio", "turn_rtf"),
    "sound in, ms": ("audio10s",),
}


def require_plot(path: Path) -> None:
    """Find out before a long run whether its plot can be drawn.

    Raises:
        InvalidRequest: a name that does not end in .png or is a folder's, or a folder that cannot be written to.
        MissingDependency: matplotlib is not installed.
    """
    if path.suffix.lower() != ".png":
        raise InvalidRequest(f"--plot {path}: must end in .png")
    folder = path.absolute().parent
    if path.is_dir() or not folder.is_dir() or not os.access(folder, os.W_OK):
        raise InvalidRequest(
            f"--plot {path}: cannot be written: it is a folder, or its folder does not exist or cannot be written to"
        )
    try:
        import matplotlib as _  # noqa: F401
    except ImportError:
        raise missing("--plot", "matplotlib") from None


def plot_validation(validation: Validation, path: Path) -> None:
    """Write a PNG: the mean absolute error of each stage as a share of the mean absolute value there, of lluda and the
    reference against float64 where that was run, and of lluda against the reference, on a logarithmic scale. A stage
    without error has no point. Errors as `require_plot`; LludaError: it cannot be written."""
    stages = [stage for component in validation.components for stage in component.stages]
    alone = len(validation.components) == 1
    figure, (axes,) = _figure(path, 1, _validation_title(validation), (9 if alone else 14, 4.8))
    for label, style, error in _error_series(validation.request.reference, stages):
        values = [(index, error(stage), stage.mean_abs_value) for index, stage in enumerate(stages)]
        points = [(index, value / scale) for index, value, scale in values if value > 0 and scale > 0]
        if points:
            axes.plot(*zip(*points, strict=True), style, label=label, markersize=4, linewidth=1.4)
    axes.set_yscale("log")
    ticks, labels = _layer_ticks(stages) if alone else _component_ticks(validation)
    axes.set_xticks(ticks, labels, rotation=45, ha="right")
    axes.set_xlim(-0.5, len(stages) - 0.5)
    axes.set_xlabel("stage (numbers: residual stream after that layer)")
    for index in () if alone else ticks:
        axes.axvline(index - 0.5, color="0.8", linewidth=0.8)
    axes.set_ylabel("mean |error| / mean |value|")
    if axes.lines:
        axes.legend(frameon=False)
    else:
        axes.text(0.5, 0.5, "no error at any stage", transform=axes.transAxes, ha="center")
    _write(figure, path)


def _validation_title(validation: Validation) -> str:
    name = f"{validation.model['name']}, {validation.dtype}, {validation.rows} tokens"
    if len(validation.components) > 1:
        return f"{name}, {validation.request.frames} frames of speech"
    return f"{name}, {validation.request.mode(validation.rows)}"


def _error_series(
    reference: str, stages: Sequence[StageParity]
) -> list[tuple[str, str, Callable[[StageParity], float]]]:
    series: list[tuple[str, str, Callable[[StageParity], float]]] = [
        (f"lluda against {reference}", "^:", lambda stage: stage.mean_abs_error)
    ]
    if any(stage.error_to_float64 for stage in stages):
        series.append(("lluda against float64", "o-", partial(_to_float64, side="lluda")))
        series.append((f"{reference} against float64", "s--", partial(_to_float64, side="reference")))
    return series


def _to_float64(stage: StageParity, side: str) -> float:
    return float(getattr(stage.error_to_float64, side)) if stage.error_to_float64 else 0.0


def _layer_ticks(stages: Sequence[StageParity]) -> tuple[list[int], list[str]]:
    """The ends, and as many layers between as can be read."""
    every = max(1, -(-len(stages) // _MOST_LABELS))
    layers = [index for index in range(1, len(stages) - 2) if (index - 1) % every == 0]
    ticks = [0, *layers, *range(max(1, len(stages) - 2), len(stages))]
    return ticks, [stages[index].stage.removeprefix("layers.") for index in ticks]


def _component_ticks(validation: Validation) -> tuple[list[int], list[str]]:
    """Where each component begins."""
    ticks, end = [], 0
    for component in validation.components:
        ticks.append(end)
        end += len(component.stages)
    return ticks, [component.component for component in validation.components]


def plot_predictions(comparison: Comparison, path: Path, title: str) -> None:
    """Write a PNG: the perplexity after each chunk and, with a base, what share of the predictions diverges by more
    than so much. Errors as `plot_validation`."""
    figure, panels = _figure(path, 1 if comparison.divergences is None else 2, title)
    for prediction in filter(None, (comparison.model, comparison.base)):
        panels[0].plot(range(1, len(prediction.running) + 1), prediction.running, label=prediction.name, linewidth=1.4)
    panels[0].set_xlabel(f"chunks of {comparison.context}")
    panels[0].set_ylabel("perplexity so far")
    panels[0].legend(frameon=False)
    if comparison.divergences is not None:
        ordered = comparison.divergences.clamp(min=_FLOOR).sort().values.tolist()
        share = [1 - index / len(ordered) for index in range(len(ordered))]
        panels[1].loglog(ordered, share, linewidth=1.4)
        panels[1].set_xlabel("KL divergence from the base, nats")
        panels[1].set_ylabel("share of predictions above it")
    _write(figure, path)


def plot_speech(agreement: SpeechAgreement, path: Path, title: str) -> None:
    """Write a PNG: the share of equal codes and the divergence of each codebook. Errors as `plot_validation`."""
    figure, panels = _figure(path, 2, title)
    books = [one.codebook for one in agreement.codebooks]
    panels[0].bar(books, [one.same_code for one in agreement.codebooks])
    panels[0].set_ylim(0, 1)
    panels[0].set_ylabel("same code as the base")
    panels[1].bar(books, [max(one.mean_kl, _FLOOR) for one in agreement.codebooks])
    panels[1].set_yscale("log")
    panels[1].set_ylabel("mean KL divergence, nats")
    for panel in panels:
        panel.set_xlabel("codebook")
    _write(figure, path)


def plot_bench(report: Report, path: Path) -> None:
    """Write a PNG: medians as bars with their range, a panel for each kind of test that was run. Errors as
    `plot_validation`."""
    panels = {title: _of_kind(report.rows, kinds) for title, kinds in _PANELS.items()}
    panels = {title: rows for title, rows in panels.items() if rows}
    figure, axes = _figure(path, len(panels), f"{report.title}\n{report.machine.cpu}")
    series = list(dict.fromkeys((row.engine, row.format) for row in report.rows))
    for panel, (title, rows) in zip(axes, panels.items(), strict=True):
        _draw_bars(panel, title, rows, series)
    # An engine that failed early is in the first panels alone, so each label is taken where it is first found.
    legend = {label: bars for panel in axes for bars, label in zip(*panel.get_legend_handles_labels(), strict=True)}
    figure.legend(legend.values(), legend.keys(), loc="outside lower center", ncols=max(len(series), 1), frameon=False)
    _write(figure, path)


def _of_kind(rows: Sequence[Row], kinds: tuple[str, ...]) -> list[Row]:
    return [row for row in rows if row.test in kinds or row.test.rstrip("0123456789") in kinds]


def _draw_bars(axes: Axes, title: str, rows: Sequence[Row], series: Sequence[tuple[str, str]]) -> None:
    tests = list(dict.fromkeys(row.test for row in rows))
    width = 0.8 / max(len(series), 1)
    for place, (engine, format_name) in enumerate(series):
        own = {row.test: row for row in rows if (row.engine, row.format) == (engine, format_name)}
        at = [index + (place + 0.5) * width - 0.4 for index, test in enumerate(tests) if test in own]
        shown = [own[test] for test in tests if test in own]
        heights = [row.median for row in shown]
        errors = [[row.median - row.min for row in shown], [row.max - row.median for row in shown]]
        colour = _THEIRS.get(engine, _OURS[place % len(_OURS)])
        label = f"{engine} {format_name}"
        bars = axes.bar(at, heights, width * 0.92, yerr=errors, color=colour, label=label, error_kw={"elinewidth": 0.8})
        # Three significant digits; whole numbers from a hundred on.
        heads = [f"{height:.0f}" if height >= 100 else f"{height:.3g}" for height in heights]
        axes.bar_label(bars, heads, fontsize=7, padding=1)
    axes.set_title(title, fontsize=10)
    axes.grid(visible=False)
    names = [test.replace("start_to_first_token", "process start\nto first token") for test in tests]
    axes.set_xticks(range(len(tests)), names)
    axes.tick_params(labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)


def _figure(path: Path, panels: int, title: str, size: tuple[float, float] | None = None) -> tuple[Figure, list[Axes]]:
    """So many panels, three in a line; ``size`` of the whole in inches. Errors as `require_plot`."""
    require_plot(path)
    from matplotlib.figure import Figure

    columns = max(min(panels, _COLUMNS), 1)
    lines = max(-(-panels // columns), 1)
    figure = Figure(figsize=size or (4.8 * columns, 3.6 * lines + 0.6), dpi=150, layout="constrained")
    figure.suptitle(title, fontsize=11)
    axes = [figure.add_subplot(lines, columns, number) for number in range(1, panels + 1)]
    for panel in axes:
        panel.grid(visible=True, alpha=0.3)
    return figure, axes


def _write(figure: Any, path: Path) -> None:
    """Draw into ``path``, which is replaced whole."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    with atomic_file(path) as file:
        FigureCanvasAgg(figure).print_png(file)
