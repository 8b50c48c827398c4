"""lluda itself, through the engine that ``generate`` uses: `Generator.prefill` and `Generator.step`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lluda.bench.job import Job
from lluda.bench.session import EngineInfo, Session, SteppingSession
from lluda.engine.kv_cache import KVCache
from lluda.engine.model import LoadOptions, ModelFiles
from lluda.errors import InvalidRequest

FORMATS: Mapping[str, Mapping[str, Any]] = {"BF16": {"dtype": "bf16"}, "F32": {"dtype": "f32"}}
"""Weight formats that can be measured, and the `LoadOptions` each stands for. A new format is one more line."""


def open_session(job: Job) -> Session:
    """Load the folder or .gguf file with the job's backend and format."""
    return LludaSession(job)


class LludaSession(SteppingSession):
    """One KV cache per stream; all streams share each step."""

    def __init__(self, job: Job) -> None:
        if job.format not in FORMATS:
            raise InvalidRequest(f"format {job.format!r:.40} does not exist; choose from {', '.join(FORMATS)}")
        options = LoadOptions(
            device=job.device,
            backend=job.backend,
            max_context=job.positions,
            threads=job.threads,
            **FORMATS[job.format],
        )
        self._generator = _generator(ModelFiles.find(job.model), options)
        self._caches: list[KVCache] = []
        backend = self._generator.model.backend
        self.info = EngineInfo(job.format, float(backend.precision.compute.itemsize), backend.describe())

    def start(self, prompts: Sequence[Sequence[int]]) -> list[int]:
        """See ``SteppingSession``."""
        self._caches = [self._generator.new_cache() for _ in prompts]
        rows = [self._generator.prefill(list(p), cache) for p, cache in zip(prompts, self._caches, strict=True)]
        return [int(row.argmax()) for row in rows]

    def step(self, tokens: list[int]) -> list[int]:
        """See ``SteppingSession``."""
        chosen: list[int] = self._generator.step(tokens, self._caches).argmax(-1).tolist()
        return chosen
