"""What all parts of one answer repeat: its id, when it was made, by what."""

from __future__ import annotations

import secrets
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from lluda import __version__
from lluda.serving.replicas.affinity import made_by

if TYPE_CHECKING:
    from lluda.api.model import Model


@dataclass(frozen=True, slots=True)
class AnswerHead:
    """``prefix`` is of the id; ``model`` the name under which the model was asked for; ``fingerprint`` says what
    computed; ``replica`` as in `Settings`."""

    prefix: str
    model: str
    fingerprint: str
    replica: str = ""
    created: int = field(default_factory=lambda: int(time.time()))
    random: str = field(default_factory=lambda: secrets.token_hex(12))

    @property
    def id(self) -> str:
        """The answer's id."""
        return f"{self.prefix}{self.random}"

    @property
    def audio_id(self) -> str:
        """The id of its sound."""
        return f"audio_{made_by(self.replica, self.random)}"

    def object(self, kind: str) -> dict[str, Any]:
        """The first fields of an object of ``kind``."""
        return {
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": self.fingerprint,
        }


def fingerprint(model: Model) -> str:
    """What computes: version, backend and dtype."""
    return f"lluda-{__version__}-{model.network.backend.name}-{model.dtype}"
