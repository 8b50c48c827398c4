"""Which component of a model runs on which device."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field

from lluda.backends.backend import ComputeBackend
from lluda.errors import InvalidRequest
from lluda.models.components import COMPONENTS, TEXT, component_of

EXPERTS = "experts"
"""The thinker's mixture blocks (of a text model: its own), which may be apart from its attention."""

PLACEABLE = (*(component.name for component in COMPONENTS), EXPERTS)

Placement = Mapping[str, str]
"""Device of the components that are not on the default one; of experts, that are not with the thinker."""


def read_placement(given: str | Mapping[str, str]) -> dict[str, str]:
    """``thinker=cuda:0,talker=cpu``, or a mapping, as it is. InvalidRequest: not of this form, an unknown component, or
    one named twice."""
    if not isinstance(given, str):
        pairs = list(given.items())
    else:
        pairs = [
            (name.strip(), device.strip()) for name, _, device in (p.partition("=") for p in given.split(",") if p)
        ]
    placed: dict[str, str] = {}
    for name, device in pairs:
        if name not in PLACEABLE:
            raise InvalidRequest(f"place: component {name!r:.40} does not exist; choose from {', '.join(PLACEABLE)}")
        if name in placed or not device:
            rule = "is placed twice" if name in placed else "has no device; write component=device"
            raise InvalidRequest(f"place: {name} {rule}")
        placed[name] = device
    return placed


def component_of_parameter(name: str) -> str:
    """The component a checkpoint tensor belongs to; all of a text model is its thinker."""
    component = component_of(name)
    return "thinker" if component is TEXT else component.name


@dataclass(slots=True)
class Backends:
    """One backend for each device that a component is on, made when first asked for. ``experts``: names of the tensors
    of mixture blocks."""

    default: str
    placement: Placement
    make: Callable[[str], ComputeBackend]
    experts: Collection[str] = frozenset()
    _made: dict[str, ComputeBackend] = field(default_factory=dict)

    def device(self, component: str) -> str:
        """The device that ``component`` is on."""
        if component == EXPERTS and EXPERTS not in self.placement:
            component = "thinker"
        return self.placement.get(component, self.default)

    def device_of_parameter(self, name: str) -> str:
        """The device that holds a checkpoint tensor."""
        return self.device(EXPERTS if name in self.experts else component_of_parameter(name))

    def of(self, component: str) -> ComputeBackend:
        """The backend that runs ``component``. Errors as `lluda.backends.select_backend`."""
        return self._on(self.device(component))

    def of_parameter(self, name: str) -> ComputeBackend:
        """The backend that holds a checkpoint tensor."""
        return self._on(self.device_of_parameter(name))

    def _on(self, device: str) -> ComputeBackend:
        if device not in self._made:
            self._made[device] = self.make(device)
        return self._made[device]
