"""Memory is planned before it is taken: weights, KV cache and activations, and a refusal with the numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import psutil
import torch

from lluda.backends import usable_device
from lluda.config import DTypeName
from lluda.config_decoder import DecoderConfig
from lluda.errors import OutOfMemory
from lluda.parameters import ParameterSpec
from lluda.weights.components import component_of

DTYPE_BYTES: Mapping[str, int] = {"bf16": 2, "f32": 4, "f64": 8}


@dataclass(frozen=True, slots=True)
class PlanRow:
    """One line of the plan: a component, its parameters (0 for what is no weight) and its bytes in memory."""

    component: str
    parameters: int
    nbytes: int


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """What a model will take on ``device``. ``weights`` are in ``dtype`` or kept as stored; tied tensors count once."""

    device: str
    dtype: DTypeName
    weights: tuple[PlanRow, ...]
    kv_cache: PlanRow
    activations: PlanRow
    available: int

    @property
    def parameters(self) -> int:
        """Parameters in all, tied ones once."""
        return sum(row.parameters for row in self.weights)

    @property
    def weight_bytes(self) -> int:
        """Bytes of all weights."""
        return sum(row.nbytes for row in self.weights)

    @property
    def total(self) -> int:
        """Bytes in all."""
        return self.weight_bytes + self.kv_cache.nbytes + self.activations.nbytes

    def require_fit(self) -> None:
        """OutOfMemory, with both numbers and a remedy, if it does not fit what is available now."""
        if self.total > self.available:
            raise OutOfMemory(
                f"the model needs {_gb(self.total)} on {self.device} (weights {_gb(self.weight_bytes)}, KV cache "
                f"{_gb(self.kv_cache.nbytes)}, activations {_gb(self.activations.nbytes)}) but {_gb(self.available)} "
                "are available; take a smaller --max-context, --dtype bf16, or a smaller model "
                "(lluda plan shows the parts)"
            )


def plan_memory(
    specs: list[ParameterSpec],
    config: DecoderConfig,
    *,
    dtype: DTypeName,
    kv_bytes: int,
    context: int,
    prefill_rows: int,
    device: str = "cpu",
    stored: Mapping[str, int] | None = None,
) -> MemoryPlan:
    """The plan for one text model; ``kv_bytes`` at ``context`` positions, ``prefill_rows`` rows computed at once.
    ``stored`` has the bytes of tensors that are kept in another format than ``dtype``."""
    kept = stored or {}
    totals: dict[str, list[int]] = {}
    for spec in specs:
        if spec.tied_to:
            continue
        row = totals.setdefault(component_of(spec.name), [0, 0])
        row[0] += spec.elements
        # Vectors are held as float32 in a BF16 run; they are too few to matter, but the plan is exact about storage.
        row[1] += kept.get(spec.name, spec.elements * DTYPE_BYTES[dtype])
    return MemoryPlan(
        device=device,
        dtype=dtype,
        weights=tuple(PlanRow(name, parameters, nbytes) for name, (parameters, nbytes) in totals.items()),
        kv_cache=PlanRow(f"KV cache, {context} positions", 0, kv_bytes),
        activations=PlanRow("activations", 0, _activation_bytes(config, dtype, prefill_rows)),
        available=_available(device),
    )


def _activation_bytes(config: DecoderConfig, dtype: DTypeName, rows: int) -> int:
    """An upper estimate: residual and norms in float32, the widest projections, the feed-forward's three tensors, and
    one row of float32 logits."""
    widest = (config.num_attention_heads + 2 * config.num_key_value_heads) * config.head_dim
    ffn = config.intermediate_size if config.moe is None else config.moe.moe_intermediate_size
    per_row = 4 * 4 * config.hidden_size + 2 * 4 * widest + 3 * 4 * max(ffn, config.hidden_size)
    return rows * per_row * (2 if dtype == "f64" else 1) + 8 * config.vocab_size


def _available(name: str) -> int:
    """Bytes free now on the device; those of the machine where it shares them."""
    device = usable_device(name)
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return int(psutil.virtual_memory().available)


def _gb(nbytes: int) -> str:
    return f"{nbytes / 1e9:.2f} GB"
