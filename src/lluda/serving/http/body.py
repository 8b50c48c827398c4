"""A request's body, read within its limits and checked strictly."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import ValidationError
from starlette.requests import ClientDisconnect, Request

from lluda.errors import CorruptFile
from lluda.files.json_file import parse_json
from lluda.serving.http.errors import ApiError, ClientDisconnected, invalid
from lluda.serving.wire.wire_model import IGNORED, WireModel

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

    from lluda.serving.service import Service

Wire = TypeVar("Wire", bound=WireModel)

_QUICK_BYTES = 32 << 10
"""A body of at most so many bytes is parsed in less than a millisecond; larger ones go to a worker."""

_JSON_TYPES = ("application/json", "text/json")


async def read_body(request: Request, wire: type[Wire]) -> Wire:
    """The JSON body as ``wire``.

    ApiError: 415 another content type or an encoding, 413 too large, 408 too slow, 400 ``invalid_json``, or a field
    that is missing, unknown or of a wrong value; ``param`` is its path.
    """
    service: Service = request.app.state.service
    check_content_type(request, *_JSON_TYPES)
    data = await read_bytes(request)
    if len(data) <= _QUICK_BYTES:
        return parse(data, wire)
    return await service.in_worker(parse, data, wire)


async def read_bytes(request: Request) -> bytearray:
    """The whole body; ApiError as `body_parts`."""
    data = bytearray()  # grows in place: to join many megabytes at once would hold up the event loop
    async for part in body_parts(request):
        data += part
    return data


async def body_parts(request: Request) -> AsyncGenerator[bytes]:
    """The body as it comes. ApiError: 413 more than ``body_bytes``, 408 nothing came for ``body_idle_seconds``, 429 the
    bodies of all requests are more than ``bodies_bytes``."""
    service: Service = request.app.state.service
    limits = service.limits
    check_length(request, limits.body_bytes)
    size = 0
    stream = aiter(request.stream())
    while True:
        try:
            async with asyncio.timeout(limits.body_idle_seconds):
                part = await anext(stream, None)
        except TimeoutError:
            waited = f"nothing of the body came for {limits.body_idle_seconds:g} s; send it without pause"
            raise ApiError(408, "request_timeout", waited) from None
        except ClientDisconnect:
            raise ClientDisconnected from None
        if part is None:
            return
        size += len(part)
        if size > limits.body_bytes:
            raise _too_large(limits.body_bytes)
        service.hold_body(request, len(part))
        yield part


def check_content_type(request: Request, *accepted: str) -> None:
    """ApiError 415: another content type, several, or an encoded body."""
    given = request.headers.getlist("content-type")
    plain = [one.partition(";")[0].strip().lower() for one in given]
    if len(plain) != 1 or plain[0] not in accepted:
        found = ", ".join(given) if given else "none"
        message = f"the content type must be {accepted[0]}, not {found:.80}"
        raise ApiError(415, "unsupported_media_type", message)
    encoding = request.headers.get("content-encoding", "identity")
    if encoding.lower() != "identity":
        message = f"content-encoding must be identity, not {encoding:.40}; send the body as it is"
        raise ApiError(415, "unsupported_media_type", message)


def check_length(request: Request, limit: int) -> None:
    """ApiError 413: the body says that it is larger than ``limit`` bytes."""
    length = request.headers.get("content-length", "")
    if length.isdecimal() and int(length) > limit:
        raise _too_large(limit)


def _too_large(limit: int) -> ApiError:
    return ApiError(413, "request_too_large", f"a body has at most {limit:,} bytes")


def parse(data: bytes | bytearray, wire: type[Wire]) -> Wire:
    """JSON as ``wire``; ApiError as `read_body`."""
    try:
        value = parse_json(data, Path("body"))
    except CorruptFile as error:
        raise invalid(str(error), code="invalid_json") from None
    if not isinstance(value, dict):
        raise invalid(f"the body must be a JSON object, not {_kind(value)}", code="invalid_json")
    return checked(value, wire)


def checked(value: Mapping[str, Any], wire: type[Wire]) -> Wire:
    """An object as ``wire``; ApiError 400."""
    known = wire.model_fields
    kept = {name: one for name, one in value.items() if name not in IGNORED or name in known}
    try:
        return wire.model_validate(kept)
    except ValidationError as error:
        raise _first(error, kept) from None


_CODES = frozenset({"invalid_value", "unsupported_value", "invalid_json_schema", "invalid_media"})
"""Errors of validators that have a code of the API as their type; their message follows the field's path."""

