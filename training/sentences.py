"""Sentences to repeat and to write down: a grammar over the lexicon with more than 10^9 of them."""

from random import Random

from training.lexicon import (
    ACTIVITIES,
    ADJECTIVES,
    BEINGS,
    HOW,
    INTRANSITIVE,
    NAMES,
    PAST,
    PLACES,
    THINGS,
    TRANSITIVE,
    WEATHERS,
    WHEN,
    WHERE,
)
from training.numerals import words

OWNERS = "my your his her our their the".split()
AFTER_PLEASE = (
    "please do not|we can|they want to|I will|we must|you should|she tried to|he likes to|let us|I forgot to".split("|")
)


def _being(rng: Random) -> str:
    roll = rng.random()
    if roll < 0.15:
        return rng.choice(NAMES)
    if roll < 0.6:
        return f"{rng.choice(OWNERS)} {rng.choice(ADJECTIVES)} {rng.choice(BEINGS)}"
    return f"{rng.choice(OWNERS)} {rng.choice(BEINGS)}"


def _thing(rng: Random) -> str:
    if rng.random() < 0.5:
        return f"{rng.choice(OWNERS)} {rng.choice(ADJECTIVES)} {rng.choice(THINGS)}"
    return f"{rng.choice(OWNERS)} {rng.choice(THINGS)}"


def _verb(pairs: list[str], when: str, rng: Random) -> str:
    present, past = rng.choice(pairs).split(",")
    return past if when in PAST or rng.random() < 0.3 else present


def _going(rng: Random) -> str:
    when = rng.choice(WHEN)
    verb = _verb(INTRANSITIVE, when, rng)
    return f"{_being(rng)} {verb} {rng.choice(WHERE)} the {rng.choice(PLACES)}{_tail(when, rng)}"


def _doing(rng: Random) -> str:
    when = rng.choice(WHEN)
    return f"{_being(rng)} {_verb(TRANSITIVE, when, rng)} {_thing(rng)}{_tail(when, rng)}"


def _tail(when: str, rng: Random) -> str:
    roll = rng.random()
    if when in PAST or roll < 0.35:
        return f" {when}"
    return f" {rng.choice(HOW)}" if roll < 0.55 else ""


def _counting(rng: Random) -> str:
    number = words(rng.randrange(2, 100))
    verb = rng.choice(("are", "were"))
    things = rng.choice(THINGS)
    plural = things + ("es" if things.endswith(("ss", "x", "ch", "sh")) else "s")
    plural = {"knife": "knives", "potato": "potatoes", "bread": "loaves", "cheese": "cheeses"}.get(things, plural)
    return f"there {verb} {number} {rng.choice(ADJECTIVES)} {plural} {rng.choice(WHERE)} the {rng.choice(PLACES)}"


def _planning(rng: Random) -> str:
    when = rng.choice([when for when in WHEN if when not in PAST])
    return f"{rng.choice(AFTER_PLEASE)} {rng.choice(ACTIVITIES)} {when}"


def _weather(rng: Random) -> str:
    return f"it was {rng.choice(WEATHERS)} and {rng.choice(WEATHERS)} {rng.choice(WHERE)} the {rng.choice(PLACES)}"


_MAKERS = (_going, _doing, _doing, _counting, _planning, _weather)


def plain_sentence(rng: Random) -> str:
    """One sentence without a capital or an end mark, 4 to 14 words: "the green bird sleeps near the river"."""
    return rng.choice(_MAKERS)(rng)


def joined_sentence(rng: Random) -> str:
    """Two sentences joined by a word, for longer speech: 10 to 26 words."""
    return f"{plain_sentence(rng)} {rng.choice(('and', 'but', 'because', 'while'))} {plain_sentence(rng)}"
