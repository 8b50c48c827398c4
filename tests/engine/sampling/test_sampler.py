"""The sampler against transformers' logits processors, and its own promises."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lluda.engine.sampling.sampler import Sampler, SamplingParams, _at_least_rank
from lluda.errors import InvalidRequest, LludaError

transformers = pytest.importorskip("transformers", reason="transformers is the reference here")

GREEDY = SamplingParams()


def logits_of(vocab: int, seed: int, scale: float = 3.0) -> torch.Tensor:
    return torch.randn(vocab, generator=torch.Generator().manual_seed(seed)) * scale


def reference(params: SamplingParams, logits: torch.Tensor, seen: list[int]) -> torch.Tensor:
    """transformers' processors in the order its generate() builds them, in float64."""
    from transformers.generation import logits_process as hf

    ids = torch.tensor([seen], dtype=torch.long)
    scores = logits[None].clone()
    if params.repetition_penalty not in (None, 1.0):
        scores = hf.RepetitionPenaltyLogitsProcessor(params.repetition_penalty)(ids, scores)
    scores = hf.TemperatureLogitsWarper(params.temperature)(ids, scores.double())
    if params.top_k:
        scores = hf.TopKLogitsWarper(params.top_k)(ids, scores)
    if params.top_p is not None and params.top_p < 1.0:
        scores = hf.TopPLogitsWarper(params.top_p)(ids, scores)
    if params.min_p:
        scores = hf.MinPLogitsWarper(params.min_p)(ids, scores)
    return scores[0].softmax(-1)


def assert_same_distribution(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    assert torch.equal(ours > 0, theirs > 0)
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-12)


@given(
    params=st.builds(
        SamplingParams,
        temperature=st.floats(0.05, 5.0),
        top_k=st.integers(0, 320),
        top_p=st.floats(0.01, 1.0),
        min_p=st.sampled_from([0.0, 0.001, 0.05, 0.3, 0.99]),
        repetition_penalty=st.sampled_from([1.0, 1.05, 1.7, 0.6]),
    ),
    vocab=st.integers(1, 300),
    seed=st.integers(0, 1 << 30),
    seen=st.lists(st.integers(0, 320), max_size=20),
)
@settings(max_examples=150, deadline=None)
def test_the_distribution_is_transformers(params, vocab, seed, seen):
    logits = logits_of(vocab, seed)
    ours = Sampler(params, seen, vocab).probabilities(logits)
    assert_same_distribution(ours, reference(params, logits, seen))


@pytest.mark.parametrize("top_p", [0.2, 0.9, 0.999, 0.99999999])
@pytest.mark.parametrize("top_k", [0, 50])
def test_the_distribution_is_transformers_over_a_real_vocabulary(top_p, top_k):
    """Small top_p ends inside the head that is looked at first, the largest beyond it."""
    logits = logits_of(151_936, 7)
    params = SamplingParams(temperature=0.8, top_p=top_p, top_k=top_k)
    assert_same_distribution(Sampler(params, [], len(logits)).probabilities(logits), reference(params, logits, [0]))


def test_top_k_keeps_every_token_that_ties_with_the_last():
    logits = torch.tensor([1.0, 3.0, 2.0, 2.0, 2.0, 0.0])
    params = SamplingParams(temperature=1.0, top_k=2)
    ours = Sampler(params, [], 6).probabilities(logits)
    assert (ours > 0).tolist() == [False, True, True, True, True, False]
    assert_same_distribution(ours, reference(params, logits, [0]))


def test_top_p_takes_the_lowest_ids_of_equal_tokens():
    ours = Sampler(SamplingParams(temperature=1.0, top_p=0.5), [], 8).probabilities(torch.zeros(8))
    assert ours.tolist() == [0.25] * 4 + [0.0] * 4


@pytest.mark.parametrize("params", [{"top_p": 0.0}, {"min_p": 1.0}, {"top_k": 1}, {"temperature": 1e-300}])
def test_the_strictest_filters_keep_the_most_likely_token(params):
    logits = logits_of(5000, 3)
    token = Sampler(SamplingParams(**{"temperature": 1.0, **params}), [], 5000).sample(logits)
    assert token.id == int(logits.argmax())


