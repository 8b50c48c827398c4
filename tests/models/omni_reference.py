"""transformers' Omni modules on the tensors that lluda runs, by the names of the released checkpoint."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

import torch

from lluda.backends.backend import ComputeBackend
from lluda.backends.weight import Parameters
from lluda.parameters import ParameterSpec
from tests.conftest import taken


def random_parameters(specs: Iterable[ParameterSpec], seed: int = 0) -> dict[str, torch.Tensor]:
    """Values that a trained model could have, exact in BF16: matrices 1/sqrt(fan in), norms around 1."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for spec in specs:
        noise = torch.randn(spec.shape, generator=generator)
        fan_in = max(1, spec.elements // max(1, spec.shape[0]))
        scaled = {"norm": 1 + 0.1 * noise, "scale": 1 + 0.1 * noise, "bias": 0.05 * noise, "embedding": noise}
        tensors[spec.name] = scaled.get(spec.role, noise / fan_in**0.5).bfloat16().float()
    return tensors


def placed_parameters(
    specs: Iterable[ParameterSpec], tensors: Mapping[str, torch.Tensor], backend: ComputeBackend
) -> Parameters:
    """The tensors as the loader hands them to a model."""
    return Parameters({spec.name: taken(backend, tensors[spec.name], spec.role) for spec in specs})


def load_reference(module: torch.nn.Module, tensors: Mapping[str, torch.Tensor], prefix: str) -> Any:
    """``module`` with all its parameters from the ``tensors`` below ``prefix``; experts fused as transformers wants."""
    state = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
    experts: dict[str, dict[int, dict[str, torch.Tensor]]] = {}
    for name in list(state):
        found = re.fullmatch(r"(.*\.experts)\.(\d+)\.(\w+)_proj\.weight", name)
        if found:
            experts.setdefault(found[1], {}).setdefault(int(found[2]), {})[found[3]] = state.pop(name)
    for name, parts in experts.items():
        ordered = [parts[index] for index in range(len(parts))]
        state[f"{name}.gate_up_proj"] = torch.stack([torch.cat((each["gate"], each["up"])) for each in ordered])
        state[f"{name}.down_proj"] = torch.stack([each["down"] for each in ordered])
    module.load_state_dict(state, strict=True)
    return module.float().eval()
