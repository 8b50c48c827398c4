"""Where tiny-omni is looked for."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from lluda.errors import ModelNotFound
from lluda.weights import bundled
from lluda.weights.bundled import tiny_omni_folder
from lluda.weights.hub.sources import resolve_model

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LLUDA_TINY_OMNI", raising=False)
    monkeypatch.chdir(tmp_path)


def test_it_is_found_in_the_checkout_by_its_name() -> None:
    assert resolve_model("tiny-omni") == ROOT / "models" / "tiny-omni"


def test_the_environment_names_another_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").write_text("{}")
    monkeypatch.setenv("LLUDA_TINY_OMNI", str(tmp_path / "other"))
    assert resolve_model("tiny-omni") == tmp_path / "other"


def test_a_folder_of_that_name_wins(tmp_path: Path) -> None:
    (tmp_path / "tiny-omni").mkdir()
    (tmp_path / "tiny-omni" / "config.json").write_text("{}")
    assert resolve_model("tiny-omni") == Path("tiny-omni")


def test_a_wrong_folder_is_not_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLUDA_TINY_OMNI", str(tmp_path))
    with pytest.raises(ModelNotFound, match=r"LLUDA_TINY_OMNI is .*has no config\.json; set it .*or unset it"):
        resolve_model("tiny-omni")


def test_without_it_the_message_says_where_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bundled, "_places", lambda: [tmp_path / "a", tmp_path / "b"])
    with pytest.raises(ModelNotFound, match=r"looked in .*/a, .*/b\); .*models/tiny-omni .*set LLUDA_TINY_OMNI"):
        tiny_omni_folder()


@pytest.mark.slow
def test_the_wheel_holds_it_and_stays_under_25_mb(tmp_path: Path) -> None:
    """Built from the checkout, unpacked elsewhere, and asked there."""
    build = ["wheel", "--quiet", "--no-deps", "--no-build-isolation", "-C", f"build-dir={tmp_path / 'build'}"]
    subprocess.run([sys.executable, "-m", "pip", *build, "-w", str(tmp_path), str(ROOT)], check=True)
    (wheel,) = tmp_path.glob("*.whl")
    assert wheel.stat().st_size < 25_000_000
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    script = "from lluda.weights.bundled import tiny_omni_folder; print(tiny_omni_folder())"
    ended = subprocess.run(
        [sys.executable, "-S", "-c", f"import sys; sys.path[:0] = [{str(tmp_path / 'site')!r}]; {script}"],
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    folder = Path(ended.stdout.strip())
    assert folder == tmp_path / "site" / "lluda" / "_models" / "tiny-omni"
    wanted = {path.name: path.stat().st_size for path in (ROOT / "models" / "tiny-omni").iterdir()}
    assert {path.name: path.stat().st_size for path in folder.iterdir()} == wanted
