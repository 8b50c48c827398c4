from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from lluda.cli.interrupts import Terminated, plain_signals, terminating_signals


@pytest.fixture(autouse=True)
def _handlers():
    """Those of a fresh process, whatever started this one."""
    fresh = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL, signal.SIGHUP: signal.SIG_DFL}
    before = {number: signal.signal(number, handler) for number, handler in fresh.items()}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize(("number", "name", "code"), [(signal.SIGTERM, "SIGTERM", 143), (signal.SIGHUP, "SIGHUP", 129)])
def test_a_signal_is_an_exception_that_undoes_what_is_half_done(number, name, code):
    """Codes: 128 and the signal's number, as bash gives them (its manual, EXIT STATUS)."""
    undone = []
    with pytest.raises(Terminated, match=f"stopped by {name}") as stopped, terminating_signals():
        try:
            os.kill(os.getpid(), number)
        finally:
            undone.append(number)
    assert stopped.value.exit_code == code
    assert undone == [number]
    assert not isinstance(stopped.value, KeyboardInterrupt), "a chat would take it for the end of an answer"
    assert signal.getsignal(number) is signal.SIG_DFL


def test_what_nohup_ignores_stays_ignored():
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with terminating_signals():
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
        os.kill(os.getpid(), signal.SIGHUP)
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN


def test_plain_signals_gives_the_handlers_back():
    with terminating_signals():
        handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
        with pytest.raises(ImportError), plain_signals():
            assert signal.getsignal(signal.SIGINT) is signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
            raise ImportError
        assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers


def test_plain_signals_leaves_another_handler_alone():
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with plain_signals():
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN


def test_sigterm_in_the_midst_of_packing_leaves_nothing_and_is_one_line(model, tmp_path):
    """The signal comes from the work itself, when the first tensor is written."""
    code = (
        "import os, signal, sys; from lluda.cli.verbs import pack; from lluda.cli.main import main\n"
        "from contextlib import contextmanager\n"
        "@contextmanager\n"
        "def progress(label): yield lambda done, total: os.kill(os.getpid(), signal.SIGTERM)\n"
        "pack.byte_progress = progress\n"
        f"sys.exit(main(['pack', '-m', {str(model)!r}, {str(tmp_path / 'out')!r}]))"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120)
    assert (ended.returncode, ended.stdout, ended.stderr) == (143, "", "lluda pack: stopped by SIGTERM\n")
    assert not (tmp_path / "out").exists()
