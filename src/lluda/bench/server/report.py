"""A server's rounds as a document and as a table, the engine's own rows beside them."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from lluda.bench.machine import Machine
from lluda.bench.report import Report, Row
from lluda.bench.server.figures import FIRST_TOKEN_SECONDS, TOKEN_SECONDS, Figures, Spread
from lluda.bench.server.load import Load

_WIDTH = 170


@dataclass(frozen=True, slots=True)
class ServerReport:
    """What was measured of the server at ``address``; ``version``: what it says of itself; ``machine``: the callers'.
    ``engine``: rows ``callersN`` of the same model in a process without a server."""

    address: str
    model: dict[str, Any]
    version: dict[str, Any]
    machine: Machine
    load: Load
    rounds: tuple[Figures, ...]
    engine: Report | None = None

    @property
    def failed(self) -> bool:
        """Whether a request failed."""
        return any(one.failed for one in self.rounds) or bool(self.engine and self.engine.failed)

    def engine_row(self, callers: int) -> Row | None:
        """The engine's own for so many callers."""
        rows = self.engine.rows if self.engine else ()
        return next((row for row in rows if row.test == f"callers{callers}"), None)

    def share_of_engine(self, one: Figures) -> float | None:
        """The rate at which ``one``'s callers decode over that of the engine alone."""
        row = self.engine_row(one.callers) if one.kind == "text" else None
        return one.decode_rate / row.median if row and row.median and one.decode_rate else None

    def to_json(self) -> dict[str, Any]:
        """Everything, in plain types."""
        rounds = [one.to_json() | {"share_of_engine": self.share_of_engine(one)} for one in self.rounds]
        engine = self.engine.to_json() if self.engine else None
        limits = {"first_token_seconds": FIRST_TOKEN_SECONDS, "token_seconds": TOKEN_SECONDS}
        return {
            "server": self.address,
            "model": self.model,
            "version": self.version,
            "machine": asdict(self.machine),
            "load": asdict(self.load),
            "good_within": limits,
            "rounds": rounds,
            "engine": engine,
        }


def print_server_report(report: ServerReport) -> None:
    """The table on stdout; times in milliseconds, median and 95th percentile."""
    console = Console(highlight=False, soft_wrap=True)
    if not console.is_terminal:
        console = Console(highlight=False, soft_wrap=True, width=max(console.width, _WIDTH))
    load = report.load
    title = f"{report.model['id']} at {report.address}, {load.requests} requests a caller, {load.generate} tokens each"
    table = Table(title=escape(title), title_justify="left", title_style="bold")
    for name in ("request", "callers", "done", "first token ms", "between ms", "tok/s", "decode tok/s", "of engine",
                 "first sound ms", "of the turn ms", "real-time factor", "sound s/s", "underruns",
                 "good/s"):  # fmt: skip
        table.add_column(name, justify="left" if name == "request" else "right", no_wrap=True)
    for one in report.rounds:
        table.add_row(*_cells(one, report.share_of_engine(one)))
    console.print(table)
    for one in report.rounds:
        for error in one.errors:
            console.print(escape(f"{one.kind}, {one.callers} callers: {error}"))
    console.print(
        f"good: first token within {FIRST_TOKEN_SECONDS:g} s, 95 of 100 tokens within {TOKEN_SECONDS:g} s of the one "
        "before, no underrun"
    )
    console.print(escape(f"callers' machine: {report.machine.describe()}"))
    console.print(escape(f"server: {', '.join(f'{key} {value}' for key, value in report.version.items())}"))


def _cells(one: Figures, share: float | None) -> list[str]:
    return [
        one.kind,
        str(one.callers),
        f"{one.requests - one.failed} of {one.requests}",
        _milliseconds(one.first_token),
        _milliseconds(one.between_tokens),
        _number(one.tokens_per_second),
        _number(one.decode_rate),
        f"{100 * share:.0f} %" if share is not None else "",
        _milliseconds(one.first_sound),
        _milliseconds(one.first_sound_of_turn),
        f"{one.real_time_factor.median:.2f}, {one.real_time_factor.p95:.2f}" if one.real_time_factor else "",
        _number(one.audio_seconds_per_second),
        str(one.underruns) if one.first_sound else "",
        f"{one.goodput:.2f}",
    ]


def _milliseconds(spread: Spread | None) -> str:
    return f"{1e3 * spread.median:.0f}, {1e3 * spread.p95:.0f}" if spread else ""


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}"
