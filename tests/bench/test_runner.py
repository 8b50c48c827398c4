"""Whole runs on a tiny model, with real worker processes."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from lluda.bench.engines import ENGINES, Engine
from lluda.bench.process.job import Job, Plan, Sample
from lluda.bench.process.supervisor import BANDWIDTH, WORKER, WorkerResult
from lluda.bench.report import Bandwidth, Report
from lluda.bench.runner import Settings, run_bench
from lluda.bench.session import EngineInfo
from lluda.cli.main import main
from lluda.errors import InvalidRequest, LimitExceeded, LludaError
from tests.conftest import TINY_MOE, TINY_QWEN3

Make = Callable[..., Path]

PLAN = Plan(prompts=(8, 16), generate=4, streams=(1, 2), stream_steps=3)
EXPECTED = {
    "load": "s",
    "start_to_first_token": "s",
    "ttft": "s",
    "pp8": "tok/s",
    "pp16": "tok/s",
    "tg4": "tok/s",
    "tg4_sampled": "tok/s",
    "memory": "GB",
    "streams1": "tok/s",
    "streams1_sampled": "tok/s",
    "streams2": "tok/s",
    "streams2_sampled": "tok/s",
    "products1": "GB/s",
    "products512": "GFLOP/s",
    "products512_bf16": "GFLOP/s",
}
OWN = ("_sampled", "products1", "products512", "products512_bf16")
"""Endings of what is measured of lluda alone: sampling of an engine's own, and its products."""


@pytest.fixture(scope="module")
def calls() -> list[tuple[str, int, int]]:
    return []


