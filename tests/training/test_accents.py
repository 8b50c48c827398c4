"""Accents: the same neighbours in all of a clip, in symbols that the voices know, and letters that stay apart."""

from training.sound_set import ALPHABET
from training.voices.accents import CHANGES, LEAST, MOST, accented, changes

LETTERS = "A bi si di i ɛf ʤi Aʧ I ʤA kA ɛl ɛm ɛn O pi kju ɑɹ ɛs ti ju vi dʌbᵊlju ɛks wI zi".split()


def test_an_accent_is_the_same_every_time_and_unlike_another():
    told = "hˌW mˈɛni lˈɛɡz dˈʌz ɐ dˈɔɡ hˈæv ɪn ðə mˈɔɹnɪŋ"
    made = [accented(told, accent) for accent in range(50)]
    assert made == [accented(told, accent) for accent in range(50)]
    assert len(set(made)) > 25
    assert accented(told, None) == told
    assert all(LEAST <= len(changes(accent)) <= MOST for accent in range(50))


def test_what_an_accent_has_changed_is_not_changed_again():
    both = next(number for number in range(5000) if changes(number).get("ʌ") == "ɑ" and changes(number).get("ɑ") == "ɔ")
    assert accented("ʌɑ", both) == "ɑɔ"


def test_accents_use_sounds_that_lark_knows():
    assert {letter for became in CHANGES.values() for one in became for letter in one} <= {*ALPHABET}


def test_letters_keep_names_of_their_own():
    for accent in range(500):
        assert len({accented(name, accent) for name in LETTERS}) == len(LETTERS), changes(accent)
