"""Transcripts that later messages refer to."""

from __future__ import annotations

from lluda.serving.answers.spoken_answers import SECONDS, SpokenAnswers


def test_an_answer_is_known_for_an_hour() -> None:
    now = 0.0
    kept = SpokenAnswers(clock=lambda: now)
    kept.keep("audio_1", "Oslo.")
    now = SECONDS - 1.0
    assert kept.transcript("audio_1") == "Oslo."
    now = SECONDS
    assert kept.transcript("audio_1") is None
    assert kept.transcript("audio_2") is None


def test_the_oldest_go_when_there_are_too_many() -> None:
    kept = SpokenAnswers(characters=30)
    for index in range(5):
        kept.keep(f"a{index}", "x" * 8)
    assert [kept.transcript(f"a{index}") is not None for index in range(5)] == [False, False, True, True, True]


def test_one_that_is_larger_than_all_room_is_not_kept() -> None:
    kept = SpokenAnswers(characters=3)
    kept.keep("a", "xxxx")
    assert kept.transcript("a") is None
