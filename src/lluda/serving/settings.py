"""What the server was started with."""

from __future__ import annotations

from dataclasses import dataclass, field

from lluda.serving.http.keys import Keys
from lluda.serving.limits import Limits


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """``served_names``: of the model, beside its own; ``media_domains``: hosts from which media may be fetched;
    ``allow_origins``: web origins beside the server's own, as ``https://chat.example``; ``speaks`` False: what speaks
    is not loaded, and text alone is answered; ``replica``: which of several this is, for ids of what only it knows."""

    served_names: tuple[str, ...] = ()
    limits: Limits = field(default_factory=Limits)
    keys: Keys = field(default_factory=Keys)
    media_domains: tuple[str, ...] = ()
    allow_origins: tuple[str, ...] = ()
    speaks: bool = True
    replica: str = ""
