"""Ways to ask: what stands before and after a question, and how people type it."""

from random import Random

from training.numerals import sentence

CALLS = (
    "hey|hello|so|okay|well|excuse me|listen|quick question|one more question|I have a question|help me out|now".split(
        "|"
    )
)
LEADS = (
    "please tell me|tell me|can you tell me|I would like to know|do you know|now tell me|could you say|I want to know|"
    "my friend asks"
).split("|")
AFTER = ("please", "thank you", "if you can")
QUESTION_WORDS = frozenset("what which how who why where when".split())
ORDERS = frozenset(
    "name give spell read count tell set book play order translate send open show start write recommend".split()
)


def ask(core: str, rng: Random) -> str:
    """The question or order as a sentence; four in ten get words before it, one in ten a word after it."""
    first = core.split(maxsplit=1)[0].rstrip(",")
    end = "." if first in ORDERS else "?"
    if rng.random() < 0.4:
        lead = first in QUESTION_WORDS and rng.random() < 0.5
        core = f"{rng.choice(LEADS)} {core}" if lead else f"{rng.choice(CALLS)}, {core}"
    if rng.random() < 0.1:
        core = f"{core}, {rng.choice(AFTER)}"
    return sentence(core, end)


def typed(question: str, rng: Random) -> str:
    """The question as somebody might type it: mostly as it is, else in lower case, without an end mark, or both."""
    roll = rng.random()
    if roll < 0.6:
        return question
    if roll < 0.75:
        return question.rstrip("?.")
    lowered = question[:1].lower() + question[1:] if roll < 0.85 else question.lower()
    return lowered if roll < 0.9 else lowered.rstrip("?.")
