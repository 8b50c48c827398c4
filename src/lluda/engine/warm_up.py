"""What a runner compiles and captures before anyone asks: steps of every number of rows and of sequences."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from copy import copy
from functools import partial

import torch

from lluda.backends.capture import ARGMAX
from lluda.backends.components import Observer, StageObserver
from lluda.engine.kv_cache import STORAGE_DTYPES, KVCache
from lluda.engine.prompt_rows import PromptRows
from lluda.engine.runner import BUCKETS, Runner
from lluda.engine.sampling.sampler import Sampler
from lluda.engine.sampling.sampling_params import SamplingParams
from lluda.models.thinker import Thinker

GREEDY, SAMPLED = SamplingParams(temperature=0.0), SamplingParams(temperature=1.0, top_k=20, top_p=0.9, seed=0)


def warm_up(runner: Runner, sequences: int = BUCKETS[-1], *, stage: str = "") -> float:
    """Run what prompts, encoders and the steps of up to ``sequences`` sequences launch: seconds that it took; 0 where
    nothing is captured. ``stage``: whose rows prompts show that are answered in speech, where there is one.

    What has to be compiled is compiled first, side by side."""
    backend = runner.model.backend
    if not backend.captures:
        return 0.0
    begun = time.perf_counter()
    prompts = [rows for rows in backend.prompt_rows if rows <= runner.cache_options.max_length]
    steps = list(_steps(sequences))
    cache = runner.new_cache(max(prompts, default=1))
    encoders = [partial(_encode, runner.model)] if isinstance(runner.model, Thinker) else []
    if not runner.leads:  # else the others would be told of all at once
        works = [partial(_prompt, runner, rows, copy(cache)) for rows in prompts]
        works += [partial(_step, runner, count, sampled, copy(cache)) for count, sampled in steps]
        backend.compile(works + encoders)
    for work in 2 * encoders:  # the second time that a shape comes it is captured
        work()
    observer = StageObserver(stage, lambda _: None) if stage else None
    for rows in prompts:
        _prompt(runner, rows, cache, observer)
    vocabulary = runner.model.config.vocab_size
    for params in (GREEDY, SAMPLED):
        Sampler(params, [], vocabulary).sample(torch.zeros(vocabulary, device=backend.device))
    for count, sampled in steps:
        cache.truncate(0)
        if sampled:
            runner.choose_step([0] * count, [cache] * count, [Sampler(SAMPLED, [], vocabulary) for _ in range(count)])
        else:
            runner.greedy_step([0] * count, [cache] * count)
    backend.synchronize()
    return time.perf_counter() - begun


def _steps(sequences: int) -> Iterator[tuple[int, bool]]:
    """Sequences of each captured step, and whether it samples."""
    for count in BUCKETS:
        yield count, False
        yield count, True
        if count >= sequences:
            return


def _prompt(runner: Runner, rows: int, cache: KVCache, observer: Observer | None = None) -> None:
    cache.truncate(0)
    observe: Callable[[int], Observer | None] | None = (lambda _: observer) if observer else None
    runner.prefill_rows(PromptRows([0] * rows), cache, rows, observe)


@torch.inference_mode()
def _encode(thinker: Thinker) -> None:
    """A second of sound and a small picture."""
    audio, vision = thinker.omni.audio, thinker.omni.vision
    side = 4 * vision.spatial_merge_size
    thinker.audio_tower([torch.zeros(100, audio.num_mel_bins)])
    thinker.visual(torch.zeros(side * side, vision.patch_values), [(1, side, side)])


@torch.inference_mode()
def _step(runner: Runner, count: int, sampled: bool, cache: KVCache) -> None:
    """Launch by launch."""
    graph = runner.model.backend.decode_graph(
        lambda ids, positions, segments: runner.model(ids, positions, segments, None),
        count,
        STORAGE_DTYPES[runner.cache_options.dtype],
        sampled=sampled,
        capture=False,
    )
    if graph is not None:
        graph.launch([0] * count, [0.0] * count, [cache] * count, [ARGMAX] * count if sampled else ())
