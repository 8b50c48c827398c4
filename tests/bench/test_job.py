from __future__ import annotations

import json

import pytest

from lluda.bench.process.job import PRODUCT_TESTS, TESTS, Job, Plan
from lluda.errors import InvalidRequest


def test_a_job_survives_its_journey_as_json() -> None:
    plan = Plan(tests=("pp", "tg"), prompts=(7,), generate=3, streams=(1, 5), stream_steps=2)
    job = Job(engine="lluda", model="/m", format="F32", threads=3, vocab_size=99, context=64, plan=plan, started=1.5)
    assert "\n" not in job.to_json()
    assert Job.from_json(job.to_json()) == job


def test_prompts_are_the_same_for_all_and_within_the_vocabulary() -> None:
    job = Job(engine="lluda", model="m", vocab_size=50)
    assert job.prompt(64) == Job.from_json(job.to_json()).prompt(64)
    assert set(job.prompt(64)) <= set(range(50))
    assert len(set(job.prompt(64))) > 20, "a prompt of one repeated token would be no prompt"
    assert job.prompt(64, 1) != job.prompt(64, 2)


@pytest.mark.parametrize(("context", "expected"), [(40960, 128), (200, 71), (130, 1)])
def test_the_prompt_before_decoding_leaves_room_in_a_small_context(context: int, expected: int) -> None:
    plan = Plan(prompts=(16,), generate=128)
    assert plan.decode_prompt(context) == expected
    assert plan.positions(context) == expected + 129


def test_positions_cover_the_longest_prompt() -> None:
    assert Plan(prompts=(16, 700), generate=8).positions(40960) == 701


@pytest.mark.parametrize(
    "wrong",
    [
        {"tests": ("pp", "speed")},
        {"tests": ()},
        {"prompts": (0,)},
        {"prompts": ()},
        {"streams": (-1,)},
        {"generate": 0},
        {"stream_steps": 0},
    ],
    ids=json.dumps,
)
def test_a_plan_out_of_its_range_is_refused(wrong: dict[str, tuple[str, ...]]) -> None:
    with pytest.raises(InvalidRequest):
        Plan(**wrong)  # type: ignore[arg-type]


def test_all_families_of_text_are_run_by_default() -> None:
    assert Plan().text_tests == TESTS
    assert Plan().tests == TESTS + PRODUCT_TESTS
    assert Plan().omni_tests == ()


def test_speech_and_sound_are_families_of_their_own() -> None:
    plan = Plan(tests=("audio", "tg", "speech"))
    assert (plan.text_tests, plan.omni_tests) == (("tg",), ("audio", "speech"))
