"""What the engine does for several callers: requests that arrive one after the other, a prompt that begins like one
before, a long prompt beside answers that are under way."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Iterator
from statistics import median

from lluda.bench.process.job import CALLERS_POSITIONS, Job, Sample
from lluda.engine.engine import Engine
from lluda.engine.prompt_rows import PromptRows
from lluda.engine.request import Request, Token
from lluda.engine.runner import Runner
from lluda.engine.sampling.sampling_params import SamplingParams
from lluda.inputs.text.tokenizer import Tokenizer

ARRIVALS_SECONDS = 0.02
"""Between one request and the next."""

PREFIX, REST = 1024, 16
LONG_PROMPT, DECODERS = CALLERS_POSITIONS - 64, 4


class Callers:
    """An engine over the session's network, and the requests of one job."""

    def __init__(self, job: Job, runner: Runner) -> None:
        self._job = job
        context = runner.cache_options.max_length
        self._engine = Engine(
            runner, Tokenizer.empty(), kv_positions=max(job.plan.streams) * context, retained_positions=context
        )

    def samples(self) -> Iterator[Sample]:
        """Of one round.

        * ``callersN``: tokens a second of N requests that arrive 20 ms apart, while all of them decode; of all their
          time, where the first ends before the last begins;
        * ``prefix_first``, ``prefix_second``: seconds to the first token of a prompt of 1,040 tokens, and of one that
          begins with the same 1,024;
        * ``gap_alone``, ``gap_beside``: seconds between two tokens of four answers under way: the median, and the
          longest while a prompt of 2,000 tokens is computed beside them.
        """
        for callers in self._job.plan.streams:
            yield Sample(f"callers{callers}", self._decode_rate(callers), "tok/s")
        prompt = self._job.prompt(PREFIX)
        for name, stream in (("prefix_first", 1), ("prefix_second", 2)):
            yield Sample(name, self._first_token([*prompt, *self._job.prompt(REST, stream)]), "s")
        self._engine.release_prefixes()
        alone, beside = self._gaps()
        yield Sample("gap_alone", alone, "s")
        yield Sample("gap_beside", beside, "s")

    def _decode_rate(self, callers: int) -> float:
        length, steps = self._job.plan.decode_prompt(self._job.context), self._job.plan.generate
        times: list[list[float]] = [[] for _ in range(callers)]

        def call(number: int) -> None:
            for event in self._engine.submit(self._request(self._job.prompt(length, number), steps)):
                if isinstance(event, Token):
                    times[number].append(time.perf_counter())

        threads = [threading.Thread(target=call, args=(number,)) for number in range(callers)]
        for thread in threads:
            thread.start()
            time.sleep(ARRIVALS_SECONDS)
        for thread in threads:
            thread.join()
        begin, end = max(own[0] for own in times), min(own[-1] for own in times)
        if begin >= end:
            begin, end = min(own[0] for own in times), max(own[-1] for own in times)
        return sum(begin < at <= end for own in times for at in own) / (end - begin)

    def _first_token(self, prompt: list[int]) -> float:
        begun = time.perf_counter()
        next(self._engine.submit(self._request(prompt, 1)))
        spent = time.perf_counter() - begun
        self._engine.drain()
        return spent

    def _gaps(self) -> tuple[float, float]:
        steps = LONG_PROMPT // 4  # more than the prompt takes, in parts of 16 rows and up
        streams = [
            self._engine.submit(self._request(self._job.prompt(16, number), steps), capacity=steps + 2)
            for number in range(DECODERS)
        ]
        alone = [_gap(streams) for _ in range(20)][4:]
        long = self._engine.submit(self._request(self._job.prompt(LONG_PROMPT, DECODERS), 1), capacity=4)
        waiting = threading.Thread(target=lambda: list(long))
        waiting.start()
        beside = []
        while waiting.is_alive():
            beside.append(_gap(streams))
        for stream in streams:
            stream.cancel()
        self._engine.drain()
        return median(alone), max(beside)

    def _request(self, prompt: list[int], tokens: int) -> Request:
        params = SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True).with_defaults({})
        return Request(prompt=PromptRows(prompt), sampling=params)


def _gap(streams: Iterable[Iterator[object]]) -> float:
    """Seconds until each has one token more."""
    begun = time.perf_counter()
    for stream in streams:
        next(stream)
    return time.perf_counter() - begun
