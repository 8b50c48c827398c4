"""The talker's steps and the code predictor's passes on the software driver against float64."""

from __future__ import annotations

import pytest
import torch

from lluda.backends.backend import Precision
from lluda.backends.batch import Segment
from lluda.backends.reference.backend import ReferenceBackend
from lluda.engine.kv_cache import CacheOptions, KVCache
from lluda.models.code_predictor import CodePredictor, code_predictor_parameters
from lluda.models.talker import Talker, talker_parameters
from tests.conftest import random_values
from tests.models.omni_reference import placed_parameters
from tests.models.test_talker import config

CPU, SEQUENCES = torch.device("cpu"), 3


def backend_of(kind, gpu):
    if kind != "wgpu":
        return ReferenceBackend(CPU, Precision.of(kind))
    from lluda.backends.wgpu.backend import WgpuBackend

    return WgpuBackend(gpu, Precision.of("bf16"))


def caches(decoder, backend, count=SEQUENCES):
    options = CacheOptions(64, dtype=backend.precision.name)
    return [KVCache(decoder, options, CPU) for _ in range(count)]


def noise(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).bfloat16()


def parts(backend, part, parameters_of):
    specs = list(parameters_of(config()))
    return part(config(), placed_parameters(specs, random_values(specs, 0, torch.bfloat16), backend), backend)


@torch.inference_mode()
def talker_steps(backend, count=SEQUENCES):
    """Hidden rows of three steps behind prompts of different lengths."""
    talker = parts(backend, Talker, talker_parameters)
    dtype, found = backend.precision.residual, []
    stores = caches(talker.config.decoder, backend, count)
    for index, store in enumerate(stores):
        length = 4 + 3 * index
        talker(
            noise(length, 64, seed=index).to(dtype),
            torch.arange(length),
            [Segment(0, length, store)],
            torch.tensor([0]),
        )
        store.advance(length)
    for step in range(3):
        rows = torch.stack([noise(64, seed=100 * step + index) for index in range(count)]).to(dtype)
        positions = torch.tensor([[store.length + axis for store in stores] for axis in range(3)])
        segments = [Segment(index, 1, store) for index, store in enumerate(stores)]
        found.append(talker(rows, positions, segments, torch.arange(count))[0].double())
        for store in stores:
            store.advance(1)
    return torch.stack(found, dim=1)


@torch.inference_mode()
def code_logits(backend, count=SEQUENCES):
    """Logits of all passes of two frames, whose codes are given, and the sums of the codes' rows."""
    predictor = parts(backend, CodePredictor, code_predictor_parameters)
    dtype, seen = backend.precision.residual, []
    stores = caches(predictor.config, backend, count)
    totals = []
    for frame in range(2):
        rows = torch.stack([noise(2, 64, seed=10 * frame + index) for index in range(count)]).to(dtype)
        total = torch.zeros(count, 64, dtype=dtype)

        def pick(logits, index):
            seen.append((index, logits.double()))
            return 5 + index

        choose = [lambda logits, index=index: pick(logits, index) for index in range(count)]
        for store in stores:
            store.truncate(0)
        codes = predictor.frames(rows, stores, choose, total)
        assert codes == [[5 + index] * predictor.passes for index in range(count)]
        totals.append(total.double())
    return torch.stack([torch.stack([row for at, row in seen if at == index]) for index in range(count)]), totals


def test_steps_of_the_talker_are_as_near_to_float64_as_the_reference(gpu):
    exact, plain = talker_steps(backend_of("f64", None)), talker_steps(backend_of("bf16", None))
    backend = backend_of("wgpu", gpu)
    ours = talker_steps(backend)
    assert (ours - exact).abs().mean() <= 1.1 * (plain - exact).abs().mean()
    assert "bf16 matrices there" in backend.describe() and "no kernels" not in backend.describe()
    assert torch.equal(talker_steps(backend_of("wgpu", gpu), 1), ours[:1])


def test_passes_of_the_code_predictor_are_as_near_to_float64_as_the_reference(gpu):
    exact, totals = code_logits(backend_of("f64", None))
    plain, _ = code_logits(backend_of("bf16", None))
    backend = backend_of("wgpu", gpu)
    ours, sums = code_logits(backend)
    assert (ours - exact).abs().mean() <= 1.1 * (plain - exact).abs().mean()
    torch.testing.assert_close(torch.stack(sums), torch.stack(totals), rtol=1e-6, atol=1e-6)
    assert "attention" not in backend.torch_blocks
    assert torch.equal(code_logits(backend_of("wgpu", gpu), 1)[0], ours[:1])


def test_what_a_choice_raises_arrives(one_gpu):
    predictor = parts(backend_of("wgpu", one_gpu), CodePredictor, code_predictor_parameters)

    def refuse(_):
        raise ValueError("no code")

    with pytest.raises(ValueError, match="no code"), torch.inference_mode():
        predictor.frames(
            torch.zeros(1, 2, 64), caches(predictor.config, predictor.backend, 1), [refuse], torch.zeros(1, 64)
        )
