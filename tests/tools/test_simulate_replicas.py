"""The simulation: what one conversation gets is what was measured, and many get it later."""

from __future__ import annotations

import pytest

from lluda.engine.scheduler import Step
from tools.simulate_replicas import Costs, Machine, Talk, simulate

COSTS = Costs(decode=((1, 0.003), (8, 0.010)), rows=((1, 0.003), (101, 0.023)), frame=0.004, encode=0.002, begin=0.005)


@pytest.mark.parametrize(
    ("step", "seconds"),
    [
        (Step(), 0.0),
        (Step(decode=(1,)), 0.003),
        (Step(decode=tuple(range(8)), frames=(9, 10)), 0.010 + 2 * 0.004),
        (Step(prefill=((1, 30), (2, 21))), 0.003 + 50 * 0.0002),
        (Step(decode=tuple(range(15))), 0.017),
    ],
)
def test_a_step_takes_what_its_parts_take(step: Step, seconds: float) -> None:
    assert COSTS.of(step) == pytest.approx(seconds)


def test_one_conversation_waits_for_its_own_work_alone() -> None:
    found = Machine(COSTS, Talk(), 1, seconds=120, warm=0, seed=1).run()
    assert len(found.sounds) > 5
    token_beside = 0.003  # the second token is decoded in the step of the first frame
    assert found.sounds == pytest.approx([0.003 + 0.005 + 0.004 + token_beside] * len(found.sounds))
    assert found.dry == 0
    assert 0 < found.busy < 0.5


def test_many_wait_for_each_other() -> None:
    few, many, too_many = (simulate(COSTS, Talk(), count, 2, 60, 10) for count in (4, 40, 200))
    assert few["p99, ms"] < many["p99, ms"] < too_many["p99, ms"]
    assert few["waits in 1,000 answers"] == 0 < too_many["waits in 1,000 answers"]
    assert simulate(COSTS, Talk(), 4, 2, 60, 10) == few, "the same again"


def test_measured_costs_are_those_of_the_journal() -> None:
    costs = Costs.measured(together=1.0)
    assert [count for count, _ in costs.decode] == [1, 8, 32]
    assert costs.decode[0][1] == pytest.approx(0.00315, rel=0.01)
    assert costs.begin > 0
