from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from lluda.bench.machine import Machine, available_cores, read_machine
from lluda.bench.report import Bandwidth, Conditions, EngineState, MeasuredModel, Report, make_row
from lluda.bench.table import render
from lluda.cli.plot import plot_bench
from lluda.errors import LludaError

BANDWIDTH = Bandwidth.of([28.0, 30.0, 33.0], "a method")
MACHINE = Machine("a cpu", 2, ("avx2",), 8_000_000_000, "Linux", "3.12", {"lluda": "0", "torch": None}, "abc+")
ROWS = (
    make_row("lluda", "BF16", "tg128", "tok/s", [20.0, 10.0, 15.0], 1e9, [30.0, 40.0, 25.0]),
    make_row("llama.cpp", "BF16", "tg128", "tok/s", [5.0, 5.0, 5.0], 1e9, [30.0, 40.0, 25.0]),
    make_row("lluda", "BF16", "load", "s", [2.0], None, [30.0]),
    make_row("llama.cpp", "BF16", "load", "s", [1.0], None, [30.0]),
)
REPORT = Report(
    model=MeasuredModel("/m", "qwen3", "the checkpoint's", 1e9),
    machine=MACHINE,
    settings=Conditions(2, 3, "cpu", {}),
    bandwidth=BANDWIDTH,
    other_load=0.3,
    engines=(
        EngineState("lluda", "BF16", "0", "ok", "reference"),
        EngineState("llama.cpp", "BF16", "1", "ok", "mmap"),
        EngineState("mistralrs", "BF16", None, "not installed", "pip install mistralrs"),
    ),
    rows=ROWS,
)


def text_of(report: Report) -> str:
    file = io.StringIO()
    Console(file=file, width=150).print(render(report))
    return file.getvalue()


def test_a_row_is_the_median_with_its_range_and_its_share_of_the_bandwidth() -> None:
    row = ROWS[0]
    assert (row.median, row.min, row.max, row.samples) == (15.0, 10.0, 20.0, (20.0, 10.0, 15.0))
    assert row.roofline_fraction == pytest.approx(0.6), "the median of 20 of 30, 10 of 40 and 15 of 25"
    assert ROWS[2].roofline_fraction is None
    timed = make_row("lluda", "BF16", "talker", "ms", [50.0, 40.0, 60.0], 1.2e9, [30.0, 60.0, 20.0])
    assert timed.roofline_fraction == pytest.approx(1.2e9 / 0.05 / 30e9)
    assert make_row("lluda", "BF16", "tg1", "tok/s", [1.0], 1e9, ()).roofline_fraction is None


def test_ratios_above_one_mean_lluda_is_better_in_rates_and_in_times() -> None:
    ratios = {(ratio.test, ratio.against): ratio.times_better for ratio in REPORT.ratios}
    assert ratios == {("tg128", "llama.cpp"): pytest.approx(3.0), ("load", "llama.cpp"): pytest.approx(0.5)}


def test_only_an_engine_that_failed_makes_the_run_fail() -> None:
    assert not REPORT.failed
    failed = EngineState("llama.cpp", "BF16", "1", "failed", "exit code 3; out of luck")
    assert replace(REPORT, engines=(*REPORT.engines, failed)).failed


def test_the_table_has_the_rows_the_ratios_and_whoever_is_missing() -> None:
    text = text_of(REPORT)
    assert "/m on cpu, 2 threads, 3 rounds" in text
    assert "60.0 %" in text
    assert "3.00" in text
    assert "mistralrs: not installed: pip install mistralrs" in text
    assert "30.0 GB/s (28.0 to 33.0): a method" in text
    assert "other work took up to 30 %" in text
    assert "other work" not in text_of(replace(REPORT, other_load=0.0))


def test_the_report_is_plain_json() -> None:
    assert json.loads(json.dumps(REPORT.to_json()))["rows"][0]["samples"] == [20.0, 10.0, 15.0]


def test_the_plot_is_a_png(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is optional (lluda[bench])")
    plot_bench(REPORT, tmp_path / "bench.png")
    assert (tmp_path / "bench.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(LludaError, match="nowhere"):
        plot_bench(REPORT, tmp_path / "nowhere" / "bench.png")


def test_the_machine_is_described() -> None:
    machine = read_machine(["numpy", "no-such-distribution"])
    assert machine.cores == available_cores() >= 1
    assert machine.memory_bytes > 1 << 28
    assert machine.versions["numpy"]
    assert machine.versions["no-such-distribution"] is None
    assert machine.cpu in machine.describe()
