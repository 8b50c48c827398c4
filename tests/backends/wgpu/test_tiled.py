"""Products of many rows against float64, within the error of float32 sums."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from lluda.backends.weight import DenseWeight
from tests.backends.wgpu.test_kernels import SUM_ERROR, bf16, floats, matrices_of, read, run, weight_of, whole, words


class Written:
    """Launches of products, written down to be run."""

    def __init__(self, gpu, form="bf16"):
        from lluda.backends.wgpu.steps.tiled_products import TiledProducts

        self.gpu, self.launches = gpu, []
        self.matrices = matrices_of(gpu, form)
        self.products = TiledProducts(
            self.matrices, lambda *launch: self.launches.append(launch), lambda _, nbytes: gpu.buffer(nbytes)
        )

    def run(self):
        run(self.gpu, *self.launches)


def within(got, want, magnitudes, slack=0.0):
    """Whether results are off by no more than float32 sums of such magnitudes may be."""
    off = (torch.from_numpy(got.copy()).double() - want).abs()
    bound = 2 * SUM_ERROR * magnitudes + slack + 1e-30
    assert (off <= bound).all(), (off / bound).max()


@pytest.mark.parametrize("rows", [16, 64, 192])
@pytest.mark.parametrize("form", ["bf16", "packed", "q8_0"])
def test_products(gpu, form, rows):
    written, (weight, exact) = Written(gpu, form), weight_of(form, bf16(200, 384, scale=0.1))
    x, y = bf16(rows, 384, seed=1).float(), floats(gpu, torch.ones(rows, 232))
    matrix = written.matrices.matrix((((weight,),),))
    written.products.add(matrix, floats(gpu, x), y, rows, 232, columns=(32,))
    written.run()
    got = read(gpu, y, rows, 232)
    assert (got[:, :32] == 1).all()
    within(got[:, 32:], x.double() @ exact.T, x.double().abs() @ exact.abs().T)


ACTIVATIONS = {
    None: lambda v: v,
    "gelu": F.gelu,
    "gelu_tanh": lambda v: F.gelu(v, approximate="tanh"),
    "silu": F.silu,
}


@pytest.mark.parametrize("activation", list(ACTIVATIONS))
def test_endings(one_gpu, activation):
    """Bias, activation, scale, and a place further down; of large numbers too."""
    from lluda.backends.wgpu.wgsl.tiled import Ending

    gpu, written = one_gpu, Written(one_gpu)
    values, x = bf16(72, 64), bf16(16, 64, seed=1)
    bias, scale = 5 * bf16(72, seed=2).float(), bf16(72, seed=3).float()
    y = floats(gpu, torch.ones(19, 72))
    matrix = written.matrices.matrix((((DenseWeight(values, "BF16"),),),))
    written.products.add(
        matrix, floats(gpu, x.float()), y, 16, 72, above=3, ending=Ending("add", activation=activation),
        bias=[bias], scale=scale,
    )  # fmt: skip
    written.run()
    got = read(gpu, y, 19, 72)
    assert (got[:3] == 1).all()
    sums = x.double() @ values.double().T + bias
    magnitudes = x.double().abs() @ values.double().abs().T + bias.abs()
    within(got[3:], 1 + ACTIVATIONS[activation](sums) * scale, magnitudes * scale.abs() + 1, 4e-7 * scale.abs())


def test_gelu_is_exact_in_its_tails(one_gpu):
    """Far out, where one minus an error function has no digits left."""
    from lluda.backends.wgpu.wgsl.tiled import Ending

    gpu, written = one_gpu, Written(one_gpu)
    bias = torch.linspace(-12, 12, 256)
    matrix = written.matrices.matrix((((DenseWeight(bf16(256, 8), "BF16"),),),))
    y = gpu.buffer(4 * 16 * 256)
    written.products.add(matrix, gpu.buffer(4 * 16 * 8), y, 16, 256, ending=Ending(activation="gelu"), bias=[bias])
    written.run()
    exact = 0.5 * bias.double() * torch.erfc(-bias.double() / 2**0.5)
    torch.testing.assert_close(torch.from_numpy(read(gpu, y, 256).copy()).double(), exact, rtol=2e-5, atol=1e-37)


def test_convolutions_along_rows(one_gpu):
    from lluda.backends.wgpu.wgsl.tiled import Windows

    gpu, written, taps, dilation = one_gpu, Written(one_gpu), 3, 9
    kernel, x = bf16(40, 24, taps, scale=0.2), bf16(64 + (taps - 1) * dilation, 24, seed=1)
    matrix = written.matrices.matrix((((DenseWeight(kernel.transpose(1, 2).flatten(1), "BF16"),),),))
    y = gpu.buffer(4 * 64 * 40)
    written.products.add(matrix, floats(gpu, x.float()), y, 64, 40, source=Windows(24, dilation))
    written.run()
    want, most = (
        F.conv1d(a.double().T, b.double(), dilation=dilation).T for a, b in ((x, kernel), (x.abs(), kernel.abs()))
    )
    within(read(gpu, y, 64, 40), want, most)


@pytest.mark.parametrize(("height", "width"), [(8, 10), (7, 5)])
def test_convolutions_of_pictures(one_gpu, height, width):
    from lluda.backends.wgpu.wgsl.tiled import Squares

    gpu, written = one_gpu, Written(one_gpu)
    kernel, x = bf16(40, 8, 3, 3, scale=0.2), bf16(3, 8, height, width, seed=1)
    source = Squares(height, width, 8)
    rows = 3 * source.shape[0] * source.shape[1]
    matrix = written.matrices.matrix((((DenseWeight(kernel.permute(0, 2, 3, 1).flatten(1), "BF16"),),),))
    y, given = gpu.buffer(4 * 64 * 40), torch.zeros(5 * 8 * height * width)
    given[: x.numel()] = x.float().permute(0, 2, 3, 1).flatten()
    written.products.add(matrix, floats(gpu, given), y, rows, 40, source=source)
    written.run()
    want, most = (
        F.conv2d(a.double(), b.double(), stride=2, padding=1).permute(0, 2, 3, 1).reshape(rows, 40)
        for a, b in ((x, kernel), (x.abs(), kernel.abs()))
    )
    within(read(gpu, y, rows, 40), want, most)


def test_columns_of_pictures(one_gpu):
    from lluda.backends.wgpu.wgsl.tiled import Columns

    gpu, written, height, width = one_gpu, Written(one_gpu), 6, 5
    matrix, x = bf16(40, 8 * height, scale=0.2), bf16(16, height, width, 8, seed=1)
    made, y = written.matrices.matrix((((DenseWeight(matrix, "BF16"),),),)), gpu.buffer(4 * 128 * 40)
    written.products.add(made, floats(gpu, x.float()), y, 16 * width, 40, source=Columns(height, width, 8))
    written.run()
    rows = x.permute(0, 2, 3, 1).reshape(16 * width, -1).double()
    within(read(gpu, y, 80, 40), rows @ matrix.double().T, rows.abs() @ matrix.double().abs().T)


@pytest.mark.parametrize("small", [True, False], ids=["small", "large"])
@pytest.mark.parametrize("form", ["bf16", "packed", "q8_0"])
def test_experts(gpu, form, small):
    """Of rows, two members of which each expert has; then of pairs; then put back."""
    from lluda.backends.wgpu.steps.tiled_products import Plan
    from lluda.backends.wgpu.wgsl import grouping, mixture

    experts, top_k, rows, inner, hidden = 5, 2, 40, 24, 256
    pairs, tile = rows * top_k, 16 if small else 64
    generator = torch.Generator().manual_seed(1)
    ids = torch.stack([torch.randperm(4, generator=generator)[:2] for _ in range(rows)])  # nobody chooses the last
    weights = torch.rand(rows, top_k, generator=generator)
    choice = np.zeros((rows, mixture.choice_words(top_k)), np.uint32)
    choice[:, :top_k], choice[:, top_k : 2 * top_k] = ids, weights.numpy().view(np.uint32)
    gates = [
        [weight_of(form, bf16(inner, hidden, seed=10 * e + m, scale=0.1)) for m in range(2)] for e in range(experts)
    ]
    written, given = Written(gpu, form), words(gpu, choice)
    matrix = written.matrices.matrix(tuple(tuple((weight,) for weight, _ in expert) for expert in gates))
    plan = Plan(
        gpu.buffer(4 * grouping.plan_words(pairs, experts, tile)), experts, top_k,
        grouping.most_tiles(pairs, experts, tile), small,
    )  # fmt: skip
    x, y, out = bf16(rows, hidden, seed=2), gpu.buffer(4 * pairs * 2 * inner), floats(gpu, torch.ones(rows, 2 * inner))
    written.launches.append((grouping.group(experts, top_k, rows, tile), [whole(given), whole(plan.buffer)], (1, 1, 1)))
    written.products.add_experts(matrix, floats(gpu, x.float()), y, plan, 2 * inner, columns=(0, inner), of_rows=True)
    shader, grid = grouping.mix(2 * inner, top_k, rows, shared=False)
    written.launches.append((shader, [whole(given), whole(y), whole(out)], grid))
    written.run()
    joined = [torch.cat([exact for _, exact in expert]) for expert in gates]
    want, most = (
        torch.stack(
            [
                torch.stack([joined[e].abs() @ a if of is abs else joined[e] @ a for e in ids[row]])
                for row, a in enumerate(source)
            ]
        )
        for of, source in ((None, x.double()), (abs, x.double().abs()))
    )
    within(read(gpu, y, rows, top_k, 2 * inner), want, most)
    mixed, least = ((weights[..., None].double() * each).sum(1) for each in (want, most))
    within(read(gpu, out, rows, 2 * inner), 1 + mixed, least + 1)
