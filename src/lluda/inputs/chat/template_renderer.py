"""Rendering of chat templates with jinja2, sandboxed; run only in the child process of `template_worker.py`."""

from __future__ import annotations

import datetime
import json
import re
from collections.abc import Mapping
from typing import Any

import jinja2
import jinja2.exceptions
import jinja2.ext
import jinja2.sandbox


class Renderer:
    """Keeps the last template compiled."""

    def __init__(self) -> None:
        self._environment = _environment()
        self._source: str | None = None
        self._template: jinja2.Template | None = None

    def answer(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """``{"text"}``, or ``{"error", "line"}``; ``"unusable"`` says that this process must not be used again."""
        try:
            return {"text": self._render(request["source"], request["variables"], request["max_output"])}
        except jinja2.TemplateSyntaxError as error:
            return {"error": f"syntax error: {error.message}", "line": error.lineno}
        except MemoryError:
            return {"error": "it needs more memory than it is given", "unusable": True}
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
