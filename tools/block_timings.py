"""RoPE, attention, SwiGLU and mixture of one layer of released width: seconds and distance to float64, of lluda's
backends and of transformers' modules on the same random weights, in BF16.

``python -m tools.block_timings FOLDER [--rounds N]`` writes what `tools.journal` makes tables of. All are timed in
turn, round after round, and medians count.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

from lluda.backends import select_backend
from lluda.backends.batch import Segment
from lluda.backends.blocks import MixtureBlock
from lluda.backends.components import DecoderLayers
from lluda.backends.executor.decoder import DecoderExecutor
from lluda.backends.weight import Parameters
from lluda.bench.machine import read_machine
from lluda.config.model import ModelConfig
from lluda.engine.kv_cache import CacheOptions, KVCache
from lluda.files.atomic_file import atomic_file
from lluda.formats.plain import plain_tensor
from lluda.models.causal_lm import CausalLM, causal_lm_parameters
from lluda.models.decoder import rotary_of

ROWS = (1, 128, 512)
BEHIND = 128
"""Positions that a single row stands behind."""

BACKENDS = ("reference", "cpu")
_BASE = {
    "head_dim": 128, "hidden_act": "silu", "rms_norm_eps": 1e-6, "rope_theta": 1e6, "max_position_embeddings": 40960,
    "num_hidden_layers": 1, "vocab_size": 256, "tie_word_embeddings": True, "torch_dtype": "bfloat16",
}  # fmt: skip
DENSE = _BASE | {
    "model_type": "qwen3", "hidden_size": 1024, "num_attention_heads": 16, "num_key_value_heads": 8,
    "intermediate_size": 3072,
}  # fmt: skip
SPARSE = _BASE | {
    "model_type": "qwen3_moe", "hidden_size": 2048, "num_attention_heads": 32, "num_key_value_heads": 4,
    "intermediate_size": 6144, "num_experts": 128, "num_experts_per_tok": 8, "moe_intermediate_size": 768,
    "norm_topk_prob": True,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Contender:
    """One implementation of one part: ``run`` computes it for the rows it was made for."""

    part: str
    width: str
    rows: int
    engine: str
    run: Callable[[], Tensor]


class Layer:
    """A decoder layer's tensors, lluda's model of it on a backend, and transformers' module of it."""

    def __init__(self, raw: dict[str, Any], name: str) -> None:
        self.raw, self.name = raw, name
        self.config = ModelConfig.from_hf(raw).text
        generator = torch.Generator().manual_seed(1)
        self.tensors = {
            spec.name: torch.randn(spec.shape, generator=generator)
            .mul_(0.02 if spec.role in ("matrix", "embedding", "router") else 0.1)
            .add_(1.0 if spec.role == "norm" else 0.0)
            .bfloat16()
            for spec in causal_lm_parameters(self.config)
            if not spec.tied_to
        }

    def lluda(self, engine: str, dtype: str = "bf16") -> CausalLM:
        """The model of the layer."""
        backend = select_backend(engine, "cpu", dtype, "bf16" if dtype == "bf16" else "auto")
        specs = [spec for spec in causal_lm_parameters(self.config) if not spec.tied_to]
        placed = {spec.name: backend.take(plain_tensor(self.tensors[spec.name]), spec.role)[0] for spec in specs}
        return CausalLM(self.config, Parameters(placed), backend)

    def transformers(self, dtype: torch.dtype) -> tuple[Any, Any]:
        """The module of the layer and that of its rotary table, whose frequencies stay float32 as they are trained."""
        from transformers import AutoConfig, AutoModelForCausalLM

        config = AutoConfig.for_model(**self.raw)
        config._attn_implementation = "sdpa"
        # The grouped product that transformers prefers knows no float64.
        if self.config.moe is not None:
            config._experts_implementation = "eager" if dtype is torch.float64 else "grouped_mm"
        model = AutoModelForCausalLM.from_config(config).eval()
        layer, state = model.model.layers[0], dict(self._layer_state())
        layer.load_state_dict(state)
        return layer.to(dtype), model.model.rotary_emb

    def _layer_state(self) -> Iterator[tuple[str, Tensor]]:
        prefix = "model.layers.0."
        state = {name.removeprefix(prefix): value for name, value in self.tensors.items() if name.startswith(prefix)}
        if self.config.moe is not None:
            parts = {
                part: torch.stack(
                    [state.pop(f"mlp.experts.{e}.{part}_proj.weight") for e in range(self.config.moe.num_experts)]
                )
                for part in ("gate", "up", "down")
            }
            state["mlp.experts.gate_up_proj"] = torch.cat((parts["gate"], parts["up"]), 1)
            state["mlp.experts.down_proj"] = parts["down"]
        yield from state.items()

    def inputs(self, rows: int) -> Tensor:
        """Residual rows, float32."""
        return torch.randn(rows, self.config.hidden_size, generator=torch.Generator().manual_seed(rows))

    def behind(self, rows: int) -> int:
        """Positions before the first of ``rows``."""
        return BEHIND if rows == 1 else 0


