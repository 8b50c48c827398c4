"""``lluda serve``: what is said and refused before anything is loaded (tests/serving has the rest)."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from lluda.cli.main import main
from lluda.serving.limits import Limits


def test_limits_are_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "--print-limits", "--limit", "running=2"]) == 0
    assert capsys.readouterr().out == Limits(running=2).table() + "\n"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--limit", "speed=3"], "no limit is called 'speed'; --print-limits shows them"),
        (["--limit", "running=fast"], "'fast' is not a number"),
        (["--port", "70000"], "--port must be from 0 to 65535, not 70000"),
        (["--api-key-file", "no/such/file"], "no/such/file: the API keys cannot be read"),
        (["-m", "no/such/folder/here"], "no/such/folder/here"),
        (["--port", "0", "--host", "192.0.2.1"], "no address of this machine"),
        (["--port", "0", "--replicas", "many"], "--replicas many: say how many, as --replicas 3"),
        (["--port", "0", "--replicas", "4:1"], "no fewer than the least, not 4 to 1"),
    ],
)
def test_what_cannot_be_served_is_one_line(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["serve", *arguments]) == 2
    *_, last = capsys.readouterr().err.splitlines()
    assert last.startswith("lluda serve: ") and said in last


def test_replicas_need_ray(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    assert main(["serve", "--port", "0", "--replicas", "2"]) == 1
    said = capsys.readouterr().err
    assert "lluda serve --replicas needs ray, which is not installed; get it with: pip install 'lluda[ray]'" in said


def test_extra_that_is_not_installed_is_named(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "starlette", None)
    assert main(["serve"]) == 1
    assert "lluda serve needs starlette, which is not installed; get it with: pip install 'lluda[serve]'" in (
        capsys.readouterr().err
    )
