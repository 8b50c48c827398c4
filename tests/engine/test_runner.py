"""Steps of the decoder."""

from __future__ import annotations

import pytest
import torch

from lluda.engine.kv_cache import CacheOptions
from lluda.engine.runner import Runner, rows_of
from tests.conftest import TINY_MOE, TINY_QWEN3
from tests.engine.test_engine import network


@pytest.mark.parametrize("backend", ["cpu", "packed", "reference"])
@pytest.mark.parametrize("raw", [TINY_QWEN3, TINY_MOE], ids=["dense", "mixture"])
def test_tokens_and_a_prompt_in_one_step_are_what_they_are_apart(raw, backend):
    runner = Runner(network(raw, backend), CacheOptions(256, dtype="f32" if backend == "reference" else "bf16"))
    prompts, ids, new = [[1, 2, 3], [9] * 20], [5, 7], rows_of(list(range(40, 60)))
    found = []
    for together in (False, True):
        caches = [runner.new_cache() for _ in prompts]
        for prompt, cache in zip(prompts, caches, strict=True):
            runner.prefill(prompt, cache)
        cache = runner.new_cache()
        rows = []
        while cache.length < len(new):
            count = min(8, len(new) - cache.length)
            if together:
                logits, last = runner.step_with_prompt(ids, caches, new, cache, count)
            else:
                logits, last = runner.step(ids, caches), runner.prefill_rows(new, cache, count)
            rows.append(logits)
        found.append((torch.stack(rows), last))
        assert (last is not None, [each.length for each in caches]) == (True, [6, 23])
    (apart, alone), (beside, with_others) = found
    if backend == "reference":
        torch.testing.assert_close(beside, apart, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(with_others, alone, rtol=1e-4, atol=1e-4)
    else:
        assert torch.equal(beside, apart), "steps of up to 16 rows give a row its bits whatever is beside it"
        assert torch.equal(with_others, alone)


def test_a_prompt_in_a_step_with_others_takes_its_own_positions_along():
    """Its cache may have been another's, with media, whose next position is not its number of rows."""
    runner = Runner(network(backend="cpu"), CacheOptions(64, dtype="bf16"))
    other, cache = runner.new_cache(), runner.new_cache()
    runner.prefill([1, 2, 3], other)
    cache.position_offset = 7
    runner.step_with_prompt([5], [other], rows_of([4, 5, 6]), cache, 3)
    assert (cache.length, cache.position_offset) == (3, 0)


def test_rows_go_together_where_that_is_cheap_and_changes_nothing():
    options = CacheOptions(64, dtype="bf16")
    model = network(backend="cpu")
    assert Runner(model, options).rows_together == 16
    assert Runner(model, options, deterministic=True).rows_together == 0
    assert Runner(network(), options).rows_together == 0
