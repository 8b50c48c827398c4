"""What ``serve run`` and a config give the application, as a plan."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from lluda.errors import InvalidRequest
from lluda.serving.http.keys import VARIABLE, Keys
from lluda.serving.limits import Limits
from lluda.serving.replicas.plan import ReplicaPlan, replica_range
from lluda.serving.settings import Settings


class AppArguments(BaseModel):
    """``model`` is a folder, file or hub name that every node finds; ``replicas`` as ``--replicas``; ``cpus`` and
    ``gpus``: what Ray reserves for one; ``surge``: a restart starts a new replica before it ends an old one; ``load``:
    options of `lluda.load`; ``limits``: as ``--limit``, by name; ``revision``: another text restarts the replicas one
    after the other. Keys are read where the application is built."""

    model_config = ConfigDict(extra="forbid")

    model: str = "tiny-omni"
    replicas: str | int = 1
    cpus: float = Field(default=1, ge=0)
    gpus: float = Field(default=0, ge=0)
    surge: bool = False
    load: dict[str, Any] = {}
    limits: dict[str, float] = {}
    served_names: list[str] = []
    api_key_file: Path | None = None
    media_domains: list[str] = []
    allow_origins: list[str] = []
    speech: bool = True
    revision: str = ""

    @classmethod
    def read(cls, given: Mapping[str, Any]) -> AppArguments:
        """InvalidRequest: a name that there is not, or a value that it cannot have."""
        try:
            return cls.model_validate(given)
        except ValidationError as error:
            first = error.errors()[0]
            name = ".".join(map(str, first["loc"]))
            known = ", ".join(cls.model_fields)
            raise InvalidRequest(f"argument {name} of the application: {first['msg']}; there are {known}") from None

    def plan(self) -> ReplicaPlan:
        """InvalidRequest: a number of replicas, a limit or a file of keys that there cannot be."""
        least, most = replica_range(str(self.replicas))
        settings = Settings(
            served_names=tuple(self.served_names),
            limits=Limits().changed([f"{name}={value:g}" for name, value in self.limits.items()]),
            keys=Keys.read(self.api_key_file, os.environ.get(VARIABLE, "")),
            media_domains=tuple(self.media_domains),
            allow_origins=tuple(self.allow_origins),
            speaks=self.speech,
        )
        return ReplicaPlan(
            model=self.model,
            settings=settings,
            options=self.load,
            least=least,
            most=most,
            cpus=self.cpus,
            gpus=self.gpus,
            surge=self.surge,
        )
