"""Extras: pyproject.toml and the table that errors are made of agree, and whoever lacks a package is told its extra."""

from __future__ import annotations

import io
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest

from lluda.cli.plot import require_plot
from lluda.errors import MissingDependency
from lluda.evaluation.llama_cpp_reference import require_llama_cpp
from lluda.evaluation.transformers_loading import require_transformers
from lluda.extras import EXTRAS, missing, require
from lluda.inputs.decoding.audio_samples import convert
from lluda.inputs.decoding.media_decoder import MediaDecoder
from lluda.inputs.decoding.media_file import MediaFile
from lluda.inputs.media.image_file import resized
from lluda.outputs.audio_sink import open_audio_sink
from lluda.outputs.encoded_audio import RecordingEncoder
from tests.test_names import ROOT

PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
_ONE_SECOND = np.zeros((8_000, 1), np.float32)


def test_pyproject_lists_what_the_errors_name():
    listed = {
        extra: {name for each in packages if (name := re.split(r"[<>=;\[]", each)[0]) != "lluda"}
        for extra, packages in PYPROJECT["optional-dependencies"].items()
    }
    assert listed == {extra: set(packages) for extra, packages in EXTRAS.items()}


def test_every_package_is_in_one_extra_and_not_in_the_core():
    modules = [module for packages in EXTRAS.values() for module in packages.values()]
    core = {re.split(r"[<>=;\[]", each)[0] for each in PYPROJECT["dependencies"]}
    assert len(modules) == len(set(modules))
    assert not core & {package for packages in EXTRAS.values() for package in packages}


def _open(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"not decoded")
    with path.open("rb") as file:
        MediaDecoder().open(kind, MediaFile(path, kind, file.fileno(), 11))


USES = {
    "soundfile": lambda tmp_path: open_audio_sink(str(tmp_path / "speech.wav"), 24_000),
    "soxr": lambda _: list(convert([_ONE_SECOND], 8_000, 16_000, where="audio 1")),
    "av": lambda _: RecordingEncoder("mp3", 24_000),
    "PIL": lambda _: resized(np.zeros((4, 4, 3), np.uint8), (2, 2)),
    "sounddevice": lambda _: open_audio_sink("speakers", 24_000),
    "transformers": lambda _: require_transformers(),
    "matplotlib": lambda tmp_path: require_plot(tmp_path / "plot.png"),
}


@pytest.mark.parametrize("module", USES)
def test_the_error_names_package_and_command(monkeypatch, tmp_path, module):
    monkeypatch.setitem(sys.modules, module, None)
    extra, package = next((e, p) for e, packages in EXTRAS.items() for p, name in packages.items() if name == module)
    with pytest.raises(MissingDependency, match=rf"needs {package}, which .*: pip install 'lluda\[{extra}\]'"):
        USES[module](tmp_path)


@pytest.mark.parametrize("kind", ["audio", "image", "video"])
def test_no_file_is_decoded_without_the_libraries(monkeypatch, tmp_path, kind):
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(MissingDependency, match=r"reading .*file needs av, which is not installed.*lluda\[media\]"):
        _open(tmp_path, kind)


def test_llama_cpp_as_reference(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "llama_cpp", None)
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    with pytest.raises(MissingDependency, match=r"needs llama-cpp-python, which .*lluda\[bench\]"):
        require_llama_cpp(tmp_path / "model.gguf")


@pytest.mark.parametrize(("extra", "package", "module"), [(e, p, m) for e in EXTRAS for p, m in EXTRAS[e].items()])
def test_require_finds_each_package_missing(monkeypatch, extra, package, module):
    for each in EXTRAS[extra].values():  # as if all the others were there
        monkeypatch.setitem(sys.modules, each, sys)
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingDependency, match=rf"^a thing needs {package}, .*'lluda\[{extra}\]'; or do without$"):
        require("a thing", extra, otherwise="do without")


def test_text_alone_imports_no_optional_package():
    optional = sorted({module for packages in EXTRAS.values() for module in packages.values()})
    code = (
        "import sys\n"
        f"optional = {optional}\n"
        "for each in optional: sys.modules[each] = None\n"
        "import lluda\n"
        "for name in lluda.__all__: getattr(lluda, name)\n"
        "from lluda.cli.verbs import ask, bench, chat, generate, inspect, plan, quantize, serve\n"
        "from lluda.cli.verbs import speak, talk, validate\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_wav_stream_needs_nothing(monkeypatch):
    monkeypatch.setitem(sys.modules, "soundfile", None)
    out = io.TextIOWrapper(io.BytesIO())
    monkeypatch.setattr(sys, "stdout", out)
    with open_audio_sink("-", 24_000) as sink:
        sink.write(np.zeros(10, np.float32))
    assert out.buffer.getvalue().startswith(b"RIFF")


def test_a_reason_other_than_absence_is_kept():
    assert "transformers, which cannot be imported (too old)" in str(
        missing("the reference", "transformers", reason="cannot be imported (too old)")
    )
