"""The domains of the world: each makes one question with its answer."""

from collections.abc import Callable
from random import Random

from training.item import TRAINED, Item
from training.lexicon import (
    BABIES,
    CAPITALS,
    COLOURS,
    DAYS,
    LEGS,
    LETTERS,
    MONTH_DAYS,
    MONTHS,
    OPPOSITES,
    SHORT_WORDS,
    SOUNDS,
    SPELLING,
)
from training.numerals import clock, letters, sentence, span, words
from training.phrasing import ask
from training.sentences import joined_sentence, plain_sentence

COUNTRIES = tuple(CAPITALS)
OPPOSITE_WORDS = tuple(OPPOSITES)
SUM_ASKS = (
    "what is {} {} {}",
    "how much is {} {} {}",
    "{} {} {}",
    "what do you get for {} {} {}",
    "what does {} {} {} make",
)
PLACES_OF_CAPITAL = (
    "what is the capital of {}",
    "which city is the capital of {}",
    "name the capital of {}",
    "what is the capital city of {}",
    "{}, what is its capital",
)
OPPOSITE_ASKS = (
    "what is the opposite of {}",
    "name the opposite of {}",
    "which word is the opposite of {}",
    "what is the contrary of {}",
    "give me the opposite of {}",
)
SOUND_ASKS = ("what does {} do", "what sound does {} make", "how does {} sound", "what noise does {} make")
ANIMAL_ASKS = ("which animal {}", "what animal {}", "name an animal that {}")
COLOUR_ASKS = ("what colour is {}", "which colour is {}", "what is the colour of {}", "tell me the colour of {}")
LEGS_ASKS = ("how many legs has {}", "how many legs does {} have", "tell me how many legs {} has")
BABY_ASKS = ("what is a baby {} called", "what do you call a young {}", "what is a young {}")
FACT_ASKS = (PLACES_OF_CAPITAL, OPPOSITE_ASKS, SOUND_ASKS, ANIMAL_ASKS, COLOUR_ASKS, LEGS_ASKS, BABY_ASKS)
FIRST_ASKS = frozenset(asks[0] for asks in FACT_ASKS)
"""Of every fact one way to ask is always trained: nobody can know a fact that was never told."""

SPELL_ASKS = ("how do you spell {}", "spell {}", "spell the word {}", "how is {} spelled", "what are the letters of {}")
SPELLS_ASKS = ("what does {} spell", "which word is {}", "what word do the letters {} make", "read the letters {}")
REPEAT_ASKS = (
    "repeat after me",
    "please repeat",
    "say",
    "repeat the words",
    "say after me",
    "please say",
    "repeat this",
)
CONSONANTS, VOWELS = "bdfgklmnprstz", "aeiou"
WRITE_DOWN = ("Write what you hear.", "Write down the words.", "What did you hear?")


def calculation(operator: str, left: int, right: int) -> Item:
    """A sum, difference or product ("plus", "minus", "times") as an item without a question."""
    result = {"plus": left + right, "minus": left - right, "times": left * right}[operator]
    pair = f"{min(left, right)} {max(left, right)}" if operator == "plus" else f"{left} {right}"
    key = None if operator == "times" else f"{operator} {pair}"
    full = sentence(f"{words(left)} {operator} {words(right)} is {words(result)}")
    return Item("sum", "", full, sentence(words(result)), key, (operator, left, right, result), words(result))


def _sum(rng: Random) -> Item:
    roll = rng.random()
    if roll < 0.15:
        operator, left, right = "times", rng.randrange(13), rng.randrange(13)
    else:
        top = 21 if rng.random() < 0.2 else 100
        left, right = rng.randrange(top), rng.randrange(top)
        operator = "plus" if roll < 0.6 else "minus"
        if operator == "minus" and right > left:
            left, right = right, left
    asked = rng.choice(SUM_ASKS).format(words(left), operator, words(right))
    return with_question(calculation(operator, left, right), ask(asked, rng))


def with_question(item: Item, question: str, domain: str | None = None) -> Item:
    """The same item, asked in these words."""
    return Item(
        domain or item.domain, question, item.full, item.brief, item.key, item.facts, item.slot, item.instruction
    )


