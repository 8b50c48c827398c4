"""What the model must not answer: noise, silence, foreign words, and questions outside the world."""

from random import Random

from training.item import Item
from training.lexicon import (
    ACTIVITIES,
    ADJECTIVES,
    BEINGS,
    FOREIGN,
    HOW,
    OFF_DOMAIN,
    PLACES,
    THINGS,
)
from training.numerals import sentence
from training.phrasing import ask

SORRY = "Sorry, I did not understand that."
NOISES = ("silence", "white", "pink", "hum", "clicks", "babble")
NO_COUNTRIES = "Narnia Texas Atlantis California Africa Bavaria Florida Sicily Wonderland Asia Utopia Bohemia".split()
_ASKS = (
    "what does the {thing} cost",
    "who is your {being}",
    "where is the {place}",
    "how old is the {being}",
    "can you {activity}",
    "why is the {thing} {adjective}",
    "when does the {place} open",
    "who made this {thing}",
    "how far is the {place}",
    "should I buy the {adjective} {thing}",
    "what is the capital of {country}",
    "how many {thing}s are in the {place}",
    "is the {being} {adjective}",
    "what did the {being} do {how}",
)


def _outside(rng: Random) -> str:
    roll = rng.random()
    if roll < 0.25:
        return ask(rng.choice(OFF_DOMAIN), rng)
    if roll < 0.35:
        return sentence(rng.choice(FOREIGN))
    if roll < 0.5:
        bag = [rng.choice(rng.choice((ADJECTIVES, BEINGS, THINGS, PLACES, HOW))) for _ in range(rng.randrange(2, 7))]
        return sentence(" ".join(bag))
    form = rng.choice(_ASKS)
    return ask(
        form.format(
            thing=rng.choice(THINGS),
            being=rng.choice(BEINGS),
            place=rng.choice(PLACES),
            adjective=rng.choice(ADJECTIVES),
            activity=rng.choice(ACTIVITIES),
            country=rng.choice(NO_COUNTRIES),
            how=rng.choice(HOW),
        ),
        rng,
    )


def unclear(rng: Random, sound: bool = False) -> Item:
    """An item whose answer is `SORRY`; with `sound` every second is a noise: no question, its kind in `facts`."""
    if sound and rng.random() < 0.5:
        return Item("noise", "", SORRY, SORRY, None, (rng.choice(NOISES),), SORRY)
    asked = _outside(rng)
    return Item("unclear", asked, SORRY, SORRY, f"unclear {asked}", (), SORRY)
