"""Errors as clients see them: a status, and OpenAI's envelope."""

from __future__ import annotations

import logging
import re
import secrets
from collections.abc import Mapping

import msgspec

from lluda.errors import (
    ContextExceeded,
    CorruptFile,
    DeadlineExceeded,
    InvalidRequest,
    NumericalError,
    OutOfMemory,
    UnsupportedModel,
)

_log = logging.getLogger(__name__)

_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}

RETRY_SECONDS = 2
"""What ``retry-after`` says where nothing better is known."""


class ApiError(Exception):
    """An answer other than success. ``code`` is one of the table in docs/serving.md; ``param`` the path of the field
    that is at fault; ``headers`` are added to the answer."""

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        *,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.code, self.message, self.param = status, code, message, param
        self.headers = dict(headers or {})

    @property
    def type(self) -> str:
        """OpenAI's class of error."""
        return _TYPES.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")


class ClientDisconnected(Exception):
    """Whoever asked went away: nobody reads the answer any more."""


def invalid(message: str, param: str | None = None, code: str = "invalid_value") -> ApiError:
    """A request that cannot be answered as it is."""
    return ApiError(400, code, message, param=param)


def unavailable(code: str, message: str, *, retry: bool = True) -> ApiError:
    """503: ``loading``, ``draining``, ``queue_timeout``, ``engine_dead``. Without ``retry`` clients are told not to."""
    headers = {"retry-after": str(RETRY_SECONDS)} if retry else {"x-should-retry": "false"}
    return ApiError(503, code, message, headers=headers)


_OF_A_REQUEST: tuple[tuple[type[BaseException], str], ...] = (
    (ContextExceeded, "context_length_exceeded"),
    (InvalidRequest, "invalid_value"),
    (UnsupportedModel, "unsupported_value"),
)
"""Errors that are the request's, and their codes; the first that fits counts. CorruptFile is not among them: a file
that nobody sent is the model's. See `media_error`."""


_FOLDERS = re.compile(r"(?<![\w:/.])/(?:[^\s:/]+/)+(?=[^\s/])")
"""The folders of a path: messages name files of the model, and where these are is no client's business."""


def from_error(error: BaseException) -> ApiError:
    """Any exception as an answer. Of one that is no request's fault, the client gets an id and the log the rest."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, DeadlineExceeded):
        return unavailable("queue_timeout", str(error))
    for kind, code in _OF_A_REQUEST:
        if isinstance(error, kind):
            return invalid(_FOLDERS.sub("", str(error)), code=code)
    if isinstance(error, OutOfMemory):
        return unavailable("out_of_memory", "the device's memory ran out during this request; try a smaller one")
    if isinstance(error, NumericalError):
        headers = {"x-should-retry": "false"}
        return ApiError(500, "numerical", "the model's numbers overflowed in this request", headers=headers)
    return _internal(error)


def media_error(error: BaseException) -> ApiError:
    """As `from_error`, of an error in reading what came with the request: 400 ``invalid_media`` where that is
    damaged."""
    if isinstance(error, CorruptFile):
        return invalid(_FOLDERS.sub("", str(error)), code="invalid_media")
    return from_error(error)


def _internal(error: BaseException) -> ApiError:
    number = secrets.token_hex(4)
    _log.error("internal error %s", number, exc_info=error)
    return ApiError(
        500,
        "internal_error",
        f"an error inside the server, number err_{number}; its log has the rest under that number",
        headers={"x-should-retry": "false"},
    )


def envelope(error: ApiError) -> bytes:
    """The body of the answer."""
    return msgspec.json.encode({"error": fields(error)})


def fields(error: ApiError) -> dict[str, str | None]:
    """What stands under ``error``."""
    return {"message": error.message, "type": error.type, "param": error.param, "code": error.code}
