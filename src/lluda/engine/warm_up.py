"""What a runner compiles and captures before anyone asks: steps of every number of rows and of sequences."""

from __future__ import annotations

import time
from collections.abc import Iterator

from lluda.backends.components import StageObserver
from lluda.engine.prompt_rows import PromptRows
from lluda.engine.runner import BUCKETS, Runner
from lluda.engine.sampling.sampler import Sampler
from lluda.engine.sampling.sampling_params import SamplingParams


def warm_up(runner: Runner, sequences: int = BUCKETS[-1], *, stage: str = "") -> float:
    """Run what the prompts and steps of up to ``sequences`` sequences launch, and the same prompts with an observer of
    ``stage`` where there is one: seconds that it took; 0 where nothing is captured."""
    backend = runner.model.backend
    if not backend.captures:
        return 0.0
    begun = time.perf_counter()
    for rows in (rows for rows in backend.prompt_rows if rows <= runner.cache_options.max_length):
        for observer in (None, StageObserver(stage, lambda _: None)) if stage else (None,):
            observe = None if observer is None else lambda _, observer=observer: observer
            runner.prefill_rows(PromptRows([0] * rows), runner.new_cache(rows), rows, observe)
    for count in _steps(sequences):
        params = SamplingParams(seed=0).with_defaults({})
        samplers = [Sampler(params, [], runner.model.config.vocab_size) for _ in range(count)]
        runner.greedy_step([0] * count, [runner.new_cache(1) for _ in range(count)])
        runner.choose_step([0] * count, [runner.new_cache(1) for _ in range(count)], samplers)
    backend.synchronize()
    return time.perf_counter() - begun


def _steps(sequences: int) -> Iterator[int]:
    for count in BUCKETS:
        yield count
        if count >= sequences:
            return
