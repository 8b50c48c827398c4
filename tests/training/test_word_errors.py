"""The judge's count of word errors; expected values are counted by hand."""

import pytest

from training.word_errors import Errors, contains, count_errors, normalised


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("47 + 36 is 83.", "forty seven plus thirty six is eighty three"),
        ("65-49 is 16.", "sixty five minus forty nine is sixteen"),
        ("10-11-12", "ten eleven twelve"),
        ("7x1 is 7.", "seven times one is seven"),
        ("It is five o'clock.", "it is five oclock"),
        ("It's 5:00.", "it's five oclock"),
        ("Cat is spelled C-A-T.", "cat is spelled c a t"),
        ("Jar is spelled JAR.", "jar is spelled j a r"),
        ("C.A.T. spells cat", "c a t spells cat"),
        ("Gray color, OK?", "grey colour okay"),
        ("", ""),
    ],
)
def test_one_way_of_writing(text, expected):
    assert normalised(text) == expected


@pytest.mark.parametrize(
    ("expected", "heard", "errors"),
    [
        ("It is half past five.", "it is half past five", Errors(5)),
        ("It is half past five.", "it is past five", Errors(5, left_out=1)),
        ("It is half past five.", "it is half past nine", Errors(5, replaced=1)),
        ("It is five.", "well it is five", Errors(3, put_in=1)),
        ("It is five.", "", Errors(3, left_out=3)),
        ("Paris.", "the city of paris", Errors(1, put_in=3)),
        ("Nine, ten, eleven, twelve, thirteen, fourteen.", "910-1112-1314", Errors(6)),
        ("Nine, ten, eleven.", "9, 10, 12", Errors(3, replaced=1)),
        ("It is two hundred five.", "It is 2005.", Errors(5, put_in=1, replaced=1)),
        ("Twenty one cats.", "20 cats, 1.", Errors(3, replaced=2)),
    ],
)
def test_errors_are_counted_by_kind(expected, heard, errors):
    assert count_errors(expected, heard) == errors


def test_the_rate_is_over_all_words():
    total = Errors(10, left_out=1) + Errors(30, replaced=2, put_in=1)
    assert total == Errors(40, 1, 1, 2)
    assert total.rate == 0.1


def test_nothing_expected_and_something_heard_is_no_perfect_score():
    assert count_errors("", "hello").rate == float("inf")
    assert count_errors("", "").rate == 0.0


@pytest.mark.parametrize(
    ("heard", "slot", "found"),
    [
        ("47 plus 36 is 83.", "eighty three", True),
        ("eighty, three cats", "eighty three", True),
        ("that is 183", "eighty three", False),
        ("that is 83", "eighty", False),
        ("that is 83", "three", False),
        ("The capital is Paris", "Paris", True),
        ("The capital is Parish", "Paris", False),
        ("", "Paris", False),
    ],
)
def test_a_slot_is_whole_words_and_a_whole_number(heard, slot, found):
    assert contains(heard, slot) is found
