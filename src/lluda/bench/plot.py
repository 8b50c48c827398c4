"""A report as a bar chart."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lluda.bench.report import Report, Row
from lluda.evaluation.plot_file import write_png

_OURS = ("#1b6ca8", "#4fa3d9", "#9ecae8", "#0b3c5d")  # one for each of lluda's formats
_THEIRS = {"transformers": "#d9a324", "llama.cpp": "#7a9e3d", "mistralrs": "#b0623c"}
_COLUMNS = 3
_PANELS = {
    "prefill, tok/s": ("pp",),
    "decode, tok/s": ("tg",),
    "streams together, tok/s": ("streams",),
    "time to first token, s": ("load", "start_to_first_token", "ttft"),
    "peak memory, GB": ("memory",),
    "speech, ms a frame": ("code_predictor", "talker", "code2wav", "speech frame", "code2wav frame"),
    "first sound, s; work, s per s of sound": ("first_audio", "rtf", "turn"),
    "sound in, ms": ("audio10s", "audio encoder 10 s", "first audio"),
}


def write_plot(report: Report, path: Path) -> None:
    """Medians as bars with their range, a panel for each kind of test that was run. LludaError: cannot be written."""
    from matplotlib.figure import Figure

    panels = {title: _of_kind(report.rows, kinds) for title, kinds in _PANELS.items()}
    panels = {title: rows for title, rows in panels.items() if rows}
    columns = max(min(len(panels), _COLUMNS), 1)
    lines = max(-(-len(panels) // columns), 1)
    figure = Figure(figsize=(4.6 * columns, 3.4 * lines + 0.8), dpi=150, layout="constrained")
    series = list(dict.fromkeys((row.engine, row.format) for row in report.rows))
    for index, (title, rows) in enumerate(panels.items(), 1):
        _draw(figure.add_subplot(lines, columns, index), title, rows, series)
    # An engine that failed early is in the first panels alone, so each label is taken where it is first found.
    legend = {
        label: bars for axes in figure.axes for bars, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    figure.legend(legend.values(), legend.keys(), loc="outside lower center", ncols=max(len(series), 1), frameon=False)
    figure.suptitle(f"{report.title}\n{report.machine.cpu}", fontsize=11)
    write_png(figure, path)


def _of_kind(rows: Sequence[Row], kinds: tuple[str, ...]) -> list[Row]:
    return [row for row in rows if row.test in kinds or row.test.rstrip("0123456789") in kinds]


def _draw(axes: Any, title: str, rows: Sequence[Row], series: Sequence[tuple[str, str]]) -> None:
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
        axes.bar_label(bars, [_label(height) for height in heights], fontsize=7, padding=1)
    axes.set_title(title, fontsize=10)
    axes.set_xticks(
        range(len(tests)), [test.replace("start_to_first_token", "process start\nto first token") for test in tests]
    )
    axes.tick_params(labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)


def _label(height: float) -> str:
    """Three significant digits; whole numbers from a hundred on."""
    return f"{height:.0f}" if height >= 100 else f"{height:.3g}"
