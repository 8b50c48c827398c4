"""JSON schemas of clients, checked before anything is made of them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from lluda.serving.http.errors import ApiError, invalid
from lluda.serving.limits import Limits

_TYPES = frozenset({"object", "array", "string", "number", "integer", "boolean", "null"})


def check_schema(schema: Mapping[str, Any], limits: Limits, param: str) -> None:
    """ApiError 400 ``invalid_json_schema``: too large, too deep, a reference that leads out of it, an unknown type."""
    size = len(json.dumps(schema, ensure_ascii=False, separators=(",", ":")).encode())
    if size > limits.schema_bytes:
        raise _bad(param, f"has {size:,} bytes; at most {limits.schema_bytes:,} are taken")
    _check(schema, limits.schema_depth, param)


def _check(value: object, levels: int, param: str) -> None:
    if isinstance(value, Mapping):
        _check_keywords(value, param)
        values = list(value.values())
    elif isinstance(value, list):
        values = value
    else:
        return
    if not levels:
        raise _bad(param, "has more levels than are taken; make it flatter")
    for one in values:
        _check(one, levels - 1, param)


def _check_keywords(schema: Mapping[str, Any], param: str) -> None:
    reference = schema.get("$ref")
    if isinstance(reference, str) and not reference.startswith("#"):
        raise _bad(param, f"refers to {reference[:80]!r}; only references within the schema (#/…) are followed")
    kind = schema.get("type")
    kinds = kind if isinstance(kind, list) else [kind]
    if isinstance(kind, Mapping | None):  # a property that is called type, or none
        return
    wrong = next((one for one in kinds if not isinstance(one, str) or one not in _TYPES), None)
    if wrong is not None:
        raise _bad(param, f"has the type {str(wrong)[:40]!r}; types are {', '.join(sorted(_TYPES))}")


def _bad(param: str, message: str) -> ApiError:
    return invalid(f"the schema of {param} {message}", param, "invalid_json_schema")
