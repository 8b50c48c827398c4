"""Error messages can always be printed."""

from __future__ import annotations

from pathlib import Path

import pytest

from lluda.errors import CorruptFile, InvalidRequest, LludaError, ModelNotFound
from lluda.files.json_file import parse_json


@pytest.mark.parametrize(
    "error",
    [
        LludaError("a\ud800b"),
        InvalidRequest("a\udcffb"),
        ModelNotFound("no \udfff"),
        CorruptFile(Path("m\udcff.json"), "rule \ud800", found="\ud800", expected=["\ud800"]),
    ],
)
def test_half_a_surrogate_pair_in_a_message_becomes_an_escape(error):
    """Names of files that are not UTF-8, and texts of bad JSON, come as such; a terminal takes none."""
    assert "\\ud" in str(error).encode("utf-8").decode()


@pytest.mark.parametrize("text", [r'{"a": "\ud800"}', r'["x\uDFFF"]', r'{"\udc00": 1}', r'"\ud83d"'])
def test_half_a_surrogate_pair_in_json_is_refused(text):
    with pytest.raises(CorruptFile, match="half a surrogate pair"):
        parse_json(text.encode(), Path("x.json"))


@pytest.mark.parametrize(("text", "value"), [(r'"\ud83d\ude00"', "😀"), (r'"\\ud800"', r"\ud800"), (r'"\u00fc"', "ü")])
def test_whole_pairs_and_escaped_backslashes_are_text(text, value):
    assert parse_json(text.encode(), Path("x.json")) == value