@pytest.mark.parametrize("rank", [1, 2, 20, 50])
@pytest.mark.parametrize("vocab", [511, 4096, 30_001, 151_936])
def test_the_ids_of_a_rank_are_those_of_a_look_at_all_scores(vocab, rank):
    """Also where many scores tie with the last, lie side by side, are masked out or at the very ends."""
    scores = logits_of(vocab, rank)
    masked = scores.masked_fill(scores < 1, -math.inf)
    at_the_end = scores.clone()
    at_the_end[-rank:] += 100
    for values in (scores, scores.round(), scores.sort().values, masked, at_the_end, torch.zeros(vocab)):
        expected = (values >= values.sort(descending=True).values[rank - 1]).nonzero().flatten()
        assert torch.equal(_at_least_rank(values, rank), expected)


def test_penalties_are_those_of_a_pass_over_the_whole_vocabulary():
    """transformers' repetition penalty and OpenAI's formula of the other two, written out, to the bit."""
    vocab, prompt = 3000, [*range(0, 900, 3), 5, 5, 4000]
    params = SamplingParams(
        repetition_penalty=1.3, presence_penalty=0.7, frequency_penalty=-0.2, temperature=0.8, seed=4
    )
    sampler, counts = Sampler(params, prompt, vocab), torch.zeros(vocab)
    seen = torch.zeros(vocab, dtype=torch.bool)
    seen[[token for token in prompt if token < vocab]] = True
    for step in range(150):
        logits = logits_of(vocab, step % 7)
        scores = torch.where(seen, torch.where(logits < 0, logits * 1.3, logits / 1.3), logits)
        scores = scores - -0.2 * counts - 0.7 * (counts > 0)
        assert torch.equal(sampler._scores(logits)[1], scores)
        token = sampler.sample(logits).id
        seen[token] = True
        counts[token] += 1
    assert int(counts.max()) > 1


def test_draws_follow_the_probabilities():
    """Pearson's chi-square with 11 degrees of freedom stays below its 99.9 % quantile, 31.26."""
    logits = logits_of(12, 5, scale=1.0)
    sampler = Sampler(SamplingParams(temperature=0.7, seed=11), [], 12)
    expected = sampler.probabilities(logits)
    n = 6000
    counts = torch.zeros(12, dtype=torch.float64)
    for _ in range(n):
        counts[sampler.sample(logits).id] += 1
    chi_square = float(((counts - n * expected) ** 2 / (n * expected)).sum())
    assert chi_square < 31.26


def test_a_draw_inverts_the_cumulative_distribution_in_order_of_ids():
    logits = logits_of(40, 9, scale=1.0)
    sampler = Sampler(SamplingParams(temperature=1.0, top_k=10, seed=123), [], 40)
    probabilities = sampler.probabilities(logits)
    generator = torch.Generator().manual_seed(123)
    for _ in range(200):
        uniform = float(torch.rand((), dtype=torch.float64, generator=generator))
        below = 0.0
        for expected in range(40):
            below += float(probabilities[expected])
            if below > uniform:
                break
        assert sampler.sample(logits).id == expected


def tokens(seed: int | None, steps: int = 30) -> list[int]:
    sampler = Sampler(SamplingParams(temperature=1.0, seed=seed, repetition_penalty=1.2), [1, 2], 200)
    return [sampler.sample(logits_of(200, step)).id for step in range(steps)]


def test_a_seed_fixes_the_tokens():
    assert tokens(4) == tokens(4)
    assert tokens(4) != tokens(5)
    assert tokens(None) != tokens(None)


def test_a_fresh_seed_is_known_and_repeats_the_answer():
    params = SamplingParams(temperature=1.0)
    first = Sampler(params, [], 100)
    second = Sampler(SamplingParams(temperature=1.0, seed=first.seed), [], 100)
    assert [first.sample(logits_of(100, i)).id for i in range(20)] == [
        second.sample(logits_of(100, i)).id for i in range(20)
    ]


def test_samplers_of_a_batch_do_not_disturb_each_other():
    params = [SamplingParams(temperature=1.0, seed=seed, presence_penalty=1.0) for seed in (1, 2, 3)]
    steps = [torch.stack([logits_of(64, 10 * step + row) for row in range(3)]) for step in range(20)]
    batch = [Sampler(p, [], 64) for p in params]
    together = [[sampler.sample(rows[i]).id for i, sampler in enumerate(batch)] for rows in steps]
    for i, p in enumerate(params):
        alone = Sampler(p, [], 64)
        assert [alone.sample(rows[i]).id for rows in steps] == [row[i] for row in together]


