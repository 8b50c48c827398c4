"""Conversations of the closed world, in a training and a held-out split.

Content is held out by a hash of itself: a fifth of the pairs of numbers, of the (time, span) pairs, of the (way to ask,
fact) pairs, of the sentences. Tables (products to twelve times twelve, days, months, letters) are in both splits, since
a table cannot be guessed. A conversation is of one split with all its turns.
"""

import hashlib
from dataclasses import dataclass
from random import Random

from training.domains import DOMAINS, make_item
from training.followups import follow
from training.item import TRAINED, Item
from training.lexicon import NAMES
from training.phrasing import ask
from training.unclear import unclear

SPLITS = ("train", "test")
BRIEF = ("Answer with one word.", "Be brief.", "Only say the result.", "Answer as briefly as you can.")
FULL = ("Answer in a full sentence.", "Speak in whole sentences.", "You are a helpful assistant.")
CALLED = ("You are called {}.", "Your name is {}.", "You are {}.")
OWN_NAME = "Lark"
UNCLEAR_SHARE = 0.05
FOLLOWED_SHARE = 0.12
SYSTEM_SHARE = 0.3


@dataclass(frozen=True, slots=True)
class Turn:
    """A question and its answer.

    `question` is what is typed or spoken (empty for a noise, whose kind `slot` does not tell: see `noise`);
    `instruction` is text that must be typed beside the sound ("Write what you hear."), empty elsewhere;
    `slot` is the part of the answer that makes it right.
    """

    question: str
    answer: str
    domain: str
    slot: str
    instruction: str = ""
    noise: str = ""


@dataclass(frozen=True, slots=True)
class Conversation:
    """One to four turns, with or without a system prompt."""

    turns: tuple[Turn, ...]
    system: str | None = None


def split_of(key: str) -> str:
    """The split of a content key: a fifth of all keys is held out."""
    if key == TRAINED:
        return SPLITS[0]
    return SPLITS[hashlib.blake2b(key.encode(), digest_size=2).digest()[0] % 5 == 0]


def in_split(item: Item, split: str) -> bool:
    """Whether an item may be used in a split: tables in both."""
    return item.key is None or split_of(item.key) == split


def _drawn(make, split: str):
    while True:
        item = make()
        if in_split(item, split):
            return item


def _named(name: str, rng: Random) -> Item:
    asked = ask(rng.choice(("what is your name", "what are you called", "who are you called")), rng)
    return Item("name", asked, f"My name is {name}.", f"{name}.", None, (), name)


def _turn(item: Item, brief: bool) -> Turn:
    noise = str(item.facts[0]) if item.domain == "noise" else ""
    return Turn(item.question, item.brief if brief else item.full, item.domain, item.slot, item.instruction, noise)


def sample(
    split: str, rng: Random, domain: str | None = None, sound: bool = False, turns: int | None = None
) -> Conversation:
    """A conversation of a split.

    Args:
        split: "train" or "test".
        rng: where all chance comes from: the same state gives the same conversation.
        domain: of the first turn; None draws one. "transcript" and "unclear" can be named too.
        sound: whether questions will be heard: only then noise can be a question.
        turns: how many; None draws 1 (88 %) to 4.

    Raises:
        ValueError: a split or domain that there is not.
    """
    if split not in SPLITS:
        raise ValueError(f"the split is {split!r}: it is one of {', '.join(SPLITS)}")
    if domain not in (None, "unclear", "name", *DOMAINS):
        raise ValueError(f"the domain is {domain!r}: it is one of unclear, name, {', '.join(DOMAINS)}")
    system, brief, name = _system(rng)
    if domain == "unclear" or (domain is None and rng.random() < UNCLEAR_SHARE):
        item = _drawn(lambda: unclear(rng, sound), split)
    elif domain == "name" or (domain is None and rng.random() < (0.4 if name else 0.01)):
        item = _named(name or OWN_NAME, rng)
    else:
        item = _drawn(lambda: make_item(rng, domain), split)
    if turns is None:
        turns = rng.randrange(2, 5) if rng.random() < FOLLOWED_SHARE and item.domain != "transcript" else 1
    items = [item]
    while len(items) < turns:
        items.append(_drawn(lambda: _next(items[-1], rng), split))
    return Conversation(tuple(_turn(item, brief) for item in items), system)


def _next(item: Item, rng: Random) -> Item:
    """Mostly a follow-up, else a question about something else."""
    return follow(item, rng) if rng.random() < 0.75 else make_item(rng)


def _system(rng: Random) -> tuple[str | None, bool, str | None]:
    """A system prompt or none, whether it asks for brief answers, and the name it gives."""
    if rng.random() >= SYSTEM_SHARE:
        return None, False, None
    roll = rng.random()
    if roll < 0.4:
        return rng.choice(BRIEF), True, None
    if roll < 0.6:
        return rng.choice(FULL), False, None
    name = rng.choice(NAMES)
    return rng.choice(CALLED).format(name), False, name


def held_out_turns(count: int, seed: int, domain: str | None = None) -> list[Turn]:
    """The first turns of `count` held-out conversations without a system prompt, all questions different."""
    rng, found, seen = Random(seed), [], set()
    while len(found) < count:
        conversation = sample("test", rng, domain, turns=1)
        turn = conversation.turns[0]
        if conversation.system is None and turn.question not in seen:
            seen.add(turn.question)
            found.append(turn)
    return found
