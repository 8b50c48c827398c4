"""How soon an answer begins, measured on a tiny Omni model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from lluda.bench.measured import listening
from lluda.bench.process.job import Plan
from lluda.bench.runner import Settings, run_bench
from lluda.cli.main import main
from lluda.weights.model_folder import VOCABULARIES
from tests.bench.test_speech import job_for
from tests.cli.omni import write_omni, write_speaking_omni
from tests.conftest import TINY_QWEN3

NAMES = [f"listen{seconds}{how}" for seconds in listening.SECONDS for how in ("_at_once", "", "_expected")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_speaking_omni(tmp_path_factory.mktemp("omni") / "speaking")


def test_a_run_has_the_first_token_and_the_first_sound_of_each_turn(folder: Path) -> None:
    settings = Settings(plan=Plan(tests=("listen",)), repeat=1, threads=1, timeout=600)
    report = run_bench(str(folder), settings)
    assert [(state.status, state.format) for state in report.engines] == [("ok", "BF16")], report.engines
    units = {row.test: row.unit for row in report.rows}
    works = {f"listen{seconds}_work": "of real time" for seconds in listening.SECONDS}
    assert units == works | {f"{name}_{what}": "s" for name in NAMES for what in ("token", "sound")}
    median = {row.test: row.median for row in report.rows}
    assert all(0 < median[f"{name}_token"] < median[f"{name}_sound"] for name in NAMES)


# Failed once in a whole run, where nothing was taken over, and not again in dozens; a listener's error is raised now.
@pytest.mark.slow
def test_what_was_heard_before_is_not_computed_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The prompts' rows that are computed between the last sample and the first token, one a turn."""
    left: list[int] = []
    answered = listening._answered

    def counted(model, name, sound):  # type: ignore[no-untyped-def]
        before = model.engine.stats().reused_tokens
        yield from answered(model, name, sound)
        left.append(model.engine.stats().reused_tokens - before)

    monkeypatch.setattr(listening, "_answered", counted)
    monkeypatch.setattr(listening, "SECONDS", (17,))
    list(listening.measure_listening(job_for(folder, "listen"), lambda _session: None))
    at_once, heard, expected = left[3:]
    assert at_once == 0
    assert expected - heard > 13
    assert heard > 2 * 104


def test_a_model_that_does_not_speak_has_no_first_sound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listening, "SECONDS", (1,))
    job = job_for(write_omni(tmp_path / "hears"), "listen")
    found = [sample.test for sample in listening.measure_listening(job, lambda _session: None)]
    assert found == ["listen1_at_once_token", "listen1_work", "listen1_token", "listen1_expected_token"]


def test_random_weights_need_a_tokenizer_but_no_file_of_weights(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(listening, "SECONDS", (1,))
    for path in folder.iterdir():
        if path.suffix != ".safetensors":
            (tmp_path / path.name).write_bytes(path.read_bytes())
    job = replace(job_for(tmp_path, "listen"), random=True, rounds=2)
    found = [sample.test for sample in listening.measure_listening(job, lambda _session: None)]
    assert found.count("listen1_at_once_sound") == found.count("listen1_expected_sound") == 2
    for name in VOCABULARIES:
        (tmp_path / name).unlink(missing_ok=True)
    assert main(["bench", "--synth", str(tmp_path), "--device", "cpu", "--tests", "listen"]) == 2
    assert "listen needs a tokenizer and a template: copy" in capsys.readouterr().err


def test_what_cannot_listen_is_refused(checkpoint: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "-m", str(checkpoint(TINY_QWEN3)), "--tests", "listen"]) == 2
    assert "needs an Omni model" in capsys.readouterr().err
