"""A report as text."""

from __future__ import annotations

from rich.console import Console, Group, RenderableType
from rich.markup import escape
from rich.table import Table

from lluda.bench.report import Report, Row

_NARROWEST = 150
_NOTEWORTHY_LOAD = 0.05


def print_report(report: Report) -> None:
    """The table on stdout, never narrower than its columns need when stdout is no terminal."""
    console = Console(highlight=False, soft_wrap=True)
    if not console.is_terminal:
        console = Console(highlight=False, soft_wrap=True, width=max(console.width, _NARROWEST))
    console.print(render(report))


def render(report: Report) -> RenderableType:
    """Tests down, engines inside each; after each of lluda's rows, what was to be expected of it and how many
    times better it is than each peer."""
    peers = list(dict.fromkeys(row.engine for row in report.rows if row.engine != "lluda"))
    table = Table(title=escape(report.title), title_justify="left", title_style="bold")
    table.add_column("test", no_wrap=True)
    table.add_column("engine", no_wrap=True)
    table.add_column("format")
    for name in ("median", "min", "max"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("unit")
    table.add_column("of bandwidth", justify="right")
    is_predicted = any(row.predicted is not None for row in report.rows)
    if is_predicted:
        table.add_column("predicted", justify="right", no_wrap=True)
    for peer in peers:
        table.add_column(f"x {peer}", justify="right")
    ratios = {(ratio.format, ratio.test, ratio.against): ratio.times_better for ratio in report.ratios}
    for test in dict.fromkeys(row.test for row in report.rows):
        for row in (row for row in report.rows if row.test == test):
            times = [ratios.get((row.format, test, peer)) if row.engine == "lluda" else None for peer in peers]
            predicted = [_number(row.predicted) if row.predicted is not None else ""] if is_predicted else []
            table.add_row(*_cells(row), *predicted, *(f"{value:.2f}" if value is not None else "" for value in times))
        table.add_section()
    return Group(table, *(escape(line) for line in _notes(report)))


def _cells(row: Row) -> list[str]:
    numbers = [_number(value) for value in (row.median, row.min, row.max)]
    share = f"{100 * row.roofline_fraction:.1f} %" if row.roofline_fraction is not None else ""
    return [row.test, row.engine, row.format, *numbers, row.unit, share]


def _number(value: float) -> str:
    """Three significant digits, or all before the point."""
    digits = 0 if value >= 1000 else 1 if value >= 100 else 2 if value >= 1 else 4
    return f"{value:.{digits}f}"


def _notes(report: Report) -> list[str]:
    lines = [f"machine: {report.machine.describe()}"]
    if report.bandwidth:
        measured = report.bandwidth
        lines.append(
            f"bandwidth: {measured.median:.1f} GB/s ({measured.min:.1f} to {measured.max:.1f}): {measured.method}"
        )
    for state in report.engines:
        name = f"{state.engine} {state.version or ''}".strip()
        lines.append(f"{name}: {state.detail}" if state.status == "ok" else f"{name}: {state.status}: {state.detail}")
    if report.other_load > _NOTEWORTHY_LOAD:
        lines.append(
            f"warning: other work took up to {100 * report.other_load:.0f} % of the cores during a turn: "
            "these numbers are not what a quiet machine gives"
        )
    return lines
