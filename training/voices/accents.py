"""Accents: a voice that reads phonemes reads some of them as their neighbours, the same ones in all of a clip.

Hearing that was trained on a few voices takes their vowels for the only ones. An accent here is a number; which sounds
it changes is drawn from the number. No two letters' names become alike in any of them.
"""

import re
from functools import cache
from random import Random

LEAST, MOST = 2, 5
"""Changes of an accent."""

CHANGES: dict[str, tuple[str, ...]] = {
    "ɪ": ("i", "ə", "ɛ"),
    "æ": ("ɑ", "ɛ"),
    "ʌ": ("ʊ", "ɑ"),
    "ɑ": ("ɔ",),
    "ɔ": ("ɑ", "O"),
    "ə": ("ʌ", "ɪ"),
    "ᵊ": ("ə",),
    "A": ("ɛ", "ɛi"),
    "O": ("ɔ", "ɔu", "əu"),
    "W": ("ʌu", "əu"),
    "I": ("ʌi", "ɑi"),
    "u": ("ʊ",),
    "ɜɹ": ("ɛɹ", "ʌɹ", "ɜ"),
    "əɹ": ("ə", "ʌɹ"),
    "ɑɹ": ("ɑ",),
    "ɔɹ": ("ɔ",),
    "ɹ": ("T",),
    "T": ("t", "d"),
    "θ": ("t", "s", "f"),
    "ð": ("d", "z"),
    "w": ("v",),
    "ʤ": ("ʧ",),
    "h": ("",),
    "ŋ": ("n", "ŋɡ"),
}
"""Of each sound what it may become, in hibari's and Kokoro's alphabet. All of it is in hibari's English, so that its
voice has learned to say it. T is a tap, as Scots and Spaniards say r."""


@cache
def changes(accent: int) -> dict[str, str]:
    """What an accent changes."""
    rng = Random(f"accent {accent}")
    chosen = rng.sample(sorted(CHANGES), rng.randrange(LEAST, MOST + 1))
    return {sound: rng.choice(CHANGES[sound]) for sound in chosen}


def accented(phonemes: str, accent: int | None) -> str:
    """Phonemes as an accent says them; as they are without one."""
    if accent is None:
        return phonemes
    changed = changes(accent)
    # The longest first: "ɜɹ" is one sound; and all at once: what has been changed is not changed again.
    sounds = "|".join(sorted(changed, key=lambda sound: (-len(sound), sound)))
    return re.sub(sounds, lambda found: changed[found.group()], phonemes)
