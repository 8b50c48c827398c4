"""Each kernel against float64, within the error of float32 sums."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lluda.backends.executor.q8_weight import Q8Weight
from lluda.backends.weight import DenseWeight
from lluda.formats.q8_0 import Q8_0

SUM_ERROR = 2.0**-22
"""Of float32 sums, as a share of the sum of magnitudes."""


def bf16(*shape, seed=0, scale=1.0):
    return (torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * scale).bfloat16()


def floats(gpu, data):
    data = np.ascontiguousarray(data, np.float32)
    made = gpu.buffer(data.nbytes)
    gpu.write(made, 0, data)
    return made


def words(gpu, data):
    made = gpu.buffer(data.nbytes)
    gpu.write(made, 0, np.ascontiguousarray(data))
    return made


def whole(buffer):
    return buffer, 0, buffer.nbytes


def run(gpu, *launches):
    from lluda.backends.wgpu.steps.launch import Commands, Launch

    gpu.submit(Commands(gpu, [Launch(shader, tuple(ranges), grid) for shader, ranges, grid in launches]).recorded())
    gpu.wait()


def read(gpu, buffer, *shape, dtype=np.float32):
    return gpu.download(buffer).view(dtype)[: int(np.prod(shape))].reshape(shape)


def weight_of(form, values):
    """A weight for the form, and the float64 numbers that it means."""
    if form == "q8_0":
        blocks = Q8_0.encode(values.float())
        weight = Q8Weight(blocks.view(len(values), -1))
        return weight, weight.rows(torch.arange(len(values)), torch.float64)
    if form == "f32":
        values = values.float() * 1.001
        return DenseWeight(values, "F32"), values.double()
    return DenseWeight(values, "BF16"), values.double()


def matrices_of(gpu, form):
    from lluda.backends.wgpu.memory.matrices import Matrices

    return Matrices(gpu, packed=form == "packed")


def rounded(values):
    return values.float().bfloat16().double()


def bound_of(x, matrix, eps):
    """What a result may be off by: sums, and one of the rounded inputs of a fused norm falling the other way."""
    magnitudes = x.abs() @ matrix.abs().T
    slack = 0.0 if eps is None else 2.0**-8 * (x[:, None].abs() * matrix[None].abs()).amax(-1)
    return SUM_ERROR * magnitudes + slack + 1e-30


SHAPES = [
    (96, 256, 1, "store", None), (70, 1024, 1, "store", 1e-6), (64, 768, 2, "add", None),
    (40, 1024, 4, "store", 1e-6), (24, 2048, 3, "gated", 1e-6), (33, 3072, 1, "add", None),
]  # fmt: skip
ROUTER = (9, 256, 4, "store", 1e-6)
CASES = [("f32", *ROUTER), *((form, *shape) for form in ("bf16", "packed", "q8_0") for shape in SHAPES)]


@pytest.mark.parametrize(("form", "rows", "columns", "batch", "mode", "eps"), CASES)
def test_products(gpu, form, rows, columns, batch, mode, eps):
    from lluda.backends.wgpu.wgsl.gemv import Product, gemv, tile_of

    members = 2 if mode == "gated" else 1
    values = [bf16(rows, columns, seed=seed, scale=0.02) for seed in range(members)]
    values[0][0, :7] = torch.tensor([0.0, -0.0, 1e-30, -3e5, 2.0**-126, 5.0, -1e-12])
    if form == "q8_0":
        values[0][0, :32] = 2.0**-24 * 100  # a subnormal scale
    weights, exact = zip(*(weight_of(form, each) for each in values), strict=True)
    matrices = matrices_of(gpu, form)
    matrix = matrices.matrix((tuple((weight,) for weight in weights),))
    assert matrix.form == form
    x, norm, before = (
        bf16(batch, columns, seed=9).float(),
        1 + 0.1 * bf16(columns, seed=10).float(),
        torch.ones(batch, rows),
    )
    y, launches = floats(gpu, before), []
    for part in matrix.parts:
        product = Product(form, part.rows, columns, rows, part.first, batch, eps, mode)
        shader, grid = gemv(product, tile_of(product, gpu.target), gpu.target)
        ranges = [(part.body, 0, part.nbytes), whole(floats(gpu, x)), whole(y)]
        ranges += [whole(matrices.vectors(norm))] if eps else []
        ranges += [whole(part.side)] if part.side else []
        launches.append((shader, ranges, (*grid, 1)))
    run(gpu, *launches)
    given = x.double()
    if eps:
        given = rounded(given * torch.rsqrt(given.square().mean(-1, keepdim=True) + eps) * norm)
    results = [given @ each.T for each in exact]
    bounds = [bound_of(given, each, eps) for each in exact]
    want, bound = results[0], bounds[0]
    if mode == "gated":
        want = torch.sigmoid(results[0]) * results[0] * results[1]
        bound = 2.0**-7 * want.abs() + 4 * bounds[0] * (results[1].abs() + 1) + 4 * bounds[1] * (results[0].abs() + 1)
    elif mode == "add":
        want, bound = want + 1, bound + SUM_ERROR * (want.abs() + 1)
    got = torch.from_numpy(read(gpu, y, batch, rows).copy()).double()
    assert ((got - want).abs() <= bound).all(), ((got - want).abs() / bound).max()


@pytest.mark.parametrize("form", ["bf16", "packed", "q8_0"])
def test_rows_of_a_product_do_not_depend_on_those_beside_them(gpu, form):
    from lluda.backends.wgpu.wgsl.gemv import Product, gemv, tile_of

    weight, _ = weight_of(form, bf16(40, 512))
    matrix = matrices_of(gpu, form).matrix((((weight,),),))
    x, found = bf16(4, 512, seed=3).float(), []
    for batch in (1, 4):
        y = floats(gpu, torch.zeros(4, 40))
        for part in matrix.parts:
            product = Product(form, part.rows, 512, 40, part.first, batch)
            shader, grid = gemv(product, tile_of(product, gpu.target), gpu.target)
            ranges = [(part.body, 0, part.nbytes), whole(floats(gpu, x)), whole(y)]
            run(gpu, (shader, ranges + ([whole(part.side)] if part.side else []), (*grid, 4 // batch)))
        found.append(read(gpu, y, 4, 40))
    assert (found[0] == found[1]).all()


@pytest.mark.parametrize("normalise", [True, False])
@pytest.mark.parametrize(("experts", "top_k"), [(6, 2), (8, 3), (128, 8)])
def test_the_most_probable_experts(gpu, experts, top_k, normalise):
    from lluda.backends.wgpu.wgsl import mixture

    logits = torch.randn(3, experts + 1, generator=torch.Generator().manual_seed(1)) * 3
    logits[1, :experts] = 0.5  # all the same: the first ones
    choice = floats(gpu, np.zeros((3, mixture.choice_words(top_k))))
    shader = mixture.route(experts, top_k, normalise=normalise, shared=True)
    run(gpu, (shader, [whole(floats(gpu, logits)), whole(choice)], (3, 1, 1)))
    got = read(gpu, choice, 3, 2 * top_k + 1, dtype=np.uint32)
    probabilities = logits[:, :experts].double().softmax(-1)
    order = probabilities.sort(descending=True, stable=True)
    weights = order.values[:, :top_k]
    weights = weights / weights.sum(-1, keepdim=True) if normalise else weights
    assert got[:, :top_k].tolist() == order.indices[:, :top_k].tolist()
    np.testing.assert_allclose(got[:, top_k:-1].view(np.float32), weights, rtol=1e-5)
    assert (got[:, -1].view(np.float32) == logits[:, experts].numpy()).all()


@pytest.mark.parametrize(("heads", "kv_heads", "head_dim"), [(4, 2, 128), (6, 2, 64), (2, 2, 16)])
@pytest.mark.parametrize(("lengths", "norms"), [((1, 63), False), ((300, 700), True)], ids=["short", "long"])
def test_attention(gpu, heads, kv_heads, head_dim, lengths, norms):
    """Two rows, whose positions lie in one pool behind each other."""
    from lluda.backends.wgpu.wgsl.attention import STATE, Heads, attention, combine

    shape = Heads(heads, kv_heads, head_dim, 1e-6 if norms else None)
    generator = torch.Generator().manual_seed(7)
    qkv = torch.randn(2, shape.width, generator=generator)
    weights = 1 + 0.2 * torch.randn(2, head_dim, generator=generator)
    capacity = sum(lengths) + 3
    keys, values = (torch.randn(capacity, kv_heads, head_dim, generator=generator).bfloat16() for _ in range(2))
    angles = torch.rand(2, head_dim // 2, generator=generator) * 6
    turn = torch.cat((angles.cos(), angles.sin()), dim=1)
    starts = [2, 2 + lengths[0]]
    state = np.zeros((2, STATE), np.uint32)
    state[:, 0], state[:, 1] = [length - 1 for length in lengths], starts
    on_device = [words(gpu, each.view(torch.int16).numpy()) for each in (keys, values)]
    parts = gpu.buffer(4 * 2 * heads * shape.splits * shape.part)
    out, given = gpu.buffer(4 * 2 * heads * head_dim), words(gpu, state)
    ranges = [floats(gpu, qkv), *on_device, given, floats(gpu, turn), parts]
    ranges += [floats(gpu, weights)] if norms else []
    run(
        gpu,
        (attention(shape, gpu.target), map(whole, ranges), (kv_heads, shape.splits, 2)),
        (combine(shape), map(whole, (parts, given, out)), (heads, 2, 1)),
    )
    got = torch.from_numpy(read(gpu, out, 2, heads, head_dim).copy()).double()
    stored = [
        torch.from_numpy(read(gpu, each, capacity, kv_heads, head_dim, dtype=np.int16).copy()).view(torch.bfloat16)
        for each in on_device
    ]
    rows = qkv.double().view(2, -1, head_dim)
    for row, (start, length) in enumerate(zip(starts, lengths, strict=True)):
        turned = [
            _turned(part, weights[which] if norms else None, turn[row])
            for which, part in enumerate((rows[row, :heads], rows[row, heads : heads + kv_heads]))
        ]
        new_value = rounded(rows[row, heads + kv_heads :])
        new = start + length - 1
        assert (stored[0][new].double() - turned[1]).abs().max() <= 2**-7 * turned[1].abs().max()
        assert (stored[1][new].double() == new_value).all()
        kept = [each[start : start + length].double() for each in (keys, values)]
        kept[0][-1], kept[1][-1] = stored[0][new].double(), new_value
        for head in range(heads):
            key, value = (each[:, head // (heads // kv_heads)] for each in kept)
            want = (key @ turned[0][head] / head_dim**0.5).softmax(0) @ value
            assert (got[row, head] - want).abs().max() <= 2**-7 * want.abs().max() + 0.01


def _turned(part, weight, turn):
    if weight is not None:
        part = part * torch.rsqrt(part.square().mean(-1, keepdim=True) + 1e-6) * weight
    first, second = part.chunk(2, dim=-1)
    cos, sin = turn.double().chunk(2)
    return rounded(torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1))


@pytest.mark.parametrize("form", ["bf16", "packed", "q8_0"])
def test_rows_of_a_table(gpu, form):
    from lluda.backends.wgpu.wgsl import embedding

    values = bf16(300, 256, seed=5)
    values[7, :6] = torch.tensor([0.0, -0.0, 1e-30, -3e5, 2.0**-126, 5.0])
    weight, exact = weight_of(form, values)
    matrix = matrices_of(gpu, form).matrix((((weight,),),))
    ids = [7, 299, 120]
    x, given = gpu.buffer(4 * 3 * 256), words(gpu, np.array(ids, np.uint32))
    for part in matrix.parts:
        ranges = [(part.body, 0, part.nbytes), whole(given), whole(x), *([whole(part.side)] if part.side else [])]
        run(gpu, (embedding.lookup(form, part.first, part.rows, 256), ranges, (2, 3, 1)))
    assert (torch.from_numpy(read(gpu, x, 3, 256).copy()).double() == exact[ids]).all()


def test_the_first_of_the_largest_logits(gpu):
    from lluda.backends.wgpu.steps.decode import floats_of
    from lluda.backends.wgpu.wgsl import argmax

    logits = -torch.rand(4, 5000, generator=torch.Generator().manual_seed(2)) - 1
    logits[0, [4999, 77]] = -0.5
    logits[1, 4000] = float("inf")
    logits[2, 3] = float("nan")
    logits[3, :] = float("-inf")
    found, chosen, ids = gpu.buffer(8 * 4 * argmax.GROUPS), gpu.buffer(8 * 4), gpu.buffer(4 * 4)
    run(
        gpu,
        (argmax.partial(5000), [whole(floats(gpu, logits)), whole(found)], (argmax.GROUPS, 4, 1)),
        (argmax.final(), [whole(found), whole(chosen), whole(ids)], (1, 4, 1)),
    )
    got = read(gpu, chosen, 4, 2, dtype=np.uint32)
    assert got[:, 1].tolist() == read(gpu, ids, 4, dtype=np.uint32).tolist() == [77, 4000, 3, 0]
    peaks = floats_of(got[:, 0])
    assert peaks[0] == -0.5 and peaks[1] == np.inf and np.isnan(peaks[2]) and peaks[3] == -np.inf


@pytest.mark.parametrize("form", ["f32", "bf16", "packed", "q8_0"])
def test_products_for_subgroups_of_32_compile(one_gpu, form):
    """What NVIDIA's, AMD's and Apple's GPUs get, and no driver here can run: wgpu takes the text."""
    from lluda.backends.wgpu.wgsl.gemv import Product, gemv, tile_of
    from lluda.backends.wgpu.wgsl.shader import Target

    target = Target(32)
    shapes = [(4096, 1024, "store", 1e-6), (1024, 3072, "add", None), (768, 2048, "experts", 1e-6)]
    for rows, columns, mode, eps in [*shapes, (151_936, 1024, "store", 1e-6), (2048, 768, "mix", None)]:
        for batch in (1, 4):
            product = Product(form, rows, columns, rows, 0, batch, eps, mode, 8)
            tile = tile_of(product, target)
            assert target.shuffles(tile.threads) and tile.workgroup % 128 == 0
            one_gpu._module(gemv(product, tile, target)[0].code)


def test_attention_for_subgroups_of_32_compiles(one_gpu):
    from lluda.backends.wgpu.wgsl.attention import Heads, attention, store
    from lluda.backends.wgpu.wgsl.shader import Target

    for heads in (Heads(16, 8, 128, 1e-6), Heads(32, 4, 128, 1e-6), Heads(14, 2, 64, None)):
        for shader in (
            attention(heads, Target(32)),
            attention(heads, Target(32), stored=True),
            store(heads, Target(32)),
        ):
            one_gpu._module(shader.code)
