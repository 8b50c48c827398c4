"""llama.cpp through llama-cpp-python's low-level interface: its own decode call, no Python sampler in between."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from pathlib import Path

import llama_cpp
import numpy as np

from lluda.bench.process.job import Job
from lluda.bench.session import RELEASED_SAMPLING, EngineInfo, Session, SteppingSession
from lluda.errors import UnsupportedModel
from lluda.weights.checkpoint import open_checkpoint

_BATCH = 512


def open_session(job: Job) -> Session:
    """Load the .gguf file."""
    return LlamaCppSession(job)


class LlamaCppSession(SteppingSession):
    """One context; each stream is a sequence of it, with a chain of llama.cpp's own samplers."""

    samples = True

    def __init__(self, job: Job) -> None:
        llama_cpp.llama_backend_init()
        self._job = job
        self._model = llama_cpp.llama_model_load_from_file(job.model.encode(), llama_cpp.llama_model_default_params())
        if not self._model:
            raise UnsupportedModel(f"{job.model}: llama.cpp cannot load this file; its messages are above")
        self._vocabulary = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self._model))
        self._batch = llama_cpp.llama_batch_init(_BATCH, 0, 1)
        self._lengths = [0]
        self._samplers: list[ctypes.c_void_p] = []
        self._context = self._new_context(1)

    @property
    def info(self) -> EngineInfo:
        """See ``Session``."""
        return _info(Path(self._job.model))

    def start(self, prompts: Sequence[Sequence[int]]) -> list[int]:
        """See ``SteppingSession``. A context's memory grows with its sequences, so it has as many as are needed."""
        if len(prompts) != len(self._lengths):
            llama_cpp.llama_free(self._context)
            self._context = self._new_context(len(prompts))
        for chain in self._samplers:
            llama_cpp.llama_sampler_free(chain)
        self._samplers = []
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self._context), True)
        self._lengths = [0] * len(prompts)
        return [self._prefill(stream, list(prompt)) for stream, prompt in enumerate(prompts)]

    def step(self, tokens: list[int]) -> list[int]:
        """See ``SteppingSession``."""
        self._run([(token, stream, True) for stream, token in enumerate(tokens)])
        if self._samplers:
            return [llama_cpp.llama_sampler_sample(one, self._context, row) for row, one in enumerate(self._samplers)]
        return [self._chosen(row) for row in range(len(tokens))]

    def sample(self, prompts: Sequence[Sequence[int]]) -> None:
        """See ``SteppingSession``."""
        self._samplers = [_sampler(seed) for seed in range(len(prompts))]

    def _new_context(self, streams: int) -> ctypes.c_void_p:
        options = llama_cpp.llama_context_default_params()
        options.n_ctx = self._job.positions * streams
        options.n_seq_max = streams
        options.n_batch = options.n_ubatch = _BATCH
        options.n_threads = options.n_threads_batch = self._job.threads
        context: ctypes.c_void_p | None = llama_cpp.llama_init_from_model(self._model, options)
        if not context:
            raise UnsupportedModel(f"{self._job.model}: llama.cpp cannot make a context of {options.n_ctx} positions")
        return context

    def _prefill(self, stream: int, prompt: list[int]) -> int:
        for start in range(0, len(prompt), _BATCH):
            part = prompt[start : start + _BATCH]
            last = len(prompt) - start - 1
            self._run([(token, stream, index == last) for index, token in enumerate(part)])
        return self._chosen(-1)

    def _run(self, rows: Sequence[tuple[int, int, bool]]) -> None:
        """Decode rows of (token, stream, whether logits are wanted)."""
        batch = self._batch
        batch.n_tokens = len(rows)
        for index, (token, stream, wanted) in enumerate(rows):
            batch.token[index] = token
            batch.pos[index] = self._lengths[stream]
            batch.n_seq_id[index] = 1
            batch.seq_id[index][0] = stream
            batch.logits[index] = wanted
            self._lengths[stream] += 1
        status = llama_cpp.llama_decode(self._context, batch)
        if status:
            raise RuntimeError(f"llama_decode returned {status}")

    def _chosen(self, row: int) -> int:
        logits = llama_cpp.llama_get_logits_ith(self._context, row)
        return int(np.ctypeslib.as_array(logits, (self._vocabulary,)).argmax())


def _sampler(seed: int) -> ctypes.c_void_p:
    """RELEASED_SAMPLING in llama.cpp's usual order: top-k, top-p, temperature, draw."""
    chain: ctypes.c_void_p = llama_cpp.llama_sampler_chain_init(llama_cpp.llama_sampler_chain_default_params())
    wanted = RELEASED_SAMPLING
    for one in (
        llama_cpp.llama_sampler_init_top_k(wanted.top_k),
        llama_cpp.llama_sampler_init_top_p(wanted.top_p, 1),
        llama_cpp.llama_sampler_init_temp(wanted.temperature),
        llama_cpp.llama_sampler_init_dist(seed),
    ):
        llama_cpp.llama_sampler_chain_add(chain, one)
    return chain


def _info(path: Path) -> EngineInfo:
    """The format that most weights of the file have, and what a weight takes on average."""
    totals: dict[str, list[int]] = {}
    for entry in open_checkpoint(path).entries.values():
        total = totals.setdefault(entry.dtype, [0, 0])
        total[0] += int(np.prod(entry.shape))
        total[1] += entry.nbytes
    weights, nbytes = (sum(column) for column in zip(*totals.values(), strict=True))
    # "CPU : AVX2 = 1 | FMA = 1 | ": what the build and the processor both have.
    features = llama_cpp.llama_print_system_info().decode().replace(" = 1", "").replace(" |", "").strip()
    return EngineInfo(max(totals, key=lambda dtype: totals[dtype][0]), nbytes / weights, f"mmap, {features}")
