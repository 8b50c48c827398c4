"""A checkpoint that another program shortens while it is used: the system answers a lost page of a map with SIGBUS,
which ends a process without a word. Each case truncates a real file under a real map, in a process of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from lluda.errors import LludaError
from lluda.files.atomic_file import atomic_file
from lluda.files.mapped_file import MappedFile, _native_library
from tests.cli.conftest import write_model

pytestmark = pytest.mark.skipif(_native_library() is None, reason="the native library is not built")
SHORTENED = "the file was shortened while it was in use, or its disk fails; restore the file"


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return write_model(tmp_path_factory.mktemp("shortened") / "model")


def run(code: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True, check=False, timeout=120,
        env=os.environ | {"OMP_NUM_THREADS": "2"},
    )  # fmt: skip


def copied(model: Path, folder: Path) -> Path:
    for file in model.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    return folder / "model.safetensors"


def test_a_lost_page_is_one_line_and_exit_code_2(tmp_path):
    """2: that of CorruptFile, which a look before would have raised."""
    (tmp_path / "a b").write_bytes(bytes(3 << 14))
    code = """
import os, sys
from pathlib import Path
from lluda.files.mapped_file import MappedFile
mapped = MappedFile(Path(sys.argv[1])).map()
assert mapped[20000] == 0
os.truncate(sys.argv[1], 100)
print(mapped[20000])
"""
    ended = run(code, tmp_path / "a b")
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr == f"lluda: {tmp_path / 'a b'}: {SHORTENED}\n"


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_a_model_that_generates_from_a_shortened_file(model, tmp_path, backend):
    """Weights of these backends lie in the map; on the cpu backend a thread of its own may be the one to touch it."""
    weights = copied(model, tmp_path)
    code = """
import os, sys
import lluda
model = lluda.load(sys.argv[1], backend=sys.argv[3], weights="bf16", threads=2)
assert model.generate("hello", max_tokens=2, ignore_eos=True).token_ids
os.truncate(sys.argv[2], 8192)
print(model.generate("hello", max_tokens=2, ignore_eos=True).token_ids)
"""
    ended = run(code, tmp_path, weights, backend)
    assert (ended.returncode, ended.stdout) == (2, ""), ended.stderr
    assert ended.stderr == f"lluda: {weights}: {SHORTENED}\n"


@pytest.mark.parametrize("verb", [["pack"], ["quantize", "--type", "q8_0", "-o"]], ids=lambda verb: verb[0])
def test_a_source_that_is_shortened_while_it_is_converted(model, tmp_path, verb):
    """What is left is known as a killed writer's, and the retry succeeds on a whole source."""
    (tmp_path / "m").mkdir()
    weights = copied(model, tmp_path / "m")
    code = """
import os, sys
from contextlib import contextmanager
from importlib import import_module
from lluda.cli.main import main

@contextmanager
def progress(label):
    yield lambda done, total: os.truncate(sys.argv[1], 8192)

import_module("lluda.cli.verbs." + sys.argv[2]).byte_progress = progress
sys.exit(main(sys.argv[2:]))
"""
    arguments = [*verb, tmp_path / "out.gguf", "-m", tmp_path / "m"]
    ended = run(code, weights, *arguments)
    assert (ended.returncode, ended.stdout, len(ended.stderr.splitlines())) == (2, "", 1), ended.stderr
    assert str(weights) in ended.stderr
    assert not (tmp_path / "out.gguf").is_file()
    copied(model, tmp_path / "m")
    from lluda.cli.main import main

    assert main([str(argument) for argument in arguments]) == 0


def test_a_bus_error_elsewhere_meets_whoever_was_there_before(tmp_path):
    """No handler: the signal's own end."""
    for name in "ab":
        (tmp_path / name).write_bytes(bytes(1 << 16))
    code = """
import mmap, os, sys
from pathlib import Path
from lluda.files.mapped_file import MappedFile
ours = MappedFile(Path(sys.argv[1])).map()
file = open(sys.argv[2], "r+b")
theirs = mmap.mmap(file.fileno(), 0)
os.truncate(sys.argv[2], 0)
theirs[5000]
"""
    ended = run(code, tmp_path / "a", tmp_path / "b")
    assert (ended.returncode, ended.stderr) == (-signal.SIGBUS, "")


def test_a_lost_page_that_the_system_is_to_copy_is_an_error_with_its_cause(tmp_path):
    """write(2) from a lost page fails with EFAULT, "Bad address"."""
    (tmp_path / "a").write_bytes(bytes(1 << 20))
    mapped = MappedFile(tmp_path / "a").map()
    os.truncate(tmp_path / "a", 0)
    message = r"b: cannot be written: Bad address; a file that is copied was shortened"
    with pytest.raises(LludaError, match=message), atomic_file(tmp_path / "b") as file:
        file.write(memoryview(mapped))
    assert not (tmp_path / "b").exists()


def test_a_map_that_is_gone_is_watched_no_more(tmp_path, monkeypatch):
    (tmp_path / "a").write_bytes(bytes(1 << 16))
    library, ended = _native_library(), []
    unwatch = library.lluda_unwatch_mapped_file
    watches = []
    watch = library.lluda_watch_mapped_file

    class Recording:
        @staticmethod
        def lluda_watch_mapped_file(*arguments):
            watches.append(watch(*arguments))
            return watches[-1]

        @staticmethod
        def lluda_unwatch_mapped_file(handle):
            ended.append(handle)
            unwatch(handle)

    monkeypatch.setattr("lluda.files.mapped_file._native_library", lambda: Recording)
    file = MappedFile(tmp_path / "a")
    view = memoryview(file.map())
    file.close()
    assert watches and watches[0] and not ended, "the view keeps the map"
    view.release()
    del view
    assert ended == watches
