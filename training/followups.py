"""Questions that make sense only after the answer before them."""

from collections.abc import Callable
from random import Random

from training.domains import (
    COUNTRIES,
    OPPOSITE_WORDS,
    calculation,
    capital,
    comparison,
    day_after,
    later_time,
    month_after,
    opposite,
    spelled,
    with_question,
)
from training.item import Item
from training.lexicon import SPELLING
from training.numerals import sentence, span, words

AGAIN = ("say that again", "repeat that", "what did you say", "again please", "can you repeat that", "once more please")
ANOTHER = ("and what about {}", "what about {}", "and {}", "and of {}", "now {}")


def again(item: Item, rng: Random) -> Item:
    """The last answer once more."""
    return with_question(item, sentence(rng.choice(AGAIN), rng.choice(("?", "."))), "again")


def _calculate_on(item: Item, rng: Random) -> Item:
    result = int(item.facts[3])
    if result > 99 or (result > 0 and rng.random() < 0.5):
        operator, number = "minus", rng.randrange(min(result, 99) + 1)
    else:
        operator, number = "plus", rng.randrange(100)
    form = rng.choice(("and {} {}", "{} {}", "and now {} {}", "and that {} {}"))
    return with_question(
        calculation(operator, result, number), sentence(form.format(operator, words(number)), "?"), "sum on"
    )


def _compare_on(item: Item, rng: Random) -> Item:
    word = "smaller" if item.facts[0] == "larger" else "larger"
    asked = rng.choice(("and which is {}?", "and the {} one?", "which is {}?")).format(word)
    return with_question(comparison(word, int(item.facts[1]), int(item.facts[2])), sentence(asked, ""), "compare on")


def _time_on(item: Item, rng: Random) -> Item:
    minutes = rng.choice((15, 30, 60 * rng.randrange(1, 6)))
    sign, word = rng.choice(((1, "later"), (-1, "earlier")))
    told = later_time(int(item.facts[0]) % 720, sign * minutes)
    return with_question(told, sentence(f"and {span(minutes)} {word}", "?"), "clock on")


def _day_on(item: Item, rng: Random) -> Item:
    steps, word = rng.choice(((1, "after"), (-1, "before")))
    return with_question(day_after(int(item.facts[0]), steps), f"And the day {word} that?", "day on")


def _month_on(item: Item, rng: Random) -> Item:
    steps, word = rng.choice(((1, "after"), (-1, "before")))
    return with_question(month_after(int(item.facts[0]), steps), f"And the month {word} that?", "month on")


def _another(make: Callable[[str, str], Item], subjects: tuple[str, ...], name: str) -> Callable[[Item, Random], Item]:
    def ask_another(item: Item, rng: Random) -> Item:
        subject, form = rng.choice([other for other in subjects if other not in item.facts]), rng.choice(ANOTHER)
        return with_question(make(subject, form), sentence(form.format(subject), "?"), name)

    return ask_another


_FOLLOWING: dict[str, Callable[[Item, Random], Item]] = {
    "sum": _calculate_on,
    "compare": _compare_on,
    "clock": _time_on,
    "day": _day_on,
    "month": _month_on,
    "capital": _another(capital, COUNTRIES, "capital on"),
    "opposite": _another(opposite, OPPOSITE_WORDS, "opposite on"),
    "spell": _another(spelled, tuple(SPELLING), "spell on"),
}


def follow(item: Item, rng: Random) -> Item:
    """A question after this one's answer: about the same thing where the domain has one, else the answer again.

    A domain that was followed up ("sum on") can be followed up again.
    """
    following = _FOLLOWING.get(item.domain.removesuffix(" on"))
    if following is None or not item.facts or rng.random() < 0.15:
        return again(item, rng)
    return following(item, rng)
