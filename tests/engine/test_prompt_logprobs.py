"""Log-probabilities of a prompt's tokens: those of a generation that says the same."""

from __future__ import annotations

import itertools

import pytest

from lluda.engine import runner as runner_module
from lluda.engine.request import Completion, PromptLogprobs, Token
from lluda.engine.runner import Runner
from lluda.engine.sampling.sampling_params import SamplingParams
from lluda.errors import ContextExceeded, InvalidRequest, NumericalError
from tests.conftest import TINY_MOE, TINY_QWEN3
from tests.engine.test_engine import CONTEXT, assert_idle, engine_of, network, request

PROMPT = [7 * row % 512 for row in range(200)]
SCORED = SamplingParams(temperature=0, max_tokens=1, prompt_logprobs=5)


def scored(engine, ids=PROMPT, params=SCORED, **options):
    events = list(engine.submit(request(ids, params, **options)))
    assert isinstance(events[0], PromptLogprobs) and isinstance(events[-1], Completion)
    assert events[-1].prompt_logprobs == events[0].tokens
    return events[0].tokens


@pytest.mark.parametrize("raw", [TINY_QWEN3, TINY_MOE], ids=["dense", "mixture"])
def test_they_are_the_log_softmax_of_each_row(raw):
    model = network(raw)
    tokens = scored(engine_of(model))
    assert [token.id for token in tokens] == PROMPT
    assert (tokens[0].logprob, tokens[0].top) == (None, ())
    runner = engine_of(model).runner
    for row in (1, 50, 199):
        logits = runner.prefill(PROMPT[:row], runner.new_cache()).double().log_softmax(-1)
        values = logits.topk(5).values
        assert tokens[row].logprob == pytest.approx(float(logits[PROMPT[row]]), abs=1e-5)
        top = [float(logits[number]) for number, _ in tokens[row].top]
        assert top == pytest.approx(values.tolist(), abs=1e-5)
        assert [value for _, value in tokens[row].top] == pytest.approx(values.tolist(), abs=1e-5)


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_a_token_among_the_most_likely_has_there_the_value_that_it_has(backend):
    """To the bit: lm-eval asks whether a token is the most likely so."""
    tokens = scored(engine_of(network(backend=backend)), params=SamplingParams(max_tokens=1, prompt_logprobs=64))
    among = [token for token in tokens[1:] if token.id in dict(token.top)]
    assert len(among) > 3
    assert all(dict(token.top)[token.id] == token.logprob for token in among)


def test_rows_that_are_computed_alike_have_the_values_of_a_generation_to_the_bit():
    engine = engine_of(network(backend="cpu"))
    params = SamplingParams(temperature=0, max_tokens=8, logprobs=5)
    generated = [event for event in engine.submit(request([3], params)) if isinstance(event, Token)]
    ids = [3, *(token.id for token in generated)]  # up to 16 rows are summed as one is
    again = scored(engine, ids)
    assert [(token.id, token.logprob, token.top) for token in again[1:]] == [
        (token.id, token.logprob, token.top) for token in generated
    ]


@pytest.mark.parametrize("chunk", [32, 64, 512])
def test_chunks_and_blocks_of_rows_change_nothing(monkeypatch, chunk):
    model = network()
    expected = scored(engine_of(model))
    monkeypatch.setattr(runner_module, "SCORED_ROWS", 40)
    found = scored(engine_of(model, chunk=chunk))
    assert [token.id for token in found] == [token.id for token in expected]
    for ours, theirs in zip(found[1:], expected[1:], strict=True):
        assert ours.logprob == pytest.approx(theirs.logprob, abs=1e-5)


def test_no_more_logits_than_of_a_block_are_there_at_once(monkeypatch):
    sizes, real = [], Runner._score

    def score(self, hidden, start, take):
        real(self, hidden, start, lambda row, logits: (sizes.append(len(logits)), take(row, logits)))

    monkeypatch.setattr(Runner, "_score", score)
    engine = engine_of(network(backend="cpu"))
    scored(engine, [row % 500 for row in range(700)])
    assert sum(sizes) == 700 and max(sizes) <= 128
    assert min(sizes) > engine.runner.few_rows, "in deterministic mode all rows are summed as of many"


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_they_are_the_same_among_others_and_after_the_same_prompt(backend):
    model = network(backend=backend)
    alone = scored(engine_of(model))
    engine = engine_of(model)
    running = engine.submit(request([1, 2], SamplingParams(temperature=0, max_tokens=400)), capacity=1000)
    list(itertools.islice(running, 3))
    assert scored(engine) == alone
    assert scored(engine) == alone, "no stored row is used, since it has no logits"
    running.cancel()
    assert_idle(engine)


def test_the_answer_is_the_one_without_them():
    engine = engine_of(network(backend="cpu"))
    params = SamplingParams(temperature=0.8, seed=3, max_tokens=9, logprobs=2)
    *_, plain = engine.submit(request(PROMPT, params, reuse="none"))
    *_, with_prompt = engine.submit(request(PROMPT, SamplingParams(**_fields(params), prompt_logprobs=0)))
    assert with_prompt.tokens == plain.tokens
    assert all(token.top == () for token in with_prompt.prompt_logprobs)


def _fields(params):
    return {"temperature": params.temperature, "seed": params.seed, "max_tokens": params.max_tokens, "logprobs": 2}


def test_the_prompt_alone_may_be_asked_for_up_to_the_whole_context():
    engine = engine_of(network())
    params = SamplingParams(max_tokens=0, prompt_logprobs=1)
    events = list(engine.submit(request([5] * CONTEXT, params)))
    assert [type(event) for event in events] == [PromptLogprobs, Completion]
    assert len(events[0].tokens) == CONTEXT
    assert (events[1].token_ids, events[1].finish_reason, events[1].text) == ((), "length", "")
    assert_idle(engine)
    with pytest.raises(ContextExceeded, match="the context holds 1024"):
        engine.submit(request([5] * (CONTEXT + 1), params))
    with pytest.raises(InvalidRequest, match="max_tokens must be an integer from 1"):
        SamplingParams(max_tokens=0)
    with pytest.raises(InvalidRequest, match="prompt_logprobs must be an integer from 0 to 64"):
        SamplingParams(prompt_logprobs=65)


def test_logits_of_a_prompt_that_are_no_numbers_are_that_requests_error(monkeypatch):
    engine, real = engine_of(network()), Runner._score
    monkeypatch.setattr(
        Runner, "_score", lambda self, hidden, start, take: real(self, hidden * float("nan"), start, take)
    )
    with pytest.raises(NumericalError, match="hold NaN"):
        scored(engine)
    assert_idle(engine)
