"""The wheel of ``make wheel`` in an empty environment (``make test-wheel``): what each extra is needed for, and does.

The tests build on each other: the environment starts with the core and gets one extra after the other.
"""

from __future__ import annotations

import signal
import subprocess
from pathlib import Path

import pytest

from lluda import __version__
from lluda.cli.options import model_or_demo
from lluda.extras import EXTRAS
from tests.serving.processes import ServerProcess
from tests.test_names import ROOT
from tests.wheel.environments import Environment

QUESTION = ROOT / "examples" / "question.flac"
CORE_DOWNLOAD = 60e6
"""Bytes that an install without extras may fetch beside torch."""


@pytest.fixture(scope="module")
def wheel() -> Path:
    found = sorted((ROOT / "dist").glob(f"lluda-{__version__}-*.whl"))
    if len(found) != 1:
        pytest.fail(f"dist/ holds {len(found)} wheels of lluda {__version__}, not one; make wheel builds it")
    return found[0]


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Environment:
    return Environment(tmp_path_factory.mktemp("wheel") / "env")


def test_the_tag_is_of_systems_that_torch_runs_on(wheel: Path) -> None:
    """Not newer than torch's own (manylinux_2_28), for any Python 3."""
    python, abi, platform = wheel.stem.split("-")[-3:]
    assert (python, abi) == ("py3", "none")
    assert platform.removeprefix("manylinux_2_").split("_")[0] in {"17", "24", "26", "27", "28"}, platform


def test_the_core_installs_from_few_bytes(environment: Environment, wheel: Path, tmp_path: Path) -> None:
    files = environment.download(wheel, tmp_path)
    assert any(file.name == wheel.name for file in files) and len(files) > 5
    assert sum(file.stat().st_size for file in files) <= CORE_DOWNLOAD, [file.name for file in files]
    environment.pip("install", "--quiet", "--no-compile", "--no-index", "--find-links", tmp_path, wheel)
    environment.pip("check")
    assert environment.python("import lluda; print(lluda.__file__)").startswith(str(environment.site))
    assert environment.run(environment.lluda, "--version").stdout == f"lluda {__version__}\n"
    for packages in EXTRAS.values():
        for module in packages.values():
            found = environment.python(f"from importlib.util import find_spec; print(find_spec({module!r}))")
            assert found == "None\n", f"the core brings {module}"


def test_the_core_generates_asks_and_speaks(environment: Environment) -> None:
    text = environment.run(
        environment.lluda, "generate", "-m", model_or_demo(None), "--max-tokens", "12", "What is the capital of France?"
    )
    assert "Paris" in text.stdout
    answer = environment.run(environment.lluda, "ask", "What is two plus three?")
    assert "five" in answer.stdout and "cpu backend" in answer.stderr  # the library in the wheel
    assert environment.run(environment.lluda, "inspect", "tiny-omni").stdout


@pytest.mark.parametrize(
    ("extra", "command"),
    [
        ("media", ["ask", "--audio", QUESTION]),
        ("media", ["speak", "Good morning.", "-o", "hello.wav"]),
        ("serve", ["serve"]),
        ("speakers", ["talk"]),
        ("wgpu", ["ask", "--device", "wgpu", "Hello."]),
        ("validate", ["validate", "-m", "tiny-omni", "--reference", "transformers"]),
    ],
)
def test_without_an_extra_its_install_is_named(environment: Environment, extra: str, command: list[str | Path]) -> None:
    said = environment.run(environment.lluda, *command, code=1).stderr
    assert f"pip install 'lluda[{extra}]'" in said.splitlines()[-1]


def test_media_brings_recordings_in_and_out(environment: Environment) -> None:
    environment.install("lluda[media]")
    environment.run(environment.lluda, "ask", "--audio", QUESTION, "--speak", "answer.wav")
    heard = environment.run(environment.lluda, "ask", "--audio", "answer.wav", "Write what you hear.").stdout
    assert "cub" in heard


def test_serve_answers(environment: Environment) -> None:
    environment.install("lluda[serve]")
    command = [str(environment.lluda), "serve", "--port", "0"]
    process = subprocess.Popen(command, env=environment.variables(), stderr=subprocess.PIPE, text=True)
    server = ServerProcess(process)
    try:
        server.wait_for("ready")
        assert server.get("/v1/models").json()["data"][0]["id"] == "tiny-omni"
        assert "<html" in server.get("/").text
        server.signal(signal.SIGTERM)
        assert server.end() == 0
    finally:
        process.kill()
    said = environment.run(environment.lluda, "serve", "--replicas", "2", code=1).stderr
    assert "pip install 'lluda[ray]'" in said


@pytest.mark.parametrize("extra", sorted(EXTRAS.keys() - {"bench"}))
def test_every_extra_installs_and_imports(environment: Environment, extra: str) -> None:
    """``bench`` is left out: llama.cpp is compiled for minutes (make test-slow has it)."""
    environment.install(f"lluda[{extra}]")
    modules = set(EXTRAS[extra].values()) - {"sounddevice"}  # wants PortAudio, which a system may lack
    for module in modules:
        environment.python(f"import {module}")
    environment.pip("check")