def comparison(word: str, one: int, other: int) -> Item:
    """Which of two different numbers is larger or smaller, without a question."""
    larger, smaller = max(one, other), min(one, other)
    first, second = (larger, smaller) if word == "larger" else (smaller, larger)
    full = sentence(f"{words(first)} is {word} than {words(second)}")
    return Item(
        "compare", "", full, sentence(words(first)), f"compare {smaller} {larger}", (word, one, other), words(first)
    )


def _compare(rng: Random) -> Item:
    one = rng.randrange(100)
    if rng.random() < 0.2:
        one = min(one, 97)
        asked = f"what number is between {words(one)} and {words(one + 2)}"
        full = sentence(f"{words(one + 1)} is between {words(one)} and {words(one + 2)}")
        return Item("between", ask(asked, rng), full, sentence(words(one + 1)), None, (), words(one + 1))
    other = (one + 1 + rng.randrange(99)) % 100
    word = rng.choice(("larger", "smaller"))
    form = rng.choice(("which is {}, {} or {}", "which number is {}, {} or {}", "what is {}, {} or {}"))
    return with_question(comparison(word, one, other), ask(form.format(word, words(one), words(other)), rng))


def later_time(start: int, minutes: int) -> Item:
    """The time so many minutes (negative: earlier) from a start, without a question."""
    told = clock(start + minutes)
    key = f"clock {start} {minutes}"
    return Item("clock", "", sentence(f"it is {told}"), sentence(told), key, (start + minutes,), told)


def _clock(rng: Random) -> Item:
    start = 15 * rng.randrange(48)
    minutes = rng.choice((15, 30, 45)) if rng.random() < 0.3 else 60 * rng.randrange(1, 12)
    sign, word = rng.choice(((1, "after"), (-1, "before")))
    form = rng.choice(("what time is it {} {} {}", "what is the time {} {} {}", "what time is {} {} {}"))
    return with_question(later_time(start, sign * minutes), ask(form.format(span(minutes), word, clock(start)), rng))


def day_after(day: int, steps: int) -> Item:
    """The day so many days (negative: before) from a day of the week, without a question."""
    told = DAYS[(day + steps) % 7]
    count = {1: ""}.get(abs(steps), f"{words(abs(steps))} days ")
    full = f"{told} comes {count}{'after' if steps > 0 else 'before'} {DAYS[day]}."
    return Item("day", "", full, f"{told}.", None, ((day + steps) % 7,), told)


def _day(rng: Random) -> Item:
    day, sign = rng.randrange(7), rng.choice((1, -1))
    steps = 1 if rng.random() < 0.4 else rng.randrange(2, 7)
    word = "after" if sign > 0 else "before"
    if steps == 1:
        form = rng.choice(("what day comes {} {}", "which day is {} {}", "what is the day {} {}")).format(
            word, DAYS[day]
        )
    else:
        form = f"{rng.choice(('what day is', 'which day comes'))} {words(steps)} days {word} {DAYS[day]}"
    return with_question(day_after(day, sign * steps), ask(form, rng))


def month_after(month: int, steps: int) -> Item:
    """The month so many months (negative: before) from a month, without a question."""
    told = MONTHS[(month + steps) % 12]
    count = {1: ""}.get(abs(steps), f"{words(abs(steps))} months ")
    full = f"{told} comes {count}{'after' if steps > 0 else 'before'} {MONTHS[month]}."
    return Item("month", "", full, f"{told}.", None, ((month + steps) % 12,), told)


def _month(rng: Random) -> Item:
    month, sign = rng.randrange(12), rng.choice((1, -1))
    word = "after" if sign > 0 else "before"
    if rng.random() < 0.25:
        full = f"{MONTHS[month]} has {words(MONTH_DAYS[month])} days."
        asked = ask(f"how many days has {MONTHS[month]}", rng)
        return Item("month", asked, full, sentence(words(MONTH_DAYS[month])), None, (), words(MONTH_DAYS[month]))
    steps = 1 if rng.random() < 0.5 else rng.randrange(2, 7)
    if steps == 1:
        form = f"{rng.choice(('which month comes', 'what month is'))} {word} {MONTHS[month]}"
    else:
        form = f"{rng.choice(('which month is', 'what month comes'))} {words(steps)} months {word} {MONTHS[month]}"
    return with_question(month_after(month, sign * steps), ask(form, rng))


