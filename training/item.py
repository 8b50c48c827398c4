"""One question of the world with its answer."""

from dataclasses import dataclass

TRAINED = "trained"
"""The key of content that is never held out."""


@dataclass(frozen=True, slots=True)
class Item:
    """What a domain makes.

    `question` is written text with capital and end mark; `full` and `brief` are the two answers that a system prompt
    can choose between; `key` names the content that is held out as a whole (None: a table that both splits share;
    `TRAINED`: of the training split alone);
    `facts` is what a follow-up question needs; `slot` is what the judge must find in the spoken answer;
    `instruction` is typed beside the sound, where the question itself is only heard.
    """

    domain: str
    question: str
    full: str
    brief: str
    key: str | None
    facts: tuple[str | int, ...] = ()
    slot: str = ""
    instruction: str = ""
