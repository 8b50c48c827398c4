"""What is measured of several callers: that each test gives a value, of a tiny model."""

from __future__ import annotations

from dataclasses import replace

from lluda.bench.process.job import CALLERS_POSITIONS, Plan
from lluda.bench.process.worker import samples
from tests.bench.test_engines import job_for
from tests.conftest import TINY_QWEN3

NAMES = ["callers1", "callers3", "prefix_first", "prefix_second", "gap_alone", "gap_beside"]


def test_every_test_of_callers_gives_a_value(checkpoint):
    raw = TINY_QWEN3 | {"max_position_embeddings": 4096}
    plan = Plan(tests=("callers",), streams=(1, 3), generate=8)
    job = replace(job_for(checkpoint(raw)), plan=plan, context=4096, vocab_size=512)
    assert job.positions == CALLERS_POSITIONS
    found = list(samples(job, lambda _: None))
    assert [sample.test for sample in found] == NAMES
    assert all(sample.value > 0 for sample in found)
    seconds = {sample.test: sample.value for sample in found}
    assert seconds["prefix_second"] < seconds["prefix_first"], "64 times the rows"
