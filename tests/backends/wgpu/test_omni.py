"""The whole of tiny-omni on the software driver: it hears, answers and speaks as the reference does in float32 sums.

The reference rounds every product to BF16, kernels here do not. So the reference is given what is compared: the same
numbers rounded where both round, and sums in float32. Sums in another order may still round a number the other way, and
where two codes are as good to 0.02 of logits in a range of 40 that decides: one code of the 147 of this answer.
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
from lluda.backends import registry
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


def reference_in_float32_sums(patch):
    """The CPU is the reference backend, with products and attention summed and kept in float32."""
    patch.delitem(registry._ENTRIES, "cpu")
    patch.setattr(ReferenceBackend, "linear", _linear)
    patch.setattr(ReferenceBackend, "conv2d", _conv2d)
    patch.setattr(ReferenceBackend, "attention", _attention)
    patch.setattr(ReferenceBackend, "block_attention", _exact_block_attention)


CODES = 256
"""Of a codebook of tiny-omni."""
UNDECIDED = 0.02
"""Between two logits, which lie in a range of 40."""
UNDECIDED_HEARD = 0.12
"""The same where other sums than the reference's heard the question, so that all rows of it are rounded otherwise."""


class Spoken(NamedTuple):
    """What was answered to a recording."""

    text: str
    codes: list[Sequence[int]]
    samples: Tensor
    described: list[str]


def spoken(device, place=""):
    """Greedy, so that one number decides each choice."""
    model = lluda.load("tiny-omni", device=device, place=place, weights="bf16", max_context=512)
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


@pytest.fixture(scope="module")
def expected():
    """What the reference says, computed once, and by how much each code of the code predictor was the best."""
    margins, head = [], ReferenceBackend.head

    def recorded(backend, x, norm, weight):
        logits = head(backend, x, norm, weight)
        if logits.shape[1] == CODES:
            best, second = logits.float().topk(2).values.unbind(1)
            margins.extend((best - second).tolist())
        return logits

    with pytest.MonkeyPatch.context() as patch:
        reference_in_float32_sums(patch)
        patch.setattr(ReferenceBackend, "head", recorded)
        return spoken("cpu"), margins


def same_to_the_end(ours, theirs, margins, undecided):
    """Codes must be the same up to the first that the reference was ``undecided`` about, behind which a sentence goes
    another way: whether there was none."""
    each = len(theirs[0]) - 1  # the talker itself chooses the first
    for frame, (found, wanted) in enumerate(zip(ours, theirs, strict=False)):
        if found != wanted:
            place = next(place for place, (a, b) in enumerate(zip(found, wanted, strict=True)) if a != b)
            assert place and margins[frame * each + place - 1] <= undecided, (frame, place, found, wanted)
            return False
    assert len(ours) == len(theirs)
    return True


PLACES = {
    "everything": "",
    "decoders": "thinker={0},talker={0},code_predictor={0},code2wav=cpu",
    "thinker": "thinker={0}",
    "talker": "talker={0}",
    "code_predictor": "code_predictor={0}",
    "code2wav": "code2wav={0}",
    "audio_encoder": "audio_encoder={0}",
    "experts": "experts={0}",
    "all but experts": "thinker={0},experts=cpu",
}


@pytest.mark.parametrize("placed", list(PLACES))
def test_tiny_omni_hears_and_speaks_the_codes_of_the_reference_wherever_it_is(adapter, monkeypatch, expected, placed):
    reference_in_float32_sums(monkeypatch)
    device, (theirs, margins) = f"wgpu:{adapter.number}", expected
    ours = spoken(device if placed == "everything" else "cpu", PLACES[placed].format(device))
    assert ours.text == theirs.text == "A young lion is a cub."
    undecided = UNDECIDED_HEARD if placed == "audio_encoder" else UNDECIDED
    if same_to_the_end(ours.codes, theirs.codes, margins, undecided):
        assert (ours.samples - theirs.samples).abs().max() <= 0.01 * theirs.samples.abs().max()
    assert len(margins) > 100 and sum(margin <= UNDECIDED for margin in margins) <= 2
    if placed == "everything":
        for described in ours.described:
            assert "wgpu backend" in described and "no kernels" not in described
