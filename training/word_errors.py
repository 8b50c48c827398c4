"""Word errors between what should be said and what was heard, after both are written the same way."""

import re
from dataclasses import dataclass

from training.lexicon import TENS, UNITS
from training.numerals import words

_SAME = {
    "color": "colour",
    "gray": "grey",
    "o'clock": "oclock",
    "neighbor": "neighbour",
    "theater": "theatre",
    "yoghurt": "yogurt",
    "harbor": "harbour",
    "kiev": "kyiv",
    "ok": "okay",
    "neighs": "nays",
    "bye": "buy",
    "passed": "past",
    "honor": "honour",
}
"""Spellings of the judge for spellings of the world that sound the same."""

_NUMBER_WORDS = frozenset((*UNITS, *TENS, "hundred"))
_DIGITS = {words(number): str(number) for number in range(1000)}
_NUMBER = re.compile(r"\d+")
_TIMES = re.compile(r"(?<=\d) ?[x×*] ?(?=\d)")
_MINUS = re.compile(r"(?<![-\d])(\d+) ?[-−–] ?(\d+)(?![-\d])")
_LETTERS = re.compile(r"\b(?!OK\b)[A-Z]{2,}\b")
_NOT_WORD = re.compile(r"[^a-z' ]+")


@dataclass(frozen=True)
class Errors:
    """Counted in words: what was left out, put in, and taken for another, of so many words that should be said."""

    words: int = 0
    left_out: int = 0
    put_in: int = 0
    replaced: int = 0

    @property
    def total(self) -> int:
        """All errors."""
        return self.left_out + self.put_in + self.replaced

    @property
    def rate(self) -> float:
        """Errors by word that should be said; infinity where something was heard of nothing."""
        return self.total / self.words if self.words else (float("inf") if self.total else 0.0)

    def __add__(self, other: "Errors") -> "Errors":
        return Errors(
            self.words + other.words,
            self.left_out + other.left_out,
            self.put_in + other.put_in,
            self.replaced + other.replaced,
        )


def _in_words(number: re.Match[str]) -> str:
    digits = number.group()
    told = words(int(digits)) if int(digits) < 1000 else " ".join(words(int(digit)) for digit in digits)
    return f" {told} "


def normalised(text: str) -> str:
    """Lower case, digits as words, no marks, one spelling of a word: "47 + 36?" -> "forty seven plus thirty six".

    A clock time in digits ("3:30") becomes "three thirty": the world says "half past three", which is another word
    error, as it should be. A hyphen between two numbers is "minus", in a row of more it is none. Letters joined by
    hyphens ("E-L-E"), dots or nothing ("ELE") become letters apart.
    """
    text = _LETTERS.sub(lambda found: " ".join(found.group()), text)
    text = _TIMES.sub(" times ", text.lower()).replace("’", "'").replace("+", " plus ").replace("=", " is ")
    text = _MINUS.sub(r"\1 minus \2", text)
    text = re.sub(r"(?<=[\w])-(?=[\w])", " ", text)
    text = re.sub(r"\b(\d+):00\b", r"\1 oclock", text)
    text = _NUMBER.sub(_in_words, text.replace(",", " ").replace(".", " "))
    text = _NOT_WORD.sub(" ", text).replace("o'clock", "oclock").replace("o clock", "oclock")
    return " ".join(_SAME.get(word.strip("'"), word.strip("'")) for word in text.split() if word.strip("'"))


def joined_numbers(said: list[str]) -> list[str]:
    """Normalised words, each run of numbers as one string of digits: ["nine", "ten", "cats"] -> ["910", "cats"]."""
    made, at, in_run = [], 0, False
    while at < len(said):
        # Of the longest number that begins here: at most "nine hundred ninety nine".
        length = next((size for size in range(4, 0, -1) if " ".join(said[at : at + size]) in _DIGITS), 0)
        if not length:
            made.append(said[at])
        elif in_run:
            made[-1] += _DIGITS[" ".join(said[at : at + length])]
        else:
            made.append(_DIGITS[" ".join(said[at : at + length])])
        in_run, at = length > 0, at + max(1, length)
    return made


def count_errors(expected: str, heard: str) -> Errors:
    """The least edits from `expected` to `heard`, both normalised. None where they differ in how numbers are grouped
    alone: a recogniser writes "nine, ten, eleven" as "910-11"."""
    want, got = normalised(expected).split(), normalised(heard).split()
    if joined_numbers(want) == joined_numbers(got):
        return Errors(len(want))
    # Each cell: (edits, left out, put in, replaced).
    row = [(place, 0, place, 0) for place in range(len(got) + 1)]
    for number, word in enumerate(want, 1):
        before, row = row, [(number, number, 0, 0)]
        for place, other in enumerate(got, 1):
            if word == other:
                row.append(before[place - 1])
                continue
            cost, out, put, replaced = before[place - 1]
            choices = [(cost + 1, out, put, replaced + 1)]
            cost, out, put, replaced = before[place]
            choices.append((cost + 1, out + 1, put, replaced))
            cost, out, put, replaced = row[-1]
            choices.append((cost + 1, out, put + 1, replaced))
            row.append(min(choices))
    _, out, put, replaced = row[-1]
    return Errors(len(want), out, put, replaced)


def contains(heard: str, slot: str) -> bool:
    """Whether the slot's words stand in what was heard, in order and together, and are no part of a larger number."""
    got, want = normalised(heard).split(), normalised(slot).split()
    for start in range(len(got) - len(want) + 1):
        end = start + len(want)
        if want and got[start:end] == want:
            longer_before = start > 0 and {got[start - 1], want[0]} <= _NUMBER_WORDS
            longer_after = end < len(got) and {got[end], want[-1]} <= _NUMBER_WORDS
            if not longer_before and not longer_after:
                return True
    return False
