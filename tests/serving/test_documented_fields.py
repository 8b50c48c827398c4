"""docs/serving.md names every field that a body may have."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from lluda.serving.wire.audio import SpeechBody, TranscriptionForm
from lluda.serving.wire.chat import ChatBody
from lluda.serving.wire.completions import CompletionBody
from lluda.serving.wire.responses import ResponseBody
from lluda.serving.wire.sampling import Sampling
from lluda.serving.wire.wire_model import IGNORED, WireModel

DOCUMENT = Path(__file__).parents[2] / "docs/serving.md"
SECTIONS = {
    "## Chat": ChatBody,
    "## Continuations": CompletionBody,
    "## Responses": ResponseBody,
    "## Speech": SpeechBody,
    "## Recordings": TranscriptionForm,
}


@pytest.mark.parametrize("heading", SECTIONS)
def test_every_field_is_named_in_its_section(heading: str) -> None:
    section = DOCUMENT.read_text().split(f"\n{heading}", 1)[1].split("\n## ", 1)[0]
    body: type[WireModel] = SECTIONS[heading]
    fields = set(body.model_fields) - {"model"}
    if heading == "## Continuations":
        fields -= set(Sampling.model_fields) - {"n", "max_tokens"}  # "as in chat"
    named = {name for quoted in re.findall(r"`([^`]+)`", section) for name in re.findall(r"\w+", quoted)}
    missing = sorted(fields - named)
    assert not missing


def test_ignored_fields_are_named() -> None:
    text = DOCUMENT.read_text()
    assert not [name for name in sorted(IGNORED) if f"`{name}`" not in text]
