"""Scripts: what each voice is to say, line by line, for the sets of speech. The same set always has the same lines."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from random import Random

from training.domains import DOMAINS, STUDIED, WRITE_DOWN
from training.numerals import sentence
from training.sentences import joined_sentence, plain_sentence
from training.world import sample, split_of

ANSWER_SHARE, QUESTION_SHARE = 0.75, 0.1
"""Of the lines to learn speaking from: answers, questions; the rest are sentences of the lexicon."""

EVEN_SHARE = 0.5
"""Of the answers: of a domain drawn evenly. The others are as often as they are asked for, and names, single words
and spelled ones are few among them, though nothing in them helps whoever mishears a sound."""

READ_ALOUD_SHARE = 0.1
"""Of the lines to learn hearing from: answers read to the model, which it is to write down."""

TRANSCRIPT_SHARE, STUDIED_SHARE = 0.25, 0.12
"""Of the conversations to learn hearing from: what is to be written down, and questions of the `STUDIED` domains."""

TRAINED_LINES = 25_000
"""More than the 12 hours of lark have."""

_MOST_REPEATS = {"train": 60, "test": 3}
"""A text's. There are few answers about capitals, names and what was not understood, but they are given all the time:
held to three among tens of thousands of lines they were not learned."""

SLOW, _FEW_WORDS = "@0.8", 2
"""The speed of spelled words and of answers of a word or two, which a listener can guess from nothing else: of 25
spelled words the judge hears 17 right so, and 11 at full speed."""


_DOMAINS = (*(name for name in DOMAINS if name != "transcript"), "name", "unclear")


@dataclass(frozen=True, slots=True)
class Line:
    """A text to say by a voice; `about` is what the index keeps of a question: answer, domain, turns before."""

    text: str
    voice: str
    split: str
    seed: int
    about: dict = field(default_factory=dict)


def speaking_lines(voice: str, split: str, part: int = 0) -> Iterator[Line]:
    """Endless lines to learn speaking from: the same texts for every voice, a text not too often. Another `part` has
    other lines, so that parts of a set can be made at once.

    To test, only texts that are none of the first `TRAINED_LINES` to train on: answers of different questions can be
    the same.
    """
    rng, said, number = Random(_named("speak", split, part)), {}, 0
    if split != "train":
        trained = itertools.islice(speaking_lines(voice, "train"), TRAINED_LINES)
        said = {line.text: _MOST_REPEATS[split] for line in trained}
    while True:
        text, about = _speaking_text(split, rng)
        if said.get(text, 0) < _MOST_REPEATS[split]:
            said[text] = said.get(text, 0) + 1
            yield Line(text, voice + pace(text), split, number, about)
            number += 1


def pace(text: str) -> str:
    """What is added to the name of a speaker's voice for a text."""
    words = text.split()
    letters = sum(len(word.strip(".,?")) == 1 for word in words)
    return SLOW if len(words) <= _FEW_WORDS or letters > 2 else ""


def _named(*words: str | int) -> str:
    """What a script is drawn from; part 0 is named like a whole."""
    return " ".join(str(word) for word in words if word)


def _speaking_text(split: str, rng: Random) -> tuple[str, dict]:
    roll = rng.random()
    if roll < ANSWER_SHARE + QUESTION_SHARE:
        domain = rng.choice(_DOMAINS) if roll < EVEN_SHARE * ANSWER_SHARE else None
        turn = sample(split, rng, domain, turns=1).turns[0]
        if roll < ANSWER_SHARE:
            return turn.answer, {"domain": turn.domain, "slot": turn.slot}
        return turn.question, {"domain": turn.domain}
    while True:
        text = joined_sentence(rng) if rng.random() < 0.2 else plain_sentence(rng)
        if split_of(f"repeat {text}") == split:
            return sentence(text), {"domain": "sentence"}


