"""Finding added tokens, and escaping their spellings in a user's text."""

from __future__ import annotations

import random

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from lluda.inputs.text.added_tokens import AddedToken, AddedTokens
from tests.conftest import watchdog

MARK = "\ufdd0"
TOKENS = AddedTokens(
    [
        AddedToken(1, "<a>", special=True),
        AddedToken(2, "a>b", special=True),
        AddedToken(3, "<a><a>", special=False),
        AddedToken(4, "#", special=True),
        AddedToken(5, "<n>", special=False, normalized=True),
    ],
    str,
)
texts = st.lists(st.sampled_from(["<a>", "a>b", "<", "a", ">", "b", "#", "<n>", "n", " x"]), max_size=12).map("".join)


@given(texts)
def test_split_loses_nothing(text):
    pieces = list(TOKENS.split(text))
    assert "".join(TOKENS.by_id[piece].text if isinstance(piece, int) else piece for piece in pieces) == text
    assert "" not in pieces


def test_split_takes_the_leftmost_and_there_the_longest():
    assert list(TOKENS.split("x<a><a>b#")) == ["x", 3, "b", 4]
    assert list(TOKENS.split("<a>b")) == [1, "b"]
    assert list(TOKENS.split("<n")) == ["<n"]


@given(texts)
def test_a_escaped_text_has_no_token_and_keeps_its_characters(text):
    escaped = TOKENS.escape(text, MARK, special_only=False)
    assert "".join(TOKENS.split(escaped, MARK)).replace(MARK, "") == text


@given(st.lists(texts, max_size=4))
def test_escaped_texts_joined_still_have_no_token(parts):
    joined = "".join(TOKENS.escape(part, MARK, special_only=False) for part in parts)
    assert "".join(TOKENS.split(joined, MARK)).replace(MARK, "") == "".join(parts)


@given(texts, st.sampled_from([1, 2, 3, 4, 5]))
def test_tokens_around_a_escaped_text_keep_their_meaning(text, number):
    assume(text)  # two tokens side by side may be a third
    token = TOKENS.by_id[number].text
    pieces = list(TOKENS.split(token + TOKENS.escape(text, MARK, special_only=False) + token, MARK))
    assert pieces[0] == pieces[-1] == number
    assert "".join(pieces[1:-1]).replace(MARK, "") == text


@given(texts)
def test_special_only_leaves_just_the_others(text):
    found = {piece for piece in TOKENS.split(TOKENS.escape(text, MARK, special_only=True), MARK) if type(piece) is int}
    assert not found & TOKENS.special_ids


def test_ordinary_text_is_not_touched():
    assert TOKENS.escape("plain a > b, <b>", MARK, special_only=False) == "plain a > b, <b>"


@pytest.mark.parametrize("text", ["<think>", "a <think> b"])
def test_tokens_that_are_not_special_keep_their_meaning(text):
    tokens = AddedTokens([AddedToken(1, "<think>", special=False), AddedToken(2, "<|e|>", special=True)], str)
    assert tokens.escape(text, MARK, special_only=True) == text
    assert 1 in tokens.split(tokens.escape(text, MARK, special_only=True), MARK)


@given(st.sets(st.text("<|a!", min_size=1, max_size=6), min_size=1, max_size=8), st.text("<|a!b", max_size=40))
def test_of_several_spellings_the_leftmost_longest_is_found(texts, text):
    """Held against a search by hand: at each place the longest spelling that the text goes on with."""
    tokens = AddedTokens([AddedToken(number, one, special=True) for number, one in enumerate(sorted(texts))], str)
    expected, place, plain = [], 0, ""
    while place < len(text):
        here = max((one for one in texts if text.startswith(one, place)), key=len, default=None)
        if here is None:
            plain, place = plain + text[place], place + 1
            continue
        expected += [plain] * bool(plain) + [sorted(texts).index(here)]
        plain, place = "", place + len(here)
    assert list(tokens.split(text)) == expected + [plain] * bool(plain)


def test_thousands_of_long_added_tokens_do_not_take_long_to_prepare():
    """As many as are allowed, each of 500 characters (9 MB in a tokenizer.json): over 10 s when a pattern had to hold
    them all."""
    draw = random.Random(0)
    texts = ["".join(draw.choices("abcdef<|>", k=500)) + str(number) for number in range(2**14)]
    with watchdog(0.3):
        tokens = AddedTokens([AddedToken(number, text, special=True) for number, text in enumerate(texts)], str)
        found = list(tokens.split(f"a{texts[77]}b{texts[78][:-2]}"))
    assert found == ["a", 77, f"b{texts[78][:-2]}"]