def fact(domain: str, subject: str, form: str, full: str, slot: str) -> Item:
    """A fact of a table, held out by (way to ask, subject): the fact itself is always seen."""
    key = TRAINED if form in FIRST_ASKS else f"{domain} {form} {subject}"
    return Item(domain, "", full, sentence(slot), key, (subject,), slot)


def capital(country: str, form: str) -> Item:
    """The capital of a country, without a question."""
    return fact("capital", country, form, f"The capital of {country} is {CAPITALS[country]}.", CAPITALS[country])


def _capital(rng: Random) -> Item:
    country, form = rng.choice(COUNTRIES), rng.choice(PLACES_OF_CAPITAL)
    return with_question(capital(country, form), ask(form.format(country), rng))


def opposite(word: str, form: str) -> Item:
    """The opposite of a word, without a question."""
    return fact("opposite", word, form, f"The opposite of {word} is {OPPOSITES[word]}.", OPPOSITES[word])


def _opposite(rng: Random) -> Item:
    word, form = rng.choice(OPPOSITE_WORDS), rng.choice(OPPOSITE_ASKS)
    return with_question(opposite(word, form), ask(form.format(word), rng))


def article(noun: str) -> str:
    """The noun with a or an."""
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def _sound(rng: Random) -> Item:
    animal = rng.choice(tuple(SOUNDS))
    if rng.random() < 0.3:
        form = rng.choice(ANIMAL_ASKS)
        full = sentence(f"{article(animal)} {SOUNDS[animal]}")
        item = fact("animal", animal, form, full, animal)
        return with_question(item, ask(form.format(SOUNDS[animal]), rng))
    form = rng.choice(SOUND_ASKS)
    item = fact("sound", animal, form, sentence(f"{article(animal)} {SOUNDS[animal]}"), SOUNDS[animal])
    return with_question(item, ask(form.format(article(animal)), rng))


def _colour(rng: Random) -> Item:
    thing = rng.choice(tuple(COLOURS))
    form = rng.choice(
        ("what colour is {}", "which colour is {}", "what is the colour of {}", "tell me the colour of {}")
    )
    item = fact("colour", thing, form, sentence(f"{thing} is {COLOURS[thing]}"), COLOURS[thing])
    return with_question(item, ask(form.format(thing), rng))


def _animal(rng: Random) -> Item:
    if rng.random() < 0.5:
        animal, form = rng.choice(tuple(LEGS)), rng.choice(LEGS_ASKS)
        item = fact("legs", animal, form, sentence(f"{article(animal)} has {LEGS[animal]} legs"), LEGS[animal])
    else:
        animal = rng.choice(tuple(BABIES))
        form = rng.choice(BABY_ASKS)
        item = fact("baby", animal, form, sentence(f"a young {animal} is {article(BABIES[animal])}"), BABIES[animal])
        return with_question(item, ask(form.format(animal), rng))
    return with_question(item, ask(form.format(article(animal)), rng))


def spelled(word: str, form: str) -> Item:
    """The letters of a word, without a question."""
    told = letters(word)
    return Item(
        "spell", "", f"{sentence(word, '')} is spelled {told}.", f"{told}.", f"spell {form} {word}", (word,), told
    )


def _spell(rng: Random) -> Item:
    if rng.random() < 0.25:
        word, form = _short_word(rng), rng.choice(SPELLS_ASKS)
        full = f"{letters(word)} spells {word}."
        return Item("unspell", ask(form.format(letters(word)), rng), full, sentence(word), f"unspell {word}", (), word)
    word, form = rng.choice(SPELLING), rng.choice(SPELL_ASKS)
    return with_question(spelled(word, form), ask(form.format(word), rng))


def _short_word(rng: Random) -> str:
    """A word of three letters, every second time one that is none ("bof"): putting letters together is then learned."""
    if rng.random() < 0.5:
        return rng.choice(SHORT_WORDS)
    return rng.choice(CONSONANTS) + rng.choice(VOWELS) + rng.choice(CONSONANTS)


