"""Slots, their budget, and prefixes that are taken over."""

from __future__ import annotations

import pytest
import torch

from lluda.config.model import ModelConfig
from lluda.engine.cache import MIN_REUSED, CachePool
from lluda.engine.kv_cache import CacheOptions, KVCache
from lluda.engine.prompt_rows import PromptRows
from tests.conftest import TINY_QWEN3

CONFIG = ModelConfig.from_hf(TINY_QWEN3).text
OPTIONS = CacheOptions(200, dtype="f32")


def pool(budget=400, retained=200):
    return CachePool(lambda capacity: KVCache(CONFIG, OPTIONS, torch.device("cpu"), capacity), budget, retained)


def computed(made, ids, positions=None, prefix=None):
    """A slot in which the rows of ``ids`` have been computed: row i's keys are its id."""
    prompt = PromptRows(ids)
    slot = made.acquire(positions or len(ids) + 10, prompt, prefix)
    start = slot.cache.length
    keys, values = slot.cache.reserve(len(ids) - start)
    for row in range(start, len(ids)):
        keys[:, :, row] = values[:, :, row] = ids[row]
    slot.cache.advance(len(ids) - start)
    slot.prompt_rows = len(ids)
    made.check_integrity()
    return slot


def stored(slot, rows):
    keys, values = slot.cache._keys, slot.cache._values
    assert torch.equal(keys[:, :, :rows], values[:, :, :rows])
    return keys[0, 0, :rows, 0].int().tolist()


def test_positions_are_counted_before_a_request_begins():
    made = pool(budget=100)
    slot = computed(made, list(range(50)), positions=60)
    assert made.fits(40) and not made.fits(41)
    made.release(slot, PromptRows(list(range(50))), retain=False)
    assert made.fits(100)
    assert not made.retained


def test_a_prompt_that_begins_alike_takes_the_slot_over():
    made = pool()
    ids = list(range(100, 160))
    made.release(computed(made, ids), PromptRows(ids), retain=True)
    again = [*ids[:50], 7, 8, 9]
    prefix = made.find(PromptRows(again), prompt_rows_only=True)
    assert prefix.rows == 50
    slot = computed(made, again, prefix=prefix)
    assert stored(slot, len(again)) == again
    assert not made.retained, "it was the slot itself"


def test_rows_are_shared_within_one_salt():
    made, ids = pool(), list(range(100, 160))
    asked = PromptRows(ids, salt=b"one")
    made.release(computed(made, ids), asked.extended([7, 8]), retain=True)
    assert made.find(PromptRows(ids, salt=b"one"), prompt_rows_only=True).rows == 59
    assert made.find(PromptRows(ids, salt=b"two"), prompt_rows_only=True) is None
    assert made.find(PromptRows(ids), prompt_rows_only=True) is None


def test_a_short_shared_beginning_is_copied_and_the_rest_stays():
    made = pool()
    ids = list(range(100, 160))
    made.release(computed(made, ids), PromptRows(ids), retain=True)
    other = [*ids[:20], *range(20)]
    slot = computed(made, other, prefix=made.find(PromptRows(other), prompt_rows_only=False))
    assert stored(slot, len(other)) == other
    (kept,) = made.retained
    assert stored(kept, 60) == ids


def test_rows_of_a_running_slot_are_copied():
    made = pool()
    ids = list(range(100, 140))
    running = computed(made, ids)
    slot = computed(made, [*ids, 1, 2], prefix=made.find(PromptRows([*ids, 1, 2]), prompt_rows_only=True))
    assert stored(slot, 42) == [*ids, 1, 2]
    assert stored(running, 40) == ids


def test_the_last_row_is_always_left_to_compute():
    made = pool()
    ids = list(range(100, 140))
    made.release(computed(made, ids), PromptRows(ids), retain=True)
    assert made.find(PromptRows(ids), prompt_rows_only=False).rows == 39


def test_generated_rows_are_shared_only_where_that_is_allowed():
    made = pool()
    ids = list(range(100, 140))
    slot = computed(made, ids)
    slot.cache.reserve(5)
    slot.cache.advance(5)
    held = PromptRows(ids).extended([1, 2, 3, 4, 5])
    made.release(slot, held, retain=True)
    longer = PromptRows([*held.ids, 9])
    assert made.find(longer, prompt_rows_only=False).rows == 45
    assert made.find(longer, prompt_rows_only=True).rows == 40


@pytest.mark.parametrize("shared", [0, MIN_REUSED - 1])
def test_what_is_computed_faster_than_looked_after_is_not_reused(shared):
    made = pool()
    ids = list(range(100, 140))
    made.release(computed(made, ids), PromptRows(ids), retain=True)
    assert made.find(PromptRows([*ids[:shared], *range(30)]), prompt_rows_only=False) is None


def test_what_was_used_longest_ago_goes_first_and_running_ones_come_before_all():
    made = CachePool(
        lambda capacity: KVCache(CONFIG, OPTIONS, torch.device("cpu"), capacity or 50), budget=200, retained_budget=100
    )
    prompts = [list(range(start, start + 40)) for start in (100, 200, 300)]
    for ids in prompts:
        slot = made.acquire(50, PromptRows(ids), None, exact=True)
        slot.cache.reserve(40)
        slot.cache.advance(40)
        made.release(slot, PromptRows(ids), retain=True)
    assert [list(slot.rows.ids) for slot in made.retained] == prompts[1:]
    made.acquire(180, PromptRows([1]), None)
    assert made.retained == []
    made.check_integrity()


def test_an_integrity_check_finds_what_is_wrong():
    made = pool()
    slot = computed(made, list(range(50)))
    made.retained.append(slot)
    with pytest.raises(AssertionError, match="held twice"):
        made.check_integrity()
