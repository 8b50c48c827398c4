"""What a replica is made of, and how many there are."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from lluda.errors import InvalidRequest
from lluda.serving.settings import Settings


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaPlan:
    """``model`` and ``options`` as `lluda.load` takes them, on every node the same; ``most`` above ``least``: their
    number follows the load; ``cpus`` and ``gpus``: what Ray reserves for one; ``surge``: a rolling restart starts a new
    replica before it ends an old one, which takes the room of one replica more."""

    model: str
    settings: Settings = field(default_factory=Settings)
    options: Mapping[str, Any] = field(default_factory=dict)
    least: int = 1
    most: int = 1
    cpus: float = 1
    gpus: float = 0
    surge: bool = False

    def __post_init__(self) -> None:
        if not 1 <= self.least <= self.most:
            raise InvalidRequest(
                f"replicas must be from 1 on, and the most of them no fewer than the least, not {self.least} to "
                f"{self.most}; as in --replicas 3 or --replicas 1:4"
            )


def replica_range(text: str) -> tuple[int, int]:
    """``3``: always 3; ``1:4``: from 1 to 4. InvalidRequest: anything else."""
    least, colon, most = text.partition(":")
    try:
        return int(least), int(most if colon else least)
    except ValueError:
        raise InvalidRequest(
            f"--replicas {text}: say how many, as --replicas 3, or from how many to how many, as --replicas 1:4"
        ) from None


def on_this_machine(model: str, settings: Settings, options: Mapping[str, Any], replicas: str) -> ReplicaPlan:
    """So many (as `replica_range`) that share this machine's cores; each has GPUs of its own where ``options`` name
    some."""
    least, most = replica_range(replicas)
    ranks = options.get("tensor_parallel", 1)
    threads = options.get("threads") or max(1, (os.cpu_count() or 1) // (max(1, most) * ranks))
    placement = options.get("place") or ""
    named = placement.split(",") if isinstance(placement, str) else [f"={device}" for device in placement.values()]
    devices = {str(options.get("device", "cpu")), *(one.partition("=")[2].strip() for one in named)}
    gpus = sum(one.startswith("cuda") for one in devices) * ranks
    return ReplicaPlan(
        model=model,
        settings=settings,
        options={**options, "threads": threads},
        least=least,
        most=most,
        cpus=threads * ranks,
        gpus=gpus,
    )
