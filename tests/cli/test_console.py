from __future__ import annotations

import io
import sys

from hypothesis import given
from hypothesis import strategies as st

from lluda.cli.console import byte_progress, one_line, say


@given(st.text(st.characters(codec=None)))
def test_one_line_is_one_printable_line(text):
    shown = one_line(text)
    assert shown.isprintable()
    assert shown == one_line(shown)


def test_one_line_keeps_what_can_be_shown():
    assert one_line("  näh 東京 🐳\n\tzwei ") == "näh 東京 🐳 zwei"


def test_say_goes_to_stderr_with_the_name(capsys):
    say("a\nb", "lluda verb")
    assert capsys.readouterr() == ("", "lluda verb: a b\n")


def test_say_survives_a_closed_pipe(monkeypatch):
    class Gone(io.StringIO):
        def write(self, _: str) -> int:
            raise BrokenPipeError

    monkeypatch.setattr(sys, "stderr", Gone())
    say("not printed")


def test_progress_is_drawn_on_a_terminal_and_wiped_off(monkeypatch, capsys):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    with byte_progress("loading") as progress:
        progress(25_000_000, 100_000_000)
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "loading" in printed.err
    assert "25 of 100 MB" in printed.err
    assert printed.err.endswith("\x1b[2K")


def test_progress_is_not_drawn_elsewhere(monkeypatch, capsys):
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    with byte_progress("loading") as progress:
        progress(1, 2)
    assert capsys.readouterr() == ("", "")
