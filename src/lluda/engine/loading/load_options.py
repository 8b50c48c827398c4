"""How a model is to be loaded: every option, checked as it is given."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from lluda.backends import best_device
from lluda.engine.kv_cache import Strategy
from lluda.engine.loading.placement import read_placement
from lluda.engine.parallel.ranks import rank_device
from lluda.engine.runner import GPU_PREFILL_CHUNK, PREFILL_CHUNK
from lluda.errors import InvalidRequest
from lluda.weights.loader import CheckTensors

MAX_THREADS = 1024
"""More than the cores of any machine this is for; told to start too many, OpenMP crashes the process."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadOptions:
    """How to load. ``dtype``: auto (as released), bf16, f32, f64. ``device``: any torch device, wgpu, or auto: the GPU
    that is there, else the CPU (it then holds that one's name). ``place``: devices of single components of an Omni
    model (`placement.py`), as a mapping or as ``thinker=cuda:0,code2wav=cpu``; the others are on ``device``;
    ``experts=cpu`` puts the mixture blocks of any mixture-of-experts model apart. ``backend``: auto or a name.
    ``weights``: auto (as stored, which for Q8_0 holds in BF16 runs), bf16 (packed and Q8_0 ones are decoded), packed to
    12 bits without loss (cpu, cuda; Q8_0 ones stay), or blocked, a copy in oneDNN's order (reference backend in BF16;
    its auto). ``activations``: what Q8_0 weights multiply, exact rows or rows rounded to q8_0 as in llama.cpp.
    ``max_context``: positions a sequence may have (default: the model's limit, at most 8192). ``kv_cache``: growing or
    preallocated; ``kv_dtype``: auto (as dtype), bf16, f32. ``prefill_chunk``: prompt rows computed at once (default:
    8192 on a GPU, 512 elsewhere). ``max_sequences``: sequences of a whole context that the KV cache holds at once
    (default: 8, or as many as fit); shorter ones run in greater numbers. ``deterministic``: each answer is to the bit
    what it is alone, whoever runs beside it and whatever ran before (the reference backend always is). ``threads``: CPU
    threads. ``check_tensors``: auto (warn of strange values where they are read in any case), or read every value, and
    warn or fail; off. ``rope_scaling``: in place of the checkpoint's own, an object as in config.json, or that as JSON
    (docs/numerics.md, YaRN). ``tensor_parallel``: processes that share the model, each with a slice of it and, of GPUs,
    one of its own (docs/scaling.md). ``allow_*`` accept what is refused by default."""

    dtype: str = "auto"
    device: str = "cpu"
    place: str | Mapping[str, str] = ""
    backend: str = "auto"
    weights: str = "auto"
    activations: str = "exact"
    max_context: int | None = None
    kv_cache: Strategy = "growing"
    kv_dtype: str = "auto"
    prefill_chunk: int | None = None
    max_sequences: int | None = None
    deterministic: bool = False
    threads: int | None = None
    check_tensors: CheckTensors = "auto"
    rope_scaling: str | Mapping[str, Any] | None = None
    tensor_parallel: int = 1
    allow_unexpected: bool = False
    allow_unknown_config: bool = False

    def __post_init__(self) -> None:
        for name in ("max_context", "threads", "prefill_chunk", "max_sequences", "tensor_parallel"):
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                raise InvalidRequest(f"{name} must be a positive integer, not {value!r:.80}")
        if self.threads is not None and self.threads > MAX_THREADS:
            raise InvalidRequest(f"threads must be at most {MAX_THREADS}, not {self.threads}; take one for each core")
        read_placement(self.place)
        if self.device == "auto":
            object.__setattr__(self, "device", best_device())

    def on_rank(self) -> LoadOptions:
        """For one of several processes: on the GPU that is its own, or with its part of the CPU's threads."""
        if self.tensor_parallel == 1:
            return self
        threads = self.threads or max(1, torch.get_num_threads() // self.tensor_parallel)
        return replace(self, device=str(rank_device(self.device)), threads=threads)

    @property
    def thinker_device(self) -> str:
        """Where a text model, or the thinker of an Omni one, is."""
        return read_placement(self.place).get("thinker", self.device)

    @property
    def prefill_rows(self) -> int:
        """Prompt rows computed at once. A GPU is kept busy by more of them, and reads the experts less often."""
        if self.prefill_chunk is not None:
            return self.prefill_chunk
        return GPU_PREFILL_CHUNK if self.thinker_device.startswith("cuda") else PREFILL_CHUNK
