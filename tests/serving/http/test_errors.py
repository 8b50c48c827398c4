"""Exceptions as clients see them."""

from __future__ import annotations

import json

import pytest

from lluda.errors import (
    ContextExceeded,
    CorruptFile,
    DeadlineExceeded,
    InvalidRequest,
    LimitExceeded,
    LludaError,
    NumericalError,
    OutOfMemory,
    TemplateError,
    UnsupportedModel,
)
from lluda.serving.http.errors import ApiError, envelope, from_error


@pytest.mark.parametrize(
    ("error", "status", "code", "kind"),
    [
        (InvalidRequest("a"), 400, "invalid_value", "invalid_request_error"),
        (LimitExceeded("a"), 400, "invalid_value", "invalid_request_error"),
        (TemplateError("a"), 400, "invalid_value", "invalid_request_error"),
        (ContextExceeded("a"), 400, "context_length_exceeded", "invalid_request_error"),
        (CorruptFile("a", "b"), 500, "internal_error", "server_error"),
        (UnsupportedModel("a"), 400, "unsupported_value", "invalid_request_error"),
        (ApiError(401, "invalid_api_key", "a"), 401, "invalid_api_key", "authentication_error"),
        (ApiError(403, "origin_not_allowed", "a"), 403, "origin_not_allowed", "permission_error"),
        (ApiError(429, "queue_full", "a"), 429, "queue_full", "rate_limit_error"),
        (DeadlineExceeded("a"), 503, "queue_timeout", "server_error"),
        (OutOfMemory("a"), 503, "out_of_memory", "server_error"),
        (NumericalError("a"), 500, "numerical", "server_error"),
        (LludaError("a"), 500, "internal_error", "server_error"),
        (KeyError("a"), 500, "internal_error", "server_error"),
        (MemoryError(), 500, "internal_error", "server_error"),
    ],
)
def test_status_code_and_type(error: Exception, status: int, code: str, kind: str) -> None:
    seen = from_error(error)
    assert seen.status == status
    assert json.loads(envelope(seen))["error"] == {"message": seen.message, "type": kind, "param": None, "code": code}


@pytest.mark.parametrize(
    ("error", "seen"),
    [
        (TemplateError("/root/models/a b/template.json: template_error: line 3"), None),
        (UnsupportedModel("/srv/models/tiny/config.json: no chat template"), "config.json: no chat template"),
        (InvalidRequest("url must be http://a.example/b/c/d, not x"), "url must be http://a.example/b/c/d, not x"),
        (InvalidRequest("take and/or leave 3/4 of it"), "take and/or leave 3/4 of it"),
    ],
)
def test_where_files_are_is_not_told(error: LludaError, seen: str | None) -> None:
    message = from_error(error).message
    assert "/root/" not in message and "/srv/" not in message
    assert seen is None or message == seen


def test_what_nobody_expected_is_a_number() -> None:
    first, second = (from_error(ValueError("secret")).message for _ in range(2))
    assert "secret" not in first and first != second
