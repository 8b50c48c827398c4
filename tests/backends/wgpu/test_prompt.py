"""Prompts on the software driver against the reference: whole, in parts, and of several sequences at once."""

from __future__ import annotations

from itertools import chain

import pytest
import torch

from lluda.backends.batch import Segment
from tests.backends.wgpu.test_decode import DENSE, FORMS, SPARSE, prompt, reference, runner_on, wgpu_backend


def test_prompts_are_as_near_to_float64_as_the_reference(gpu):
    check_prompts(gpu, DENSE, "packed")


@pytest.mark.parametrize("form", ["bf16", "packed-file", "q8_0"])
@pytest.mark.parametrize("raw", [DENSE, SPARSE | {"shared": 64}], ids=["dense", "mixture"])
def test_prompts_in_other_forms_are_as_near(one_gpu, raw, form):
    check_prompts(one_gpu, raw, form)


def check_prompts(gpu, raw, form):
    """In parts of several sizes, whose borders change nothing."""
    encode, options = FORMS[form]
    ids = prompt(210)

    def last_rows(runner, ends):
        cache, rows = runner.new_cache(), []
        for end in ends:
            runner.prefill(ids[:end], cache)
            rows.append(runner.step([9], [cache])[0].double())
            cache.truncate(end)
        return torch.stack(rows)

    ends = (40, 130, 210)
    exact, plain = (last_rows(runner_on(reference(dtype), raw, encode), ends) for dtype in ("f64", "bf16"))
    backend = wgpu_backend(gpu, **options)
    runner = runner_on(backend, raw, encode)
    ours = last_rows(runner, ends)
    assert (ours - exact).abs().mean() <= 1.1 * (plain - exact).abs().mean()
    assert torch.equal(last_rows(runner, (210,))[0], ours[-1])
    assert "no kernels" not in backend.describe() and "on torch operations" not in backend.describe()


@pytest.mark.parametrize("raw", [DENSE, SPARSE], ids=["dense", "mixture"])
def test_prompts_of_several_sequences_run_together_as_alone(one_gpu, raw):
    runner = runner_on(wgpu_backend(one_gpu), raw)
    parts = [prompt(length, seed) for seed, length in enumerate((100, 3, 60))]

    def run(prompts, caches):
        segments, start = [], 0
        for each, cache in zip(prompts, caches, strict=True):
            segments.append(Segment(start, len(each), cache))
            start += len(each)
        positions = torch.cat([torch.arange(len(each)) for each in prompts])
        with torch.inference_mode():
            return runner.model.decoder(torch.tensor([*chain(*prompts)]), positions, segments)

    alone = torch.cat([run([part], [runner.new_cache()]) for part in parts])
    assert torch.equal(run(parts, [runner.new_cache() for _ in parts]), alone)
