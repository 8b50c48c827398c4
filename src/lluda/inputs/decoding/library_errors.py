"""Exceptions of the media libraries, turned into errors of lluda."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from lluda.errors import CorruptFile, LludaError

_USUAL = (OSError, ValueError, RuntimeError, EOFError, SyntaxError)
"""What a library means to raise for a bad file. Of anything else the error names the type."""


@contextmanager
def library_errors(path: Path, rule: str | Callable[[], str]) -> Iterator[None]:
    """Whatever is raised inside becomes CorruptFile with ``path`` and ``rule`` (or what it returns), but for errors
    that are lluda's own, a lack of memory, and broken assertions of our code."""
    try:
        yield
    except (LludaError, MemoryError, AssertionError):
        raise
    except Exception as error:
        found = None if isinstance(error, _USUAL) else type(error).__name__
        raise CorruptFile(path, rule if isinstance(rule, str) else rule(), found=found) from None
