"""Causal, transposed and depthwise convolutions against torch's own, whole and in pieces."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from lluda.backends import select_backend
from lluda.backends.backend import CacheLayout
from lluda.backends.executor import vocoder
from lluda.models.conv import ConvState, causal_conv, depthwise_conv, mono_conv, transposed_conv
from lluda.models.sliding_cache import SlidingCache

BACKEND = select_backend("reference", "cpu", "f64")
PIECES = st.lists(st.integers(0, 9), min_size=1, max_size=8)


def noise(*shape):
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(sum(shape)))


def causal(taps, dilation):
    kernel, bias = noise(5, 6, taps), noise(5)
    conv = causal_conv(BACKEND, kernel, bias, dilation)

    def theirs(x):
        return F.conv1d(F.pad(x.T[None], ((taps - 1) * dilation, 0)), kernel, bias, dilation=dilation)

    return 6, lambda x, state: BACKEND.causal_conv([x], conv, [state])[0], theirs


def transposed(stride, multiple):
    kernel, bias = noise(6, 5, multiple * stride), noise(5)
    conv = transposed_conv(BACKEND, kernel, bias, stride)

    def theirs(x):
        cut, whole = (multiple - 1) * stride, F.conv_transpose1d(x.T[None], kernel, bias, stride=stride)
        return whole[..., cut : max(cut, whole.shape[-1] - cut)]

    return 6, lambda x, state: BACKEND.transposed_conv([x], conv, [state])[0], theirs


def depthwise():
    kernel, bias = noise(6, 1, 7), noise(6)
    conv = depthwise_conv(kernel, bias)

    def theirs(x):
        return F.conv1d(F.pad(x.T[None], (6, 0)), kernel, bias, groups=6)

    return 6, lambda x, state: BACKEND.depthwise_conv(x, conv, state), theirs


def mono():
    kernel, bias = noise(1, 6, 7), noise(1)
    conv = mono_conv(kernel, bias)

    def theirs(x):
        return F.conv1d(F.pad(x.T[None], (6, 0)), kernel, bias)

    return 6, lambda x, state: BACKEND.mono_conv(x, conv, state), theirs


CASES = {
    "7 taps": causal(7, 1),
    "7 taps, dilated": causal(7, 3),
    "1 tap": causal(1, 1),
    "transposed, kernel = stride": transposed(2, 1),
    "transposed, kernel = 2 strides": transposed(3, 2),
    "transposed, kernel = 3 strides": transposed(2, 3),
    "depthwise": depthwise(),
    "mono": mono(),
}


@pytest.mark.parametrize("name", CASES)
@given(pieces=PIECES)
@settings(max_examples=30, deadline=None)
@torch.inference_mode()
def test_pieces_give_what_torch_gives_of_the_whole(name, pieces):
    width, ours, theirs = CASES[name]
    x, state = noise(1 + sum(pieces), width), ConvState()
    out = torch.cat([ours(part, state) for part in x.split([1, *pieces])])
    expected = theirs(x)[0].T
    torch.testing.assert_close(out.view_as(expected), expected, rtol=1e-12, atol=1e-12)


@torch.inference_mode()
def test_windows_cut_into_parts_are_those_of_one(monkeypatch):
    width, ours, _ = CASES["7 taps, dilated"]
    x = noise(50, width)
    whole = ours(x, ConvState())
    monkeypatch.setattr(vocoder, "_MIN_WINDOWS", 7)
    monkeypatch.setattr(vocoder, "_WINDOW_ELEMENTS", 1)
    torch.testing.assert_close(ours(x, ConvState()), whole, rtol=1e-12, atol=1e-12)


@torch.inference_mode()
def test_streams_do_not_share_rows_and_keep_no_more_than_they_need():
    width, ours, _ = CASES["7 taps, dilated"]
    first, second, x = ConvState(), ConvState(), noise(40, width)
    ours(x, first)
    torch.testing.assert_close(ours(x[:3], second), ours(x[:3], ConvState()), rtol=0, atol=0)
    assert first.nbytes == second.nbytes == 18 * width * 8


@torch.inference_mode()
def test_snake_beta_is_its_formula_over_long_rows():
    x, frequency, amplitude = noise(3000, 96), noise(96), noise(96)
    expected = x + amplitude * torch.sin(frequency * x) ** 2
    torch.testing.assert_close(BACKEND.snake_beta(x, frequency, amplitude), expected, rtol=1e-12, atol=1e-12)


@given(steps=st.lists(st.integers(1, 6), max_size=12))
@settings(deadline=None)
@torch.inference_mode()
def test_a_sliding_cache_keeps_the_window(steps):
    cache = SlidingCache(BACKEND, CacheLayout(2, 1, 2, torch.float32), window=4, rows=6)
    allocated, position = cache.nbytes, 0
    for rows in steps:
        keys, values = cache.reserve(rows)
        for buffer in (keys, values):
            buffer[:, :, cache.length : cache.length + rows] = torch.arange(position, position + rows)[:, None]
        cache.advance(rows)
        position += rows
        stored = min(position, 3 + rows)
        for buffer in (keys, values):
            last = buffer[:, :, cache.length - stored : cache.length]
            assert torch.equal(last, torch.arange(position - stored, position)[:, None].float().expand_as(last))
    assert cache.nbytes == allocated
