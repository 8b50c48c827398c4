"""Who runs when, as tables of numbers: no tensors."""

from __future__ import annotations

import pytest

from lluda.engine.scheduler import FIRST_ROWS, LEAST_ROWS, Entry, Scheduler, Step


def running(number, **fields):
    return Entry(number, running=True, **fields)


def scheduler(*entries, max_running=8, chunk=512, **options):
    made = Scheduler(max_running, chunk, **options)
    for entry in entries:
        made.add(entry)
    return made


def test_a_chunk_is_never_smaller_than_what_takes_as_long():
    made = Scheduler(8, 512, least_rows=200)
    made.add(Entry(1, running=True, decoding=True))
    made.add(waiting := Entry(2, running=True, prompt_left=500))
    for left in (500, 300, 100):
        waiting.prompt_left = left
        step = made.step(0.0)
        assert step.prefill == ((2, min(200, left)),) and step.decode == (1,)
        made.measured(step, 0.001, 0.1)


def test_nothing_to_do_is_an_empty_step():
    assert scheduler().step(0.0).is_empty
    assert scheduler(running(1, decoding=True, stalled=True)).step(0.0).is_empty


def test_all_that_decode_take_one_token_each():
    step = scheduler(*(running(number, decoding=True) for number in range(5))).step(0.0)
    assert step == Step(decode=(0, 1, 2, 3, 4))


def test_a_prompt_alone_is_computed_in_whole_chunks():
    assert scheduler(running(1, prompt_left=2000)).step(0.0).prefill == ((1, 512),)
    assert scheduler(running(1, prompt_left=20)).step(0.0).prefill == ((1, 20),)


@pytest.mark.parametrize(
    ("fixed", "row", "rows"), [(0.0, 0.0005, 120), (0.04, 0.001, 20), (0.04, 0.0001, 200), (0.04, 0.005, LEAST_ROWS)]
)
def test_a_prompt_beside_others_gets_as_many_rows_as_add_half_as_much_again_to_a_step(fixed, row, rows):
    """Of a machine on which a step takes 40 ms, and n rows of a prompt ``fixed`` + n ``row`` seconds."""
    made = scheduler(running(1, decoding=True), running(2, prompt_left=2000))
    assert made.step(0.0).prefill == ((2, FIRST_ROWS),)
    for _ in range(40):
        step = made.step(0.0)
        made.measured(step, decode_seconds=0.040, prefill_seconds=fixed + step.prefill[0][1] * row)
    assert made.step(0.0).prefill[0][1] == pytest.approx(rows, rel=0.15)


def test_a_short_rest_of_a_prompt_teaches_nothing_about_a_longer_chunk():
    made = scheduler(running(1, decoding=True), running(2, prompt_left=3))
    made.measured(made.step(0.0), decode_seconds=0.040, prefill_seconds=0.001)
    made.add(running(3, prompt_left=500))
    assert sum(rows for _, rows in made.step(0.0).prefill) == FIRST_ROWS


def test_a_prompt_takes_the_rows_that_decoding_leaves_where_they_share_a_step():
    made = scheduler(
        *(running(number, decoding=True) for number in range(4)), running(9, prompt_left=20), rows_together=16
    )
    step = made.step(0.0)
    assert (step.prefill, step.together, step.decode) == (((9, 12),), True, (0, 1, 2, 3))
    made._entries[9].prompt_left = 5
    assert made.step(0.0).prefill == ((9, 5),)


def test_rows_in_a_step_with_others_are_fewer_where_they_take_long():
    made = scheduler(running(1, decoding=True), running(2, prompt_left=2000), rows_together=16)
    made.measured(Step(decode=(1,)), decode_seconds=0.05, prefill_seconds=0.0)
    for _ in range(10):
        step = made.step(0.0)
        assert step.together
        made.measured(step, decode_seconds=0.05 + 0.01 * step.prefill[0][1], prefill_seconds=0.0)
    assert step.prefill[0][1] in (5, 6), "2.2 times 50 ms"
    made.measured(step, decode_seconds=0.05, prefill_seconds=0.0)
    assert made.step(0.0).prefill[0][1] > step.prefill[0][1]


