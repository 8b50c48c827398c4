"""A trained model on the software driver, as people load it."""

from __future__ import annotations

import pytest

import lluda
from lluda import SamplingParams, SpeechChunk, SpeechParams

STEPS, FRAMES = 32, 4


@pytest.fixture(scope="module")
def device(adapter):
    return f"wgpu:{adapter.number}"


def answer(device, **options):
    model = lluda.load("tiny-omni", device=device, max_context=512, **options)
    result = model.generate("one two three four five six seven", temperature=0.0, max_tokens=STEPS, ignore_eos=True)
    described = model.describe()
    model.close()
    return result, described


def test_tiny_omni_answers_with_the_tokens_of_the_cpu(device):
    ours, how = answer(device)
    theirs, _ = answer("cpu")
    assert ours.token_ids == theirs.token_ids and len(ours.token_ids) == STEPS
    assert "wgpu backend (experimental)" in how and "no kernels" not in how


def spoken(device, place=""):
    """Codes and samples of a sentence said without chance, and what computed them."""
    model = lluda.load("tiny-omni", device=device, place=place, max_context=512)
    params = SpeechParams(sampling=SamplingParams(temperature=0.0, repetition_penalty=1.0), max_frames=FRAMES)
    chunks = [event for event in model.say("three times two is six", params) if isinstance(event, SpeechChunk)]
    described = model.speech_stack().talker.backend.describe()
    model.close()
    return [code for chunk in chunks for code in chunk.codes], described


def test_tiny_omni_says_the_codes_of_the_cpu(device):
    ours, how = spoken(device)
    theirs, _ = spoken("cpu")
    assert ours == theirs and len(ours) == FRAMES
    assert "bf16 matrices there" in how
