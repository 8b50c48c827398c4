from __future__ import annotations

import math

import pytest
import torch

from lluda.evaluation.distribution import compare_distributions


def test_equal_logits_and_shifted_ones_are_the_same_distribution():
    logits = torch.randn(130, 50, generator=torch.Generator().manual_seed(0))
    parity = compare_distributions(logits + 3.0, logits)
    assert parity.mean_kl == pytest.approx(0, abs=1e-6)
    assert parity.correlation == pytest.approx(1, abs=1e-6)


def test_known_divergence_of_two_outcomes():
    reference = torch.tensor([[0.9, 0.1], [0.5, 0.5]]).log()
    ours = torch.tensor([[0.5, 0.5], [0.5, 0.5]]).log() + torch.tensor([0.0, 1e-9])
    expected = 0.9 * math.log(0.9 / 0.5) + 0.1 * math.log(0.1 / 0.5)
    parity = compare_distributions(ours, reference)
    assert parity.max_kl == pytest.approx(expected, rel=1e-6)
    assert parity.mean_kl == pytest.approx(expected / 2, rel=1e-6)


def test_the_direction_is_reference_to_lluda():
    sharp, flat = torch.tensor([[9.0, 0.0, 0.0]]), torch.tensor([[1.0, 0.5, 0.0]])
    assert compare_distributions(flat, sharp).mean_kl != pytest.approx(compare_distributions(sharp, flat).mean_kl)
    expected = float((sharp.softmax(-1) * (sharp.log_softmax(-1) - flat.log_softmax(-1))).sum())
    assert compare_distributions(flat, sharp).mean_kl == pytest.approx(expected, rel=1e-5)


def test_opposite_logits_correlate_at_minus_one_and_constant_ones_not_at_all():
    logits = torch.randn(3, 40, generator=torch.Generator().manual_seed(1))
    assert compare_distributions(-logits, logits).correlation == pytest.approx(-1)
    assert compare_distributions(torch.ones(3, 40), logits).correlation == 0.0
