"""The layers of a dense network in one persistent launch against the reference backend's: on a GPU, with a program for
each multiprocessor, else in Triton's interpreter, where one program does all."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton", reason="the kernels of the cuda backend are Triton's: pip install triton")

from dataclasses import replace

from lluda.backends.base import Precision
from lluda.backends.blocks import (
    AttentionBlock,
    DecoderLayers,
    DenseWeight,
    Norm,
    Projection,
    Segment,
    SwiGLU,
    SwiGLUBlock,
)
from lluda.backends.cuda import CudaBackend
from lluda.backends.cuda_graph import DeviceStore, Graph, store_row
from lluda.backends.persistent import takes
from lluda.backends.reference import ReferenceBackend
from lluda.backends.triton_target import interpreted

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
ON_GPU = DEVICE.type == "cuda"
CAPACITY = 320
pytestmark = pytest.mark.skipif(
    not ON_GPU and not interpreted(), reason="no GPU, and triton was imported before it could be interpreted"
)


class Store:
    """What a sequence of ``length`` has left in ``layers``."""

    def __init__(self, layers, length, capacity=CAPACITY):
        block, dtype = layers.blocks[0][0], layers.blocks[0][0].q_proj.weight.values.dtype
        shape = len(layers.blocks), block.k_proj.weight.out_features // block.head_dim, capacity, block.head_dim
        self.buffers = [torch.randn(shape).to(DEVICE, dtype) for _ in range(2)]
        self.length = length

    def room(self, rows):  # noqa: ARG002  (a buffer of the capacity it was made with)
        return self.buffers

    def copy(self):
        other = object.__new__(Store)
        other.buffers, other.length = [buffer.clone() for buffer in self.buffers], self.length
        return other


def network(dtype, hidden, inner, heads, kv_heads, head_dim, *, window=None, norms=True, scales=False, layers=2):
    def matrix(rows, columns):
        return DenseWeight((torch.randn(rows, columns) / columns**0.5).to(DEVICE, dtype), "any")

    def vector(width):
        return (1 + 0.1 * torch.randn(width)).to(DEVICE)

    def norm(width):
        return Norm(vector(width), 1e-6)

    def layer():
        width, kv_width = heads * head_dim, kv_heads * head_dim
        shapes = (width, hidden), (kv_width, hidden), (kv_width, hidden), (hidden, width)
        projections = [Projection(matrix(*shape)) for shape in shapes]
        head_norms = [norm(head_dim) if norms else None for _ in range(2)]
        scale = [vector(hidden) / 2 if scales else None for _ in range(2)]
        mlp = SwiGLU(matrix(inner, hidden), matrix(inner, hidden), matrix(hidden, inner))
        attention = AttentionBlock(norm(hidden), *projections, *head_norms, head_dim, window, scale[0])
        return attention, SwiGLUBlock(norm(hidden), mlp, scale[1])

    return DecoderLayers([layer() for _ in range(layers)])


def rotary(backend, length, rows, head_dim):
    places = (length + torch.arange(rows, dtype=torch.float32))[:, None].to(DEVICE)
    return backend.rotary_table(places, (1e4 ** (-torch.arange(0, head_dim, 2) / head_dim)).to(DEVICE))


def through(backend, layers, x, store, *, device_store=False):
    """``x`` behind what ``store`` holds, through all layers."""
    table = rotary(backend, store.length, len(x), layers.blocks[0][0].head_dim)
    if device_store:
        row = torch.tensor([store_row(store, len(x))]).to(DEVICE)
        store = DeviceStore(row, 0, store.buffers[0].dtype)
    return backend.decoder_layers(x.clone(), layers, backend.begin_step(table, [Segment(0, len(x), store)]))


def assert_close(got, expected, bar):
    got, expected = got.double(), expected.double()
    assert ((got - expected).norm() / expected.norm()).item() < bar


def bar_of(dtype):
    return 1e-5 if dtype == torch.float32 else 3e-2 if interpreted() else 1e-2


def persistent(precision):
    return CudaBackend(DEVICE, Precision.of(precision), persistent=True)


def assert_as_the_reference(layers, length, rows=1, capacity=CAPACITY):
    dtype = layers.blocks[0][0].q_proj.weight.values.dtype
    ours = persistent("f32" if dtype == torch.float32 else "bf16")
    theirs = ReferenceBackend(DEVICE, ours.precision)
    store = Store(layers, length, capacity)
    same, before = store.copy(), store.copy()
    x = torch.randn(rows, layers.blocks[0][0].o_proj.weight.out_features).to(DEVICE)
    got, expected = through(ours, layers, x, store, device_store=True), through(theirs, layers, x, same)
    assert ours._persistent[layers] is not None
    assert_close(got - x, expected - x, bar_of(dtype))
    for mine, his, old in zip(store.buffers, same.buffers, before.buffers, strict=True):
        fresh = slice(length, length + rows)
        assert_close(mine[:, :, fresh], his[:, :, fresh], bar_of(dtype))
        mine[:, :, fresh] = old[:, :, fresh]
        assert torch.equal(mine, old)


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["f32", "bf16"])
@pytest.mark.parametrize("length", [0, 1, 63, 64, 300])
def test_one_row_behind_caches_of_any_length(dtype, length):
    assert_as_the_reference(network(dtype, 48, 72, 4, 2, 64), length)


@pytest.mark.parametrize(
    ("hidden", "inner", "heads", "kv_heads", "head_dim", "options"),
    [
        (64, 96, 2, 1, 128, {}),
        (40, 33, 3, 3, 32, {"norms": False}),
        (96, 160, 6, 2, 32, {"window": 50, "scales": True}),
        (32, 64, 4, 4, 64, {"layers": 1, "window": 1}),
    ],
)
def test_networks_of_any_shape(hidden, inner, heads, kv_heads, head_dim, options):
    assert_as_the_reference(network(torch.float32, hidden, inner, heads, kv_heads, head_dim, **options), 150)


def test_two_rows_of_a_sequence():
    assert_as_the_reference(network(torch.float32, 48, 72, 4, 2, 32), 5, rows=2)


def test_a_ring_that_is_full():
    layers = network(torch.float32, 48, 40, 2, 2, 32, window=64)
    backend = persistent("f32")
    whole, ring = Store(layers, 100), Store(layers, 100, 64)
    for kept, buffer in zip(ring.buffers, whole.buffers, strict=True):
        kept[:, :, torch.arange(36, 100) % 64] = buffer[:, :, 36:100]
    x = torch.randn(1, 48).to(DEVICE)
    got = through(backend, layers, x, ring, device_store=True)
    torch.testing.assert_close(got, through(backend, layers, x, whole, device_store=True), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(ring.buffers[0][:, :, 36], whole.buffers[0][:, :, 100], rtol=1e-5, atol=1e-5)


def test_it_is_left_out_where_it_does_not_apply():
    layers = network(torch.float32, 32, 32, 2, 2, 32)
    attention, feed = layers.blocks[0]
    biased = replace(attention, q_proj=replace(attention.q_proj, bias=torch.zeros(64)))
    mixed = replace(feed, mlp=replace(feed.mlp, up_proj=DenseWeight(torch.zeros(32, 32).bfloat16(), "BF16")))
    apart = replace(feed, norm=Norm(feed.norm.weight, 1e-5))
    assert takes(layers, 1)
    assert not takes(network(torch.float32, 32, 32, 2, 2, 16), 1)
    for odd in ((biased, feed), (attention, mixed), (attention, apart), (replace(attention, q_norm=None), feed)):
        assert not takes(DecoderLayers([odd, *layers.blocks[1:]]), 1)
    backend, store = CudaBackend(DEVICE, Precision.of("f32")), Store(layers, 3)
    assert "persistent" not in backend.describe()
    assert "persistent" in persistent("f32").describe()
    x = torch.randn(1, 32).to(DEVICE)
    through(backend, layers, x, store, device_store=True)
    assert backend._persistent == {layers: None}


@pytest.mark.skipif(not ON_GPU, reason="what is full size is for a GPU")
@pytest.mark.parametrize("length", [0, 5, 200, 3000])
def test_full_size_again_and_again(length):
    """A race would show as a result that moves."""
    layers = network(torch.bfloat16, 1024, 3072, 16, 8, 128, layers=5)
    assert_as_the_reference(layers, length, capacity=4096)
    backend, store = persistent("bf16"), Store(layers, length, 4096)
    x = torch.randn(1, 1024).to(DEVICE)
    first = through(backend, layers, x, store, device_store=True)
    for _ in range(50):
        assert torch.equal(through(backend, layers, x, store, device_store=True), first)


@pytest.mark.skipif(not ON_GPU, reason="nothing is captured without a GPU")
def test_what_is_captured_is_what_is_launched():
    layers = network(torch.bfloat16, 1024, 3072, 16, 8, 128, layers=5)
    backend, rows = persistent("bf16"), []
    x, turn = torch.randn(1, 1024).to(DEVICE), rotary(backend, 7, 1, 128)
    start = Store(layers, 120, 512)
    for capture in (True, False):
        store, found = start.copy(), []
        place = torch.tensor([store_row(store)]).to(DEVICE)
        step = backend.begin_step(turn, [Segment(0, 1, DeviceStore(place, 0, torch.bfloat16))])
        out = torch.empty_like(x)
        graph = Graph(
            lambda out=out, step=step: out.copy_(backend.decoder_layers(x.clone(), layers, step)),
            DEVICE, capture=capture, state=[*store.buffers],
        )  # fmt: skip
        for _ in range(20):
            graph.launch()
            found.append(out.clone())
            place[0, 2] += 1
        rows.append(torch.cat([*found, *(buffer.flatten()[None, :1024] for buffer in store.buffers)]))
    assert torch.equal(*rows)
    assert len(set(rows[0][:, 0].tolist())) > 20
