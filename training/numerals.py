"""Numbers, times of day and letters as words: the world writes no digits."""

from training.lexicon import TENS, UNITS

QUARTERS = ("{} o'clock", "quarter past {}", "half past {}", "quarter to {}")
MINUTES_OF_A_DAY_HALF = 720


def words(number: int) -> str:
    """0 <= number < 1000 in words: 183 -> "one hundred eighty three"."""
    if not 0 <= number < 1000:
        raise ValueError(f"the number is {number}: the world knows 0 to 999")
    if number < 20:
        return UNITS[number]
    if number < 100:
        unit = number % 10
        return TENS[number // 10 - 2] + (f" {UNITS[unit]}" if unit else "")
    rest = number % 100
    return f"{UNITS[number // 100]} hundred" + (f" {words(rest)}" if rest else "")


def clock(minutes: int) -> str:
    """A time on a twelve-hour face, a multiple of 15 minutes after twelve: 210 -> "half past three"."""
    hour, quarter = divmod(minutes % MINUTES_OF_A_DAY_HALF // 15, 4)
    named = hour + (quarter == 3)
    return QUARTERS[quarter].format(UNITS[named % 12 or 12])


def span(minutes: int) -> str:
    """A length of time: 15, 30 or 45 minutes, or whole hours up to 11."""
    if minutes < 60:
        return {15: "fifteen minutes", 30: "half an hour", 45: "forty five minutes"}[minutes]
    hours = minutes // 60
    return "one hour" if hours == 1 else f"{UNITS[hours]} hours"


def letters(word: str) -> str:
    """A word letter by letter: cat -> "C, A, T"."""
    return ", ".join(word.upper())


def sentence(text: str, end: str = ".") -> str:
    """Text with a capital first letter and an end mark."""
    return text[:1].upper() + text[1:] + end