def _letter(rng: Random) -> Item:
    place, after = rng.randrange(25), rng.random() < 0.6
    known, told = (place, place + 1) if after else (place + 1, place)
    word = "after" if after else "before"
    form = rng.choice(("which letter comes {} {}", "what letter is {} {}", "what comes {} the letter {}"))
    full = f"The letter {word} {LETTERS[known]} is {LETTERS[told]}."
    return Item(
        "letter", ask(form.format(word, LETTERS[known]), rng), full, f"{LETTERS[told]}.", None, (), LETTERS[told]
    )


def _count(rng: Random) -> Item:
    start = 1 if rng.random() < 0.4 else rng.randrange(0, 40)
    stop = start + rng.randrange(2, 9)
    order = range(start, stop + 1)
    first, last = start, stop
    if rng.random() < 0.25:
        order, first, last = range(stop, start - 1, -1), stop, start
    told = ", ".join(words(number) for number in order)
    form = "count from {} to {}" if first != 1 or rng.random() < 0.5 else "count to {1}"
    asked = ask(form.format(words(first), words(last)), rng)
    return Item("count", asked, sentence(told), sentence(told), f"count {first} {last}", (), told)


def _repeat(rng: Random) -> Item:
    text = plain_sentence(rng)
    told = sentence(text)
    asked = f"{sentence(rng.choice(REPEAT_ASKS), ':')} {text}."
    return Item("repeat", asked, told, told, f"repeat {text}", (), told)


def _transcript(rng: Random) -> Item:
    roll = rng.random()
    if roll < 0.5:
        text = plain_sentence(rng) if roll < 0.4 else joined_sentence(rng)
        heard, key = sentence(text), f"repeat {text}"
    else:
        item = make_item(rng)
        heard, key = item.question, item.key or f"transcript {item.question}"
    return Item("transcript", heard, heard, heard, key, (), heard, rng.choice(WRITE_DOWN))


SMALL_TALK = (
    ("hello", "Hello. Ask me something."),
    ("good morning", "Good morning. Ask me something."),
    ("good evening", "Good evening. Ask me something."),
    ("how are you", "I am well, thank you."),
    ("thank you", "You are welcome."),
    ("thank you very much", "You are welcome."),
    ("goodbye", "Goodbye."),
    ("see you later", "Goodbye."),
    ("who are you", "I am a very small talking machine."),
    ("what are you", "I am a very small talking machine."),
    ("are you a person", "No, I am a very small talking machine."),
    ("what can you do", "I can count, add, spell, name capitals, and repeat what you say."),
    ("how can you help me", "I can count, add, spell, name capitals, and repeat what you say."),
    ("can you hear me", "Yes, I can hear you."),
    ("do you understand me", "Yes, I understand you."),
)


def _talk(rng: Random) -> Item:
    asked, told = rng.choice(SMALL_TALK)
    return Item("talk", sentence(asked, rng.choice(("?", ".", "!"))), told, told, None, (), told)


DOMAINS: dict[str, tuple[int, Callable[[Random], Item]]] = {
    "sum": (21, _sum),
    "compare": (7, _compare),
    "clock": (7, _clock),
    "day": (4, _day),
    "month": (4, _month),
    "capital": (9, _capital),
    "opposite": (9, _opposite),
    "sound": (3, _sound),
    "colour": (3, _colour),
    "animal": (3, _animal),
    "spell": (12, _spell),
    "letter": (2, _letter),
    "count": (3, _count),
    "repeat": (11, _repeat),
    "talk": (2, _talk),
    "transcript": (0, _transcript),
}
"""Of each domain how often it is asked, in a hundred, and what makes an item. Transcripts are asked for by name: they
need a sound."""

STUDIED = ("count", "letter", "spell")
"""The domains that were missed most: training asks more of them than is asked otherwise."""

_URN = tuple(make for share, make in DOMAINS.values() for _ in range(share))


def make_item(rng: Random, domain: str | None = None) -> Item:
    """An item of a named domain, or of one drawn by its share."""
    return (DOMAINS[domain][1] if domain else rng.choice(_URN))(rng)
