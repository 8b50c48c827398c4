"""An error of one request is that request's alone; one of the device is the engine's."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from lluda.backends.device import DeviceRuntime
from lluda.engine.request import Completion
from lluda.engine.runner import Runner
from lluda.engine.sampling.sampler import Sampler
from lluda.engine.sampling.sampling_params import SamplingParams
from lluda.engine.sequence import Sequence
from lluda.errors import InvalidRequest, LludaError, NumericalError, OutOfMemory
from lluda.inputs.text.text_stream import TextStream
from tests.engine.test_engine import VOCABULARY, assert_idle, engine_of, ids_of, network, request

PARAMS = SamplingParams(temperature=0, max_tokens=12)
GOOD = [[1, 2, 3], [4, 5], range(40)]
BAD, BAD_PARAMS = [13] * 100, SamplingParams(temperature=0, max_tokens=12, seed=99, stop=["never"])


class Free:
    """A constraint that allows all, and may fail at its third token."""

    may_end = must_end = False

    def __init__(self, *, fails):
        self._left = 3 if fails else 1000

    def begin(self):
        return self

    def allowed(self):
        return np.ones(VOCABULARY, np.bool_)

    def accept(self, _token):
        self._left -= 1
        if not self._left:
            raise ValueError("injected")


def submit(engine, ids, params=PARAMS, **options):
    return engine.submit(request(ids, params, reuse="none", **options), capacity=1000)


POINTS = {
    "sampler": (Sampler, "_scores", lambda self, _logits: self.seed == 99 and self._count == 2),
    "text": (TextStream, "push", lambda self, _token: bool(self._searches)),
    "completion": (Sequence, "completion", lambda self, *_: self.prompt.ids[0] == 13),
    "attention": (Runner, "step", lambda _self, _ids, caches: any(cache.length == 103 for cache in caches)),
    "prompt": (Runner, "prefill_rows", lambda _self, prompt, *_: prompt.ids[0] == 13),
}


@pytest.mark.parametrize("point", [*POINTS, "constraint"])
@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_an_error_in_one_request_ends_that_one(monkeypatch, point, backend):
    engine = engine_of(network(backend=backend))
    alone = [ids_of(submit(engine, ids)) for ids in GOOD]
    if point in POINTS:
        where, name, is_bad = POINTS[point]
        real = getattr(where, name)

        def method(*arguments):
            if is_bad(*arguments):
                raise ValueError("injected")
            return real(*arguments)

        monkeypatch.setattr(where, name, method)
    broken = submit(engine, BAD, BAD_PARAMS, constraint=Free(fails=point == "constraint"))
    good = [submit(engine, ids) for ids in GOOD]
    with pytest.raises(ValueError, match="injected"):
        list(broken)
    assert [ids_of(each) for each in good] == alone
    assert_idle(engine)
    assert engine.error is None


def test_one_of_several_requests_of_a_stream_that_fails_ends_the_others():
    engine = engine_of(network())
    long = SamplingParams(temperature=0, max_tokens=900)
    stream = engine.submit(
        request([1, 2], long, index=0), request([3], long, index=1, constraint=Free(fails=True)), capacity=4
    )
    with pytest.raises(ValueError, match="injected"):
        list(stream)
    assert_idle(engine)
    stats = engine.stats()
    assert (stats.failed, stats.cancelled) == (1, 1)
    assert list(stream) == []


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_logits_that_are_no_numbers_have_an_error_of_their_own(monkeypatch, bad):
    engine, real = engine_of(network()), Runner.step
    monkeypatch.setattr(Runner, "step", lambda self, ids, caches: real(self, ids, caches) * 0 + bad)
    with pytest.raises(NumericalError, match=r"NaN|\+inf"):
        list(submit(engine, [1, 2]))
    assert_idle(engine)


def test_a_request_that_leaves_no_token_to_choose_is_invalid():
    engine = engine_of(network())
    params = SamplingParams(temperature=0, max_tokens=5, stop_token_ids=tuple(range(0, 60)), min_tokens=3)

    class Few(Free):
        def allowed(self):
            return np.arange(VOCABULARY) < 60

    with pytest.raises(InvalidRequest, match="no token can be sampled: suppress_tokens"):
        list(submit(engine, [1, 2], params, constraint=Few(fails=False)))
    assert_idle(engine)


def test_want_of_memory_in_a_step_ends_those_alone_for_which_it_does_not_suffice(monkeypatch):
    engine, real = engine_of(network(), deterministic=False), Runner.step
    alone = [ids_of(submit(engine, ids)) for ids in GOOD]

    def step(self, ids, caches):
        if len(ids) > 1 or caches[0].length > 104:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(self, ids, caches)

    monkeypatch.setattr(Runner, "step", step)
    large, good = submit(engine, BAD), [submit(engine, ids) for ids in GOOD]
    with pytest.raises(OutOfMemory, match="memory ran out"):
        list(large)
    assert [ids_of(each) for each in good] == alone
    assert_idle(engine)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_an_error_by_which_the_device_is_lost_is_the_engines(monkeypatch):
    engine = engine_of(network())
    waiting = submit(engine, [1, 2], SamplingParams(temperature=0, max_tokens=900))
    next(waiting)

    def step(self, ids, caches):
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(Runner, "step", step)
    monkeypatch.setattr(DeviceRuntime, "is_lost", lambda _self: True)
    with pytest.raises(RuntimeError, match="illegal memory access"):
        list(waiting)
    engine.close()
    assert "illegal memory access" in str(engine.error)
    with pytest.raises(LludaError, match="the engine stopped at an error"):
        submit(engine, [1])
    engine.check_integrity()


def test_a_prompt_in_the_step_of_others_fails_alone(monkeypatch):
    engine, real = engine_of(network(backend="cpu"), deterministic=False), Runner.step_with_prompt
    params = SamplingParams(temperature=0, max_tokens=60)
    alone = ids_of(submit(engine, [1, 2, 3], params))

    def step_with_prompt(self, ids, caches, prompt, *rest):
        raise ValueError("injected: together")

    def prefill_rows(self, prompt, *rest):
        if prompt.ids[0] == 13:
            raise ValueError("injected: alone")
        return first(self, prompt, *rest)

    first = Runner.prefill_rows
    running = submit(engine, [1, 2, 3], params)
    begun = list(itertools.islice(running, 2))
    monkeypatch.setattr(Runner, "step_with_prompt", step_with_prompt)
    monkeypatch.setattr(Runner, "prefill_rows", prefill_rows)
    with pytest.raises(ValueError, match="injected: alone"):
        list(submit(engine, BAD))
    rest = list(running)
    assert ids_of([*begun, *rest]) == alone and isinstance(rest[-1], Completion)
    assert real is not Runner.step_with_prompt
    assert_idle(engine)
