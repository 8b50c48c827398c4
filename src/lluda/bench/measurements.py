"""The tests: what is timed in one process, in which order, after which warm-up."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from statistics import median

from lluda.bench.process.job import Job, Sample
from lluda.bench.session import Session
from lluda.engine.runner import Runner

_SHORT_REPEATS = 5


def measure(job: Job, open_session: Callable[[Job], Session], opened: Callable[[Session], None]) -> Iterator[Sample]:
    """Open the engine and run the job's tests, yielding each sample as it is known; ``opened`` gets the open session.

    Each test gives ``job.rounds`` samples; with more than one it is warmed up first.

    * ``load``: seconds from asking for the model to holding it, the engine's package already imported (what a package
      imports only as it loads counts);
    * ``start_to_first_token``: seconds from before the process was made to the greedy token after a one-token prompt:
      interpreter, imports, load and one cold pass;
    * ``ttft``: the same prompt in the warm process, median of five;
    * ``ppN``: prompt tokens a second, logits of the last position only, after one warm-up of the same length;
    * ``tgN``: tokens a second of N decode steps at batch 1 after a prompt of 128, chosen greedily;
    * ``tgN_sampled``: the same with the released models' sampling, of engines whose own it can be;
    * ``memory``: peak resident memory of the process so far, in GB (10^9);
    * ``streamsN``: tokens a second of N sequences decoding together, all of them counted, chosen greedily;
      ``streamsN_sampled`` as ``tgN_sampled``;
    * those of `Callers.samples` and `Prompts.samples`, of lluda.
    """
    begun = time.perf_counter()
    session = open_session(job)
    loaded = time.perf_counter() - begun
    session.first_token(job.prompt(1))
    since_start = time.monotonic() - job.started
    opened(session)
    tests = job.plan.tests
    if "load" in tests:
        yield Sample("load", loaded, "s")
    if "ttft" in tests:
        yield Sample("start_to_first_token", since_start, "s")
        yield Sample("ttft", median(session.first_token(job.prompt(1)) for _ in range(_SHORT_REPEATS)), "s")
    if "pp" in tests:
        for length in job.plan.prompts:
            yield from _rates(job, f"pp{length}", partial(_prefill_rate, job, session, length), warm_up=True)
    if "tg" in tests:
        steps = job.plan.generate
        yield from _rates(job, f"tg{steps}", partial(_decode_rate, job, session, 1, steps))
        if session.samples:
            sampled = partial(_decode_rate, job, session, 1, steps, sampled=True)
            yield from _rates(job, f"tg{steps}_sampled", sampled)
    if "memory" in tests:
        yield Sample("memory", peak_memory() / 1e9, "GB")
    if "streams" in tests:
        for streams in job.plan.streams:
            steps = job.plan.stream_steps
            rate = partial(_decode_rate, job, session, streams, steps)
            yield from _rates(job, f"streams{streams}", rate)
            if session.samples:
                yield from _rates(job, f"streams{streams}_sampled", partial(rate, sampled=True))
    if session.runner is not None:
        yield from _engine_samples(job, session.runner)


def _engine_samples(job: Job, runner: Runner) -> Iterator[Sample]:
    """Those of ENGINE_TESTS."""
    if "callers" in job.plan.tests:
        from lluda.bench.measured.callers import Callers

        callers = Callers(job, runner)
        for _ in range(job.rounds):
            yield from callers.samples()
    if "prompts" in job.plan.tests:
        from lluda.bench.measured.prompts import Prompts

        for _ in range(job.rounds):
            yield from Prompts(job, runner).samples()


def _rates(job: Job, test: str, rate: Callable[[], float], *, warm_up: bool = False) -> Iterator[Sample]:
    if warm_up or job.rounds > 1:
        rate()
    for _ in range(job.rounds):
        yield Sample(test, rate(), "tok/s")


def _prefill_rate(job: Job, session: Session, length: int) -> float:
    return length / session.first_token(job.prompt(length))


def _decode_rate(job: Job, session: Session, streams: int, steps: int, *, sampled: bool = False) -> float:
    length = job.plan.decode_prompt(job.context)
    prompts = [job.prompt(length, stream) for stream in range(streams)]
    return streams * steps / session.decode(prompts, steps, sampled=sampled)


def peak_memory() -> int:
    """Bytes of physical memory this process has held at most, mapped files included (Linux: VmHWM)."""
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    # Elsewhere getrusage has it: bytes on macOS, KiB on the BSDs.
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
