"""The child process that renders chat templates: a template is code from a download, so it runs where it can be killed.

Run as a script with nothing of lluda imported. It reads requests from stdin and writes answers to stdout, each a 4-byte
big-endian length and that many bytes of JSON; the first answer, ``{"ready": true}``, says that it is up.
"""

from __future__ import annotations

import datetime
import json
import struct
import sys
from collections.abc import Mapping
from typing import Any, BinaryIO

import jinja2
import jinja2.ext
import jinja2.sandbox

MAX_MEMORY = 512 << 20


def main() -> None:
    """Serve until stdin ends."""
    _limit_memory()
    requests, answers = sys.stdin.buffer, sys.stdout.buffer
    write_message(answers, {"ready": True})
    while (request := read_message(requests)) is not None:
        write_message(answers, _answer(request))


def read_message(stream: BinaryIO) -> Any:
    """The next message; None at the end of the stream."""
    head = stream.read(4)
    if len(head) < 4:
        return None
    size = struct.unpack(">I", head)[0]
    body = stream.read(size)
    return json.loads(body) if len(body) == size else None


def write_message(stream: BinaryIO, message: Mapping[str, Any]) -> None:
    """Send one message."""
    body = json.dumps(message).encode()
    stream.write(struct.pack(">I", len(body)) + body)
    stream.flush()


def _answer(request: Mapping[str, Any]) -> dict[str, Any]:
    try:
        return {"text": _render(request["template"], request["variables"], request["max_output"])}
    except jinja2.TemplateSyntaxError as error:
        return {"error": f"syntax error in line {error.lineno}: {error.message}"}
    except MemoryError:
        return {"error": "it needs too much memory"}
    except RecursionError:
        return {"error": "it recurses too deeply"}
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"}


def _render(source: str, variables: Mapping[str, Any], max_output: int) -> str:
    parts: list[str] = []
    size = 0
    for part in _environment().from_string(source).generate(**variables):
        size += len(part)
        if size > max_output:
            raise ValueError(f"its output is longer than {max_output} characters")
        parts.append(part)
    return "".join(parts)


def _environment() -> jinja2.Environment:
    """As templates are written for (transformers' conventions): trimmed blocks, break and continue, tojson without
    HTML escapes, raise_exception and strftime_now."""
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise
    environment.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(form)
    return environment


def _to_json(value: Any, ensure_ascii: bool = False, indent: int | None = None, **options: Any) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, **options)


def _raise(message: str) -> None:
    raise jinja2.TemplateError(message)


def _limit_memory() -> None:
    try:
        import resource
    except ImportError:  # not on Windows, where the time limit alone stands
        return
    resource.setrlimit(resource.RLIMIT_AS, (MAX_MEMORY, MAX_MEMORY))


if __name__ == "__main__":
    main()
