"""Which replica a request belongs to: the one that has the beginning of its prompt, or what it refers to."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from typing import Any

import msgspec
from starlette.datastructures import Headers

CHAT, RESPONSES, COMPLETIONS = "/v1/chat/completions", "/v1/responses", "/v1/completions"
BODY_PATHS = (CHAT, RESPONSES, COMPLETIONS)
"""Where the body says which prompt it is."""

SESSION_HEADER = "x-session-id"
"""Where Ray Serve's routers look; a client may send one of its own, which then decides."""

PINNED = "replica:"
"""How a key begins that names a replica."""

_PROMPT_HEAD = 1024
"""Characters, or token ids, of a plain prompt that tell it from others."""

_RAW_HEAD = 64 << 10
"""Bytes that tell a body from others that is too long to be read here."""

_KEY_PROTOCOL = "openai-insecure-api-key."
_SECRET = "ek_"
_SOUND = "audio_"


def made_by(replica: str, random: str) -> str:
    """The random part of an id of something that only ``replica`` knows; empty: there are no others."""
    return f"{replica}.{random}" if replica else random


def key_of(path: str, headers: Headers, body: bytes, *, complete: bool) -> str:
    """The key of a request: equal keys belong to one replica; empty: any will do.

    ``body``: its beginning, or all of it (``complete``). What cannot be read is the replica's to refuse.
    """
    given = headers.get(SESSION_HEADER)
    if given:
        return f"session:{_digest(given)}"
    pinned = _maker(_SECRET, _secrets(headers))
    if pinned or path not in BODY_PATHS or not body:
        return pinned
    if not complete:
        return f"body:{_digest(body[:_RAW_HEAD])}"
    try:
        fields = msgspec.json.decode(body)
    except (msgspec.DecodeError, RecursionError):
        return ""
    if not isinstance(fields, dict):
        return ""
    return _maker(_SOUND, _sounds(fields.get("messages"))) or _prompt_key(path, fields)


def _prompt_key(path: str, fields: dict[str, Any]) -> str:
    """Of what a conversation has in common from its first turn to its last: what stands before the user speaks, and
    the first that the user says."""
    match path:
        case "/v1/chat/completions":
            head: Any = _until_user(fields.get("messages"))
        case "/v1/responses":
            given = fields.get("input")
            head = [fields.get("instructions"), given if isinstance(given, str) else _until_user(given)]
        case _:
            head = _first(fields.get("prompt"))
    return f"prompt:{_digest(msgspec.json.encode(head))}" if head else ""


def _until_user(messages: Any) -> list[Any]:
    """The first messages, up to the first of a user."""
    head: list[Any] = []
    for message in messages if isinstance(messages, list) else ():
        head.append(message)
        if isinstance(message, dict) and message.get("role") == "user":
            break
    return head


def _first(prompt: Any) -> Any:
    """The beginning of the first prompt: a text, ids, or a list of either."""
    if isinstance(prompt, list) and prompt and isinstance(prompt[0], str | list):
        prompt = prompt[0]
    return prompt[:_PROMPT_HEAD] if isinstance(prompt, str | list) else None


def _sounds(messages: Any) -> Iterator[str]:
    """Ids of spoken answers that a conversation refers to, the latest first."""
    for message in reversed(messages if isinstance(messages, list) else []):
        sound = message.get("audio") if isinstance(message, dict) else None
        if isinstance(sound, dict) and isinstance(sound.get("id"), str):
            yield sound["id"]


def _secrets(headers: Headers) -> Iterator[str]:
    """Keys that may be a realtime session's."""
    yield headers.get("authorization", "").partition(" ")[2].strip()
    for protocol in headers.get("sec-websocket-protocol", "").split(","):
        yield protocol.strip().removeprefix(_KEY_PROTOCOL)


def _maker(prefix: str, ids: Iterable[str]) -> str:
    """The key that names the replica that made the first id of `made_by`; empty: none has it."""
    for one in ids:
        replica, dot, _ = one.removeprefix(prefix).partition(".")
        if one.startswith(prefix) and dot and replica:
            return f"{PINNED}{replica}"
    return ""


def _digest(text: str | bytes) -> str:
    data = text.encode("utf-8", "surrogateescape") if isinstance(text, str) else text
    return hashlib.blake2b(data, digest_size=16).hexdigest()