def contenders(layer: Layer) -> Iterator[Contender]:
    """Every part of one layer, of every engine, for all of ``ROWS``; the float64 truth of each as well."""
    theirs = {"float64": layer.transformers(torch.float64), "transformers": layer.transformers(torch.bfloat16)}
    ours = {name: layer.lluda(name) for name in BACKENDS}
    part = "mixture" if layer.config.moe else "swiglu"
    for rows in ROWS:
        for engine, (module, rotary) in theirs.items():
            yield Contender("attention", layer.name, rows, engine, _their_attention(layer, module, rotary, rows))
            yield Contender(part, layer.name, rows, engine, _their_mlp(layer, module, rows))
        for engine, model in ours.items():
            yield Contender("attention", layer.name, rows, engine, _our_attention(layer, model, rows))
            yield Contender(part, layer.name, rows, engine, _our_mlp(layer, model, rows))


def _our_attention(layer: Layer, model: CausalLM, rows: int) -> Callable[[], Tensor]:
    backend, stack = model.backend, model.decoder.layers
    assert isinstance(backend, DecoderExecutor)
    behind = layer.behind(rows)
    cache = KVCache(layer.config, CacheOptions(1024), backend.device)
    if behind:
        _attend(backend, stack, layer.inputs(behind), cache, 0)
    x = layer.inputs(rows)

    def run() -> Tensor:
        cache.length = behind
        return _attend(backend, stack, x.clone(), cache, behind)

    return run


def _attend(backend: DecoderExecutor, stack: DecoderLayers, x: Tensor, cache: KVCache, behind: int) -> Tensor:
    positions = torch.arange(behind, behind + len(x))
    step = backend.begin_step(backend.rotary_table(positions, stack.rotary), [Segment(0, len(x), cache)])
    return backend.attention_block(x, stack.blocks[0][0], 0, step)


def _our_mlp(layer: Layer, model: CausalLM, rows: int) -> Callable[[], Tensor]:
    backend, block = model.backend, model.decoder.layers.blocks[0][1]
    assert isinstance(backend, DecoderExecutor)
    x = layer.inputs(rows)
    if isinstance(block, MixtureBlock):
        return lambda: backend.mixture_block(x.clone(), block)
    return lambda: backend.swiglu_block(x.clone(), block)


def _their_attention(layer: Layer, module: Any, rotary: Any, rows: int) -> Callable[[], Tensor]:
    from transformers.cache_utils import DynamicCache

    dtype = module.self_attn.q_proj.weight.dtype
    behind, x = layer.behind(rows), layer.inputs(rows).to(dtype)[None]

    def attend(x: Tensor, start: int, cache: Any) -> Tensor:
        positions = torch.arange(start, start + x.shape[1])[None]
        table = tuple(part.to(dtype) for part in rotary(x.float(), positions))
        added, _ = module.self_attn(module.input_layernorm(x), table, None, past_key_values=cache)
        return (x + added)[0]

    before = DynamicCache()
    if behind:
        attend(layer.inputs(behind).to(dtype)[None], 0, before)

    def run() -> Tensor:
        if not behind:
            return attend(x, 0, DynamicCache())
        if before.get_seq_length() > behind:
            before.crop(-rows)
        return attend(x, behind, before)

    return run


def _their_mlp(layer: Layer, module: Any, rows: int) -> Callable[[], Tensor]:
    x = layer.inputs(rows).to(module.input_layernorm.weight.dtype)[None]

    def run() -> Tensor:
        added = module.mlp(module.post_attention_layernorm(x))
        return (x + (added[0] if isinstance(added, tuple) else added))[0]

    return run


