"""The application for a cluster of Ray's: ``serve run lluda.serving.ray_app:app model=… replicas=3``, or the same in a
config (docs/scaling.md)."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from lluda.serving.http.keys import VARIABLE, Keys
from lluda.serving.limits import Limits
from lluda.serving.replicas.application import build_application
from lluda.serving.replicas.plan import ReplicaPlan, replica_range
from lluda.serving.settings import Settings


class AppArguments(BaseModel):
    """``model`` is a folder, file or hub name that every node finds; ``replicas`` as ``--replicas``; ``load``: options
    of `lluda.load`; ``limits``: as ``--limit``, by name; keys are read where the application is built."""

    model_config = ConfigDict(extra="forbid")

    model: str
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


def app(arguments: AppArguments) -> Any:
    """The application. InvalidRequest: a number or a limit that there cannot be."""
    least, most = replica_range(str(arguments.replicas))
    settings = Settings(
        served_names=tuple(arguments.served_names),
        limits=Limits().changed([f"{name}={value:g}" for name, value in arguments.limits.items()]),
        keys=Keys.read(arguments.api_key_file, os.environ.get(VARIABLE, "")),
        media_domains=tuple(arguments.media_domains),
        allow_origins=tuple(arguments.allow_origins),
        speaks=arguments.speech,
    )
    return build_application(
        ReplicaPlan(
            model=arguments.model,
            settings=settings,
            options=arguments.load,
            least=least,
            most=most,
            cpus=arguments.cpus,
            gpus=arguments.gpus,
            surge=arguments.surge,
        )
    )
