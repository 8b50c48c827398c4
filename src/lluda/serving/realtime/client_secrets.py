"""Keys for a short time: a page gets one from its own server, and opens a realtime session with it."""

from __future__ import annotations

import hashlib
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import Field

from lluda.serving.realtime.events.session_fields import SessionFields
from lluda.serving.replicas.affinity import made_by
from lluda.serving.wire.wire_model import WireModel

_MOST = 1024
"""Keys that are known at once; the oldest go first."""

SECONDS = 600


class ExpiresAfter(WireModel):
    """How long the key is good for."""

    anchor: Literal["created_at"] = "created_at"
    seconds: int = Field(default=SECONDS, ge=10, le=7200)


class ClientSecretBody(WireModel):
    """``session``: what holds in the sessions that are opened with the key."""

    expires_after: ExpiresAfter | None = None
    session: SessionFields | None = None


@dataclass(frozen=True, slots=True)
class ClientSecret:
    """``expires_at``: in seconds since 1970."""

    expires_at: int
    session: SessionFields | None


class ClientSecrets:
    """The keys that were given out, as hashes; ``replica`` as in `Settings`."""

    def __init__(self, replica: str = "", clock: Callable[[], float] = time.time) -> None:
        self._replica, self._clock = replica, clock
        self._known: OrderedDict[bytes, ClientSecret] = OrderedDict()

    def issue(self, session: SessionFields | None, seconds: int = SECONDS) -> tuple[str, ClientSecret]:
        """A new key, and what is known of it."""
        value = f"ek_{made_by(self._replica, secrets.token_urlsafe(32))}"
        secret = ClientSecret(int(self._clock()) + seconds, session)
        self._known[_digest(value)] = secret
        while len(self._known) > _MOST:
            self._known.popitem(last=False)
        return value, secret

    def find(self, value: str) -> ClientSecret | None:
        """What is known of a key; None: it is none, or not good any more."""
        secret = self._known.get(_digest(value))
        return None if secret is None or secret.expires_at <= self._clock() else secret


def described(value: str, secret: ClientSecret, session: dict[str, Any]) -> dict[str, Any]:
    """As OpenAI writes it."""
    return {"value": value, "expires_at": secret.expires_at, "session": session}


def _digest(value: str) -> bytes:
    return hashlib.sha256(value.encode("utf-8", "surrogateescape")).digest()
