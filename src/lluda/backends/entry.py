"""How a backend's folder says to the registry what it is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from lluda.backends.backend import ComputeBackend
from lluda.backends.capabilities import BackendRequest, Capabilities
from lluda.backends.device import DeviceRuntime


@dataclass(frozen=True, slots=True)
class BackendEntry:
    """One kind of backend. ``make`` imports what it needs (a library, Triton) and raises NativeLibraryError or
    MissingDependency where that is not there; its last argument says why a backend before it could not be had.
    ``runtime``, of a backend that brings a kind of device, is what the host asks of that. ``foreign`` is the same for
    devices that torch knows nothing of, by name; it raises InvalidRequest where there is none of that name, and
    MissingDependency. ``gpu`` gives the name of the GPU that it would take here; None if there is none."""

    name: str
    capabilities: Capabilities
    make: Callable[[BackendRequest, str], ComputeBackend]
    runtime: Callable[[torch.device], DeviceRuntime] | None = None
    foreign: Callable[[str], DeviceRuntime] | None = None
    gpu: Callable[[], str | None] = lambda: None

    def refusal(self, request: BackendRequest) -> str | None:
        """Why it does not do ``request``; None if it does."""
        return self.capabilities.refusal(self.name, request)
