from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lluda.inputs.text.speaking_parts import speaking_parts


@given(st.text(alphabet="ab .,\n。”", max_size=400), st.integers(min_value=2, max_value=50))
def test_nothing_is_lost_and_no_part_is_too_long(text: str, limit: int) -> None:
    parts = list(speaking_parts(text, limit))
    assert "".join(parts) == text
    assert all(0 < len(part) <= limit for part in parts)
    assert all(len(part) >= limit // 2 for part in parts[:-1])


@pytest.mark.parametrize(
    ("text", "limit", "parts"),
    [
        ("One two. Three four. Five", 21, ["One two. Three four. ", "Five"]),
        ("One two.\n\nThree. Four five six", 18, ["One two.\n\n", "Three. Four five ", "six"]),
        ("one, two and three of them", 14, ["one, two and ", "three of them"]),
        ("alpha, beta gamma", 12, ["alpha, ", "beta gamma"]),
        ("一二三。四五六。七", 8, ["一二三。四五六。", "七"]),
        ("x" * 25, 10, ["x" * 10, "x" * 10, "x" * 5]),
        ("", 10, []),
    ],
)
def test_it_is_cut_where_a_reader_pauses(text: str, limit: int, parts: list[str]) -> None:
    assert list(speaking_parts(text, limit)) == parts
