"""The child process that renders chat templates: a template is code from a download, so it runs where it can be killed.

Run as a script, with nothing of lluda imported. Standard input is a socket; requests and answers go over it as a 4-byte
big-endian length and that many bytes of JSON. The first answer, ``{"ready": true}``, says that the worker is up.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import re
import signal
import socket
import struct
from collections.abc import Mapping
from typing import Any, Protocol

import jinja2
import jinja2.exceptions
import jinja2.ext
import jinja2.sandbox

MAX_MEMORY = 512 * 2**20


def main() -> None:
    """Answer requests until the other end closes."""
    channel = socket.socket(fileno=0)
    _limit_resources()
    renderer = _Renderer()
    channel.sendall(framed({"ready": True}))
    with contextlib.suppress(EOFError, ConnectionError):
        while True:
            request = receive(channel)
            # Should the parent die and leave a template running, the default action of the alarm ends it.
            signal.setitimer(signal.ITIMER_REAL, request["seconds"] + 1.0)
            channel.sendall(framed(renderer.answer(request)))
            signal.setitimer(signal.ITIMER_REAL, 0)


class Channel(Protocol):
    """The two operations of a socket that messages need."""

    def sendall(self, data: bytes, /) -> None:
        """Send all of ``data``."""

    def recv(self, size: int, /) -> bytes:
        """At most ``size`` bytes; none when the other end closed."""
        ...


def framed(message: Mapping[str, Any]) -> bytes:
    """The bytes of one message. TypeError or ValueError: not JSON values."""
    body = json.dumps(message).encode()
    return struct.pack(">I", len(body)) + body


def receive(channel: Channel, max_bytes: int = 2**32) -> Any:
    """The next message. EOFError: the other end closed. ValueError: over ``max_bytes``, or not JSON."""
    (size,) = struct.unpack(">I", _read(channel, 4))
    if size > max_bytes:
        raise ValueError(f"a message of {size} bytes")
    return json.loads(_read(channel, size))


def _read(channel: Channel, size: int) -> bytes:
    parts = []
    while size:
        part = channel.recv(min(size, 2**20))
        if not part:
            raise EOFError
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


class _Renderer:
    """Keeps the last template compiled."""

    def __init__(self) -> None:
        self._environment = _environment()
        self._source: str | None = None
        self._template: jinja2.Template | None = None

    def answer(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """``{"text"}``, or ``{"error", "line"}``; ``"worn"`` says that this process should not be used again."""
        try:
            return {"text": self._render(request["source"], request["variables"], request["max_output"])}
        except jinja2.TemplateSyntaxError as error:
            return {"error": f"syntax error: {error.message}", "line": error.lineno}
        except MemoryError:
            return {"error": f"it needs more than {MAX_MEMORY // 2**20} MiB of memory", "worn": True}
        except RecursionError as error:
            return {"error": "it recurses without end", "line": _line(error)}
        except Exception as error:
            return {"error": f"{type(error).__name__}: {_readable(str(error))}", "line": _line(error)}

    def _render(self, source: str, variables: Mapping[str, Any], max_output: int) -> str:
        if self._template is None or source != self._source:
            self._template, self._source = self._environment.from_string(source), source
        parts: list[str] = []
        size = 0
        for part in self._template.generate(**variables):
            size += len(part)
            if size > max_output:
                raise ValueError(f"its output is longer than {max_output} characters")
            parts.append(part)
        text = "".join(parts)
        text.encode()  # a template can write half a surrogate pair
        return text


class _Generation(jinja2.ext.Extension):
    """``{% generation %}`` marks what the model writes, for training; here its body is rendered."""

    tags = {"generation"}  # noqa: RUF012  (jinja2 declares it so)

    def parse(self, parser: jinja2.parser.Parser) -> jinja2.nodes.Node:
        """Called by jinja2 at the tag."""
        line = next(parser.stream).lineno
        return jinja2.nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)


class _Namespace(jinja2.utils.Namespace):
    """jinja2's namespace without underscored names: Python itself calls those, past the sandbox."""

    def __init__(*arguments: Any, **values: Any) -> None:
        self, *rest = arguments  # so that ``self`` may be one of the names
        jinja2.utils.Namespace.__init__(self)
        for name, value in dict(*rest, **values).items():
            self[name] = value

    def __setitem__(self, name: str, value: Any) -> None:
        if str(name).startswith("_"):
            raise jinja2.exceptions.SecurityError(f"a namespace cannot hold {name!r:.60}")
        super().__setitem__(name, value)


def _environment() -> jinja2.Environment:
    """What templates are written for (transformers' conventions): trimmed blocks, break and continue, tojson without
    HTML escapes, raise_exception, strftime_now."""
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[jinja2.ext.loopcontrols, _Generation]
    )
    environment.filters["tojson"] = _to_json
    environment.globals.update(
        raise_exception=_raise_exception,
        strftime_now=lambda form: datetime.datetime.now().strftime(form),
        dict=_dict,
        namespace=_Namespace,
    )
    return environment


def _to_json(
    value: Any, ensure_ascii: bool = False, indent: int | None = None, separators: Any = None, sort_keys: bool = False
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _dict(*arguments: Any, **values: Any) -> dict[Any, Any]:
    """Makes a dict, but is not the class, through which a template could look around."""
    return dict(*arguments, **values)


def _raise_exception(message: Any) -> None:
    raise jinja2.TemplateError(str(message))


def _line(error: BaseException) -> int | None:
    """The innermost line of the template in the error's traceback (jinja2 rewrites it to template lines)."""
    line, trace = None, error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == "<template>":
            line = trace.tb_lineno
        trace = trace.tb_next
    return line


def _readable(message: str) -> str:
    """One line of bounded length without memory addresses."""
    return " ".join(re.sub(r" at 0x[0-9a-fA-F]+", "", message).split())[:300]


def _limit_resources() -> None:
    """Bounded memory; no files written, no processes started, no core dump."""
    import resource

    limits = {"RLIMIT_AS": MAX_MEMORY, "RLIMIT_FSIZE": 0, "RLIMIT_NPROC": 0, "RLIMIT_CORE": 0}
    for name, limit in limits.items():
        with contextlib.suppress(AttributeError, ValueError, OSError):  # not every system has every limit
            resource.setrlimit(getattr(resource, name), (limit, limit))


if __name__ == "__main__":
    main()