def test_what_a_step_takes_is_measured_anew_while_prompts_come_without_pause():
    """Every answer has grown so long meanwhile that a step takes twice as long: its share of a prompt does too."""
    made = scheduler(running(1, decoding=True), running(2, prompt_left=10**6), rows_together=16)
    made.measured(Step(decode=(1,)), decode_seconds=0.05, prefill_seconds=0.0)
    rows = {}
    for alone in (0.05, 0.10):
        without = 0
        for _ in range(170):
            step = made.step(0.0)
            without += not step.prefill
            made.measured(step, decode_seconds=alone + 0.01 * sum(n for _, n in step.prefill), prefill_seconds=0.0)
        assert without == 10, "one step in 17"
        rows[alone] = made.step(0.0).prefill[0][1]
    assert rows[0.05] in (5, 6) and rows[0.10] in (10, 11, 12)


@pytest.mark.parametrize(("decoding", "shares_steps"), [(13, True), (4, False), (0, True)])
def test_a_prompt_has_a_chunk_of_its_own_where_that_is_more_or_it_has_media_or_nobody_decodes(decoding, shares_steps):
    answers = (running(number, decoding=True) for number in range(decoding))
    made = scheduler(*answers, running(99, prompt_left=600, shares_steps=shares_steps), rows_together=16)
    step = made.step(0.0)
    assert not step.together
    assert step.prefill == ((99, FIRST_ROWS if decoding else 512),)


def test_where_chunks_matter_they_stay_whole():
    made = scheduler(running(1, decoding=True), running(2, prompt_left=2000), whole=True)
    assert made.step(0.0).prefill == ((2, 512),)


def test_short_prompts_share_a_step():
    made = scheduler(*(running(number, prompt_left=100) for number in range(8)))
    assert made.step(0.0).prefill == ((0, 100), (1, 100), (2, 100), (3, 100), (4, 100), (5, 12))


@pytest.mark.parametrize(
    ("priorities", "order"), [((0, 0, 0), [0, 1, 2]), ((1, 0, 0), [1, 2, 0]), ((0, 0, -1), [2, 0, 1])]
)
def test_requests_begin_by_priority_and_then_in_order(priorities, order):
    made = scheduler(*(Entry(number, priority=priority) for number, priority in enumerate(priorities)))
    assert [entry.id for entry in made.waiting] == order
    assert made.next_to_admit().id == order[0]


def test_no_more_run_than_may():
    made = scheduler(running(0), running(1), Entry(2), max_running=2)
    assert made.next_to_admit() is None
    made.remove(0)
    assert made.next_to_admit().id == 2


def test_deadlines_are_of_those_that_wait():
    made = scheduler(Entry(0, deadline=5.0), Entry(1, deadline=9.0), Entry(2), running(3, deadline=1.0))
    assert made.expired(6.0) == [0]
    assert made.has_deadlines


def test_a_listener_about_to_run_dry_comes_before_prompts_and_readers():
    speaker = running(0, decoding=True, spoken=True, speaking=True, heard_until=10.24)
    made = scheduler(speaker, running(1, decoding=True), running(2, prompt_left=500))
    late = [made.step(10.2) for _ in range(4)]
    assert all(step.frames == (0,) and not step.prefill for step in late)
    assert [step.decode for step in late] == [(0,), (0, 1), (0,), (0, 1)], "readers take turns"
    speaker.heard_until = 11.6
    step = made.step(10.2)
    assert step.prefill and step.decode == (0, 1)


@pytest.mark.parametrize(("frames_to_go", "late"), [(1, False), (8, True)])
def test_the_frames_that_are_to_be_made_before_more_is_heard_take_their_time(frames_to_go, late):
    """Half a second is in hand, and a step takes 50 ms."""
    made = scheduler(
        running(0, speaking=True, heard_until=10.5, frames_to_go=frames_to_go), running(1, prompt_left=500)
    )
    made.measured(Step(frames=(0,)), decode_seconds=0.05, prefill_seconds=0.0)
    assert (not made.step(10.0).prefill) == late


def test_a_prompt_does_not_wait_for_listeners_for_ever():
    made = scheduler(running(0, speaking=True, heard_until=0.08), running(1, prompt_left=500))
    steps = [made.step(100.0) for _ in range(20)]
    assert sum(bool(step.prefill) for step in steps) == 2


def test_a_listener_with_seconds_in_hand_waits_for_others_but_not_for_nobody():
    ahead = running(0, speaking=True, heard_until=16.0)
    assert scheduler(ahead).step(1.0).frames == (0,)
    made = scheduler(ahead, running(1, decoding=True))
    assert [bool(made.step(1.0).frames) for _ in range(8)].count(True) == 2


def test_a_first_frame_is_never_put_off():
    made = scheduler(running(0, speaking=True), running(1, decoding=True))
    assert made.step(0.0).frames == (0,)
