"""The tokens that the device chooses of many rows against the sampler's, the definition."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from lluda.backends.capture import ARGMAX, MOST_KEPT
from lluda.engine.sampling.sampler import Sampler, SamplingParams
from lluda.errors import InvalidRequest, NumericalError
from tests.backends.wgpu.test_kernels import read

CPU = torch.device("cpu")
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


class Chooser:
    """What stands behind the head of a step of so many rows."""

    def __init__(self, gpu, rows, vocab):
        from lluda.backends.wgpu.steps.choice import SampledChoice
        from lluda.backends.wgpu.steps.launch import Commands

        self.gpu, self.rows = gpu, rows
        self.logits, self.ids, self.chosen = (gpu.buffer(4 * rows * width) for width in (vocab, 1, 2))
        self.choice = SampledChoice(gpu, rows)
        self.commands = Commands(gpu, self.choice.launches(self.logits, self.ids, self.chosen, vocab))

    def __call__(self, logits, fed, rows):
        from lluda.backends.wgpu.steps.decode import floats_of

        self.gpu.write(self.logits, 0, logits.numpy())
        self.gpu.write(self.ids, 0, np.array(fed, np.uint32))
        self.choice.write(rows, fed)
        self.gpu.submit(self.commands.recorded())
        keys, tokens = read(self.gpu, self.chosen, self.rows, 2, dtype=np.uint32).T
        assert read(self.gpu, self.ids, self.rows, dtype=np.uint32).tolist() == tokens.tolist()
        return list(zip(tokens.view(np.int32).tolist(), floats_of(keys).tolist(), strict=True))


def samplers(vocab, settings, prompt=(3, 4, 5, 5)):
    """Two of each, one that is asked for logits and one that the device chooses for."""
    params = [SamplingParams(**values, seed=seed) for seed, values in enumerate(settings)]
    return [[Sampler(each, prompt, vocab, end_ids=frozenset({0})) for each in params] for _ in range(2)]


def logits_of(rows, vocab, step, *, rounded=False):
    values = 3 * torch.randn(rows, vocab, generator=torch.Generator().manual_seed(step))
    return values.round() if rounded else values


@pytest.mark.parametrize("rounded", [False, True], ids=["distinct", "ties"])
@pytest.mark.parametrize(("vocab", "steps"), [(60, 12), (700, 12), (20_000, 3)])
def test_every_row_s_token_is_its_sampler_s(gpu, vocab, steps, rounded):
    theirs, ours = samplers(vocab, SETTINGS)
    choose, left = Chooser(gpu, len(ours), vocab), 0
    fed = [0] * len(ours)
    for step in range(steps):
        logits = logits_of(len(ours), vocab, step, rounded=rounded)
        expected = [sampler.sample(row).id for sampler, row in zip(theirs, logits, strict=True)]
        if step == 0:  # after a prompt the host chooses
            chosen = [sampler.accept(row).id for sampler, row in zip(ours, logits, strict=True)]
        else:
            found = choose(logits, fed, [sampler.on_device(CPU) for sampler in ours])
            left += sum(token < 0 for token, _ in found)
            chosen = [
                sampler.accept(choice if choice[0] >= 0 else row).id
                for sampler, choice, row in zip(ours, found, logits, strict=True)
            ]
        assert chosen == expected
        fed = chosen
    if not rounded:
        assert left <= 1


def test_a_row_s_token_does_not_depend_on_the_rows_beside_it(one_gpu):
    rows = [sampler.on_device(CPU) for sampler in samplers(500, [RELEASED] * 5)[0]]
    logits = logits_of(5, 500, 1)
    together = Chooser(one_gpu, 5, 500)(logits, [0] * 5, rows)
    alone = Chooser(one_gpu, 1, 500)
    assert together == [alone(logits[i : i + 1], [0], [rows[i]])[0] for i in range(5)]
    assert len({token for token, _ in together}) > 1


def test_answers_keep_their_counts_in_whatever_row_they_come(one_gpu):
    """More answers than the device has tables for, in turns."""
    theirs, ours = samplers(300, [{"temperature": 0.0, "frequency_penalty": 1.0}] * 3)
    choose, fed = Chooser(one_gpu, 2, 300), [0] * 3
    for step in range(9):
        logits = logits_of(3, 300, step % 2)
        expected = [sampler.sample(row).id for sampler, row in zip(theirs, logits, strict=True)]
        if step == 0:
            fed = [sampler.accept(row).id for sampler, row in zip(ours, logits, strict=True)]
            continue
        order = [(step + i) % 3 for i in range(3)]
        for pair in (order[:2], order[2:]):
            rows = [ours[i].on_device(CPU) for i in pair] + [ARGMAX] * (2 - len(pair))
            given = torch.stack([logits[i] for i in pair] + [logits[0]] * (2 - len(pair)))
            found = choose(given, [fed[i] for i in pair] + [0] * (2 - len(pair)), rows)
            for i, choice in zip(pair, found, strict=False):
                fed[i] = ours[i].accept(choice if choice[0] >= 0 else logits[i]).id
        assert fed == expected


def test_what_cannot_be_told_is_left_to_the_host(one_gpu):
    choose = Chooser(one_gpu, 1, 3000)
    sampler = Sampler(SamplingParams(**RELEASED, seed=1), [], 3000)
    row, flat = sampler.on_device(CPU), torch.zeros(1, 3000)
    assert choose(flat, [0], [row]) == [(-1, 0.0)]
    # Two tokens, between which the number drawn lies.
    even = -50.0 - torch.arange(3000.0)[None]
    even[0, [5, 9]] = 0.0
    assert choose(even, [0], [row._replace(uniform=0.5)])[0][0] == -1
    assert choose(even, [0], [row._replace(uniform=0.49)])[0][0] == 5
    assert choose(even, [0], [row._replace(uniform=0.51)])[0][0] == 9


def test_logits_that_define_no_distribution(one_gpu):
    choose, (sampler,) = Chooser(one_gpu, 4, 300), samplers(300, [{"suppress_tokens": (7,)}])[0]
    row, logits = sampler.on_device(CPU), torch.arange(300.0).flip(0).repeat(4, 1)
    logits[1, 200], logits[2, 7], logits[3] = math.nan, math.inf, -math.inf
    found = choose(logits, [0] * 4, [row] * 4)
    assert found[0] == (0, 299.0)
    for choice, error in zip(found[1:], (NumericalError, NumericalError, InvalidRequest), strict=True):
        with pytest.raises(error):
            sampler.accept(choice)


def test_argmax_among_sampled_rows(one_gpu):
    logits = logits_of(2, 3000, 3)
    logits[1, [40, 2000]] = 50.0
    found = Chooser(one_gpu, 2, 3000)(logits, [0, 0], [ARGMAX, ARGMAX])
    assert found == [(int(logits[0].argmax()), pytest.approx(float(logits[0].max()))), (40, 50.0)]
