from __future__ import annotations

import errno
import os
import re
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import lluda as package
from lluda.cli.main import VERBS
from lluda.cli.main import main as package_main

COMMAND = [sys.executable, "-m", "lluda.cli.main"]
HEAVY = "torch numpy transformers tokenizers huggingface_hub jinja2 rich".split()


def test_help_names_every_verb(lluda):
    printed = lluda("--help")
    assert (printed.code, printed.err) == (0, "")
    assert all(re.search(rf"^    {verb}\s+\w", printed.out, re.MULTILINE) for verb in VERBS)


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_explains_itself(lluda, verb):
    printed = lluda(verb, "--help")
    assert (printed.code, printed.err) == (0, "")
    assert printed.out.startswith(f"usage: lluda {verb} ")
    undocumented = re.findall(r"^  (-\S+(?: \S+)?|\w+)$\n(?!  {10})", printed.out, re.MULTILINE)
    assert undocumented == []


def test_version(lluda):
    assert lluda("--version").out == f"lluda {package.__version__}\n"


def test_no_verb_prints_the_usage_as_an_error(lluda):
    printed = lluda()
    assert (printed.code, printed.out) == (2, "")
    assert printed.err.startswith("usage: lluda ")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["frobnicate"], "lluda: error: argument VERB: invalid choice: 'frobnicate'"),
        (["--frob"], "lluda: error: unrecognized arguments: --frob (see lluda --help)"),
        (["inspect", "x", "--frob"], "lluda inspect: error: unrecognized arguments: --frob (see lluda inspect --help)"),
        (["inspect", "x", "--fil", "*"], "lluda inspect: error: unrecognized arguments: --fil"),
        (
            ["generate", "hi", "-n", "many"],
            "lluda generate: error: argument -n/--max-tokens: invalid int value: 'many'",
        ),
        (["generate", "hi", "--a\nb\x1b[1m"], r"lluda generate: error: unrecognized arguments: --a b\x1b[1m"),
        (["generate"], "lluda generate: no prompt given: give a text, - to read it from stdin, or --messages FILE"),
        (["inspect"], "lluda inspect: 0 models given; name one: lluda inspect MODEL"),
        (["plan", "a", "-m", "b"], "lluda plan: 2 models given; name one: lluda plan MODEL"),
    ],
)
def test_a_usage_error_is_one_line_and_2(lluda, arguments, message):
    printed = lluda(*arguments)
    assert (printed.code, printed.out) == (2, "")
    assert len(printed.lines) == 1
    assert printed.err.startswith(message)


def test_an_error_shows_control_characters_instead_of_obeying_them(lluda):
    printed = lluda("inspect", "\x1b[31mred\nline\r\u202e\udcff")
    assert printed.code == 2
    assert printed.err.startswith(r"lluda inspect: \x1b[31mred line \u202e\udcff: no such folder")


