"""Base64 in a request: bare, or in a data URL (RFC 2397)."""

from __future__ import annotations

import binascii
import re

from lluda.serving.http.errors import ApiError, invalid

_HEAD = re.compile(r"data:([a-z0-9.+-]+/[a-z0-9.+-]+)?((?:;[a-z0-9_-]+=[^;,\"]*)*)(;base64)?,", re.IGNORECASE)
_MOST_HEAD = 256
_ANY_TYPE = "application/octet-stream"
_AT_ONCE = 1 << 20


def from_data_url(url: str, kind: str, param: str, limit: int) -> bytes:
    """The content of ``data:TYPE;base64,…``. What it is, its bytes decide later; TYPE may be absent or
    application/octet-stream, but else must be of the ``kind`` ("image", "audio", "video").

    ApiError 400: no data URL, without base64, of another kind, or as `from_base64`.
    """
    head = _HEAD.match(url[:_MOST_HEAD])
    if head is None:
        raise invalid(f"{param} is not a data URL; it must be data:{kind}/TYPE;base64,…", param, "invalid_media")
    if not head[3]:
        words = f"{param}: a data URL must say ;base64 before its comma; percent-encoding is not taken"
        raise invalid(words, param, "invalid_media")
    named = (head[1] or _ANY_TYPE).lower()
    if named != _ANY_TYPE and named.partition("/")[0] not in _TOPS[kind]:
        raise invalid(f"{param} is {named:.60}, and {kind} is needed there", param, "invalid_media")
    return _from_base64(url, head.end(), param, limit)


_TOPS = {"image": ("image",), "audio": ("audio", "video"), "video": ("video",)}
"""Recordings often come in containers of video: webm, mp4."""


def from_base64(text: str, param: str, limit: int) -> bytes:
    """The bytes of standard base64 (RFC 4648 section 4): padded, without line breaks or other characters.

    ApiError: 413 more than ``limit`` bytes; 400 ``invalid_media`` none at all, or not base64.
    """
    return _from_base64(text, 0, param, limit)


def _from_base64(text: str, start: int, param: str, limit: int) -> bytes:
    """As `from_base64`, of what comes from ``start`` on: to copy it takes long."""
    if (len(text) - start) // 4 * 3 - text[-2:].count("=") > limit:
        words = f"{param} has more than the {limit:,} bytes of one medium"
        raise ApiError(413, "request_too_large", words, param=param)
    try:
        content = _decoded(text, start)
    except ValueError as error:  # binascii.Error is one
        words = f"{param} is not base64 ({error}); use the standard alphabet, padded with =, without line breaks"
        raise invalid(words, param, "invalid_media") from None
    if not content:
        raise invalid(f"{param} is empty", param, "invalid_media")
    return content


def _decoded(text: str, start: int) -> bytes:
    """Piece by piece, so that other threads run in between. ValueError: not base64."""
    if (len(text) - start) % 4:
        raise ValueError("not a multiple of 4 characters")
    if text.find("=", start, -2) >= 0:
        raise ValueError("padding before the end")
    content = bytearray()
    for place in range(start, len(text), _AT_ONCE):
        content += binascii.a2b_base64(text[place : place + _AT_ONCE], strict_mode=True)
    return bytes(content)
