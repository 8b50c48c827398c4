"""Notes, errors and progress, all on stderr."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress


def say(text: str, name: str = "lluda") -> None:
    """``name: text`` on one line of stderr; nothing where stderr cannot be written."""
    with suppress(OSError):
        print(f"{name}: {one_line(text)}", file=sys.stderr, flush=True)


def one_line(text: str) -> str:
    """``text`` on one line, with control characters (which could steer the terminal) as their escapes."""
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode()
        for character in " ".join(text.split())
    )


@contextmanager
def byte_progress(label: str) -> Iterator[Callable[[int, int], None]]:
    """A progress bar for work counted in bytes: yields what to call with bytes done and in all. Nothing is drawn where
    stderr is no terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[amount]}"))
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(label, total=None, amount="")

        def show(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total, amount=f"{done / 1e6:,.0f} of {total / 1e6:,.0f} MB")

        yield show


@contextmanager
def count_progress(label: str) -> Iterator[Callable[[int, int], None]]:
    """As `byte_progress`, for work counted in pieces."""
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(label, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
