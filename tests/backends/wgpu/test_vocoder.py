"""Code2wav on the software driver: as near to float64 as the reference, and streamed in any pieces the same."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from lluda.config.code2wav import read_code2wav
from lluda.config.reader import ConfigReader
from lluda.models.code2wav import Code2Wav, code2wav_parameters
from tests.backends.wgpu.test_encoder import backend_of
from tests.backends.wgpu.test_kernels import floats, read, run, whole
from tests.config.test_code2wav import SMALL
from tests.models.omni_reference import placed_parameters
from tests.models.test_code2wav import codes_of, speech_like, streamed


def network(backend, **changes):
    config = read_code2wav(ConfigReader(SMALL | changes, "config.json: code2wav_config"))
    return Code2Wav(config, placed_parameters(code2wav_parameters(config), speech_like(config), backend), backend)


@torch.inference_mode()
def waveform(backend, frames):
    model = network(backend)
    return model(codes_of(model.config, frames)).double()


@pytest.mark.parametrize("packed", [False, True], ids=["bf16", "packed"])
def test_the_waveform_is_as_near_to_float64_as_the_references(gpu, packed):
    exact, plain = (waveform(backend_of(kind), 20) for kind in ("f64", "bf16"))
    backend = backend_of("wgpu", gpu, packed=packed)
    ours = waveform(backend, 20)
    assert (ours - exact).square().mean() <= 1.1 * (plain - exact).square().mean()
    assert "no kernels" not in backend.describe() and not backend.torch_blocks


@torch.inference_mode()
def test_streamed_in_any_pieces_it_is_whole_to_the_bit(one_gpu):
    model = network(backend_of("wgpu", one_gpu))
    codes = codes_of(model.config, 40)
    assert torch.equal(streamed(model, codes, [1, 1, 3, 9, 2, 26, 1]), model(codes))


@torch.inference_mode()
def test_streams_pushed_together_have_the_samples_that_each_has_alone(one_gpu):
    model = network(backend_of("wgpu", one_gpu))
    codes = [codes_of(model.config, 6, seed) for seed in range(2)]
    alone = [model(own) for own in codes]
    states = [model.stream(), model.stream()]
    first = model.push_all([codes[0][:, :2], codes[1][:, :5]], states)
    second = model.push_all([codes[0][:, 2:], codes[1][:, 5:]], states)
    assert all(
        torch.equal(torch.cat(parts), own) for parts, own in zip(zip(first, second, strict=True), alone, strict=True)
    )
    assert [state.frames for state in states] == [6, 6]


@torch.inference_mode()
def test_every_stage_is_seen_and_changes_nothing(one_gpu):
    found = {}
    for kind in ("wgpu", "f64"):
        stages = found[kind] = {}
        model = network(backend_of(kind, one_gpu))
        codes, state = codes_of(model.config, 7), model.stream()
        stages["samples"] = model.push(codes, state, lambda name, x, stages=stages: stages.update({name: x.clone()}))
        assert torch.equal(stages["samples"], model(codes))
    assert list(found["wgpu"]) == list(found["f64"])
    for name, want in found["f64"].items():
        assert (found["wgpu"][name].double() - want).abs().max() <= 0.03 * want.abs().max(), name


@torch.inference_mode()
def test_first_frames_without_samples_run_on_the_host_and_are_told(one_gpu):
    backend = backend_of("wgpu", one_gpu)
    model = network(backend, upsampling_ratios=[])
    codes = codes_of(model.config, 9)
    assert len(streamed(model, codes, [1])) == model.config.samples(9)
    assert "no kernels for code2wav's first frames where they give no samples" in backend.describe()
    assert backend.torch_blocks["residual_unit"]


def test_snake_is_exact_far_out(gpu):
    from lluda.backends.wgpu.wgsl import convolution

    x = torch.linspace(-300, 300, 24 * 64).view(24, 64)
    act = torch.stack((torch.linspace(0.1, 20, 64), torch.linspace(0.5, 2, 64)))
    y = floats(gpu, torch.ones(3 + 24, 64))
    shader, grid = convolution.snake(64, 3, 24)
    run(gpu, (shader, [whole(floats(gpu, x)), whole(y), whole(floats(gpu, act))], grid))
    got = read(gpu, y, 27, 64)
    want = x.double() + act[1] * (x * act[0]).double().sin().square()  # of the float32 product, as the reference has it
    assert (got[:3] == 1).all()
    assert (np.abs(got[3:] - want.numpy()) <= 2**-8 * want.abs().numpy() + 4e-6).all()


def test_a_convolution_of_each_channel_then_a_norm(gpu):
    from lluda.backends.wgpu.wgsl import convolution

    generator = torch.Generator().manual_seed(1)
    x, kernel, norm = (torch.randn(shape, generator=generator) for shape in ((6 + 20, 64), (8, 64), (2, 64)))
    y = gpu.buffer(4 * 20 * 64)
    shader = convolution.depthwise_normed(64, 7, 1e-6, gpu.target)
    run(gpu, (shader, [whole(floats(gpu, each)) for each in (x, kernel, norm)] + [whole(y)], (20, 1, 1)))
    convolved = sum(kernel[1 + tap].double() * x[tap : tap + 20] for tap in range(7)) + kernel[0]
    want = F.layer_norm(convolved, (64,), norm[0].double(), norm[1].double(), 1e-6)
    assert (np.abs(read(gpu, y, 20, 64) - want.numpy()) <= 2**-8 * want.abs().numpy() + 1e-5).all()


def test_the_convolution_that_makes_samples(gpu):
    from lluda.backends.wgpu.wgsl import convolution

    generator = torch.Generator().manual_seed(1)
    x, kernel = (torch.randn(shape, generator=generator) * 0.2 for shape in ((6 + 300, 48), (7, 48)))
    y, bias = gpu.buffer(4 * 300), torch.tensor([0.1])
    shader, grid = convolution.mono(48, 7, 300)
    run(gpu, (shader, [whole(floats(gpu, each)) for each in (x, kernel, bias)] + [(y, 0, 1200)], grid))
    want = (sum(x[tap : tap + 300].double() @ kernel[tap].double() for tap in range(7)) + 0.1).clamp(-1, 1)
    assert (np.abs(read(gpu, y, 300) - want.numpy()) <= 2e-6).all() and want.abs().max() == 1
