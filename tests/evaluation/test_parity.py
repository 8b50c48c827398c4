"""The comparison itself, on traces made by hand."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lluda.errors import LludaError
from lluda.evaluation.parity import compare_greedy, compare_traces
from lluda.evaluation.trace import Continuation, Trace


def traced(name: str, **stages: torch.Tensor) -> Trace:
    return Trace(name, stages)


def rows(seed: int, positions: int = 150, width: int = 20) -> torch.Tensor:
    return torch.randn(positions, width, generator=torch.Generator().manual_seed(seed))


def test_equal_traces_have_no_error():
    values = rows(0)
    (stage,) = compare_traces(traced("a", norm=values), traced("b", norm=values), traced("c", norm=values), 0.0)
    assert (stage.max_abs_error, stage.mean_abs_error, stage.relative_error, stage.argmax_agreement) == (0, 0, 0, 1)
    assert stage.first_divergence is None
    assert stage.error_to_float64.ratio is None


def test_every_figure_of_a_known_difference():
    reference = torch.zeros(150, 4)
    reference[:, 3] = 10.0
    lluda = reference.clone()
    lluda[70, 0] = 0.5  # beyond 0.01 of the position's range, argmax unchanged
    lluda[100, 1] = 12.0  # changes the argmax
    truth = reference.double() + 0.25
    (stage,) = compare_traces(traced("a", x=lluda), traced("b", x=reference), traced("c", x=truth), 0.01)
    assert stage.max_abs_error == 12.0
    assert stage.mean_abs_error == pytest.approx(12.5 / 600)
    assert stage.value_range == 10.0
    assert stage.relative_error == 1.2
    assert stage.argmax_agreement == pytest.approx(149 / 150)
    assert stage.first_divergence == 70
    assert stage.error_to_float64.reference == pytest.approx(0.25)
    assert stage.error_to_float64.lluda == pytest.approx((598 * 0.25 + 0.25 + 11.75) / 600)


def test_a_position_is_judged_by_its_own_range():
    reference = torch.zeros(2, 2)
    reference[0, 0], reference[1, 0] = 1e6, 1.0
    lluda = reference.clone()
    lluda[1, 1] = 0.5  # nothing beside the first position's range, half of its own
    (stage,) = compare_traces(traced("a", x=lluda), traced("b", x=reference), None, 0.1)
    assert stage.first_divergence == 1
    assert stage.relative_error == pytest.approx(5e-7)
    assert stage.error_to_float64 is None


@given(st.integers(0, 149), st.integers(0, 19))
def test_a_single_changed_value_is_found_where_it_is(position, channel):
    reference = rows(1)
    lluda = reference.clone()
    lluda[position, channel] += 3.0
    (stage,) = compare_traces(traced("a", x=lluda), traced("b", x=reference), None, 0.1)
    assert stage.first_divergence == position
    assert stage.max_abs_error == pytest.approx(3.0, rel=1e-6)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("broken", ["lluda", "reference", "truth"])
def test_what_is_no_number_is_refused_with_its_place(value, broken):
    traces = {name: rows(2) for name in ("lluda", "reference", "truth")}
    traces[broken][77, 3] = value
    lluda, reference, truth = (traced(name, embeddings=rows(3), norm=traces[name]) for name in traces)
    with pytest.raises(LludaError, match=rf"{broken} has NaN or infinity in stage norm at position 77"):
        compare_traces(lluda, reference, truth, 0.1)


def test_other_stages_or_shapes_are_refused():
    with pytest.raises(LludaError, match="does not have the stages"):
        compare_traces(traced("a", x=rows(0)), traced("b", y=rows(0)), None, 0.1)
    with pytest.raises(LludaError, match="does not have the stages"):
        compare_traces(traced("a", x=rows(0)), traced("b", x=rows(0, width=21)), None, 0.1)


def test_a_truth_is_held_to_the_same_stages():
    with pytest.raises(LludaError, match="does not have the stages"):
        compare_traces(traced("a", x=rows(0)), traced("b", x=rows(0)), traced("c", y=rows(0)), 0.1)


def test_greedy_tokens_up_to_the_first_that_differs():
    same = Continuation((5, 6, 7, 8), (1.0, 0.5, 0.25, 2.0))
    assert compare_greedy(same, same).agreement == 1.0
    other = compare_greedy(same, Continuation((5, 6, 9, 8), (1.0, 0.5, 0.125, 2.0)))
    assert (other.first_divergence, other.lluda_token, other.reference_token) == (2, 7, 9)
    assert (other.lluda_margin, other.reference_margin) == (0.25, 0.125)
    assert other.agreement == 0.5


def test_codes_are_compared_without_margins():
    found = compare_greedy(Continuation((3, 4)), Continuation((3, 5)))
    assert (found.first_divergence, found.lluda_token, found.lluda_margin, found.reference_margin) == (1, 4, None, None)
