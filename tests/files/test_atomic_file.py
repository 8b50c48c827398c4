"""Files that appear whole or not at all, and concurrent writers: threads, processes, and killed ones."""

from __future__ import annotations

import errno
import fcntl
import io
import os
import resource
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import pytest

from lluda.convert.gguf_writer import NewTensor, write_gguf
from lluda.errors import InvalidRequest, LludaError
from lluda.files.atomic_file import atomic_file
from lluda.files.new_folder import MARKER, new_folder
from tests.cli.conftest import lluda, write_model

__all__ = ["lluda"]  # fixture

BUSY = "another process is writing it"


def written(path: Path, data: bytes = b"mine", **options) -> Path:
    with atomic_file(path, **options) as file:
        file.write(data)
    return path


def test_a_file_appears_when_it_is_whole_and_replaces_another(tmp_path):
    path = written(tmp_path / "a", b"older")
    with atomic_file(path) as file:
        file.write(b"newer")
        assert path.read_bytes() == b"older"
    assert path.read_bytes() == b"newer"
    assert file.closed
    assert list(tmp_path.iterdir()) == [path]


def test_a_failure_leaves_what_was_there(tmp_path):
    path = written(tmp_path / "a", b"older")
    with pytest.raises(KeyboardInterrupt), atomic_file(path) as file:
        file.write(b"newer")
        raise KeyboardInterrupt
    assert path.read_bytes() == b"older"
    assert list(tmp_path.iterdir()) == [path]


def test_without_replace_what_is_there_is_refused_also_when_it_appears_meanwhile(tmp_path, monkeypatch):
    path = written(tmp_path / "a", replace=False)
    with pytest.raises(InvalidRequest, match="a: exists"):
        written(path, b"newer", replace=False)
    for links in (True, False):
        if not links:  # a file system that has none
            monkeypatch.setattr(Path, "hardlink_to", _not_permitted)
        path.unlink()
        with pytest.raises(InvalidRequest, match="a: exists"), atomic_file(path, replace=False) as file:
            file.write(b"newer")
            path.write_bytes(b"another's")
        assert path.read_bytes() == b"another's"
        assert list(tmp_path.iterdir()) == [path]
    path.unlink()
    assert written(path, replace=False).read_bytes() == b"mine", "without hard links"


def _not_permitted(*_):
    raise PermissionError(errno.EPERM, "Operation not permitted")


def test_of_two_writers_one_wins_and_the_other_says_so(tmp_path):
    path = tmp_path / "a"
    with atomic_file(path) as file:
        file.write(b"first")
        with pytest.raises(LludaError, match=f"a: {BUSY}; wait"):
            written(path, b"second")
        file.write(b" and whole")
    assert path.read_bytes() == b"first and whole"


