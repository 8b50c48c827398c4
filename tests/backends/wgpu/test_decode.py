"""Decode steps on the software driver against the reference, from prompts that run on the host."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from lluda.backends.backend import Precision
from lluda.backends.reference.backend import ReferenceBackend
from lluda.backends.weight import Parameters
from lluda.config.model import ModelConfig
from lluda.engine.kv_cache import CacheOptions
from lluda.engine.runner import Runner
from lluda.engine.sampling.sampler import Sampler, SamplingParams
from lluda.formats.packed_bf16 import PACKED_BF16
from lluda.formats.q8_0 import Q8_0
from lluda.formats.stored_tensor import StoredTensor
from lluda.models.causal_lm import CausalLM, causal_lm_parameters
from tests.conftest import TINY_MIXED, TINY_MOE, TINY_QWEN3, random_values, taken

DENSE = TINY_QWEN3 | {"hidden_size": 128, "intermediate_size": 256, "head_dim": 32}
SPARSE = TINY_MOE | {"hidden_size": 128, "moe_intermediate_size": 128}
CPU, STEPS = torch.device("cpu"), 32


def config_of(raw):
    """Of a raw config; ``shared``: its mixture blocks have an expert that all rows use, as the talker's have."""
    config = ModelConfig.from_hf({key: value for key, value in raw.items() if key != "shared"}).text
    shared = raw.get("shared", 0)
    return replace(config, moe=replace(config.moe, shared_expert_intermediate_size=shared)) if shared else config


def parameters(raw, backend, encode=None):
    """Random tensors as a backend holds them; ``encode``: a format that its matrices are stored in."""
    specs, values = [spec for spec in causal_lm_parameters(config_of(raw)) if not spec.tied_to], {}
    tensors = random_values(specs, 0, torch.bfloat16)
    for spec in specs:
        tensor = tensors[spec.name]
        coded = encode is not None and spec.role in ("matrix", "embedding") and spec.shape[-1] % 32 == 0
        data = encode.encode(tensor) if coded else None
        if data is None:
            values[spec.name] = taken(backend, tensor, spec.role)
        else:
            values[spec.name] = backend.take(StoredTensor(encode, tuple(tensor.shape), data), spec.role)[0]
    return Parameters(values)


def runner_on(backend, raw, encode=None):
    network = CausalLM(config_of(raw), parameters(raw, backend, encode), backend)
    return Runner(network, CacheOptions(600, dtype={"bf16": "bf16", "f64": "f64"}[backend.precision.name]))


def wgpu_backend(gpu, **options):
    from lluda.backends.wgpu.backend import WgpuBackend

    return WgpuBackend(gpu, Precision.of("bf16"), **options)


def reference(dtype):
    return ReferenceBackend(CPU, Precision.of(dtype))


