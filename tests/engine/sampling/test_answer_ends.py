"""Which tokens end an answer: each place that may name one does so alone, and all are taken together."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import lluda
from lluda.cli.main import main
from lluda.engine.sampling.answer_ends import AnswerEnds
from lluda.inputs.text.tokenizer import Tokenizer
from tests.cli.conftest import END, TEMPLATE, write_model
from tests.inputs.conftest import NOT_SPECIAL, SPECIAL, tiny_gguf, tiny_vocabulary

NO_END = "{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}assistant: "


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A checkpoint that names no end anywhere."""
    path = write_model(tmp_path_factory.mktemp("ends"), {"eos_token_id": None})
    write_config(path)
    return path


def write_config(folder: Path, **tokenizer_config: object) -> None:
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": NO_END} | tokenizer_config))


@pytest.fixture(autouse=True)
def _restored(folder):
    kept = {name: (folder / name).read_text() for name in ("config.json", "tokenizer_config.json")}
    yield
    for name, text in kept.items():
        (folder / name).write_text(text)
    (folder / "generation_config.json").unlink(missing_ok=True)


def load(folder: Path) -> lluda.Model:
    return lluda.load(folder, backend="reference")


def test_each_place_that_names_an_end_is_enough(folder):
    config = json.loads((folder / "config.json").read_text())
    places = {
        "config": lambda: (folder / "config.json").write_text(json.dumps(config | {"eos_token_id": END})),
        "generation": lambda: (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [END]})),
        "eos_token": lambda: write_config(folder, eos_token=SPECIAL),
        "template": lambda: write_config(folder, chat_template=TEMPLATE),
    }
    for place, write in places.items():
        write_config(folder)
        (folder / "config.json").write_text(json.dumps(config))
        (folder / "generation_config.json").unlink(missing_ok=True)
        write()
        ends = load(folder).ends
        assert ends.turn == (END,), place
        # A plain continuation has no turns: the template's word does not end it.
        assert ends.text == (() if place == "template" else (END,)), place


def test_ends_of_all_places_are_taken_together(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"eos_token_id": 3}))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [5, 3]}))
    write_config(folder, eos_token=NOT_SPECIAL, chat_template=TEMPLATE)
    model = load(folder)
    assert set(model.ends.text) == {3, 5, END + 1}
    assert set(model.ends.turn) == {3, 5, END + 1, END}
    assert SPECIAL in model.describe()
    assert model.warnings == ()


def test_a_fine_tune_whose_end_is_the_tokenizers_alone_stops(folder):
    """The end is a token that the model is known to write: the first of its answer that it has not written before."""
    free = load(folder)
    messages = [{"role": "user", "content": "hello"}]
    ids = free.chat(messages, max_tokens=12).token_ids
    place = next(index for index in range(2, 12) if ids[index] not in ids[:index])
    spelled = {number: text for text, number in tiny_vocabulary().items()}[ids[place]]
    write_config(folder, eos_token=spelled)
    ended = load(folder).chat(messages, max_tokens=12)
    assert ended.token_ids == ids[: place + 1]
    assert ended.finish_reason == "stop"
    assert load(folder).chat(messages, max_tokens=12, ignore_eos=True).token_ids == ids


def test_no_known_end_is_told_at_load(folder):
    model = load(folder)
    assert model.ends == AnswerEnds((), ())
    assert "no end of an answer known" in model.describe()
    assert any("no token is known to end an answer" in warning and "--stop-id" in warning for warning in model.warnings)


@pytest.mark.parametrize(
    ("changes", "ends"),
    [
        ({"eos_token_id": END}, {END}),
        ({"eot_token_id": END}, {END}),
        ({"eom_token_id": END + 1, "eos_token_id": 7}, {7, END + 1}),
        ({"eos_token_ids": [7, END]}, {7, END}),
        ({}, set()),
    ],
)
def test_a_gguf_names_its_ends_by_key(tmp_path, changes, ends):
    metadata = tiny_gguf(tokens=[*tiny_vocabulary(), "<|x|>", "<|y|>"], **changes)
    assert set(Tokenizer.from_gguf(metadata, tmp_path / "m.gguf").end_ids) == ends


def test_a_gguf_ends_at_well_known_spellings_even_where_they_are_marked_as_text(tmp_path):
    """As llama.cpp: <|im_end|> and its like end an answer, and are control tokens whatever token_type says."""
    tokens = [*tiny_vocabulary(), "<|im_end|>", "<|endoftext|>"]
    metadata = tiny_gguf(tokens=tokens, token_type=[1] * END + [1, 4], eos_token_id=END)
    read = Tokenizer.from_gguf(metadata, tmp_path / "m.gguf")
    assert set(read.end_ids) == {END, END + 1}
    assert read.special_ids == {END, END + 1}
    assert read.encode("<|im_end|>") == [END]


@pytest.mark.parametrize("template", [NO_END, None])
def test_a_gguf_made_of_a_folder_ends_where_the_folder_does(folder, tmp_path, template):
    """GGUF has one key for an end, and the folder four of them in three files."""
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"eos_token_id": 3}))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [5, 6]}))
    write_config(folder, eos_token=NOT_SPECIAL, chat_template=template)
    out = tmp_path / "m.gguf"
    assert main(["quantize", "-m", str(folder), "-o", str(out), "--type", "bf16"]) == 0
    # <|end|> is one of the spellings that end an answer in any GGUF file.
    assert set(load(out).ends.text) == {*load(folder).ends.text, END} == {3, 5, 6, END + 1, END}


def test_a_single_end_survives_beside_another_eos_token(folder, tmp_path):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"eos_token_id": 3}))
    write_config(folder, eos_token=NOT_SPECIAL)
    assert main(["quantize", "-m", str(folder), "-o", str(tmp_path / "m.gguf"), "--type", "bf16"]) == 0
    assert {3, END + 1} <= set(load(tmp_path / "m.gguf").ends.text)
