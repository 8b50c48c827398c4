"""Many callers at once: every answer is what it is alone, and every accepted request ends exactly once."""

from __future__ import annotations

import asyncio
import gc
import itertools
import random
import threading
import time
from dataclasses import replace

import pytest
import torch

from lluda.engine.cache import MIN_REUSED
from lluda.engine.engine import Engine
from lluda.engine.kv_cache import CacheOptions
from lluda.engine.request import Completion, Request, Token
from lluda.engine.runner import Runner
from lluda.engine.sampling.sampling_params import SamplingParams
from lluda.engine.scheduler import Scheduler
from lluda.errors import ContextExceeded, DeadlineExceeded, InvalidRequest, LludaError
from lluda.inputs.text.tokenizer import Tokenizer
from lluda.models.causal_lm import CausalLM
from tests.conftest import TINY_MOE, TINY_QWEN3, TinyModel, placed, random_tensors

VOCABULARY = TINY_QWEN3["vocab_size"]
CONTEXT = 1024
GREEDY = SamplingParams(temperature=0)
WATCHDOG = 120


CUDA = pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU"))


def network(raw=TINY_QWEN3, backend="reference"):
    if backend == "reference":
        return TinyModel(raw).network
    from lluda.backends import select_backend
    from lluda.config.model import ModelConfig

    name, weights = ("cpu", "packed") if backend == "packed" else (backend, "bf16")
    chosen = select_backend(name, name, "bf16", weights=weights)
    return CausalLM(ModelConfig.from_hf(raw).text, placed(random_tensors(raw, 0, torch.bfloat16), raw, chosen), chosen)


def engine_of(model, *, deterministic=True, sequences=8, retained=CONTEXT, chunk=512, **options):
    dtype = "f32" if model.backend.name == "reference" else "bf16"
    runner = Runner(model, CacheOptions(CONTEXT, dtype=dtype), chunk, deterministic=deterministic)
    return Engine(runner, Tokenizer.empty(), kv_positions=sequences * CONTEXT, retained_positions=retained, **options)


def request(ids, params=GREEDY, **options):
    from lluda.engine.prompt_rows import PromptRows

    return Request(prompt=PromptRows(list(ids)), sampling=params.with_defaults({}), **options)


def ids_of(events):
    return [event.id for event in events if isinstance(event, Token)]


def drawn(seed, *, longest=600):
    """A request of random length, sampling and priority."""
    draw = random.Random(seed)
    size = draw.choice([1, 5, 16, 17, 33, 100, draw.randrange(1, longest)])
    shared = [7 * row % VOCABULARY for row in range(draw.choice([0, 0, 60, 300]))]
    ids = [*shared, *(draw.randrange(VOCABULARY) for _ in range(size))]
    params = SamplingParams(
        temperature=draw.choice([0, 0.7, 1.0]),
        top_k=draw.choice([0, 20]),
        top_p=0.95,
        repetition_penalty=draw.choice([1.0, 1.1]),
        seed=seed,
        max_tokens=draw.randrange(1, 12),
    )
    return request(ids[: CONTEXT - 20], params, priority=draw.randrange(2))


def assert_idle(engine):
    assert engine.drain(WATCHDOG)
    engine.check_integrity()
    stats = engine.stats()
    assert (stats.waiting, stats.running, stats.kv_positions) == (0, 0, 0)
    assert stats.submitted == stats.done + stats.cancelled + stats.failed