_MESSAGES = {
    "greater_than_equal": "must be at least {ge}, not {input}",
    "less_than_equal": "must be at most {le}, not {input}",
    "greater_than": "must be more than {gt}, not {input}",
    "less_than": "must be less than {lt}, not {input}",
    "literal_error": "must be {expected}, not {input}",
    "too_long": "has {actual_length} entries; at most {max_length} are taken",
    "too_short": "has {actual_length} entries; it must have at least {min_length}",
    "string_too_long": "has too many characters; at most {max_length} are taken",
    "string_too_short": "must have at least {min_length} characters",
    "finite_number": "must be a finite number",
    "int_type": "must be an integer, not {input}",
    "float_type": "must be a number, not {input}",
    "bool_type": "must be true or false, not {input}",
    "string_type": "must be a text, not {input}",
    "list_type": "must be a list, not {input}",
    "dict_type": "must be an object, not {input}",
    "model_type": "must be an object, not {input}",
    "model_attributes_type": "must be an object, not {input}",
}


def _first(error: ValidationError, body: object) -> ApiError:
    """Of all that is wrong, what comes first in the order of the fields."""
    details = error.errors(include_url=False)
    chosen = details[0]
    if len(details) > 1 and len({one["loc"][:1] for one in details}) == 1:
        # Of several alternatives of one field, the one that came furthest says most.
        chosen = max(details, key=lambda one: len(_steps(one, body)))
    param = _path(_steps(chosen, body))
    name, kind = param or "the body", chosen["type"]
    context = chosen.get("ctx", {})
    if "actual_length" in context:  # None of an object
        context = {**context, "actual_length": len(chosen["input"])}
    if kind == "missing":
        return invalid(f"{name} is required", param, "missing_required_parameter")
    if kind == "extra_forbidden":
        return invalid(f"{name} is not a field that this server knows; leave it out", param, "unknown_parameter")
    if kind == "value_error":
        return invalid(f"{name}: {context.get('error', chosen['msg'])}", param)
    if kind in _CODES:  # a validator's own words
        return invalid(f"{name} {chosen['msg']}", param, kind)
    words = _MESSAGES.get(kind)
    if words is None:
        return invalid(f"{name}: {chosen['msg'][:1].lower()}{chosen['msg'][1:]}", param)
    return invalid(f"{name} {words.format(input=_kind(chosen['input']), **context)}", param)


def _steps(error: ErrorDetails, body: object) -> list[str | int]:
    """The steps from the body to what is wrong, without the tags by which pydantic tells alternatives apart."""
    steps: list[str | int] = []
    here = body
    for step in error["loc"]:
        if (isinstance(here, list) and isinstance(step, int)) or (isinstance(here, dict) and step in here):
            here = here[step]  # type: ignore[index]
        elif not (error["type"] == "missing" and step == error["loc"][-1]):
            continue
        steps.append(step)
    return steps


def _path(steps: list[str | int]) -> str | None:
    """As in ``messages[0].content``."""
    path = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in steps)
    return path.removeprefix(".")[:200] or None


def _kind(value: object) -> str:
    """A short value as it is, of a longer one what it is."""
    match value:
        case None:
            return "null"
        case bool():
            return str(value).lower()
        case str():
            return repr(value) if len(value) <= 40 else f"a text of {len(value)} characters"
        case int() | float():
            return f"{value}"[:40]
        case list() | tuple():
            return "a list"
    return "an object"
