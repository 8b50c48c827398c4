"""A18: tokenizer files that are corrupt. Each is a CorruptFile that names the file, and no library's own words show."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lluda.errors import CorruptFile, LludaError, ModelNotFound, UnsupportedModel
from lluda.inputs.text.tokenizer import Tokenizer
from tests.conftest import watchdog
from tests.inputs.conftest import NOT_SPECIAL, SPECIAL, tiny_gguf, tiny_tokenizer_json, tiny_vocabulary, write_tiny

COUNT = len(tiny_vocabulary())
FLAGS = {"special": True, "normalized": False}


def model(**changes):
    return {"model": tiny_tokenizer_json()["model"] | changes}


def vocabulary(**changes):
    return model(vocab={key: value for key, value in (tiny_vocabulary() | changes).items() if value is not None})


def added(*tokens):
    return {"added_tokens": [{"id": number, "content": text, **FLAGS} for number, text in tokens]}


def assert_is_clear(error: LludaError, *names: str) -> None:
    message = str(error)
    assert "\n" not in message
    assert len(message) < 600
    message.encode()  # it can be printed
    assert not re.search(r"Traceback|panicked|0x[0-9a-f]{6,}|Error while|untagged", message)
    assert all(name in message for name in names), message


BROKEN_JSON = {
    "empty": b"",
    "no JSON": b"{]",
    "an array": b"[]",
    "not UTF-8": b'{"model": "\xff"}',
    "byte order mark": b"\xef\xbb\xbf{}",
    "deep": b'{"a":' * 100_000,
    "a key twice": b'{"model": {}, "model": {}}',
    "a long number": b'{"model": ' + b"9" * 10_000 + b"}",
    "of the wrong types": b'{"tokenizer_class": "Qwen2Tokenizer", "model": [], "added_tokens_decoder": [], "a": "b"}',
    "a page of an error": b"<!DOCTYPE html><html></html>",
}


@pytest.mark.parametrize("content", BROKEN_JSON.values(), ids=BROKEN_JSON.keys())
@pytest.mark.parametrize("name", ["tokenizer.json", "vocab.json", "tokenizer_config.json"])
def test_a18_broken_json(tmp_path, name, content):
    write_qwen(tmp_path)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CorruptFile) as caught:
        Tokenizer.from_folder(tmp_path)
    assert_is_clear(caught.value, str(tmp_path))


def start_of(number, times=1):
    """A post-processor that starts every text with the id ``number``."""
    special = {"<s>": {"id": "<s>", "ids": [number] * times, "tokens": ["<s>"]}}
    return {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "<s>"}}], "special_tokens": special}


STRANGE_START = {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "<s>"}}], "special_tokens": {}}

BROKEN_CONTENT = {
    "no vocab": (model(vocab=None), "vocab must be an object"),
    "vocab is a list": (model(vocab=[]), "vocab must be an object"),
    "empty vocab": (model(vocab={}), "no tokens"),
    "no merges": (model(merges=None), "merges must be an array"),
    "id twice": (vocabulary(h=0), "the id 0 is given twice"),
    "id gap": (vocabulary(hell=COUNT + 2), rf"no token has the id {COUNT - 5}"),
    "negative id": (vocabulary(h=-1), "must be an integer from 0"),
    "huge id": (vocabulary(h=10**30), "must be an integer from 0"),
    "id is text": (vocabulary(h="7"), "must be an integer from 0"),
    "id is true": (vocabulary(h=True), "must be an integer from 0"),
    "id is a float": (vocabulary(h=7.0), "must be an integer from 0"),
    "token without text": (vocabulary(**{"": COUNT + 2}), "one without text"),
    "not byte letters": (vocabulary(**{"a b": COUNT + 2}), "'a b' is not written in byte-level letters"),
    "no letter for the space": (vocabulary(**{"Ġ": None, "xy": tiny_vocabulary()["Ġ"]}), "the single letter '.u0120'"),
    "merge of unknown parts": (model(merges=[["h", "e"], ["zz", "x"]]), "merge 2 .*'zz' is not in the vocabulary"),
    "merge to unknown token": (model(merges=[["h", "x"]]), "merge 1 .*'hx' is not in the vocabulary"),
    "merge of three": (model(merges=["h e l"]), "merge 1 is not two tokens"),
    "merge of one": (model(merges=["h"]), "merge 1 is not two tokens"),
    "merge of a number": (model(merges=[7]), "merge 1 is not two tokens"),
    "merge with nothing": (model(merges=[["h", ""]]), "merge 1 is not two tokens"),
    "a million merges": (model(merges=["h e"] * 10**6), "too many merges .expected at most 524288, found 1000000"),
    "added id twice": (added((COUNT, "<a>"), (COUNT, "<b>")), f"added token id {COUNT} is given twice"),
    "added text twice": (added((COUNT, "<a>"), (COUNT + 1, "<a>")), "'<a>' has two ids"),
    "added on another's id": (added((5, "<a>")), "the id 5 is given twice"),
    "added with another id": (added((COUNT, "he")), "'he' has two ids"),
    "added gap": (added((COUNT + 9, "<a>")), f"no token has the id {COUNT}"),
    "added is made by a merge": (added((tiny_vocabulary()["he"], "he")), "merge 1 .*'he' is an added token"),
    "added without text": (added((COUNT, "")), "has no text"),
    "added is long": (added((COUNT, "a" * 100_000)), "too long .expected at most 512, found 100000 characters"),
    "added are many": (added(*((COUNT + i, f"<{i}>") for i in range(20_000))), "too many added .* found 20000"),
    "added without id": ({"added_tokens": [{"content": "<a>"}]}, "integer id and a text"),
    "added is a number": ({"added_tokens": [7]}, "integer id and a text"),
    "added is an object": ({"added_tokens": {}}, "added_tokens must be an array"),
    "no pre_tokenizer type": ({"pre_tokenizer": {"pattern": "x"}}, "pre_tokenizer is neither"),
    "pre_tokenizer missing": ({"pre_tokenizer": None}, "pre_tokenizer is neither"),
    "post_processor of an unknown token": ({"post_processor": STRANGE_START}, "not among its special_tokens"),
    "post_processor of an id outside": ({"post_processor": start_of(65536)}, "an id that no token has .*found 65536"),
    "post_processor of a negative id": ({"post_processor": start_of(-1)}, "an id that no token has"),
    "post_processor of true": ({"post_processor": start_of(True)}, "not among its special_tokens"),
    "post_processor is a number": ({"post_processor": 5}, "post_processor is neither"),
    "post_processor of many ids": ({"post_processor": start_of(3, 100)}, "too many ids before a text"),
    "processors are a number": ({"post_processor": {"type": "Sequence", "processors": 5}}, "post_processor is neither"),
    "normalizer is a text": ({"normalizer": "NFC"}, "normalizer is neither"),
    "normalizers are a number": ({"normalizer": {"type": "Sequence", "normalizers": 5}}, "normalizer is neither"),
    "normalizers are numbers": ({"normalizer": {"type": "Sequence", "normalizers": [5]}}, "normalizer is neither"),
    "special is a text": ({"added_tokens": [{"id": COUNT, "content": "<a>", "special": "no"}]}, "special must be true"),
    "normalized is 1": ({"added_tokens": [{"id": COUNT, "content": "<a>", "normalized": 1}]}, "normalized must be"),
    "ignore_merges is a text": (model(ignore_merges="yes"), "ignore_merges must be true"),
    "half a surrogate pair in an added token": (added((COUNT, "\ud800")), r"half a surrogate pair .found .ud800"),
    "half a surrogate pair in a type": ({"decoder": {"type": "\udfff"}}, r"half a surrogate pair .found .udfff"),
    "half a surrogate pair as a key": ({"\udc00": 1}, r"half a surrogate pair .found .udc00"),
}


@pytest.mark.parametrize(("changes", "rule"), BROKEN_CONTENT.values(), ids=BROKEN_CONTENT.keys())
def test_a18_broken_tokenizer_json(tmp_path, changes, rule):
    write_tiny(tmp_path, **changes)
    with watchdog(5), pytest.raises(CorruptFile, match=rule) as caught:
        Tokenizer.from_folder(tmp_path)
    assert_is_clear(caught.value, str(tmp_path / "tokenizer.json"))


UNSUPPORTED = {
    "unigram": (model(type="Unigram", vocab=[["<unk>", 0.0], ["▁a", -2.5]]), "Unigram"),
    "sentencepiece decoder": ({"decoder": {"type": "Metaspace"}}, "Metaspace"),
    "no decoder": ({"decoder": None}, "only byte-level BPE"),
    "normaliser": ({"normalizer": {"type": "Lowercase"}}, "NFC"),
    "normalisers": ({"normalizer": {"type": "Sequence", "normalizers": [{"type": "NFC"}, {"type": "Strip"}]}}, "Strip"),
    "dropout": (model(dropout=0.1), "dropout"),
    "word suffix": (model(end_of_word_suffix="</w>"), "end_of_word_suffix"),
    "stripping token": ({"added_tokens": [{"id": COUNT, "content": "<a>", "lstrip": True}]}, "lstrip"),
    "whole-word token": ({"added_tokens": [{"id": COUNT, "content": "<a>", "single_word": True}]}, "single_word"),
    "prefix space": ({"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": True}}, "ByteLevel"),
    "unknown step": ({"pre_tokenizer": {"type": "Whitespace"}}, "Whitespace"),
    "many steps": ({"pre_tokenizer": {"type": "Sequence", "pretokenizers": [{"type": "Many"}] * 9999}}, "Many, Many"),
}


@pytest.mark.parametrize(("changes", "name"), UNSUPPORTED.values(), ids=UNSUPPORTED.keys())
def test_a18_another_kind_of_tokenizer_is_refused_by_name(tmp_path, changes, name):
    write_tiny(tmp_path, **changes)
    with pytest.raises(UnsupportedModel, match=name) as caught:
        Tokenizer.from_folder(tmp_path)
    assert_is_clear(caught.value, str(tmp_path / "tokenizer.json"))


def write_qwen(folder: Path, **config) -> Path:
    """The three files of the Qwen2 family."""
    decoder = {str(COUNT): {"content": SPECIAL, **FLAGS}, str(COUNT + 1): {"content": NOT_SPECIAL}}
    found = {"tokenizer_class": "Qwen2Tokenizer", "added_tokens_decoder": decoder} | config
    (folder / "tokenizer_config.json").write_text(json.dumps(found))
    (folder / "vocab.json").write_text(json.dumps(tiny_vocabulary()))
    (folder / "merges.txt").write_text("#version: 0.2\nh e\nl l\nhe ll\nĠ w\n", encoding="utf-8")
    return folder


def test_a18_the_files_that_the_faults_below_are_made_from_are_good(tmp_path):
    read = Tokenizer.from_folder(write_qwen(tmp_path))
    assert read.decode(read.encode(f"hello w{SPECIAL}{NOT_SPECIAL}")) == f"hello w{NOT_SPECIAL}"
    assert read.encode("hell") == [read.id_of("hell")]


BROKEN_MERGES = {
    "a line of one": ("h e\nhe\n", "merge 2 is not two tokens"),
    "an empty line": ("h e\n\nl l\n", "merge 2 is not two tokens"),
    "a line of three": ("h e l\n", "merge 1 is not two tokens"),
    "unknown parts": ("q qq\n", "merge 1 .*'qq' is not in the vocabulary"),
    "a million lines": ("h e\n" * 10**6, "too many merges"),
    "not UTF-8": (b"h \xff\n", "not UTF-8"),
}


@pytest.mark.parametrize(("content", "rule"), BROKEN_MERGES.values(), ids=BROKEN_MERGES.keys())
def test_a18_broken_merges_txt(tmp_path, content, rule):
    write_qwen(tmp_path)
    (tmp_path / "merges.txt").write_bytes(content if isinstance(content, bytes) else content.encode())
    with watchdog(5), pytest.raises(CorruptFile, match=rule) as caught:
        Tokenizer.from_folder(tmp_path)
    assert_is_clear(caught.value, str(tmp_path / "merges.txt"))


BROKEN_DECODERS = {
    "no object": ([], "added_tokens_decoder must be an object"),
    "id is text": ({"x": {"content": "<a>"}}, "must map ids to tokens"),
    "id is negative": ({"-1": {"content": "<a>"}}, "must map ids to tokens"),
    "id of another script": ({"٣": {"content": "<a>"}}, "must map ids to tokens"),
    "huge id": ({"9" * 40: {"content": "<a>"}}, "must map ids to tokens"),
    "token is text": ({str(COUNT): "<a>"}, "must map ids to tokens"),
    "one text, two ids": ({str(COUNT): {"content": "<a>"}, str(COUNT + 1): {"content": "<a>"}}, "has two ids"),
    "one id written twice": ({"7": {"content": "<a>"}, "07": {"content": "<b>"}}, "id 7 is given twice"),
}


@pytest.mark.parametrize(("decoder", "rule"), BROKEN_DECODERS.values(), ids=BROKEN_DECODERS.keys())
def test_a18_broken_added_tokens_of_tokenizer_config(tmp_path, decoder, rule):
    write_qwen(tmp_path, added_tokens_decoder=decoder)
    with pytest.raises(CorruptFile, match=rule) as caught:
        Tokenizer.from_folder(tmp_path)
    assert_is_clear(caught.value, str(tmp_path / "tokenizer_config.json"))


def test_a18_tokenizer_json_and_tokenizer_config_that_disagree(tmp_path):
    write_qwen(tmp_path, added_tokens_decoder={str(COUNT): {"content": "<other>"}})
    write_tiny(tmp_path)
    with pytest.raises(CorruptFile, match=f"id {COUNT} is given twice"):
        Tokenizer.from_folder(tmp_path)


def test_a18_a_space_before_every_text_is_refused(tmp_path):
    with pytest.raises(UnsupportedModel, match="add_prefix_space true is not implemented"):
        Tokenizer.from_folder(write_qwen(tmp_path, add_prefix_space=True))


def test_a18_another_tokenizer_class_is_refused_by_name(tmp_path):
    with pytest.raises(UnsupportedModel, match="'LlamaTokenizer'"):
        Tokenizer.from_folder(write_qwen(tmp_path, tokenizer_class="LlamaTokenizer"))


@pytest.mark.parametrize("left", [(), ("vocab.json",), ("merges.txt", "tokenizer_config.json")])
def test_a18_files_missing(tmp_path, left):
    write_qwen(tmp_path)
    for name in {"vocab.json", "merges.txt", "tokenizer_config.json"} - set(left):
        (tmp_path / name).unlink()
    with pytest.raises(ModelNotFound, match="no tokenizer"):
        Tokenizer.from_folder(tmp_path)


def test_a18_a_pipe_in_place_of_a_file_is_not_waited_for(tmp_path):
    import os

    write_qwen(tmp_path)
    (tmp_path / "merges.txt").unlink()
    os.mkfifo(tmp_path / "merges.txt")
    with pytest.raises(CorruptFile, match=r"merges\.txt"):
        Tokenizer.from_folder(tmp_path)


BROKEN_GGUF = {
    "no tokenizer": ({"model": None}, "tokenizer.ggml.model is missing"),
    "no tokens": ({"tokens": None}, "tokens must be an array of strings"),
    "tokens are numbers": ({"tokens": [1, 2]}, "tokens must be an array of strings"),
    "no types": ({"token_type": None}, "token_type is missing"),
    "types are text": ({"token_type": ["1"]}, "token_type must be an array of integers"),
    "types are no list": ({"token_type": 1}, "token_type must be an array of integers"),
    "too few types": ({"token_type": [1, 1]}, "equally long"),
    "unknown type": ({"token_type": [9] * (COUNT + 2)}, "token_type of token 0 must be 1 to 5"),
    "no merges": ({"merges": None}, "merges must be an array of strings"),
    "bad merge": ({"merges": ["h  e"]}, "merge 1 is not two tokens"),
    "unknown merge": ({"merges": ["zz x"]}, "'zz' is not in the vocabulary"),
    "a token twice": ({"tokens": [*tiny_vocabulary(), "h", "<b>"], "token_type": [1] * (COUNT + 2)}, "'h' has two ids"),
    "an added token twice": (
        {"tokens": [*tiny_vocabulary(), "<a>", "<a>"], "token_type": [1] * COUNT + [3, 3]},
        "'<a>' has two ids",
    ),
    "bos outside": ({"add_bos_token": True, "bos_token_id": 10**6}, "bos_token_id must be an id below"),
    "all unused": ({"token_type": [5] * (COUNT + 2)}, "no tokens"),
}


@pytest.mark.parametrize(("changes", "rule"), BROKEN_GGUF.values(), ids=BROKEN_GGUF.keys())
def test_a18_broken_gguf_tokenizer(tmp_path, changes, rule):
    with pytest.raises(CorruptFile, match=rule) as caught:
        Tokenizer.from_gguf(tiny_gguf(**changes), tmp_path / "model.gguf")
    assert_is_clear(caught.value, str(tmp_path / "model.gguf"))


@pytest.mark.parametrize(
    ("changes", "name"),
    [({"model": "llama"}, "'llama'"), ({"pre": "tekken"}, "'tekken'.*qwen2"), ({"pre": None}, "absent.*qwen2")],
)
def test_a18_another_gguf_tokenizer_is_refused_by_name(tmp_path, changes, name):
    with pytest.raises(UnsupportedModel, match=name):
        Tokenizer.from_gguf(tiny_gguf(**changes), tmp_path / "model.gguf")


def test_a18_more_tokens_than_embedding_rows_names_the_file(tmp_path):
    read = Tokenizer.from_folder(write_tiny(tmp_path))
    with pytest.raises(CorruptFile, match="more ids than the model's embedding has rows") as caught:
        read.check_fits(100)
    assert_is_clear(caught.value, str(tmp_path / "tokenizer.json"), "100", str(COUNT + 2))


VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(-3, 300), st.text(max_size=4), st.just([]), st.just({}), st.just([7])
)


def paths(value, prefix=()):
    """Where something is in a JSON value, the inside of long lists and the vocabulary only sampled."""
    yield prefix
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in list(items)[:8]:
        yield from paths(child, (*prefix, key))


CONTENT = tiny_tokenizer_json()
PATHS = [path for path in paths(CONTENT) if path]


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(PATHS), VALUES)
def test_a18_any_value_replaced_is_an_error_of_ours_or_a_tokenizer_that_works(tmp_path, path, value):
    content = json.loads(json.dumps(CONTENT))
    parent = content
    for key in path[:-1]:
        parent = parent[key]
    parent[path[-1]] = value
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    try:
        read = Tokenizer.from_folder(tmp_path)
    except LludaError as error:
        assert_is_clear(error, str(tmp_path))
    else:
        assert read.decode(read.encode("hello wörld 😀")) == "hello wörld 😀"


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_a18_a_cut_or_flipped_file_is_an_error_of_ours_or_a_tokenizer_that_works(tmp_path, data):
    content = bytearray(json.dumps(CONTENT).encode())
    place = data.draw(st.integers(0, len(content) - 1))
    if data.draw(st.booleans()):
        content = content[:place]
    else:
        content[place] ^= 1 << data.draw(st.integers(0, 7))
    (tmp_path / "tokenizer.json").write_bytes(content)
    try:
        Tokenizer.from_folder(tmp_path).encode("hello")
    except LludaError as error:
        assert_is_clear(error, str(tmp_path))
