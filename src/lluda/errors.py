"""Everything lluda raises on purpose: one hierarchy, imported by all, importing nothing of ours.

Each message names the thing, the limit or rule, the value found and the remedy. The command line prints it as one line
and exits with ``exit_code``: 2 for bad input (a file, a request), 1 for work that failed.
"""

from __future__ import annotations

import os


class LludaError(Exception):
    """Base of all errors lluda raises on purpose. Half surrogate pairs in the message (a file's name, a text of a file)
    become escapes, so that it can be printed."""

    exit_code = 1

    def __init__(self, message: str = "") -> None:
        super().__init__(message.encode("utf-8", "backslashreplace").decode())


class CorruptFile(LludaError):
    """A file that breaks a rule of its format.

    ``path`` names the file, ``rule`` says what was wrong; ``expected`` and ``found`` are shown where they help.
    """

    exit_code = 2

    def __init__(
        self, path: str | os.PathLike[str], rule: str, *, expected: object = None, found: object = None
    ) -> None:
        self.path = os.fspath(path)
        self.rule = rule
        details = [
            f"{word} {_short(value)}" for word, value in (("expected", expected), ("found", found)) if value is not None
        ]
        super().__init__(f"{self.path}: {rule}" + (f" ({', '.join(details)})" if details else ""))


class ModelNotFound(LludaError):
    """A model name or path that leads nowhere; the message says which and how to get it."""

    exit_code = 2


class UnsupportedModel(LludaError):
    """A model, or a part of its config, that lluda does not implement; the message lists what it does."""

    exit_code = 2


class InvalidRequest(LludaError, ValueError):
    """A prompt, sampling value or option out of its range."""

    exit_code = 2


class LimitExceeded(InvalidRequest):
    """A request larger than a limit (context length, template time, …); both numbers are in the message."""


class ContextExceeded(LimitExceeded):
    """A prompt, or a prompt and what it asks for, longer than the context or the KV cache."""


class DeadlineExceeded(LimitExceeded):
    """A request whose deadline passed before it could begin."""


class TemplateError(InvalidRequest):
    """A chat template that does not compile, fails, or breaks its bounds of time and output (``template_error``)."""


class NumericalError(LludaError):
    """Logits that are NaN or infinite: the model's numbers overflowed, and no token can be chosen from them."""


class RankLost(LludaError):
    """A process that held a share of the model is gone, and with it the model."""


class OutOfMemory(LludaError):
    """A plan that does not fit the memory there is; the message has needed and available bytes."""

    exit_code = 2


class MissingDependency(LludaError):
    """An optional package that a command needs; the message says how to install it."""


class NativeLibraryError(LludaError):
    """The native kernels cannot be loaded or forced as asked."""


def _short(value: object, limit: int = 160) -> str:
    """A value as text of bounded length on one line, with control characters made visible."""
    text = value if isinstance(value, str) and value.isprintable() else repr(value)
    return text if len(text) <= limit else f"{text[:limit]}…"