def test_greedy_takes_the_lowest_id_of_equals():
    assert Sampler(GREEDY, [], 5).sample(torch.tensor([0.0, 2.0, 1.0, 2.0, 2.0])).id == 1


def test_greedy_honours_the_repetition_penalty_of_prompt_and_answer():
    sampler = Sampler(SamplingParams(temperature=0.0, repetition_penalty=2.0), [0, 999], 4)
    logits = torch.tensor([8.0, 5.0, 4.5, -1.0])
    # 8 / 2 is below 5; then 5 / 2 below 4.5; then 4.5 / 2 below 4; the penalty does not accumulate.
    assert [sampler.sample(logits).id for _ in range(4)] == [1, 2, 0, 0]


def test_presence_and_frequency_count_the_answer_only():
    logits = torch.tensor([2.0, 1.0, 0.0])
    params = SamplingParams(temperature=1.0, presence_penalty=0.5, frequency_penalty=0.25, top_k=1, seed=0)
    sampler = Sampler(params, [0] * 9, 3)
    torch.testing.assert_close(sampler._scores(logits)[1], logits)
    assert [sampler.sample(logits).id for _ in range(2)] == [0, 0]  # at 2, then at 1.25
    torch.testing.assert_close(sampler._scores(logits)[1], torch.tensor([2.0 - 0.5 - 2 * 0.25, 1.0, 0.0]))


def test_suppressed_ids_are_never_chosen():
    logits = torch.tensor([9.0, 1.0, 8.0, 0.0])
    assert Sampler(GREEDY, [], 4, suppress=frozenset({0, 2})).sample(logits).id == 1
    ours = Sampler(SamplingParams(temperature=1.0), [], 4, suppress=frozenset({0, 2})).probabilities(logits)
    torch.testing.assert_close(ours, torch.tensor([-math.inf, 1.0, -math.inf, 0.0]).double().softmax(-1))


def test_masked_logits_are_never_drawn():
    logits = torch.full((6000,), -math.inf)
    logits[17] = logits[4711] = 1.0
    sampler = Sampler(SamplingParams(temperature=1.0, top_p=0.99, top_k=50, seed=0), [], 6000)
    assert {sampler.sample(logits).id for _ in range(40)} == {17, 4711}


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logprobs_are_of_the_raw_distribution(temperature):
    params = SamplingParams(temperature=temperature, repetition_penalty=1.5, logprobs=5, seed=1)
    logits = logits_of(500, 2)
    expected = logits.double().log_softmax(-1)
    token = Sampler(params, [3, 4], 500, suppress=frozenset({7})).sample(logits)
    assert token.logprob == pytest.approx(float(expected[token.id]), abs=1e-9)
    best = expected.topk(5)
    assert [i for i, _ in token.top] == best.indices.tolist()
    assert [p for _, p in token.top] == pytest.approx(best.values.tolist(), abs=1e-9)


def test_logprobs_come_only_when_asked_for_and_with_as_many_alternatives():
    logits = torch.tensor([1.0, 1.0, 1.0])
    assert Sampler(GREEDY, [], 3).sample(logits).logprob is None
    none = Sampler(SamplingParams(logprobs=0), [], 3).sample(logits)
    assert (none.logprob, none.top) == (pytest.approx(-math.log(3)), ())
    assert [i for i, _ in Sampler(SamplingParams(logprobs=2), [], 3).sample(logits).top] == [0, 1]
    assert [i for i, _ in Sampler(SamplingParams(logprobs=64), [], 3).sample(logits).top] == [0, 1, 2]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_logits_of_any_float_type(dtype):
    logits = logits_of(300, 1).to(dtype)
    params = SamplingParams(temperature=0.9, top_k=20, top_p=0.9)
    assert_same_distribution(Sampler(params, [], 300).probabilities(logits), reference(params, logits.float(), [0]))


