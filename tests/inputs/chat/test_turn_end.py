"""The token that ends an assistant's turn, as the chat template writes it."""

from __future__ import annotations

from pathlib import Path

import pytest

from lluda.inputs.chat.chat_template import ChatTemplate
from lluda.inputs.chat.turn_end import turn_end
from tests.inputs.conftest import NOT_SPECIAL, SPECIAL


@pytest.mark.parametrize(
    ("after", "expected"),
    [
        (SPECIAL, SPECIAL),
        ("\n" + SPECIAL, SPECIAL),
        (NOT_SPECIAL + SPECIAL, NOT_SPECIAL),
        ("", None),
        ("\nEnd." + SPECIAL, None),
        ("{{ raise_exception('no') }}", None),
    ],
)
def test_the_token_that_a_template_writes_after_the_assistants_words(tiny, after, expected):
    source = "{% for m in messages %}[{{ m.role }}]{{ m.content }}" + after + "{% endfor %}"
    found = turn_end(tiny, ChatTemplate(source, Path("t")))
    assert found == (None if expected is None else tiny.id_of(expected))


def test_the_released_templates_end_a_turn_with_im_end(qwen, qwen_template, smollm, smollm2, smollm2_metadata):
    assert turn_end(qwen, qwen_template) == qwen.id_of("<|im_end|>")
    assert turn_end(smollm, ChatTemplate.from_gguf(smollm2_metadata, smollm2)) == smollm.id_of("<|im_end|>")