@pytest.fixture(scope="module")
def report(checkpoint: Make, calls: list[tuple[str, int, int]]) -> Report:
    """One round of lluda, transformers (where it is installed) and a peer that is not installed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(ENGINES, "mistralrs", Engine("lluda.bench.engines.mistralrs", "no_such_package", "no-such"))
        settings = Settings(against=("transformers", "mistralrs"), plan=PLAN, repeat=1, threads=1, timeout=120)
        return run_bench(str(checkpoint(TINY_QWEN3)), settings, lambda *progress: calls.append(progress))


def test_every_test_has_a_row_for_every_engine(report: Report) -> None:
    engines = ["lluda"] + ["transformers"] * (importlib.util.find_spec("transformers") is not None)
    assert [state.status for state in report.engines if state.engine in engines] == ["ok"] * len(engines), (
        report.engines
    )
    for engine in engines:
        expected = {test: unit for test, unit in EXPECTED.items() if engine == "lluda" or not test.endswith(OWN)}
        assert {row.test: row.unit for row in report.rows if row.engine == engine} == expected
    assert all(row.min <= row.median <= row.max and row.min > 0 for row in report.rows)


def test_a_missing_peer_is_reported_and_not_dropped(report: Report) -> None:
    missing = next(state for state in report.engines if state.engine == "mistralrs")
    assert missing.status == "not installed"
    assert missing.version is None
    assert "pip install no-such" in missing.detail
    assert not report.failed


def test_decode_rows_have_their_share_of_the_bandwidth(report: Report) -> None:
    assert report.bandwidth is not None
    for row in report.rows:
        decodes = row.test.startswith(("tg", "streams"))
        assert (row.roofline_fraction is not None) == decodes, row
    tg = next(row for row in report.rows if (row.engine, row.test) == ("lluda", "tg4"))
    gigabytes = tg.median * 2 * report.model.weights_per_step / 1e9
    # Norms are held in float32, so a weight takes a little more than 2 bytes on average.
    assert tg.roofline_fraction is not None
    assert gigabytes / report.bandwidth.max <= tg.roofline_fraction <= 1.1 * gigabytes / report.bandwidth.min


def test_the_json_has_the_documented_schema(report: Report) -> None:
    document = json.loads(json.dumps(report.to_json(), allow_nan=False))
    assert set(document) == {
        "model", "machine", "settings", "bandwidth", "other_load", "engines", "rows", "ratios",
    }  # fmt: skip
    wanted = {"engine", "format", "test", "median", "min", "max", "unit", "roofline_fraction", "samples", "predicted"}
    assert all(set(row) == wanted for row in document["rows"])
    assert {"cpu", "cores", "isa", "memory_bytes", "versions", "git_commit"} <= set(document["machine"])
    assert document["settings"]["threads"] == 1


def test_progress_counts_turns(report: Report, calls: list[tuple[str, int, int]]) -> None:
    assert ("round 1 of 1: lluda", 0, 3) in calls
    assert [done for _, done, _ in calls] == sorted(done for _, done, _ in calls)


def test_the_command_prints_json_and_writes_its_files(
    checkpoint: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--tests", "load,pp", "--prompt", "8", "--gen", "2", "--repeat", "2", "--threads", "1", "--json"]
    output = tmp_path / "bench.json"
    assert main(["bench", "-m", str(checkpoint(TINY_MOE)), *arguments, "--output", str(output)]) == 0
    document = json.loads(capsys.readouterr().out)
    assert {row["test"]: len(row["samples"]) for row in document["rows"]} == {"load": 2, "pp8": 2}
    assert document["bandwidth"] is None, "nothing to compare it with was asked for"
    assert json.loads(output.read_text()) == document


def test_a_worker_that_fails_is_reported_with_its_last_line_and_exit_code_1(
    checkpoint: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = checkpoint(TINY_QWEN3)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    assert main(["bench", "-m", str(folder), "--tests", "load", "--gen", "2", "--repeat", "2", "--prompt", "8"]) == 1
    text = "".join(capsys.readouterr().out.split())
    assert "lluda0.1.0:failed:exitcode1;" in text
    assert "model.safetensors" in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--against", "vllm"], "vllm"),
        (["--formats", "q1"], "q1"),
        (["--tests", "speed"], "speed"),
        (["--prompt", "8,x"], "--prompt"),
        (["--streams", "0"], "streams"),
        (["--repeat", "0"], "repeat"),
        (["--output", "/no/such/folder/bench.json"], "does not exist"),
        (["--prompt", "5000"], "1024"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_bad_arguments_end_before_anything_is_measured(
    arguments: list[str], message: str, checkpoint: Make, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr("lluda.bench.runner.run_worker", lambda *_: pytest.fail("something was measured"))
    assert main(["bench", "-m", str(checkpoint(TINY_QWEN3)), *arguments]) == 2
    assert message in capsys.readouterr().err


def test_a_bandwidth_that_cannot_be_measured_any_more_costs_no_results(
    checkpoint: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The workers are played: one engine's, and the machine's own, which fails from its second turn on."""
    turns: list[str] = []

    def run_worker(job: Job, timeout: float, module: str = WORKER) -> WorkerResult:
        turns.append(module)
        if module == WORKER:
            return WorkerResult(samples=[Sample("tg4", 10.0, "tok/s")], info=EngineInfo("BF16", 2.0, "played"))
        if turns.count(BANDWIDTH) > 1:
            return WorkerResult(error="killed by SIGKILL")
        return WorkerResult(samples=[Sample("bandwidth", 20.0, "GB/s")], info=EngineInfo("", 0.0, "played"))

    monkeypatch.setattr("lluda.bench.runner.run_worker", run_worker)
    report = run_bench(str(checkpoint(TINY_QWEN3)), Settings(plan=PLAN, repeat=2))
    assert [row.samples for row in report.rows] == [(10.0, 10.0)]
    assert report.bandwidth == Bandwidth(20.0, 20.0, 20.0, "played; 2 measurements failed")
    assert report.rows[0].roofline_fraction == pytest.approx(10 * 2 * report.model.weights_per_step / 20e9)
    monkeypatch.setattr("lluda.bench.runner.run_worker", lambda *_: WorkerResult(error="killed by SIGKILL"))
    with pytest.raises(LludaError, match="bandwidth could not be measured: killed by SIGKILL"):
        run_bench(str(checkpoint(TINY_QWEN3)), Settings(plan=PLAN, repeat=2))


def test_auto_is_the_best_device_here(checkpoint: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def required(_path: Path, _config: object, settings: Settings) -> None:
        asked.append(settings.device)
        raise LludaError("nothing is to be measured")

    monkeypatch.setattr("lluda.bench.runner.best_device", lambda: "cuda:3")
    monkeypatch.setattr("lluda.bench.runner._require_runnable", required)
    with pytest.raises(LludaError, match="nothing is to be"):
        run_bench(str(checkpoint(TINY_QWEN3)), Settings(device="auto"))
    assert asked == ["cuda:3"]


def test_settings_out_of_range_are_refused() -> None:
    for wrong in ({"repeat": 0}, {"timeout": 0.0}, {"threads": 0}, {"against": ("vllm",)}, {"formats": ("Q1",)}):
        with pytest.raises(InvalidRequest):
            Settings(**wrong)  # type: ignore[arg-type]


def test_prompts_longer_than_the_context_are_refused_with_both_numbers(checkpoint: Make) -> None:
    with pytest.raises(LimitExceeded, match=r"1101.*1024"):
        run_bench(str(checkpoint(TINY_QWEN3)), Settings(plan=Plan(prompts=(1100,))))