def prompt(length, seed=0):
    return torch.randint(2, 512, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


def forced(runner, tokens, length=20):
    """Logits after a prompt and each of ``tokens``."""
    cache = runner.new_cache()
    rows = [runner.prefill(prompt(length), cache)]
    return torch.stack([*rows, *(runner.step([token], [cache])[0] for token in tokens)]).double()


def greedy(runner, count, length=20):
    cache = runner.new_cache()
    tokens = [int(runner.prefill(prompt(length), cache).argmax())]
    while len(tokens) < count:
        tokens += runner.greedy_step(tokens[-1:], [cache])
    return tokens


FORMS = {"bf16": (None, {}), "packed": (None, {"packed": True}), "packed-file": (PACKED_BF16, {}), "q8_0": (Q8_0, {})}


@pytest.mark.parametrize("form", list(FORMS))
def test_steps_are_as_near_to_float64_as_the_reference(gpu, form):
    check_steps(gpu, SPARSE, form)


@pytest.mark.parametrize("raw", [DENSE, TINY_MIXED, SPARSE | {"shared": 64}], ids=["dense", "mixed", "shared"])
def test_other_models_are_as_near(one_gpu, raw):
    check_steps(one_gpu, raw, "bf16")


def check_steps(gpu, raw, form):
    """Steps that are given the tokens of the float64 run."""
    encode, options = FORMS[form]
    exact_runner = runner_on(reference("f64"), raw, encode)
    tokens = greedy(exact_runner, STEPS)
    exact = forced(exact_runner, tokens)[1:]
    plain = forced(runner_on(reference("bf16"), raw, encode), tokens)[1:]
    backend = wgpu_backend(gpu, **options)
    got = forced(runner_on(backend, raw, encode), tokens)[1:]
    assert (got - exact).abs().mean() <= 1.1 * (plain - exact).abs().mean()
    assert "no kernels" not in backend.describe()


def test_sequences_get_together_what_they_get_alone(one_gpu):
    runner = runner_on(wgpu_backend(one_gpu), DENSE)
    lengths, next_tokens = [3, 40, 17, 8, 25], [7, 9, 11, 13, 15]

    def prefilled():
        caches = [runner.new_cache() for _ in lengths]
        for seed, (length, cache) in enumerate(zip(lengths, caches, strict=True)):
            runner.prefill(prompt(length, seed), cache)
        return caches

    caches = prefilled()
    alone = [
        torch.cat([runner.step([token], [cache]) for _ in range(2)])
        for token, cache in zip(next_tokens, caches, strict=True)
    ]
    for count in (2, 3, 5):
        caches = prefilled()
        together = torch.stack([runner.step(next_tokens[:count], caches[:count]) for _ in range(2)], dim=1)
        assert torch.equal(together, torch.stack(alone[:count]))


def test_rows_of_the_device_and_of_the_host_follow_each_other(one_gpu):
    """A prompt, steps, a shorter length, another prompt behind it, steps beyond what the cache held at first."""
    ours, theirs = runner_on(wgpu_backend(one_gpu), DENSE), runner_on(reference("bf16"), DENSE)
    rows = []
    for runner in (ours, theirs):
        cache = runner.new_cache(40)
        runner.prefill(prompt(30), cache)
        for token in prompt(6, 1):
            runner.step([token], [cache])
        cache.truncate(20)
        runner.prefill(prompt(20) + prompt(12, 2), cache)
        rows.append(torch.cat([runner.step([token], [cache]) for token in prompt(20, 3)]))
        copy = runner.new_cache()
        copy.copy_rows(cache, 50)
        rows[-1] = torch.cat((rows[-1], runner.step([5], [copy]), runner.step([6], [cache])))
        assert cache.capacity > 40
    assert (rows[0] - rows[1]).abs().max() < 0.1 * rows[1].abs().max()


def test_a_step_makes_no_memory(one_gpu):
    runner = runner_on(wgpu_backend(one_gpu), DENSE)
    cache = runner.new_cache()
    runner.prefill(prompt(5), cache)
    runner.greedy_step([3], [cache])
    runner.step([3], [cache])
    before = one_gpu.buffers_made
    for _ in range(3):
        runner.greedy_step([3], [cache])
        runner.step([3], [cache])
    assert one_gpu.buffers_made == before
    layers = DENSE["num_hidden_layers"]
    assert runner._graph(1).launches == 1 + 6 * layers + 3  # a row of the table; the head and its two of argmax


def test_rows_are_sampled_on_the_device(one_gpu):
    runner = runner_on(wgpu_backend(one_gpu), DENSE)
    settings = [
        {"temperature": 0.7, "top_k": 20},
        {"temperature": 0.0, "repetition_penalty": 1.3},
        {"temperature": 0.0},
    ]

    def tokens(*, whole):
        """Of three answers in one step each: as the device chooses, or each by its sampler from its logits."""
        caches, samplers = [runner.new_cache() for _ in settings], []
        for each, cache in zip(settings, caches, strict=True):
            sampler = Sampler(SamplingParams(**each, seed=4), prompt(5), DENSE["vocab_size"])
            samplers.append((sampler, [sampler.accept(runner.prefill(prompt(5), cache)).id]))
        for _ in range(6):
            fed = [said[-1] for _, said in samplers]
            choose = runner.choose_step if whole else lambda ids, stores, _: list(runner.step(ids, stores))
            choices = choose(fed, caches, [sampler for sampler, _ in samplers])
            assert not whole or all(isinstance(choice, tuple) for choice in choices)
            for (sampler, said), choice in zip(samplers, choices, strict=True):
                said.append(sampler.accept(choice).id)
        return [said for _, said in samplers]

    assert tokens(whole=True) == tokens(whole=False)


def test_a_step_goes_out_before_the_one_before_it_has_answered(one_gpu):
    """And one that is not wanted changes nothing."""
    backend = wgpu_backend(one_gpu)
    runner = runner_on(backend, DENSE)

    def said(*, plain):
        """Greedy tokens, with another prompt, a token of the caller's and logits in between."""
        cache, other = runner.new_cache(), runner.new_cache()
        tokens = [int(runner.prefill(prompt(20), cache).argmax())]
        for turn in range(12):
            if turn == 5:
                runner.prefill(prompt(30, 1), other)
            if turn == 8:
                tokens.append(17)
            step = runner.step if plain or turn == 10 else runner.argmax_step
            found = step(tokens[-1:], [cache])
            tokens += [int(found.argmax())] if isinstance(found, torch.Tensor) else found[0]
        return tokens

    expected = said(plain=True)
    graph = runner._graph(1)
    before = graph.submitted
    assert said(plain=False) == expected
    assert 12 < graph.submitted - before <= 20  # of twelve steps


def test_steps_that_are_filled_up_go_out_early_too(one_gpu):
    runner, lengths = runner_on(wgpu_backend(one_gpu), DENSE), (20, 4, 9)

    def said(step):
        caches = [runner.new_cache() for _ in lengths]
        tokens = [int(runner.prefill(prompt(n, n), cache).argmax()) for n, cache in zip(lengths, caches, strict=True)]
        found = []
        for turn in range(8):
            found.append(tokens)
            tokens = step(tokens, caches)
            if turn == 4:  # one is through, another comes
                caches[1] = runner.new_cache()
                tokens[1] = int(runner.prefill(prompt(6, 3), caches[1]).argmax())
        return found

    expected = said(lambda tokens, caches: runner.step(tokens, caches).argmax(-1).tolist())
    before = runner._graph(3).submitted
    assert said(lambda tokens, caches: runner.argmax_step(tokens, caches)[0]) == expected
    assert 8 < runner._graph(3).submitted - before <= 10


def test_a_largest_logit_that_is_no_number_is_told(one_gpu):
    backend = wgpu_backend(one_gpu)
    runner = runner_on(backend, DENSE)
    cache = runner.new_cache()
    runner.model.decoder.norm.weight[3] = float("nan")
    runner.prefill(prompt(5), cache)
    _, peaks = runner.argmax_step([3], [cache])
    assert peaks[0] != peaks[0]


def test_what_has_no_kernel_runs_on_the_host_and_is_told(one_gpu):
    backend = wgpu_backend(one_gpu)
    network = CausalLM(config_of(DENSE), parameters(DENSE, backend), backend)
    runner = Runner(network, CacheOptions(600, dtype="f32"))
    plain = runner_on(reference("bf16"), DENSE)
    plain = Runner(plain.model, CacheOptions(600, dtype="f32"))
    ours, theirs = forced(runner, [3, 4]), forced(plain, [3, 4])
    assert (ours - theirs).abs().max() <= 2**-8 * theirs.abs().max()  # the device's logits are not rounded
    assert not runner.launches_whole(1)
    assert "no kernels for keys and values in float32" in backend.describe()
    assert "on torch operations: attention" in backend.describe()