def test_many_writers_never_mix(tmp_path):
    """Threads race for one name; whoever is let in writes its own letter only."""
    path, done, refused = tmp_path / "a", [], []

    def write(letter: bytes) -> None:
        for _ in range(25):
            try:
                with atomic_file(path) as file:
                    for _ in range(3):
                        file.write(letter * 5000)
                        file.flush()
                done.append(letter)
            except LludaError as error:
                refused.append(str(error))
            if path.exists():
                found = path.read_bytes()
                assert (len(found), len(set(found))) == (15000, 1)

    threads = [threading.Thread(target=write, args=(letter,)) for letter in (b"a", b"b", b"c", b"d")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(done) + len(refused) == 100, "no thread failed"
    assert done
    assert all(BUSY in message for message in refused)
    assert list(tmp_path.iterdir()) == [path]


def test_what_a_killed_writer_left_is_removed(tmp_path):
    path = tmp_path / "a"
    code = (
        "import os, signal, sys; from pathlib import Path; from lluda.files.atomic_file import atomic_file\n"
        "with atomic_file(Path(sys.argv[1])) as file:\n"
        "    file.write(b'half'); file.flush(); os.kill(os.getpid(), signal.SIGKILL)"
    )
    assert subprocess.run([sys.executable, "-c", code, path], check=False).returncode == -9
    assert [file.name for file in tmp_path.iterdir()] == [".a.partial"]
    assert written(path).read_bytes() == b"mine"
    assert list(tmp_path.iterdir()) == [path]


def test_where_there_are_no_locks_a_leftover_is_not_touched(tmp_path, monkeypatch):
    def unsupported(*_):
        raise OSError(errno.ENOTSUP, "Operation not supported")

    monkeypatch.setattr(fcntl, "flock", unsupported)
    assert written(tmp_path / "a").read_bytes() == b"mine"
    (tmp_path / ".b.partial").write_bytes(b"somebody's")
    with pytest.raises(LludaError, match=r"b: \.b\.partial beside it .* remove it and try again"):
        written(tmp_path / "b")
    assert (tmp_path / ".b.partial").read_bytes() == b"somebody's"


def test_what_is_in_the_way_is_named(tmp_path):
    (tmp_path / ".a.partial").mkdir()
    with pytest.raises(LludaError, match=r"a: cannot be written: .*\.a\.partial: Is a directory"):
        written(tmp_path / "a")


def test_a_folder_has_one_writer_and_a_killed_ones_files_are_removed(tmp_path):
    out = tmp_path / "out"
    with new_folder(out) as folder:
        folder.write_json("a.json", {})
        with pytest.raises(LludaError, match=f"out: {BUSY}"), new_folder(out):
            pass
    assert [file.name for file in out.iterdir()] == ["a.json"]
    with pytest.raises(InvalidRequest, match="is not empty"), new_folder(out):
        pass
    # As a killed writer leaves it; the last name is none of a file in the folder.
    (tmp_path / "mine").write_text("mine")
    (out / MARKER).write_bytes(b"a.json\0b.bin\0../mine\0")
    (out / ".b.bin.partial").write_bytes(b"half")
    with new_folder(out) as folder:
        folder.write_json("c.json", {})
    assert [file.name for file in out.iterdir()] == ["c.json"]
    assert (tmp_path / "mine").read_text() == "mine"


# The verbs: one in a process of its own stands still in the midst of its work, the other runs in this process.

VERBS = {
    "quantize": ("lluda.cli.verbs.quantize", ["quantize", "-m", "{model}", "-o", "{out}.gguf", "--type", "q8_0"]),
    "pack": ("lluda.cli.verbs.pack", ["pack", "-m", "{model}", "{out}"]),
    "synth": ("lluda.cli.verbs.synth", ["synth", "{model}", "{out}"]),
}
WAITING = """
import sys
from contextlib import contextmanager
from importlib import import_module
from lluda.cli.main import main

@contextmanager
def progress(label):
    def show(done, total):
        if not stood:
            stood.append(done)
            print("in the midst", file=sys.stderr, flush=True)
            sys.stdin.readline()
    stood = []
    yield show

import_module(sys.argv[1]).byte_progress = progress
sys.exit(main(sys.argv[2:]))
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return write_model(tmp_path_factory.mktemp("writers") / "model")


def contents(path: Path) -> dict[str, bytes]:
    return {str(file.relative_to(path)): file.read_bytes() for file in sorted(path.rglob("*")) if file.is_file()}


@contextmanager
def in_the_midst(verb: str, arguments: list[str]) -> Iterator[subprocess.Popen[str]]:
    """The verb in a process that goes on at the next line on its stdin."""
    with subprocess.Popen(
        [sys.executable, "-c", WAITING, VERBS[verb][0], *arguments],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    ) as process:  # fmt: skip
        assert process.stderr is not None
        assert "in the midst" in process.stderr.readline()
        yield process


def arguments_of(verb: str, model: Path, folder: Path) -> list[str]:
    folder.mkdir(exist_ok=True)
    return [argument.format(model=model, out=folder / "out") for argument in VERBS[verb][1]]


@pytest.mark.parametrize("verb", VERBS)
def test_two_processes_with_one_output(lluda, model, tmp_path, verb):
    alone, both = tmp_path / "alone", tmp_path / "both"
    assert lluda(*arguments_of(verb, model, alone)).code == 0
    with in_the_midst(verb, arguments_of(verb, model, both)) as first:
        second = lluda(*arguments_of(verb, model, both))
        assert (second.code, second.out, len(second.lines)) == (1, "", 1)
        assert BUSY in second.err
        first.communicate("\n", timeout=120)
    assert first.returncode == 0
    assert contents(both) == contents(alone)


@pytest.mark.parametrize("verb", VERBS)
def test_a_verb_that_was_killed_can_be_run_again(lluda, model, tmp_path, verb):
    arguments = arguments_of(verb, model, tmp_path)
    with in_the_midst(verb, arguments) as killed:
        killed.kill()
    assert contents(tmp_path)
    again = lluda(*arguments)
    assert again.code == 0, again.err
    assert sorted(contents(tmp_path)) == sorted(line.removeprefix(f"{tmp_path}/") for line in again.out.splitlines())


@pytest.mark.parametrize("verb", VERBS)
def test_a_limit_on_the_size_of_files_is_told_with_its_remedy(lluda, model, tmp_path, verb):
    """RLIMIT_FSIZE, as ulimit -f sets it: write(2) fails with EFBIG. A writable folder is no remedy for that."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, before[1]))
    try:
        ended = lluda(*arguments_of(verb, model, tmp_path))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert (ended.code, ended.out, len(ended.lines)) == (1, "", 1)
    assert "cannot be written: File too large; raise the limit on the size of files (ulimit -f)" in ended.err
    assert not list(tmp_path.iterdir())


def test_no_part_of_a_split_model_appears_before_all_are_written(tmp_path):
    listings = []

    def write(file: BinaryIO) -> str:
        listings.append(sorted(path.name for path in tmp_path.iterdir() if not path.name.startswith(".")))
        file.write(bytes(400))
        return "F32"

    def check() -> None:
        write(io.BytesIO())
        raise LludaError("the source changed")

    tensors = [NewTensor(f"t{index}", (100,), "F32", 400, write) for index in range(3)]
    with pytest.raises(LludaError, match="the source changed"):
        write_gguf(tmp_path / "a.gguf", {}, tensors, split_bytes=400, check=check)
    assert listings == [[]] * 4
    assert not list(tmp_path.iterdir())
    files = write_gguf(tmp_path / "a.gguf", {}, tensors, split_bytes=400)
    assert sorted(tmp_path.iterdir()) == files == [tmp_path / f"a-0000{part}-of-00003.gguf" for part in (1, 2, 3)]
