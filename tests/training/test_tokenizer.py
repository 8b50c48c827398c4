"""The tiny model's tokenizer: lluda's and transformers' readings of its files, and the template's words."""

import json
from pathlib import Path
from random import Random

import pytest
from transformers import AutoTokenizer

from lluda.inputs.text.tokenizer import Tokenizer
from training import tokenizer as trainer
from training.world import sample


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.from_folder(trainer.FOLDER)


@pytest.mark.parametrize("word", ["system", "user", "assistant", "\n"])
def test_the_template_s_words_are_one_token_each(tokenizer, word):
    assert len(tokenizer.encode(word)) == 1


def test_added_tokens_keep_their_released_order_and_distance(tokenizer):
    # Released tokenizer_config.json: <|endoftext|> 151643, <|im_start|> 151644, ... <|audio_pad|> 151675.
    expected = {
        "<|endoftext|>": 704,
        "<|im_start|>": 705,
        "<|im_end|>": 706,
        "<|audio_start|>": 730,
        "<|audio_pad|>": 736,
    }
    assert {text: tokenizer.id_of(text) for text in expected} == expected
    assert tokenizer.vocab_size == 737


def test_transformers_reads_the_same_ids(tokenizer):
    other = AutoTokenizer.from_pretrained(str(trainer.FOLDER))
    rng = Random(5)
    texts = ["Grüße, naïve café 42 – \n\n x  y\t", "日本語 🙂", "a\r\n b"]
    texts += [text for _ in range(100) for turn in sample("test", rng).turns for text in (turn.question, turn.answer)]
    for text in texts:
        ids = list(tokenizer.encode(text))
        assert other.encode(text, add_special_tokens=False) == ids
        assert tokenizer.decode(ids) == text


def test_answers_of_the_world_are_short(tokenizer):
    # One token is fed per frame of 80 ms and speech runs at about 4 tokens a second at 3 characters a token.
    rng = Random(6)
    answers = [turn.answer for _ in range(500) for turn in sample("test", rng).turns]
    tokens = [len(tokenizer.encode(answer)) for answer in answers]
    assert max(tokens) <= 40
    assert sum(tokens) / sum(map(len, answers)) < 1 / 2.8


def test_the_config_moves_added_tokens_and_keeps_all_else():
    released = {"added_tokens_decoder": {"12": {"content": "b"}, "9": {"content": "a"}}, "eos_token": "a"}
    assert trainer.tiny_config(released) == {
        "added_tokens_decoder": {"704": {"content": "a"}, "705": {"content": "b"}},
        "eos_token": "a",
    }


def test_written_files_are_a_tokenizer(tmp_path, monkeypatch):
    monkeypatch.setattr(trainer, "_CONVERSATIONS", 3000)
    released = tmp_path / "released"
    released.mkdir()
    for name in ("tokenizer_config.json", "chat_template.json"):
        (released / name).write_bytes((trainer.FOLDER / name).read_bytes())
    trainer.write_files(released, tmp_path / "tiny")
    vocabulary = json.loads(Path(tmp_path / "tiny" / "vocab.json").read_text(encoding="utf-8"))
    assert sorted(vocabulary.values()) == list(range(704))
    assert Tokenizer.from_folder(tmp_path / "tiny").vocab_size == 737