def test_the_logits_are_left_as_they_were():
    logits = logits_of(100, 1)
    before = logits.clone()
    params = SamplingParams(temperature=0.5, repetition_penalty=1.3, frequency_penalty=1.0, top_p=0.8, min_p=0.1)
    Sampler(params, list(range(50)), 100, suppress=frozenset({1})).sample(logits)
    assert torch.equal(logits, before)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize(
    "params", [{}, {"temperature": 1.0}, {"temperature": 1.0, "top_k": 5}, {"repetition_penalty": 1.1}]
)
def test_logits_without_a_distribution_are_refused(params, bad):
    logits = logits_of(100, 1)
    logits[60] = bad
    with pytest.raises(LludaError, match=r"NaN|\+inf"):
        Sampler(SamplingParams(**params), [60], 100).sample(logits)


def test_a_suppressed_nan_is_refused_too():
    logits = torch.tensor([0.0, math.nan])
    with pytest.raises(LludaError, match="NaN"):
        Sampler(GREEDY, [], 2, suppress=frozenset({1})).sample(logits)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_nothing_left_to_choose_is_refused(temperature):
    logits = torch.tensor([-math.inf, 0.0])
    with pytest.raises(LludaError, match="no token can be sampled"):
        Sampler(SamplingParams(temperature=temperature), [], 2, suppress=frozenset({1})).sample(logits)


@pytest.mark.parametrize("suppress", [{0, 1, 2}, {3}, {-1}])
def test_suppress_must_leave_a_token_and_name_known_ones(suppress):
    with pytest.raises(InvalidRequest, match="suppress"):
        Sampler(GREEDY, [], 3, suppress=frozenset(suppress))


def test_a_bias_is_added_after_the_penalties():
    logits = torch.tensor([2.0, -1.0, 0.5, 0.0])
    params = {"temperature": 1.0, "repetition_penalty": 2.0, "logit_bias": {0: 3, 1: -0.25}}
    expected = torch.tensor([2.0 / 2 + 3, -1.0 * 2 - 0.25, 0.5, 0.0]).double().softmax(-1)
    found = Sampler(SamplingParams(**params), [0, 1], 4).probabilities(logits)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
    assert torch.equal(logits, torch.tensor([2.0, -1.0, 0.5, 0.0]))


def test_a_bias_of_minus_100_forbids_and_one_of_100_all_but_commands():
    logits = torch.tensor([1000.0, 0.0, 1.0])
    assert Sampler(SamplingParams(logit_bias={0: -100}), [], 3).sample(logits).id == 2
    assert Sampler(SamplingParams(logit_bias={0: -100, 1: 100}), [], 3).sample(logits).id == 1
    sampler = Sampler(SamplingParams(logit_bias={1: 1}), [], 3)
    assert not sampler.takes_argmax


@pytest.mark.parametrize(
    ("bias", "words"),
    [({3: 1}, "0 to 2"), ({0: -100, 1: -100, 2: -100}, "leave at least one"), ({7: -100}, "0 to 2")],
)
def test_a_bias_is_of_known_tokens_and_leaves_one(bias, words):
    with pytest.raises(InvalidRequest, match=words):
        Sampler(SamplingParams(logit_bias=bias), [], 3)


@pytest.mark.parametrize(
    "bias", [{0: 101}, {0: math.nan}, {0: "1"}, {0: True}, {-1: 1}, {"0": 1}, [1], 5, "x", [(1, 2, 3)]]
)
def test_a_bias_is_a_number_from_minus_100_to_100_by_id(bias):
    with pytest.raises(InvalidRequest, match="logit_bias"):
        SamplingParams(logit_bias=bias)


@pytest.mark.parametrize("settings", [{"top_k": 50, "top_p": 0.8}, {"top_k": 7, "min_p": 0.2}, {"top_k": 1}])
def test_few_scores_are_drawn_from_as_many_are(monkeypatch, settings):
    def drawn():
        sampler = Sampler(SamplingParams(temperature=0.9, seed=3, **settings), [], 2048)
        random = torch.Generator().manual_seed(4)
        # Rounded, so that there are ties; some scores are those of ids that may not be chosen.
        rows = [(torch.randn(2048, generator=random) * 4).bfloat16().float() for _ in range(200)]
        for row in rows[::3]:
            row[:2000] = -torch.inf
        return [sampler.sample(row).id for row in rows]

    few = drawn()
    monkeypatch.setattr("lluda.engine.sampling.sampler._FEW_SCORES", 0)
    assert drawn() == few
