"""Which files of a model folder decide its tokens; each layout compared with transformers' reading of the folder."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from lluda.errors import CorruptFile, UnsupportedModel
from lluda.inputs.text.special_tokens import read_special_tokens
from lluda.inputs.text.tokenizer import Tokenizer
from tests.inputs.conftest import NOT_SPECIAL, SPECIAL, tiny_vocabulary, write_tiny

COUNT = len(tiny_vocabulary())
TEXT = f"hello{SPECIAL} w{NOT_SPECIAL}hell<|pad|>é"
ADDED = {SPECIAL: COUNT, NOT_SPECIAL: COUNT + 1, "<|pad|>": COUNT + 2}
MAP = {"eos_token": {"content": SPECIAL, "lstrip": False, "normalized": False, "rstrip": False, "single_word": False}}
DECODER = {str(number): {"content": text, "special": text != NOT_SPECIAL} for text, number in ADDED.items()}


def write_qwen(folder: Path, **documents: object) -> Path:
    """The tiny vocabulary as the Qwen2 family has it; ``documents`` are JSON files by the stem of their names."""
    (folder / "vocab.json").write_text(json.dumps(tiny_vocabulary()))
    (folder / "merges.txt").write_text("#version: 0.2\nh e\nl l\nhe ll\nĠ w\nÃ ©\n", encoding="utf-8")
    found = {"tokenizer_config": {"tokenizer_class": "Qwen2Tokenizer", "unk_token": SPECIAL, "pad_token": SPECIAL}}
    for stem, document in (found | documents).items():
        (folder / f"{stem}.json").write_text(json.dumps(document))
    return folder


def config(**changes: object) -> dict[str, object]:
    """A tokenizer_config.json. Its unk_token and pad_token keep transformers from adding one of its own."""
    return {"tokenizer_class": "Qwen2Tokenizer", "unk_token": SPECIAL, "pad_token": SPECIAL} | changes


LAYOUTS = {
    "added_tokens.json and special_tokens_map.json": {"added_tokens": ADDED, "special_tokens_map": MAP},
    "added_tokens.json and names in tokenizer_config": {
        "added_tokens": ADDED,
        "tokenizer_config": config(eos_token=SPECIAL, extra_special_tokens=["<|pad|>"]),
    },
    "additional_special_tokens": {
        "added_tokens": ADDED,
        "tokenizer_config": config(eos_token=SPECIAL, additional_special_tokens=["<|pad|>"]),
    },
    "the map outranks tokenizer_config": {
        "added_tokens": ADDED,
        "tokenizer_config": config(eos_token=NOT_SPECIAL),
        "special_tokens_map": MAP,
    },
    "added_tokens_decoder": {"tokenizer_config": config(added_tokens_decoder=DECODER, eos_token=SPECIAL)},
    "added_tokens_decoder alone, with older files beside it": {
        "tokenizer_config": config(added_tokens_decoder=DECODER, eos_token="<|pad|>"),
        "added_tokens": {"<|other|>": COUNT + 3},
        "special_tokens_map": MAP,
    },
    "a special flag that is missing": {
        "tokenizer_config": config(
            added_tokens_decoder={key: {"content": one["content"]} for key, one in DECODER.items()}, eos_token=SPECIAL
        )
    },
}


@pytest.mark.parametrize("documents", LAYOUTS.values(), ids=LAYOUTS.keys())
def test_added_and_special_tokens_are_those_of_transformers(tmp_path, documents):
    transformers = pytest.importorskip("transformers")
    write_qwen(tmp_path, **documents)
    read, theirs = Tokenizer.from_folder(tmp_path), transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert read.encode(TEXT) == theirs.encode(TEXT, add_special_tokens=False)
    assert {text: token.id for text, token in read.added_tokens.by_text.items()} == theirs.get_added_vocab()
    # transformers has both a flag of added tokens and lists of names; here one that either calls special is.
    flagged = {number for number, token in theirs.added_tokens_decoder.items() if token.special}
    assert read.special_ids == flagged | set(theirs.all_special_ids)
    named = {name: text for name, text in read_special_tokens(tmp_path).named.items() if name != "eos_token"}
    assert named.items() <= theirs.special_tokens_map.items()
    assert read_special_tokens(tmp_path).named.get("eos_token", theirs.eos_token) == theirs.eos_token


def test_the_released_tokenizer_in_the_old_layout_gives_the_released_ids(qwen, qwen_folder, tmp_path):
    """As Qwen's repositories were before added_tokens_decoder: the ids are those of the released file's decoder."""
    raw = json.loads((qwen_folder / "tokenizer_config.json").read_text())
    decoder = raw.pop("added_tokens_decoder")
    for name in ("vocab.json", "merges.txt"):
        shutil.copy(qwen_folder / name, tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(raw))
    (tmp_path / "added_tokens.json").write_text(json.dumps({one["content"]: int(key) for key, one in decoder.items()}))
    read = Tokenizer.from_folder(tmp_path)
    text = "<|im_start|>user\nhé 12<|im_end|><think>"
    assert read.encode(text) == qwen.encode(text)
    assert read.id_of("<|im_start|>") == 151_644  # SPECIAL_IDS.json
    assert read.id_of("<|im_end|>") in read.special_ids  # the eos_token
    assert read.vocab_size == qwen.vocab_size


def test_added_tokens_json_beside_a_tokenizer_json_without_them(tmp_path):
    write_tiny(tmp_path, added_tokens=[])
    (tmp_path / "added_tokens.json").write_text(json.dumps(ADDED))
    read = Tokenizer.from_folder(tmp_path)
    assert read.encode(TEXT).count(ADDED[SPECIAL]) == 1
    assert read.vocab_size == COUNT + 3


def test_a_special_token_of_the_ordinary_vocabulary_is_found_by_its_spelling(tmp_path):
    """transformers adds each named special token; one that stands in the vocabulary keeps its id there."""
    transformers = pytest.importorskip("transformers")
    write_qwen(tmp_path, tokenizer_config=config(eos_token=SPECIAL))
    (tmp_path / "vocab.json").write_text(json.dumps(tiny_vocabulary() | {SPECIAL: COUNT}))
    read, theirs = Tokenizer.from_folder(tmp_path), transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert read.encode(f"he{SPECIAL}") == [read.id_of("he"), COUNT] == theirs.encode(f"he{SPECIAL}")
    assert COUNT not in read.encode(SPECIAL, allow_special=False)


def test_a_pad_token_that_is_a_letter_or_a_merge_stays_ordinary_text(tmp_path):
    for text in ("!", "he"):
        read = Tokenizer.from_folder(write_qwen(tmp_path, tokenizer_config=config(pad_token=text)))
        assert read.decode([read.id_of(text)]) == text
        assert read.encode(text, allow_special=False) == [read.id_of(text)]


def test_a_name_without_a_number_is_no_token(tmp_path):
    read = Tokenizer.from_folder(write_qwen(tmp_path, tokenizer_config=config(eos_token="<|nowhere|>")))
    assert read.id_of("<|nowhere|>") is None
    assert read.vocab_size == COUNT


def test_without_a_tokenizer_config_the_models_type_says_the_class(tmp_path):
    write_qwen(tmp_path, added_tokens=ADDED, special_tokens_map=MAP, config={"model_type": "qwen3"})
    (tmp_path / "tokenizer_config.json").unlink()
    assert Tokenizer.from_folder(tmp_path).encode(SPECIAL) == [COUNT]
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    with pytest.raises(UnsupportedModel, match="tokenizer_class None"):
        Tokenizer.from_folder(tmp_path)


@pytest.mark.parametrize("transformed", ["carriage returns", "byte order mark", "no version", "no last line end"])
def test_merges_txt_as_other_systems_write_it(tmp_path, transformed):
    path = write_qwen(tmp_path) / "merges.txt"
    plain = path.read_bytes()
    good = Tokenizer.from_folder(tmp_path).encode("hello wé")
    content = {
        "carriage returns": plain.replace(b"\n", b"\r\n"),
        "byte order mark": b"\xef\xbb\xbf" + plain,
        "no version": plain.split(b"\n", 1)[1],
        "no last line end": plain.rstrip(b"\n"),
    }[transformed]
    path.write_bytes(content)
    (tmp_path / "vocab.json").write_bytes((tmp_path / "vocab.json").read_bytes().replace(b", ", b",\r\n"))
    assert Tokenizer.from_folder(tmp_path).encode("hello wé") == good


def test_files_that_transformers_saves_today_are_read(qwen, transformers_qwen, tmp_path):
    """save_pretrained of the installed transformers: tokenizer.json and tokenizer_config.json, no decoder in it."""
    transformers_qwen.save_pretrained(tmp_path)
    assert "added_tokens_decoder" not in json.loads((tmp_path / "tokenizer_config.json").read_text())
    read = Tokenizer.from_folder(tmp_path)
    assert read.special_ids == qwen.special_ids
    assert read.added_tokens.by_id.keys() == qwen.added_tokens.by_id.keys()
    assert read_special_tokens(tmp_path).named == transformers_qwen.special_tokens_map


STRANGE = {
    "the map is a list": ("special_tokens_map", [], "must be an object"),
    "eos_token is a number": ("special_tokens_map", {"eos_token": 5}, "eos_token must be a text"),
    "eos_token without content": ("special_tokens_map", {"eos_token": {}}, "eos_token must be a text"),
    "extra tokens are a text": ("special_tokens_map", {"additional_special_tokens": "<a>"}, "must be a list of tokens"),
    "an extra token is a number": ("special_tokens_map", {"extra_special_tokens": [7]}, "must be a text"),
    "an id is a text": ("added_tokens", {"<a>": "7"}, "integer id"),
    "an id is true": ("added_tokens", {"<a>": True}, "integer id"),
    "an id is negative": ("added_tokens", {"<a>": -1}, "must be an integer from 0"),
    "an id is taken": ("added_tokens", {"<a>": 3}, "the id 3 is given twice"),
    "a gap": ("added_tokens", {"<a>": COUNT + 9}, "no token has the id"),
}


@pytest.mark.parametrize(("stem", "document", "rule"), STRANGE.values(), ids=STRANGE.keys())
def test_a_file_of_another_form_is_named(tmp_path, stem, document, rule):
    write_qwen(tmp_path, **{stem: document})
    with pytest.raises(CorruptFile, match=rule) as caught:
        Tokenizer.from_folder(tmp_path)
    assert str(tmp_path) in str(caught.value)