def measure(contenders: list[Contender], rounds: int) -> list[dict[str, Any]]:
    """A row for each but the truth: median, least and most ms, and the distance of what the part adds to float64, as a
    share of its size."""
    results = [each.run().double() for each in contenders]
    times: list[list[float]] = [[] for _ in contenders]
    for _ in range(rounds):
        for each, own in zip(contenders, times, strict=True):
            if each.engine != "float64":
                begun = time.perf_counter()
                each.run()
                own.append(1e3 * (time.perf_counter() - begun))
    truths = {
        (each.part, each.width, each.rows): result
        for each, result in zip(contenders, results, strict=True)
        if each.engine == "float64"
    }
    rows = []
    for each, result, own in zip(contenders, results, times, strict=True):
        if each.engine == "float64":
            continue
        truth = truths[each.part, each.width, each.rows]
        rows.append(
            {
                "part": each.part, "width": each.width, "rows": each.rows, "engine": each.engine,
                "median ms": median(own), "min ms": min(own), "max ms": max(own),
                "to float64": float((result - truth).norm() / truth.norm()),
            }
        )  # fmt: skip
    return rows


def rope_rows(rounds: int) -> list[dict[str, Any]]:
    """Rotation of the query and key rows of 512 positions from each of several on, tables included: lluda's definition
    and transformers' functions in BF16, and angles against float64."""
    from transformers import AutoConfig
    from transformers.models.qwen3.modeling_qwen3 import Qwen3RotaryEmbedding, apply_rotary_pos_emb

    backend = select_backend("reference", "cpu", "bf16", "bf16")
    assert isinstance(backend, DecoderExecutor)
    config = ModelConfig.from_hf(DENSE).text
    table_of, theirs = rotary_of(config, backend.device), Qwen3RotaryEmbedding(AutoConfig.for_model(**DENSE))
    q, k = (torch.randn(512, heads, 128).bfloat16() for heads in (16, 8))
    rows = []
    for first in (0, 4096, 32768):
        positions = torch.arange(first, first + 512)

        def ours(positions: Tensor = positions) -> Tensor:
            table = backend.rotary_table(positions, table_of)
            backend.rotate(k, table, None)
            return backend.rotate(q, table, None)

        def transformers(positions: Tensor = positions) -> Tensor:
            cos, sin = theirs(q, positions[None])
            return apply_rotary_pos_emb(q.transpose(0, 1)[None], k.transpose(0, 1)[None], cos, sin)[0][0].transpose(
                0, 1
            )

        angles = positions.double()[:, None] * (1e6 ** -(torch.arange(64).double() / 64))[None]
        a, b = q.double().chunk(2, -1)
        cos, sin = angles.cos()[:, None], angles.sin()[:, None]
        truth = torch.cat((a * cos - b * sin, b * cos + a * sin), -1)
        for engine, run in (("reference", ours), ("transformers", transformers)):
            own = []
            for _ in range(rounds):
                begun = time.perf_counter()
                result = run()
                own.append(1e3 * (time.perf_counter() - begun))
            error = float((result.double() - truth).norm() / truth.norm())
            rows.append({
                "first position": first, "engine": engine, "median ms": median(own), "min ms": min(own),
                "max ms": max(own), "to float64": error,
            })  # fmt: skip
    return rows


@torch.inference_mode()
def main() -> int:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="where blocks-rope.json, blocks-attention.json, … go")
    parser.add_argument("--rounds", type=int, default=15)
    arguments = parser.parse_args()
    machine = read_machine(("transformers", "numpy"))
    tables = {"rope": rope_rows(arguments.rounds)}
    for layer in (Layer(DENSE, "0.6B"), Layer(SPARSE, "30B-A3B")):
        for row in measure(list(contenders(layer)), arguments.rounds):
            tables.setdefault("attention" if row["part"] == "attention" else "mlp", []).append(row)
    for name, rows in tables.items():
        with atomic_file(arguments.folder / f"blocks-{name}.json") as file:
            document = {"kind": "rows", "machine": asdict(machine), "rows": rows}
            file.write(f"{json.dumps(document, indent=1)}\n".encode())
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