@pytest.mark.parametrize("backend", ["reference", "cpu", "packed", CUDA])
@pytest.mark.parametrize("raw", [TINY_QWEN3, TINY_MOE], ids=["dense", "mixture"])
def test_64_requests_from_8_threads_a_third_cancelled_get_what_they_get_alone(raw, backend):
    model = network(raw, backend)
    requests = [drawn(seed) for seed in range(64)]
    alone = engine_of(model, retained=0)
    expected = [ids_of(alone.submit(one)) for one in requests]
    alone.close()
    together = engine_of(model, sequences=3)
    answers: dict[int, list[int]] = {}
    cancelled = set()

    def caller(number):
        draw = random.Random(1000 + number)
        for index in range(number, len(requests), 8):
            time.sleep(draw.random() * 0.01)
            stream = together.submit(requests[index])
            events = []
            if draw.random() < 1 / 3:
                cancelled.add(index)
                events = list(itertools.islice(stream, draw.randrange(3)))
                stream.cancel()
            answers[index] = ids_of([*events, *stream])

    threads = [threading.Thread(target=caller, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WATCHDOG)
    assert_idle(together)
    assert together.stats().submitted == 64
    assert together.stats().cancelled > 0
    for index, tokens in answers.items():
        whole = expected[index]
        assert (whole[: len(tokens)] if index in cancelled else whole) == tokens, f"request {index}"
    together.close()


def test_threads_and_memory_go_back_to_what_they_were():
    model, before = network(), threading.active_count()
    engine = engine_of(model, sequences=2)
    assert ids_of(engine.submit(*(drawn(seed) for seed in range(6))))
    assert_idle(engine)
    assert threading.active_count() == before + 1, "one thread computes"
    assert engine.stats().cached_positions > 0
    engine.release_prefixes()
    assert engine.stats().kv_bytes == 0
    engine.close()
    assert threading.active_count() == before
    with pytest.raises(LludaError, match="was closed"):
        engine.submit(drawn(0))


def test_an_engine_that_is_let_go_of_ends_its_thread():
    before = threading.active_count()
    engine = engine_of(network())
    assert ids_of(engine.submit(drawn(1)))
    assert engine.drain(WATCHDOG)
    del engine
    gc.collect()
    end = time.monotonic() + WATCHDOG
    while threading.active_count() > before and time.monotonic() < end:
        time.sleep(0.01)
    assert threading.active_count() == before


def test_closing_an_engine_cancels_what_runs():
    engine = engine_of(network())
    stream = engine.submit(request([1, 2, 3], SamplingParams(temperature=0, max_tokens=500)))
    next(stream)
    engine.close()
    *_, last = stream
    assert isinstance(last, Completion) and last.finish_reason == "cancelled"
    engine.check_integrity()


def test_a_cancelled_request_ends_within_a_step():
    engine = engine_of(network())
    stream = engine.submit(request([1, 2, 3], SamplingParams(temperature=0, max_tokens=900)), capacity=1000)
    next(stream)
    stream.cancel()
    assert engine.drain(WATCHDOG)
    steps = engine.stats().steps
    *_, last = stream
    assert last.finish_reason == "cancelled"
    assert len(last.token_ids) < 900
    time.sleep(0.05)
    assert engine.stats().steps == steps, "nothing is computed for nobody"
    assert_idle(engine)


def test_a_slow_reader_stalls_itself_alone():
    engine = engine_of(network())
    params = SamplingParams(temperature=0, max_tokens=100)
    slow = engine.submit(request([1, 2, 3], params), capacity=4)
    assert len(ids_of(engine.submit(request([4, 5, 6], params)))) == 100
    time.sleep(0.05)
    steps = engine.stats().steps
    time.sleep(0.05)
    assert engine.stats().steps == steps, "it waits for its reader"
    assert len(ids_of(slow)) == 100
    assert_idle(engine)


def test_a_prompt_beside_others_is_computed_in_parts_and_nobody_waits_for_it():
    engine = engine_of(network(backend="cpu"))
    running = engine.submit(request([1, 2, 3], SamplingParams(temperature=0, max_tokens=200)), capacity=1000)
    next(running)
    long = engine.submit(request(range(400), SamplingParams(temperature=0, max_tokens=1)))
    ids_of(long)
    assert engine.stats().steps > 400 // 128
    assert len(ids_of(running)) == 199
    assert_idle(engine)


def test_the_budget_of_positions_is_kept_and_those_beyond_it_take_no_cache():
    engine = engine_of(network(), sequences=1, retained=0)
    params = SamplingParams(temperature=0, max_tokens=300, ignore_eos=True)
    streams = [engine.submit(request([1, 2, 3], params), capacity=1000) for _ in range(200)]
    next(streams[0])
    stats = engine.stats()
    assert stats.running <= CONTEXT // 303
    per_position = engine.runner.new_cache(1).nbytes
    assert stats.kv_bytes <= CONTEXT * per_position
    for stream in streams:
        stream.cancel()
    assert_idle(engine)


def test_the_second_prompt_with_the_same_beginning_computes_the_rest_alone():
    engine = engine_of(network(backend="cpu"), deterministic=False)
    shared = list(range(500))
    first, second = ([*shared, *rest] for rest in ([1, 2, 3], [9, 8, 7, 6]))
    reused = [list(engine.submit(request(ids)))[-1].reused_tokens for ids in (first, second)]
    assert reused == [0, 500]
    none = list(engine.submit(request(second, reuse="none")))[-1]
    assert none.reused_tokens == 0
    assert engine.stats().reused_tokens == 500


@pytest.mark.parametrize("deterministic", [True, False])
@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_several_answers_to_one_prompt_compute_it_once(monkeypatch, backend, deterministic):
    computed, real = [], Runner.prefill_rows

    def prefill_rows(self, prompt, cache, rows, *rest):
        computed.append(rows)
        return real(self, prompt, cache, rows, *rest)

    monkeypatch.setattr(Runner, "prefill_rows", prefill_rows)
    engine = engine_of(network(backend=backend), deterministic=deterministic, chunk=128)
    one = request(range(400), SamplingParams(temperature=1.0, seed=0, max_tokens=5))
    choices = [replace(one, index=index, sampling=replace(one.sampling, seed=index)) for index in range(4)]
    found = {event.index: event.token_ids for event in engine.submit(*choices) if isinstance(event, Completion)}
    assert sum(computed) < 400 + 3 * 128
    alone = engine_of(network(backend=backend), deterministic=True, chunk=128, retained=0)
    if deterministic:
        assert [found[index] for index in range(4)] == [tuple(ids_of(alone.submit(each))) for each in choices]
    assert len(set(found.values())) > 1
    assert_idle(engine)


def test_in_deterministic_mode_prefixes_are_such_that_nothing_changes():
    model = network(backend="cpu")
    engine = engine_of(model)
    ids = list(range(300))
    first = list(engine.submit(request(ids, SamplingParams(temperature=0, max_tokens=30))))[-1]
    longer = [*ids, *first.token_ids, 5]
    again = list(engine.submit(request(longer, SamplingParams(temperature=0, max_tokens=8))))[-1]
    assert MIN_REUSED < again.reused_tokens <= 300, "generated rows are summed in another order"
    fresh = engine_of(model, retained=0)
    assert (
        again.token_ids
        == list(fresh.submit(request(longer, SamplingParams(temperature=0, max_tokens=8))))[-1].token_ids
    )


def test_logits_that_define_no_choice_end_their_request_alone(monkeypatch):
    model = network()
    engine = engine_of(model)
    real = Runner.step

    def step(self, ids, caches):
        logits = real(self, ids, caches)
        for row, cache in enumerate(caches):
            if cache.length < 6:
                logits[row] = float("nan")
        return logits

    monkeypatch.setattr(Runner, "step", step)
    bad = engine.submit(request([1, 2, 3], SamplingParams(temperature=0, max_tokens=20)))
    good = engine.submit(request(range(30), SamplingParams(temperature=0, max_tokens=20)))
    assert len(ids_of(good)) == 20
    with pytest.raises(LludaError, match="NaN"):
        list(bad)
    stats = engine.stats()
    assert (stats.done, stats.failed) == (1, 1)
    assert_idle(engine)


def test_a_step_that_fails_ends_its_requests_and_the_engine_goes_on(monkeypatch):
    engine, real = engine_of(network()), Runner.prefill_rows

    def prefill_rows(self, prompt, *rest):
        if 13 in prompt.ids:
            raise RuntimeError("the device is gone")
        return real(self, prompt, *rest)

    monkeypatch.setattr(Runner, "prefill_rows", prefill_rows)
    with pytest.raises(RuntimeError, match="the device is gone"):
        list(engine.submit(request([13])))
    assert ids_of(engine.submit(request([14], SamplingParams(temperature=0, max_tokens=3))))
    assert_idle(engine)


def test_nobody_begins_with_what_a_failed_request_stored(monkeypatch):
    engine, real = engine_of(network()), Runner.step
    monkeypatch.setattr(Runner, "step", lambda self, ids, caches: real(self, ids, caches) * float("nan"))
    with pytest.raises(LludaError, match="NaN"):
        list(engine.submit(request(range(100), SamplingParams(temperature=0, max_tokens=5))))
    assert_idle(engine)
    assert engine.stats().cached_positions == 0


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_fault_of_the_engine_itself_leaves_nobody_waiting(monkeypatch):
    engine = engine_of(network())

    def step(self, now):
        raise RuntimeError("a fault of ours")

    monkeypatch.setattr(Scheduler, "step", step)
    with pytest.raises(RuntimeError, match="a fault of ours"):
        list(engine.submit(request([1, 2]), request([3])))
    assert str(engine.error) == "a fault of ours"
    with pytest.raises(LludaError, match=r"stopped at an error \(RuntimeError\)"):
        engine.submit(request([4]))
    engine.close()  # waits for the thread
    engine.check_integrity()


@pytest.mark.parametrize(
    ("ids", "params", "error"),
    [
        ([], GREEDY, "the prompt is empty"),
        ([VOCABULARY], GREEDY, "ids go from 0 to 511"),
        ([1] * CONTEXT, GREEDY, "the context holds 1024; shorten it"),
        ([1] * 1000, SamplingParams(temperature=0, max_tokens=100), "ask for at most 24"),
    ],
)
def test_what_cannot_be_run_is_refused_before_anything_is_accepted(ids, params, error):
    engine = engine_of(network())
    with pytest.raises(InvalidRequest, match=error):
        engine.submit(request([1]), request(ids, params))
    assert engine.stats().submitted == 0


def test_max_tokens_may_be_clamped_to_the_room_there_is():
    engine = engine_of(network(), sequences=1)
    params = SamplingParams(temperature=0, max_tokens=5000, clamp_max_tokens=True)
    *_, last = engine.submit(request([1] * 1000, params), capacity=100)
    assert (len(last.token_ids), last.finish_reason) == (24, "length")
    few = SamplingParams(temperature=0, max_tokens=5, clamp_max_tokens=True)
    assert len(ids_of(engine.submit(request([1] * 1000, few)))) == 5
    with pytest.raises(ContextExceeded, match="shorten it"):
        engine.submit(request([1] * CONTEXT, params))
    with pytest.raises(InvalidRequest, match="clamp_max_tokens must be true or false"):
        SamplingParams(clamp_max_tokens=1)


def test_a_deadline_is_for_those_that_wait():
    engine = engine_of(network(), max_running=1)
    first = engine.submit(request([1, 2], SamplingParams(temperature=0, max_tokens=900)), capacity=2)
    next(first)
    late = engine.submit(request([3], deadline=time.monotonic() + 0.05))
    with pytest.raises(DeadlineExceeded, match="deadline passed"):
        list(late)
    first.cancel()
    assert_idle(engine)


def test_two_engines_of_one_process_do_not_disturb_each_other():
    models = [network(backend="cpu"), network(TINY_MOE, backend="cpu")]
    requests = [[drawn(seed) for seed in range(8)] for _ in models]
    expected = [
        [ids_of(engine_of(model, retained=0).submit(one)) for one in own]
        for model, own in zip(models, requests, strict=True)
    ]
    engines = [engine_of(model) for model in models]
    found: list[list[list[int]]] = [[], []]

    def caller(number):
        found[number] = [ids_of(engines[number].submit(one)) for one in requests[number]]

    threads = [threading.Thread(target=caller, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WATCHDOG)
    assert found == expected


def test_coroutines_read_their_own_answers():
    engine = engine_of(network())
    expected = [ids_of(engine.submit(drawn(seed))) for seed in range(4)]

    async def answer(seed):
        return [event.id async for event in engine.submit(drawn(seed)) if isinstance(event, Token)]

    async def all_of_them():
        return await asyncio.gather(*(answer(seed) for seed in range(4)))

    assert asyncio.run(all_of_them()) == expected
    assert_idle(engine)


def test_work_of_others_runs_between_steps_and_its_errors_are_theirs():
    engine = engine_of(network())
    assert engine.call(lambda: threading.current_thread().name) == "lluda engine"
    with pytest.raises(ValueError, match="no"):
        engine.call(lambda: (_ for _ in ()).throw(ValueError("no")))
    assert ids_of(engine.submit(drawn(2)))