@pytest.mark.parametrize(
    ("raised", "code", "message"),
    [
        (KeyboardInterrupt(), 130, "stopped"),
        (BrokenPipeError(errno.EPIPE, "Broken pipe"), 0, None),
        (OSError(errno.ENOSPC, "No space left on device"), 1, "input or output: No space left on device; free disk"),
        (PermissionError(errno.EACCES, "Permission denied", "/x/y"), 1, "/x/y: Permission denied; check its permiss"),
        (OSError("odd"), 1, "input or output: odd"),
        (
            OSError(errno.EFBIG, "File too large", "/x"),
            1,
            "/x: File too large; raise the limit on the size of files (u",
        ),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), 1, "input or output: Cannot allocate memory; free memory"),
        (MemoryError(), 1, "no memory left; take a smaller --max-context"),
        (RuntimeError("std::bad_alloc"), 1, "no memory left"),
        (RuntimeError("can't start new thread"), 1, "no thread can be started; end other processes"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"), 1, "no memory left"),
        (package.OutOfMemory("too\nbig"), 2, "too big"),
        (package.LludaError("failed"), 1, "failed"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else "",
)
def test_whatever_a_verb_raises_on_purpose_is_one_line_and_a_code(lluda, monkeypatch, raised, code, message):
    def run(args):
        raise raised

    monkeypatch.setattr("lluda.cli.verbs.inspect.run", run)
    printed = lluda("inspect", "x")
    assert printed.code == code
    assert len(printed.lines) == (message is not None)
    assert message is None or printed.err.startswith(f"lluda inspect: {message}")


def test_our_own_bugs_are_not_hidden(lluda, monkeypatch):
    def run(args):
        raise RuntimeError("a bug")

    monkeypatch.setattr("lluda.cli.verbs.inspect.run", run)
    with pytest.raises(RuntimeError, match="a bug"):
        lluda("inspect", "x")


def test_help_inspect_and_refusals_import_nothing_heavy(model, tmp_path):
    """All in one process, so that what any of them imports is seen."""
    code = (
        "import sys; from lluda.cli.main import VERBS, main\n"
        "for verb in VERBS: assert main([verb, '--help']) == 0\n"
        "assert main(['--help']) == main(['--version']) == 0\n"
        f"assert main(['inspect', {str(model)!r}]) == main(['inspect', {str(model)!r}, '--json']) == 0\n"
        f"assert main(['inspect', {str(tmp_path)!r}]) == main(['generate', 'hi', '-m', {str(tmp_path)!r}]) == 2\n"
        f"assert main(['chat', '-t', '-1']) == main(['synth', {str(tmp_path)!r}, 'x']) == 2\n"
        f"print([name for name in {HEAVY} if name in sys.modules], file=sys.stderr)"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stderr.splitlines()[-1] == "[]"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_a_full_disk_under_stdout_is_one_line_and_1(model):
    with Path("/dev/full").open("w") as full:
        ended = subprocess.run(
            [*COMMAND, "inspect", model], stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    assert ended.returncode == 1
    assert ended.stderr == "lluda inspect: input or output: No space left on device; free disk space\n"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
@pytest.mark.parametrize("buffered", [True, False])
@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["generate", "--help"]], ids=" ".join)
def test_help_that_stdout_does_not_take_is_a_failure(monkeypatch, capsys, arguments, buffered):
    """argparse itself drops the error, and exits with 0."""
    with Path("/dev/full").open("w") as full:
        full.reconfigure(write_through=not buffered)
        monkeypatch.setattr(sys, "stdout", full)
        assert package_main(arguments) == 1
    assert capsys.readouterr().err.endswith("input or output: No space left on device; free disk space\n")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
@pytest.mark.parametrize("arguments", [[], ["--frob"], ["inspect", "absent"]], ids=str)
def test_an_error_that_stderr_does_not_take_has_its_code(monkeypatch, arguments):
    with Path("/dev/full").open("w") as full:
        full.reconfigure(write_through=True)
        monkeypatch.setattr(sys, "stderr", full)
        assert package_main(arguments) == 2


def test_a_deleted_working_directory_is_named(lluda, model, tmp_path, monkeypatch):
    """Intel's MKL ends the process there with a line of its own."""
    monkeypatch.chdir(tmp_path)
    gone = tmp_path / "gone"
    gone.mkdir()
    os.chdir(gone)
    gone.rmdir()
    for arguments in (["inspect", model], ["generate", "-m", model, "hi"], ["bench", "-m", model, "--output", "a"]):
        printed = lluda(*arguments)
        assert (printed.code, printed.out, len(printed.lines)) == (1, "", 1)
        assert "the working directory cannot be used: No such file or directory; change to one that" in printed.err
    assert lluda("--help").code == 0


@pytest.mark.parametrize("verb", ["plan", "generate", "quantize", "bench", "validate", "perplexity"])
def test_too_little_address_space_is_told_before_torch_is_imported(lluda, model, monkeypatch, verb):
    """OpenBLAS ends the process there with a line of its own."""
    monkeypatch.setattr("resource.getrlimit", lambda _: (300 << 20, 300 << 20))
    more = {
        "plan": [], "generate": ["hi"], "quantize": ["-o", "x.gguf", "--type", "bf16"], "bench": [], "validate": [],
        "perplexity": ["--text", str(model / "config.json")],
    }[verb]  # fmt: skip
    printed = lluda(verb, "-m", model, *more)
    assert (printed.code, printed.out, len(printed.lines)) == (1, "", 1)
    assert "address space is limited to 314,572,800 bytes (ulimit -v), in which torch cannot start" in printed.err


def test_kernels_of_shapes_that_come_once_are_not_kept_for_good(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server's memory grew with each turn that somebody spoke. What the user set stays."""
    from lluda.cli.heavy_imports import heavy_imports

    monkeypatch.delenv("LRU_CACHE_CAPACITY", raising=False)
    monkeypatch.setenv("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "7")
    with heavy_imports():
        kept = {name: os.environ.pop(name) for name in ("LRU_CACHE_CAPACITY", "ONEDNN_PRIMITIVE_CACHE_CAPACITY")}
    assert kept == {"LRU_CACHE_CAPACITY": "64", "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "7"}


def test_an_import_that_fails_under_a_limit_names_the_limit(monkeypatch):
    from lluda.cli.heavy_imports import heavy_imports

    monkeypatch.setattr("resource.getrlimit", lambda _: (1 << 45, 1 << 45))
    with pytest.raises(package.LludaError, match="address space is limited"), heavy_imports():
        raise ImportError("libtorch_cpu.so: failed to map segment from shared object")
    monkeypatch.setattr("resource.getrlimit", lambda _: (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    with pytest.raises(ImportError), heavy_imports():
        raise ImportError("a bug")


def test_file_names_leave_as_the_bytes_they_have(model, tmp_path):
    """In a locale whose encoding is ASCII (the C locale without Python's UTF-8 mode)."""
    environment = os.environ | {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    arguments = ["synth", os.fsencode(model), os.fsencode(tmp_path / "\u00f6ut")]
    ended = subprocess.run([*COMMAND, *arguments], capture_output=True, env=environment, check=False)
    assert ended.returncode == 0, ended.stderr
    files = ended.stdout.splitlines()
    assert os.fsencode(tmp_path / "\u00f6ut" / "config.json") in files
    assert all(Path(os.fsdecode(file)).is_file() for file in files)


def test_a_reader_that_leaves_is_no_error(model):
    reading, writing = os.pipe()
    os.close(reading)
    ended = subprocess.run(
        [*COMMAND, "inspect", model, "--json"], stdout=writing, stderr=subprocess.PIPE, text=True, check=False
    )
    os.close(writing)
    assert (ended.returncode, ended.stderr) == (0, "")


def test_closed_streams_are_not_missed(model):
    command = 'exec "$@" <&- >&- 2>&-'
    ended = subprocess.run(["sh", "-c", command, "sh", *COMMAND, "inspect", "--json", str(model)], check=False)
    assert ended.returncode == 0


def test_what_the_terminal_cannot_show_is_escaped(tmp_path):
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    ended = subprocess.run(
        [*COMMAND, "inspect", str(tmp_path / "é")], capture_output=True, text=True, env=environment, check=False
    )
    assert ended.returncode == 2
    assert r"\xe9: no such folder" in ended.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
def test_ctrl_c_during_a_heavy_import_ends_the_process_without_a_traceback(model, tmp_path):
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text("import time; print('importing', flush=True); time.sleep(60)")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}
    with subprocess.Popen(
        [*COMMAND, "generate", "-m", model, "hi"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment
    ) as process:
        assert process.stdout.readline() == b"importing\n"
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=30) == (b"", b"")
    assert process.returncode == -signal.SIGINT
