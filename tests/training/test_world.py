"""The closed world: right answers, one answer a question, held-out content, enough questions."""

import re
from random import Random

import pytest

from training import domains, followups, numerals
from training.lexicon import CAPITALS, SHORT_WORDS, SOUNDS, SPELLING
from training.phrasing import ask, typed
from training.world import SPLITS, held_out_turns, in_split, sample, split_of


def _turns(split, count, seed=1, **given):
    rng = Random(seed)
    return [turn for _ in range(count) for turn in sample(split, rng, **given).turns]


@pytest.mark.parametrize(
    ("number", "expected"),
    [
        (0, "zero"),
        (13, "thirteen"),
        (40, "forty"),
        (83, "eighty three"),
        (183, "one hundred eighty three"),
        (200, "two hundred"),
    ],
)
def test_numbers_in_words(number, expected):
    assert numerals.words(number) == expected


def test_a_number_outside_the_world_is_refused():
    with pytest.raises(ValueError, match="1000"):
        numerals.words(1000)


@pytest.mark.parametrize(
    ("minutes", "expected"),
    [
        (0, "twelve o'clock"),
        (195, "quarter past three"),
        (210, "half past three"),
        (705, "quarter to twelve"),
        (-15, "quarter to twelve"),
    ],
)
def test_times_on_a_clock(minutes, expected):
    assert numerals.clock(minutes) == expected


def test_sums_are_right():
    value = {numerals.words(number): number for number in range(200)}
    checked = 0
    for turn in _turns("train", 400, domain="sum", turns=1):
        told = re.fullmatch(r"(.+) (plus|minus|times) (.+) is (.+)\.", turn.answer)
        if told:
            left, operator, right, result = told.groups()
            left, right = value[left.lower()], value[right]
            assert value[result] == {"plus": left + right, "minus": left - right, "times": left * right}[operator]
            checked += 1
    assert checked > 200


def test_the_answer_of_a_question_without_a_system_prompt_is_always_the_same():
    answers = {}
    rng = Random(3)
    for _ in range(20_000):
        conversation = sample("train", rng, turns=1)
        if conversation.system is None:
            turn = conversation.turns[0]
            assert answers.setdefault(turn.question, turn.answer) == turn.answer
    assert len(answers) > 10_000


def test_held_out_content_is_not_trained_on():
    rng = Random(4)
    trained = {turn.question for _ in range(20_000) for turn in sample("train", rng, turns=1).turns}
    tables = {"day", "letter", "talk", "name", "between", "month", "noise"}
    held_out = [
        turn for turn in _turns("test", 2000, turns=1) if turn.domain not in tables and "times" not in turn.question
    ]
    assert len(held_out) > 500
    assert not [turn.question for turn in held_out if turn.question in trained]


def test_a_sum_is_held_out_in_both_orders():
    one, other = domains.calculation("plus", 47, 36), domains.calculation("plus", 36, 47)
    assert one.key == other.key


def test_a_fifth_of_the_keys_is_held_out():
    share = sum(split_of(f"plus {number}") == "test" for number in range(5000)) / 5000
    assert 0.17 < share < 0.23
    assert all(in_split(domains.calculation("times", 3, 4), split) for split in SPLITS)


def test_the_same_seed_gives_the_same_conversations():
    assert _turns("train", 50, seed=9) == _turns("train", 50, seed=9)
    assert held_out_turns(20, 7) == held_out_turns(20, 7)


def test_more_than_a_million_questions():
    # Sums and differences alone: every trained pair in every wording.
    rng = Random(1)
    wordings = {ask(form.format("one", "plus", "two"), rng) for form in domains.SUM_ASKS for _ in range(400)}
    numbers = range(100)
    sums = [domains.calculation("plus", left, right) for left in numbers for right in numbers]
    differences = [domains.calculation("minus", left, right) for left in numbers for right in range(left + 1)]
    pairs = sum(in_split(item, "train") for item in sums + differences)
    assert len(wordings) * pairs > 10**6


@pytest.mark.parametrize("domain", ["capital", "opposite", "sound", "colour", "animal"])
def test_every_fact_is_trained_on(domain):
    # Whatever is asked in the test split must have been answered in the training split in another way.
    told = {(turn.domain, turn.slot) for turn in _turns("train", 6000, domain=domain, turns=1)}
    assert {(turn.domain, turn.slot) for turn in _turns("test", 1000, domain=domain, turns=1, seed=2)} <= told


def test_a_sound_names_one_animal():
    # "Which animal bleats?" has one answer only if no two animals make the same sound.
    assert len(set(SOUNDS.values())) == len(SOUNDS)


def test_follow_ups_go_on_from_the_answer():
    rng = Random(8)
    followed = {followups.follow(domains.calculation("plus", 47, 36), rng).full for _ in range(50)}
    assert all(
        answer.startswith("Eighty three") or answer == "Forty seven plus thirty six is eighty three."
        for answer in followed
    )
    assert len(followed) > 10
    assert followups.again(domains.capital("France", "x"), rng).full == "The capital of France is Paris."


def test_system_prompts_choose_the_length_and_the_name():
    rng = Random(11)
    seen = set()
    for _ in range(3000):
        conversation = sample("train", rng, turns=1)
        turn = conversation.turns[0]
        if conversation.system == "Be brief." and turn.domain == "capital":
            assert turn.answer.rstrip(".") in CAPITALS.values()
            seen.add("brief")
        if conversation.system and conversation.system.startswith("Your name is") and turn.domain == "name":
            assert turn.answer == f"My name is {conversation.system.split()[-1]}"
            seen.add("name")
    assert seen == {"brief", "name"}


def test_a_noise_is_a_question_only_where_sound_is_heard():
    assert not [turn for turn in _turns("train", 300, domain="unclear", turns=1) if not turn.question]
    noises = [turn for turn in _turns("train", 300, domain="unclear", turns=1, sound=True) if turn.noise]
    assert len(noises) > 50
    assert {turn.answer for turn in noises} == {"Sorry, I did not understand that."}


def test_spelling():
    assert domains.spelled("cat", "x").full == "Cat is spelled C, A, T."
    assert len(SPELLING) == len(set(SPELLING)) > 280
    assert len(SHORT_WORDS) > 80


def test_typing_keeps_the_words():
    rng = Random(2)
    question = "What is the capital of France?"
    forms = {typed(question, rng) for _ in range(100)}
    assert {form.lower().rstrip("?") for form in forms} == {"what is the capital of france"}
    assert len(forms) >= 4


@pytest.mark.parametrize("given", [{"split": "dev"}, {"split": "train", "domain": "jokes"}])
def test_an_unknown_split_or_domain_is_refused(given):
    with pytest.raises(ValueError, match=r"dev|jokes"):
        sample(rng=Random(0), **given)
