"""Prompts on the software driver against the reference: whole, in parts, and of several sequences at once."""

from __future__ import annotations

from itertools import chain

import pytest
import torch

from lluda.backends.batch import DeepStack, Segment
from lluda.backends.components import StageObserver
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


LENGTHS, LAYERS = (270, 3), 4
DEEP = SPARSE | {"num_hidden_layers": LAYERS}


def run_with(backend, observe=None, deepstack=None):
    """Rows of two sequences, of which the first takes two steps on the device, behind a decode step each."""
    runner = runner_on(backend, DEEP)
    caches, segments, start = [runner.new_cache() for _ in LENGTHS], [], 0
    for length, cache in zip(LENGTHS, caches, strict=True):
        runner.prefill(prompt(5), cache)
        segments.append(Segment(start, length, cache))
        start += length
    positions = torch.cat([torch.arange(5, 5 + length) for length in LENGTHS])
    with torch.inference_mode():
        x = runner.model.decoder.embed_tokens(torch.tensor(prompt(start, 1)))
        rows = backend.run_layers(runner.model.decoder.layers, x, positions, segments, observe, deepstack)
        for cache, length in zip(caches, LENGTHS, strict=True):
            cache.advance(length)
        steps = [runner.step([token], [cache])[0] for cache in caches for token in prompt(8, 2)]
    return rows, torch.stack(steps)


def pictures(dtype):
    """Of every fourth row of the first sequence and all of the second."""
    rows = torch.tensor([*range(0, LENGTHS[0], 4), *range(LENGTHS[0], sum(LENGTHS))])
    generator = torch.Generator().manual_seed(5)
    return DeepStack(rows, [torch.randn(len(rows), 128, generator=generator).to(dtype) for _ in range(3)])


@pytest.mark.parametrize("with_pictures", [False, True], ids=["text", "pictures"])
def test_between_layers_rows_are_seen_and_pictures_added(one_gpu, with_pictures):
    found = {}
    for kind in ("wgpu", "bf16", "f64"):
        backend = wgpu_backend(one_gpu) if kind == "wgpu" else reference(kind)
        stages: dict[str, torch.Tensor] = {}
        deepstack = pictures(torch.bfloat16) if with_pictures else None
        rows, steps = run_with(backend, lambda name, x, stages=stages: stages.update({name: x.clone()}), deepstack)
        assert torch.equal(stages[f"layers.{LAYERS - 1}"], rows)
        found[kind] = stages | {"steps": steps}
        if kind == "wgpu":
            assert "no kernels" not in backend.describe() and not backend.torch_blocks
            unseen = run_with(wgpu_backend(one_gpu), None, deepstack)
            assert torch.equal(unseen[0], rows) and torch.equal(unseen[1], steps)
    assert list(found["wgpu"]) == list(found["f64"])
    for name, exact in found["f64"].items():
        ours, theirs = ((found[kind][name].double() - exact).abs().mean() for kind in ("wgpu", "bf16"))
        assert ours <= 1.1 * theirs, name


def test_one_stage_alone_is_told(one_gpu):
    told = []
    rows, _ = run_with(wgpu_backend(one_gpu), StageObserver("layers.1", lambda x: told.append(x.clone())))
    stages = {}
    run_with(wgpu_backend(one_gpu), lambda name, x: stages.update({name: x.clone()}))
    assert len(told) == 1 and torch.equal(told[0], stages["layers.1"]) and len(rows) == sum(LENGTHS)


def test_launches_of_a_prompt_are_submitted_some_at_a_time(one_gpu, monkeypatch):
    from lluda.backends.wgpu.steps.prompt import PromptBuilder

    def submissions(most):
        monkeypatch.setattr(PromptBuilder, "launches_at_once", most)
        counted, submit = [], one_gpu.submit
        monkeypatch.setattr(one_gpu, "submit", lambda commands: counted.append(commands) or submit(commands))
        rows, _ = run_with(wgpu_backend(one_gpu))
        monkeypatch.setattr(one_gpu, "submit", submit)
        return rows, len(counted)

    (rows, few), (same, many) = submissions(1000), submissions(7)
    assert torch.equal(rows, same) and many > few + 8


@torch.inference_mode()
def test_experts_by_themselves_are_as_near_to_float64_as_the_reference(one_gpu):
    """For a decoder elsewhere: one row, a step, a prompt of several steps."""
    found = {}
    for kind in ("wgpu", "bf16", "f64"):
        backend = wgpu_backend(one_gpu) if kind == "wgpu" else reference(kind)
        block = runner_on(backend, SPARSE | {"shared": 64}).model.decoder.layers.blocks[0][1]
        x = torch.randn(300, 128, generator=torch.Generator().manual_seed(3)).to(backend.precision.residual)
        found[kind] = torch.cat([backend.mixture_block(x[:rows].clone(), block).double() for rows in (1, 40, 300)])
        if kind == "wgpu":
            assert torch.equal(found[kind][:1], found[kind][1:2]) and not backend.torch_blocks
    ours, theirs = ((found[kind] - found["f64"]).abs().mean() for kind in ("wgpu", "bf16"))
    assert ours <= 1.1 * theirs
