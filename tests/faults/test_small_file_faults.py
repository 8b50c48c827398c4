"""Small files whose values are of other kinds: each is read, or is one error of ours that can be printed.

The substitutions are drawn from a seed. Files of these kinds ended in tracebacks: a number of frames that was a text or
a list, normalizers that were a number, half a surrogate pair as an added token.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from lluda.config.reader import ConfigReader
from lluda.engine.sampling.sampling_params import SamplingParams
from lluda.engine.speech.speech_params import SpeechParams
from lluda.errors import LludaError
from lluda.inputs.chat.chat_template import ChatTemplate
from lluda.inputs.text.tokenizer import Tokenizer
from tests.conftest import watchdog
from tests.inputs.conftest import NOT_SPECIAL, SPECIAL, tiny_tokenizer_json, tiny_vocabulary

COUNT = len(tiny_vocabulary())
WRONG = [
    None,
    True,
    False,
    0,
    -1,
    7,
    10**30,
    0.5,
    1e-45,
    "",
    "x",
    "\ud800",
    "default",
    [],
    [[]],
    [None],
    {},
    {"": None},
]
STEP = {
    "type": "Sequence",
    "processors": [
        {"type": "ByteLevel"},
        {
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": SPECIAL, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "special_tokens": {SPECIAL: {"id": SPECIAL, "ids": [COUNT], "tokens": [SPECIAL]}},
        },
    ],
}
FILES: dict[str, Any] = {
    "tokenizer.json": tiny_tokenizer_json(
        normalizer={"type": "Sequence", "normalizers": [{"type": "NFC"}]}, post_processor=STEP
    ),
    "tokenizer_config.json": {
        "tokenizer_class": "Qwen2Tokenizer",
        "added_tokens_decoder": {str(COUNT): {"content": SPECIAL, "special": True}},
        "eos_token": {"content": SPECIAL, "lstrip": False},
        "pad_token": SPECIAL,
        "image_token": SPECIAL,
        "add_bos_token": True,
        "bos_token": SPECIAL,
        "extra_special_tokens": {"own_token": SPECIAL},
        "additional_special_tokens": [SPECIAL, {"content": SPECIAL}],
        "chat_template": [{"name": "default", "template": "{{ messages }}"}],
    },
    "special_tokens_map.json": {
        "eos_token": SPECIAL,
        "additional_special_tokens": [SPECIAL],
        "extra_special_tokens": {},
    },
    "added_tokens.json": {SPECIAL: COUNT, NOT_SPECIAL: COUNT + 1},
    "generation_config.json": {
        "eos_token_id": [1, 2],
        "do_sample": True,
        "temperature": 0.6,
        "top_k": 20,
        "top_p": 0.95,
        "min_p": 0.1,
        "repetition_penalty": 1.05,
        "max_new_tokens": 20,
        "max_length": 50,
        "min_new_tokens": 1,
        "stop_strings": ["a"],
        "suppress_tokens": [3],
        "begin_suppress_tokens": [4],
        "num_beams": 1,
        "bad_words_ids": [],
        "talker_max_new_tokens": 100,
        "talker_temperature": 0.9,
        "talker_top_k": 50,
        "talker_top_p": 1.0,
        "talker_repetition_penalty": 1.05,
    },
}


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where something stands in a JSON value; of a vocabulary the first few."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in list(items)[:30]:
        yield (*path, key)
        yield from places(child, (*path, key))


def changed(value: Any, path: tuple[Any, ...], new: Any, *, as_key: bool) -> Any:
    copy = json.loads(json.dumps(value))
    parent = copy
    for key in path[:-1]:
        parent = parent[key]
    if as_key and isinstance(parent, dict):
        parent[str(new)] = parent.pop(path[-1])
    else:
        parent[path[-1]] = new
    return copy


def mutations(name: str, count: int) -> Iterator[Any]:
    draw, found = random.Random(name), list(places(FILES[name]))
    for _ in range(count):
        yield changed(FILES[name], draw.choice(found), draw.choice(WRONG), as_key=draw.random() < 0.2)


def read_tokenizer(folder: Path) -> None:
    read = Tokenizer.from_folder(folder)
    text = f"hello{SPECIAL}wörld"
    assert read.decode(read.encode(text), skip_special=False) == text
    ChatTemplate.from_folder(folder)


def read_generation_config(folder: Path) -> None:
    raw = json.loads((folder / "generation_config.json").read_text())
    SamplingParams().with_defaults(raw)
    SpeechParams().with_defaults(raw)
    ConfigReader(raw, "generation_config.json").token_ids("eos_token_id")


def fill(folder: Path, name: str) -> Callable[[Path], None]:
    """The other files that ``name`` is read beside, and what reads them."""
    if name == "generation_config.json":
        return read_generation_config
    if name == "tokenizer.json":
        return read_tokenizer
    (folder / "vocab.json").write_text(json.dumps(tiny_vocabulary()))
    (folder / "merges.txt").write_text("#version: 0.2\nh e\nl l\nhe ll\nĠ w\n", "utf-8")
    if name != "tokenizer_config.json":
        (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "Qwen2Tokenizer"}))
        (folder / "added_tokens.json").write_text(json.dumps(FILES["added_tokens.json"]))
    return read_tokenizer


@pytest.mark.parametrize("name", FILES)
def test_any_value_of_another_kind_is_read_or_refused_in_words_that_can_be_printed(tmp_path, name):
    read, refused = fill(tmp_path, name), 0
    (tmp_path / name).write_text(json.dumps(FILES[name]))
    read(tmp_path)  # the file that the others are made of is good
    with watchdog(1):
        for value in mutations(name, 120):
            (tmp_path / name).write_text(json.dumps(value))
            try:
                read(tmp_path)
            except LludaError as error:
                refused += 1
                assert "\n" not in str(error)
                assert str(error).encode("utf-8")
    assert refused > 20


def test_many_lines_of_merges_are_refused_before_a_text_is_made_of_each(tmp_path):
    import tracemalloc

    fill(tmp_path, "tokenizer_config.json")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "Qwen2Tokenizer"}))
    (tmp_path / "merges.txt").write_bytes(b"h e\n" * 4_000_000)  # 16 MB
    tracemalloc.start()
    try:
        with pytest.raises(LludaError, match="too many merges"):
            Tokenizer.from_folder(tmp_path)
        assert tracemalloc.get_traced_memory()[1] < 10 * 16_000_000
    finally:
        tracemalloc.stop()
