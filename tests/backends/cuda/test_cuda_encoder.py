"""Encoder stacks of the cuda backend: filled up, in few launches and as one, against the reference."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton", reason="the kernels of the cuda backend are Triton's: pip install triton")

from lluda.backends.backend import Precision
from lluda.backends.blocks import LayerNorm, Projection
from lluda.backends.components import ConvStem, EncoderLayers, Merger, PatchEmbedding, Rotary
from lluda.backends.cuda import encoder
from lluda.backends.cuda.backend import CudaBackend
from lluda.backends.cuda.kernels.triton_target import interpreted
from lluda.backends.reference.backend import ReferenceBackend
from tests.backends.test_encoder_block import Shape, random_block
from tests.conftest import taken

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
AUDIO = Shape(48, 2, 24, 64, ())
VISION = Shape(36, 2, 18, 50, (), fused=True, tanh=True, rotary=True)
pytestmark = pytest.mark.skipif(
    DEVICE.type == "cpu" and not interpreted(), reason="no GPU, and triton was imported before it could be interpreted"
)


def layers_of(shape, backend):
    blocks = [random_block(shape, backend) for _ in range(2)]
    if not shape.rotary:
        return EncoderLayers(blocks)
    half = shape.head_dim // 2
    axes = torch.arange(half, device=DEVICE) % 2
    random = torch.Generator().manual_seed(0)
    wide = 2 * shape.hidden
    norm = LayerNorm(*(taken(backend, torch.randn(wide, generator=random), "bias") for _ in range(2)), 1e-6)
    inner, outer = (
        Projection(
            taken(backend, torch.randn(out, wide, generator=random).bfloat16()),
            taken(backend, torch.randn(out, generator=random), "bias"),
        )
        for out in (wide, 20)
    )
    frequencies = torch.logspace(0, -2, half, device=DEVICE)
    return EncoderLayers(blocks, Rotary(frequencies, axes), {0: Merger(norm, inner, outer)})


def rows_of(lengths, hidden, seed):
    random = torch.Generator().manual_seed(seed)
    count = sum(lengths)
    return torch.randn(count, hidden, generator=random), torch.randint(0, 9, (2, count), generator=random)


def encoded(backend, layers, shape, lengths, seed=0, observe=None):
    x, places = rows_of(lengths, shape.hidden, seed)
    x, deep = backend.encode(layers, x.to(DEVICE), lengths, places.to(DEVICE) if shape.rotary else None, observe)
    return [x, *deep]


@pytest.mark.parametrize(
    ("shape", "lengths"),
    [(AUDIO, (13,)), (AUDIO, (16,)), (AUDIO, (70,)), (AUDIO, (20, 20)), (VISION, (16,)), (VISION, (12, 8))],
)
@torch.inference_mode()
def test_an_encoder_is_the_reference_s(shape, lengths):
    ours, theirs = CudaBackend(DEVICE, Precision.of("f32")), ReferenceBackend(DEVICE, Precision.of("f32"))
    stages = [[], []]
    expected, found = (
        encoded(backend, layers_of(shape, backend), shape, lengths, observe=lambda _, rows, own=own: own.append(rows))
        for backend, own in zip((theirs, ours), stages, strict=True)
    )
    assert len(found) == 1 + shape.rotary
    for one, other in zip([*found, *stages[1]], [*expected, *stages[0]], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


@torch.inference_mode()
def test_rows_do_not_depend_on_what_filled_up_the_launch_before():
    backend = CudaBackend(DEVICE, Precision.of("f32"))
    layers, lengths = layers_of(AUDIO, backend), [(9,), (14,), (9,), (9,), (14,), (9,)]
    found = [encoded(backend, layers, AUDIO, each, seed=each[0]) for each in lengths]
    for index in (2, 3, 5):
        assert torch.equal(found[index][0], found[0][0])
    assert torch.equal(found[4][0], found[1][0])
    assert len(backend._shapes) == (1 if DEVICE.type == "cuda" else 0)


@torch.inference_mode()
def test_a_stem_and_a_merger_are_the_reference_s():
    ours, theirs = CudaBackend(DEVICE, Precision.of("f32")), ReferenceBackend(DEVICE, Precision.of("f32"))
    for backend in (theirs, ours):
        merger = layers_of(VISION, backend).deepstack[0]
        random = torch.Generator().manual_seed(2)
        kernel, bias = torch.randn(4, 1, 3, 3, generator=random).to(DEVICE), torch.randn(4, generator=random).to(DEVICE)
        out = Projection(taken(backend, torch.randn(20, 4 * 8, generator=random).bfloat16()), None)
        stem = ConvStem([(kernel, bias)], out, torch.randn(13, 20, generator=random).to(DEVICE))
        x, chunks = torch.randn(14, 36, generator=random), torch.randn(2, 1, 16, 25, generator=random)
        found = [
            made
            for _ in range(3)
            for made in (backend.merge(merger, x.to(DEVICE)), backend.conv_stem(stem, chunks.to(DEVICE)))
        ]
        if backend is theirs:
            expected = found
    assert found[0].shape == (7, 20)
    assert found[1].shape == (26, 20)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3)


@torch.inference_mode()
def test_embedded_patches_are_the_reference_s():
    random = torch.Generator().manual_seed(3)
    patches, kernel = torch.randn(2, 6, 50, generator=random), torch.randn(36, 50, generator=random).bfloat16()
    table, bias = torch.randn(9, 36, generator=random).bfloat16(), torch.randn(36, generator=random)
    places = [(torch.randint(0, 9, (6,), generator=random), torch.rand(6, generator=random)) for _ in range(8)]
    corners = [(ids.to(DEVICE), weights.to(DEVICE)) for ids, weights in places]
    found = []
    for backend in (ReferenceBackend(DEVICE, Precision.of("f32")), CudaBackend(DEVICE, Precision.of("f32"))):
        embedding = PatchEmbedding(
            Projection(taken(backend, kernel), taken(backend, bias, "bias")), taken(backend, table, "embedding")
        )
        # On a GPU the second and later are of one captured launch, each with its patches and corners.
        given = [(patches[0], corners[:4]), (patches[1], corners[:4]), (patches[1], corners[4:])]
        found.append([backend.embed_patches(embedding, *each) for each in (*given, *given)])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


@pytest.mark.skipif(DEVICE.type != "cuda", reason="nothing is captured without a GPU")
@pytest.mark.parametrize("dtype", ["f32", "bf16"])
@torch.inference_mode()
def test_a_captured_encoder_is_the_launched_one_and_few_are_kept(dtype, monkeypatch):
    monkeypatch.setattr(encoder, "_GRAPHS", 2)
    backend = CudaBackend(DEVICE, Precision.of(dtype))
    audio, vision = layers_of(AUDIO, backend), layers_of(VISION, backend)
    for layers, shape, lengths in [(audio, AUDIO, (70,)), (vision, VISION, (40, 24)), (audio, AUDIO, (20, 20, 20))]:
        found = [encoded(backend, layers, shape, lengths) for _ in range(3)]
        assert all(torch.equal(one, other) for later in found[1:] for one, other in zip(found[0], later, strict=True))
        assert list(backend._shapes._graphs.values())[-1] is not None
    assert len(backend._shapes) == 2


def test_captured_shapes_are_forgotten_by_their_number_and_their_rows(monkeypatch):
    class Captured:
        def __init__(self, work, given, _):
            self.work, self.rows = work, len(given[0])

        def __call__(self, *given):
            return self.work(*given)

    monkeypatch.setattr(encoder, "_ShapeGraph", Captured)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: 1)
    monkeypatch.setattr(encoder, "_GRAPHS", 3)
    monkeypatch.setattr(encoder, "_ROWS", 10)
    shapes = encoder._ShapeGraphs(torch.device("cuda"))
    for key, rows, times in [("a", 4, 2), ("b", 5, 2), ("c", 9, 1), ("a", 4, 1), ("d", 1, 2)]:
        for _ in range(times):
            assert shapes(key, lambda x: [x + 1], torch.zeros(rows))[0].tolist() == [1.0] * rows
    assert list(shapes._graphs) == ["c", "a", "d"]  # four were too many
    shapes("c", lambda x: [x + 1], torch.zeros(9))
    assert list(shapes._graphs) == ["d", "c"]  # fourteen rows were too many
