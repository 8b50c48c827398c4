"""What prompts as users send them cost a runner: of lengths that never came before, behind a cached beginning, and
answers far behind their beginning."""

from __future__ import annotations

import time
from collections.abc import Iterator
from statistics import median

from lluda.bench.process.job import PROMPTS_POSITIONS, Job, Sample
from lluda.engine.kv_cache import KVCache
from lluda.engine.runner import Runner
from lluda.engine.warm_up import warm_up

SHORTEST, LONGEST, LENGTHS = 100, 2000, 20
CACHED, MORE = 1024, 8
_REPEATS = 5
_LEFT = 64
"""Positions of the deepest sequence for its answer."""


class Prompts:
    """Prompts of one job, run on the session's network."""

    def __init__(self, job: Job, runner: Runner) -> None:
        self._job, self._runner = job, runner

    def samples(self) -> Iterator[Sample]:
        """Of one round.

        * ``warm_up``: seconds that compiling and capturing took, before all others;
        * ``new_length``: how many times longer a prompt's first token took when its length first came than at best of
          five, the worst of 20 lengths from 100 to 2,000; ``new_length_median`` their median;
        * ``more8``: seconds to the first token of a prompt of which all but the last 8 tokens are cached;
        * ``deepN``: tokens a second of one sequence behind N positions, chosen greedily.
        """
        yield Sample("warm_up", warm_up(self._runner), "s")
        room = self._runner.cache_options.max_length
        ratios = [self._first_over_best(length) for length in self._lengths() if length <= room]
        if ratios:
            yield Sample("new_length", max(ratios), "x")
            yield Sample("new_length_median", median(ratios), "x")
        cached = min(CACHED, room - MORE)
        yield Sample(f"more{MORE}", self._behind(cached), "s")
        for depth in (PROMPTS_POSITIONS // 4, PROMPTS_POSITIONS):
            if depth <= room:
                yield Sample(f"deep{depth}", self._decode_rate(depth - _LEFT), "tok/s")

    def _lengths(self) -> Iterator[int]:
        """Spread over the range in an order that is neither up nor down."""
        step = (LONGEST - SHORTEST) // LENGTHS
        for index in range(LENGTHS):
            yield SHORTEST + (index * 7 % LENGTHS) * step + index

    def _first_over_best(self, length: int) -> float:
        times = [self._first_token(self._job.prompt(length, turn), self._runner.new_cache()) for turn in range(6)]
        return times[0] / min(times[1:])

    def _behind(self, cached: int) -> float:
        cache = self._runner.new_cache()
        self._first_token(self._job.prompt(cached), cache)
        times = []
        for turn in range(_REPEATS):
            cache.truncate(cached)
            prompt = [*self._job.prompt(cached), *self._job.prompt(MORE, turn)]
            times.append(self._first_token(prompt, cache))
        return median(times)

    def _decode_rate(self, depth: int) -> float:
        cache = self._runner.new_cache(depth + _LEFT)
        token = int(self._runner.prefill(self._job.prompt(depth), cache).argmax())
        token = self._runner.greedy_step([token], [cache])[0]
        steps = min(self._job.plan.generate, _LEFT - 1)
        begun = time.perf_counter()
        for _ in range(steps):
            token = self._runner.greedy_step([token], [cache])[0]
        return steps / (time.perf_counter() - begun)

    def _first_token(self, prompt: list[int], cache: KVCache) -> float:
        begun = time.perf_counter()
        int(self._runner.prefill(prompt, cache).argmax())
        return time.perf_counter() - begun