def hearing_lines(family: str, split: str, part: int = 0) -> Iterator[Line]:
    """Endless lines to learn hearing from: every turn of conversations, by voices of the family in turn; of training
    also answers read aloud, to write down. Parts as of `speaking_lines`."""
    rng, number = Random(_named("hear", family, split, part)), 0
    while True:
        if split == "train" and rng.random() < READ_ALOUD_SHARE:
            yield _read_aloud(family, rng, number)
            number += 1
        roll = rng.random()
        domain = "transcript" if roll < TRANSCRIPT_SHARE else None
        if split == "train" and TRANSCRIPT_SHARE <= roll < TRANSCRIPT_SHARE + STUDIED_SHARE:
            domain = rng.choice(STUDIED)
        conversation = sample(split, rng, domain)
        before: list[tuple[str, str]] = []
        for turn in conversation.turns:
            about = {"answer": turn.answer, "domain": turn.domain, "slot": turn.slot, "system": conversation.system}
            about |= {"instruction": turn.instruction, "before": list(before), "conversation": number}
            yield Line(turn.question, FAMILIES[family](rng), split, rng.randrange(2**31), about)
            before.append((turn.question, turn.answer))
        number += 1


def _read_aloud(family: str, rng: Random, number: int) -> Line:
    """An answer by a voice of the family, to be written down."""
    told = sample("train", rng, turns=1).turns[0].answer
    about = {"answer": told, "domain": "transcript", "slot": told, "system": None, "instruction": WRITE_DOWN[0]}
    about |= {"before": [], "conversation": number}
    return Line(told, FAMILIES[family](rng), "train", rng.randrange(2**31), about)


def _speed(rng: Random) -> str:
    return f"@{rng.uniform(0.8, 1.25):.2f}"


def _accent(rng: Random) -> str:
    """Of half of the lines."""
    return f"~{rng.randrange(ACCENTS)}" if rng.random() < 0.5 else ""


def _pico(rng: Random) -> str:
    return f"pico-{rng.choice(('GB', 'US'))}-{rng.randrange(75, 131, 5)}-{rng.randrange(75, 126, 5)}"


def _espeak(variants: tuple[str, ...]):
    def draw(rng: Random) -> str:
        return f"espeak-{rng.choice(variants)}-{rng.randrange(120, 201, 5)}-{rng.randrange(30, 81, 5)}"

    return draw


ACCENTS = 1000
SEEN_BLENDS, UNSEEN_BLENDS = range(64), range(100, 108)
_ESPEAK_ACCENTS = ("en-us", "en-gb", "en-gb-x-rp", "en-gb-x-gbclan", "en-gb-x-gbcwmd", "en-gb-scotland", "en-029")
ESPEAK_SEEN = tuple(
    f"{accent}+{kind}" for accent in _ESPEAK_ACCENTS for kind in "f1 f2 f3 f4 m1 m2 m3 m4 m5 m6".split()
)
ESPEAK_UNSEEN = tuple(f"{accent}+{kind}" for accent in ("en-us", "en-gb") for kind in "f5 m7 m8 klatt klatt4".split())
FAMILIES = {
    "lark": lambda rng: f"lark{_speed(rng)}{_accent(rng)}",
    "bodies": lambda rng: f"body-{rng.randrange(50, 116)}-{rng.randrange(83, 111)}{_speed(rng)}{_accent(rng)}",
    "blends": lambda rng: f"blend-{rng.choice(SEEN_BLENDS)}{_speed(rng)}{_accent(rng)}",
    "flite": lambda rng: f"flite-{rng.choice(('slt', 'rms', 'kal16'))}{_speed(rng)}",
    "festival": lambda rng: f"festival-{rng.choice(('slt', 'kal', 'ked'))}{_speed(rng)}",
    "pico": _pico,
    "espeak": _espeak(ESPEAK_SEEN),
    "awb": lambda _: "flite-awb",
    "joe": lambda _: "joe",
    "unseen-blends": lambda rng: f"blend-{rng.choice(UNSEEN_BLENDS)}",
    "unseen-espeak": _espeak(ESPEAK_UNSEEN),
}
"""Of each family of hearing voices the draw of one. The last four are held out: they are in test sets alone."""
