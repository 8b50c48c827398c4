"""The whole of tiny-omni on the software driver: it hears, answers and speaks as the reference does in float32 sums.

The reference rounds every product to BF16, kernels here do not; a rounding may decide between two codes. So the
reference is given what is compared: the same numbers rounded where both round, and sums in float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import lluda
from lluda import SamplingParams, SpeechChunk, SpeechParams, Token
from lluda.backends.executor.operations import _dense, _store, attend
from lluda.backends.reference.backend import ReferenceBackend

QUESTION = Path(__file__).parents[3] / "examples" / "question.flac"


def _linear(_backend, x, weight, bias=None):
    return F.linear(x.bfloat16().float(), _dense(weight).float(), bias)


def _conv2d(_backend, x, kernel, bias, *, stride, padding):
    return F.conv2d(x.bfloat16().float(), kernel.float(), bias, stride, padding)


def _attention(backend, query, keys, values, *, layer, segments, window):
    outputs = []
    for segment in segments:
        rows = slice(segment.start, segment.start + segment.rows)
        stored = [each.float() for each in _store(segment, layer, keys[rows], values[rows])]
        outputs.append(attend(query[rows], *stored, window))
    return torch.cat(outputs).to(backend.precision.compute)


_block_attention = ReferenceBackend.block_attention


def _exact_block_attention(backend, query, keys, values, lengths):
    rounded = [each.to(backend.precision.compute).float() for each in (query, keys, values)]
    return _block_attention(backend, *rounded, lengths)


@pytest.fixture
def float32_sums(monkeypatch):
    """The reference backend with products and attention summed and kept in float32."""
    monkeypatch.setattr(ReferenceBackend, "linear", _linear)
    monkeypatch.setattr(ReferenceBackend, "conv2d", _conv2d)
    monkeypatch.setattr(ReferenceBackend, "attention", _attention)
    monkeypatch.setattr(ReferenceBackend, "block_attention", _exact_block_attention)


class Spoken(NamedTuple):
    """What was answered to a recording."""

    text: str
    codes: list[Sequence[int]]
    samples: Tensor
    described: list[str]


def spoken(device, place="", backend=None):
    """Greedy, so that one number decides each choice."""
    options = {} if backend is None else {"backend": backend}
    model = lluda.load("tiny-omni", device=device, place=place, max_context=512, **options)
    greedy = SamplingParams(temperature=0.0, repetition_penalty=1.0)
    speech = SpeechParams(sampling=greedy, max_frames=40)
    message = {"role": "user", "content": [{"type": "audio", "path": str(QUESTION)}]}
    events = list(model.speak([message], params=SamplingParams(temperature=0.0, max_tokens=24), speech=speech))
    chunks = [event for event in events if isinstance(event, SpeechChunk)]
    stack = model.speech_stack()
    described = [model.describe(), stack.talker.backend.describe()]
    model.close()
    text = "".join(event.text for event in events if isinstance(event, Token))
    codes = [code for chunk in chunks for code in chunk.codes]
    return Spoken(text, codes, torch.cat([torch.as_tensor(chunk.samples) for chunk in chunks]), described)


def test_tiny_omni_hears_and_speaks_the_codes_of_the_reference(adapter, float32_sums):
    ours, theirs = spoken(f"wgpu:{adapter.number}"), spoken("cpu", backend="reference")
    assert ours.text == theirs.text == "A young lion is a cub."
    assert ours.codes == theirs.codes and len(ours.codes) > 16
    assert (ours.samples - theirs.samples).abs().max() <= 0.01 * theirs.samples.abs().max()
    for described in ours.described:
        assert "wgpu backend" in described and "no kernels" not in described
