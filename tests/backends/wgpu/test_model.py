"""A trained model on the software driver, as people load it."""

from __future__ import annotations

import pytest

import lluda

STEPS = 32


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
