"""A multipart form with one file, read within its limits and checked strictly."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, TypeVar

from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from lluda.serving.http.body import body_parts, check_content_type, checked
from lluda.serving.http.errors import ApiError, invalid
from lluda.serving.wire.wire_model import FormModel

if TYPE_CHECKING:
    from lluda.serving.service import Service

Form = TypeVar("Form", bound=FormModel)

logging.getLogger("python_multipart").setLevel(logging.ERROR)
"""It warns of every malformed form, and the server's log has a line for each request already."""

_FIELDS = 64
_FIELD_BYTES = 64 << 10


async def read_form(request: Request, wire: type[Form]) -> Form:
    """The form as ``wire``. Its field ``file`` gets the bytes of the upload; what that is called and what type it is
    said to have is of no meaning. ``name[]`` is an entry of a list, ``name[key]`` one of an object.

    ApiError: 415 no multipart form; 413, 408 as `body_parts`; 400 not readable as one, or as `checked`.
    """
    check_content_type(request, "multipart/form-data")
    parser = MultiPartParser(
        request.headers, body_parts(request), max_files=1, max_fields=_FIELDS, max_part_size=_FIELD_BYTES
    )
    try:
        form = await parser.parse()
    except MultiPartException as error:
        raise invalid(f"the form cannot be read: {error.message}") from None
    values: dict[str, Any] = {}
    try:
        for name, value in form.multi_items():
            if isinstance(value, UploadFile):
                _set(values, name, await value.read())
            else:
                _take(values, name, value)
    finally:
        await form.close()  # what was spooled to disk is removed
    if not isinstance(values.get("file"), bytes):
        raise ApiError(400, "missing_required_parameter", "file is required, as an upload", param="file")
    service: Service = request.app.state.service
    return await service.in_worker(checked, values, wire)


def _take(values: dict[str, Any], name: str, text: str) -> None:
    base, bracket, key = name.partition("[")
    if not bracket:
        _set(values, name, text)
        return
    several: list[str] | dict[str, Any] = [] if key == "]" else {}
    kept = values.setdefault(base, several)
    if isinstance(kept, list) and key == "]":
        kept.append(text)
    elif isinstance(kept, dict) and key != "]":
        _set(kept, key.removesuffix("]"), text)
    else:
        raise invalid(f"{base:.60} is given in two forms", base[:60])


def _set(values: dict[str, Any], name: str, value: object) -> None:
    if name in values:
        raise invalid(f"{name:.60} is given more than once", name[:60])
    values[name] = value
