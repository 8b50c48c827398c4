"""Where in its text a clip is: worked out by hand for two words of two letters, a letter a token."""

import itertools

import pytest

from training.prompts import writer
from training.script import speaking_lines
from training.timing import spoken_tokens


def _letters(ids):
    return "".join(chr(one) for one in ids)


def test_the_tokens_of_a_word_take_even_parts_of_its_time():
    # 0.08 s a frame. "ab" from 0.08 to 0.4 s, " cd" from 0.4 to 0.88 s, then 0.24 s of silence.
    ids = [ord(letter) for letter in "ab cd"]
    found = spoken_tokens("ab cd", [0.08, 0.4], 1.12, ids, _letters)
    assert found == [-1, 0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 5]


def test_every_token_of_the_world_s_texts_is_spoken_in_order():
    found = writer()
    for line in itertools.islice(speaking_lines("lark", "train"), 50):
        words, ids = line.text.split(), found.plain(line.text)
        starts = [0.1 + number for number in range(len(words))]
        told = spoken_tokens(line.text, starts, len(words) + 0.34, ids, found.tokenizer.decode)
        assert told == sorted(told)
        assert set(told) == {-1, *range(len(ids) + 1)}


def test_as_many_starts_as_words_are_needed():
    with pytest.raises(ValueError, match="1 starts for the 2 words"):
        spoken_tokens("ab cd", [0.1], 1.0, [1], _letters)
