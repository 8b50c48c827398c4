"""What is measured of prompts as users send them: that each test gives a value, of a tiny model."""

from __future__ import annotations

from dataclasses import replace

from lluda.bench.measured import prompts
from lluda.bench.process.job import PROMPTS_POSITIONS, Plan
from lluda.bench.process.worker import samples
from tests.bench.test_engines import job_for
from tests.conftest import TINY_QWEN3


def test_every_test_of_prompts_gives_a_value(checkpoint, monkeypatch):
    monkeypatch.setattr(prompts, "LONGEST", 300)
    raw = TINY_QWEN3 | {"max_position_embeddings": 4096}
    job = replace(
        job_for(checkpoint(raw)), plan=Plan(tests=("prompts",), generate=8), context=4096, vocab_size=512, rounds=1
    )
    assert job.positions == 4096 < PROMPTS_POSITIONS
    found = {sample.test: sample for sample in samples(job, lambda _: None)}
    assert list(found) == ["warm_up", "new_length", "new_length_median", "more8", "deep4096"]
    assert found["warm_up"].value == 0, "nothing is captured here"
    assert all(sample.value > 0 for test, sample in found.items() if test != "warm_up")
    assert found["new_length"].value >= found["new_length_median"].value
    assert [found[test].unit for test in ("new_length", "more8", "deep4096")] == ["x", "s", "tok/s"]


def test_lengths_are_many_and_spread():
    lengths = list(prompts.Prompts(job_for("none"), None)._lengths())
    assert len(set(lengths)) == prompts.LENGTHS
    assert 100 <= min(lengths) < 200 and 1800 < max(lengths) <= 2000
    assert lengths != sorted(lengths)
