"""The tokens that the cuda backend chooses of many rows against the sampler's, the definition."""

from __future__ import annotations

import math
import struct

import pytest
import torch

pytest.importorskip("triton", reason="the kernels of the cuda backend are Triton's: pip install triton")

from lluda.backends.backend import Precision
from lluda.backends.capture import ARGMAX, MOST_KEPT, SAMPLING_NUMBERS, SAMPLING_WIDTH
from lluda.backends.cuda.backend import CudaBackend
from lluda.backends.cuda.kernels.triton_target import interpreted
from lluda.engine.sampling.sampler import Sampler, SamplingParams
from lluda.errors import InvalidRequest, NumericalError

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
RELEASED = {"temperature": 0.6, "top_k": 20, "top_p": 0.95}
SETTINGS = [
    RELEASED,
    RELEASED | {"repetition_penalty": 1.05, "presence_penalty": 1.5, "frequency_penalty": -0.3},
    {"temperature": 1.3, "top_k": 50, "min_p": 0.05, "repetition_penalty": 0.8},
    {"temperature": 0.0, "frequency_penalty": 2.0},
    {"temperature": 0.0},
    {"temperature": 0.9, "top_k": 1},
    {"temperature": 2.0, "top_k": MOST_KEPT, "top_p": 0.3, "suppress_tokens": (1, 2), "logit_bias": {5: 4.0, 7: -100}},
    {"temperature": 0.7, "top_k": 20, "min_tokens": 2, "begin_suppress_tokens": (3,)},
]
pytestmark = pytest.mark.skipif(
    DEVICE.type == "cpu" and not interpreted(), reason="no GPU, and triton was imported before it could be interpreted"
)


def samplers(vocab, settings, prompt=(3, 4, 5, 5)):
    """Two of each, one that is asked for logits and one that the device chooses for."""
    params = [SamplingParams(**values, seed=seed) for seed, values in enumerate(settings)]
    return [[Sampler(each, prompt, vocab, end_ids=frozenset({0})) for each in params] for _ in range(2)]


def choose(backend, logits, fed, rows):
    layout = f"={SAMPLING_NUMBERS}d{SAMPLING_WIDTH - SAMPLING_NUMBERS}q"
    packed = [struct.pack(layout, *settings, *drawn) for settings, *drawn in rows]
    sampling = torch.frombuffer(bytearray(b"".join(packed)), dtype=torch.int64).view(len(rows), SAMPLING_WIDTH)
    chosen = backend.choose(logits.to(DEVICE), torch.tensor(fed).to(DEVICE), sampling.to(DEVICE)).cpu()
    return [(int(token), peak) for token, peak in chosen.tolist()]


def logits_of(rows, vocab, step, *, rounded=False):
    values = 3 * torch.randn(rows, vocab, generator=torch.Generator().manual_seed(step))
    return values.round() if rounded else values


@pytest.mark.parametrize("rounded", [False, True], ids=["distinct", "ties"])
@pytest.mark.parametrize(("vocab", "steps"), [(60, 4), (200, 4), (151_936, 3)])
def test_every_row_s_token_is_its_sampler_s(vocab, steps, rounded):
    settings = SETTINGS
    if vocab > 200 and interpreted():
        steps, settings = 2, SETTINGS[:4]
    backend = CudaBackend(DEVICE, Precision.of("f32"))
    theirs, ours = samplers(vocab, settings)
    fed = [0] * len(ours)
    for step in range(steps):
        logits = logits_of(len(ours), vocab, step, rounded=rounded)
        expected = [sampler.sample(row).id for sampler, row in zip(theirs, logits, strict=True)]
        if step == 0:  # after a prompt the host chooses
            chosen = [sampler.accept(row).id for sampler, row in zip(ours, logits, strict=True)]
        else:
            rows = [sampler.on_device(DEVICE) for sampler in ours]
            again, found = (choose(backend, logits, fed, rows) for _ in range(2))  # as a captured step's first time
            assert again == found
            chosen = [
                sampler.accept(choice if choice[0] >= 0 else row).id
                for sampler, choice, row in zip(ours, found, logits, strict=True)
            ]
            if not rounded:
                assert all(token >= 0 for token, _ in found)
        assert chosen == expected
        fed = chosen


def test_a_row_s_token_does_not_depend_on_the_rows_beside_it():
    backend = CudaBackend(DEVICE, Precision.of("f32"))
    rows = [sampler.on_device(DEVICE) for sampler in samplers(500, [RELEASED] * 5)[0]]
    logits = logits_of(5, 500, 1)
    together = choose(backend, logits, [0] * 5, rows)
    assert together == [choose(backend, logits[i : i + 1], [0], [rows[i]])[0] for i in range(5)]
    assert len({token for token, _ in together}) > 1


def test_what_one_program_cannot_hold_is_left_to_the_host():
    backend = CudaBackend(DEVICE, Precision.of("f32"))
    sampler = Sampler(SamplingParams(**RELEASED, seed=1), [], 3000)
    row = sampler.on_device(DEVICE)
    flat = torch.zeros(1, 3000)
    assert choose(backend, flat, [0], [row]) == [(-1, 0.0)]
    # The number that was drawn for it is used by the host.
    assert sampler.accept(flat[0]) == Sampler(SamplingParams(**RELEASED, seed=1), [], 3000).sample(flat[0])


@pytest.mark.parametrize(
    "settings",
    [{"temperature": 1.0}, {"temperature": 1.0, "top_k": MOST_KEPT + 1}, RELEASED | {"logprobs": 0}],
    ids=["all", "many", "logprobs"],
)
def test_samplers_that_need_logits(settings):
    assert Sampler(SamplingParams(**settings), [], 3000).on_device(DEVICE) is None


def test_logits_that_define_no_distribution():
    backend, (sampler,) = CudaBackend(DEVICE, Precision.of("f32")), samplers(300, [{"suppress_tokens": (7,)}])[0]
    row, logits = sampler.on_device(DEVICE), torch.arange(300.0).flip(0).repeat(4, 1)
    logits[1, 200], logits[2, 7], logits[3] = math.nan, math.inf, -math.inf
    found = choose(backend, logits, [0] * 4, [row] * 4)
    assert found[0] == (0, 299.0)
    for choice, error in zip(found[1:], (NumericalError, NumericalError, InvalidRequest), strict=True):
        with pytest.raises(error):
            sampler.accept(choice)


def test_argmax_among_sampled_rows():
    backend = CudaBackend(DEVICE, Precision.of("f32"))
    logits = logits_of(2, 3000, 3)
    logits[1, [40, 2000]] = 50.0
    found = choose(backend, logits, [0, 0], [ARGMAX, ARGMAX])
    assert found == [(int(logits[0].argmax()), pytest.approx(float(logits[0].max()))), (40, 50.0)]
