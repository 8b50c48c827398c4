"""The tokenizer against transformers and llama.cpp on the released files, and its own promises."""

from __future__ import annotations

import json
import time
import unicodedata
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import pre_tokenizers

from lluda.errors import CorruptFile, InvalidRequest, LimitExceeded, UnsupportedModel
from lluda.inputs.text import tokenizer as tokenizer_module
from lluda.inputs.text.byte_level import LETTERS, bytes_of_letters
from lluda.inputs.text.splitting import SPLITTINGS
from lluda.inputs.text.tokenizer import Tokenizer
from tests.inputs.conftest import NOT_SPECIAL, SPECIAL, tiny_gguf, tiny_vocabulary, write_tiny

HARD_TEXTS = {
    "empty": "",
    "plain": "The quick brown fox jumps over the lazy dog.",
    "chinese": "漢字とかな、그리고 한글。你好，世界！",
    "right-to-left": "العربية بِسْمِ ٱللَّٰهِ and עִבְרִית mixed",
    "indic-thai": "हिन्दी में क्षत्रिय, தமிழ், ภาษาไทยไม่มีช่องว่าง",
    "emoji-zwj": "👩‍👩‍👧‍👦 🏳️‍🌈 👍🏽 🇩🇪🇯🇵 ❤️",
    "nfd": unicodedata.normalize("NFD", "Ångström façade Việt Nam 각"),
    "nfc": "Ångström façade Việt Nam 각 K Ω ﬁ ſ",
    "combining-run": "e" + "\u0301\u0323" * 20,
    "code": "def f(x: int) -> str:\n    return f'{x!r:>8}'  # 0xFF\n\n\nclass A:\n\tpass\n",
    "numbers": "3.14159 1234567890 1,000,000 ½ Ⅻ ٣٤٥ 2024-01-01  7",
    "contractions": "I'm you're he'd they'LL it'S don't o'clock ''s 'T",
    "whitespace-runs": " a  b   c\n\n\n d\t\te \r\n\r\n  \u00a0\u2003x\u3000 \u2028y   ",
    "special-spelled": "a<|im_end|>b <|im_start|>user\n<think>x</think> <tool_call><|endoftext|>",
    "special-pieces": "<|im_ end|> <|im_end| <|im_<|im_end|>end|> <think <<think>>",
    "controls": "a\x00b\x01\x02\x1b[31mred\x7f\x85\ufeff\u200b\u202e",
    "noncharacters": "\ufdd0\uffff\U0010ffff\U0001fffe",
    "long-word": "a" * 3000 + "b" + "é" * 500,
    "astral": "𝔘𝔫𝔦𝔠𝔬𝔡𝔢 𐍈 𠜎 🜨",
}
valid_text = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)
pieces = st.sampled_from(
    [
        "<|im_end|>",
        "<|im_start|>",
        "<think>",
        "</think>",
        "<|im_",
        "end|>",
        "<",
        " ",
        "  ",
        "\n",
        "'s",
        "12",
        "é",
        "漢",
        "👍🏽",
    ]
)
mixed_text = st.lists(st.one_of(pieces, valid_text), max_size=12).map("".join)
relaxed = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.mark.parametrize("text", HARD_TEXTS.values(), ids=HARD_TEXTS.keys())
def test_qwen_ids_and_text_are_those_of_transformers(qwen, transformers_qwen, text):
    ids = qwen.encode(text)
    assert ids == transformers_qwen.encode(text, add_special_tokens=False)
    assert qwen.decode(ids) == transformers_qwen.decode(ids, skip_special_tokens=True)
    assert qwen.decode(ids, skip_special=False) == transformers_qwen.decode(ids, skip_special_tokens=False)


@relaxed
@given(mixed_text)
def test_qwen_ids_are_those_of_transformers_on_any_text(qwen, transformers_qwen, text):
    assert qwen.encode(text) == transformers_qwen.encode(text, add_special_tokens=False)


@relaxed
@given(st.lists(st.integers(0, 151_675), max_size=30))
def test_qwen_decodes_any_ids_as_transformers_does(qwen, transformers_qwen, ids):
    assert qwen.decode(ids) == transformers_qwen.decode(ids, skip_special_tokens=True)
    assert qwen.decode(ids, skip_special=False) == transformers_qwen.decode(ids, skip_special_tokens=False)


@relaxed
@given(st.text(st.characters(exclude_categories=["Cs", "Cn"]), max_size=80))
def test_qwen_round_trip_is_nfc(qwen, text):
    # Unassigned code points are left out: this Python's Unicode version may know others than the library's.
    assert qwen.decode(qwen.encode(text, allow_special=False)) == unicodedata.normalize("NFC", text)


@relaxed
@given(mixed_text)
def test_no_added_token_is_ever_matched_in_a_users_text(qwen, text):
    assert not set(qwen.encode(text, allow_special=False)) & set(qwen.added_tokens.by_id)


def test_a_typed_special_token_keeps_its_text(qwen):
    ids = qwen.encode("a<|im_end|>b", allow_special=False)
    assert qwen.decode(ids) == "a<|im_end|>b"
    assert qwen.encode("a<|im_end|>b") == [*qwen.encode("a"), qwen.id_of("<|im_end|>"), *qwen.encode("b")]


@pytest.mark.parametrize("text", HARD_TEXTS.values(), ids=HARD_TEXTS.keys())
def test_smollm_ids_are_those_of_transformers(smollm, transformers_smollm, text):
    ids = smollm.encode(text)
    assert ids == transformers_smollm.encode(text, add_special_tokens=False)
    assert smollm.decode(ids) == transformers_smollm.decode(ids, skip_special_tokens=True)


def test_smollm_ids_are_those_of_llama_cpp(smollm, smollm2):
    llama_cpp = pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed (requirements/peers.txt)")
    llama = llama_cpp.Llama(str(smollm2), vocab_only=True, verbose=False)
    # Its vocabulary lacks some control characters; llama.cpp does not merge across a character left out.
    for name in HARD_TEXTS.keys() - {"controls", "empty"}:
        data = HARD_TEXTS[name].encode()
        assert smollm.encode(HARD_TEXTS[name]) == llama.tokenize(data, add_bos=False, special=True), name
        plain = smollm.encode(HARD_TEXTS[name], allow_special=False)
        assert plain == llama.tokenize(data, add_bos=False, special=False), name


def test_tokenizer_json_gives_the_same_ids_as_vocab_and_merges(qwen, transformers_qwen, tmp_path):
    transformers_qwen.save_pretrained(tmp_path)
    assert not (tmp_path / "merges.txt").exists()
    read = Tokenizer.from_folder(tmp_path)
    assert read.vocab_size == qwen.vocab_size == len(transformers_qwen)
    assert read.special_ids == qwen.special_ids
    for text in HARD_TEXTS.values():
        assert read.encode(text) == qwen.encode(text)


def test_facts_of_the_released_tokenizer(qwen, released_configs):
    facts = json.loads((released_configs / "SPECIAL_IDS.json").read_text())["tokenizer_special_ids"]
    assert {text: qwen.id_of(text) for text in facts.values()} == {text: int(number) for number, text in facts.items()}
    assert qwen.vocab_size == 151_676
    assert qwen.id_of("<think>") not in qwen.special_ids
    assert qwen.id_of("<|im_end|>") in qwen.special_ids
    assert qwen.prefix_ids == ()
    assert qwen.id_of("no such token") is None
    assert qwen.id_of("Ġthe") == qwen.encode(" the")[0]
    qwen.check_fits(152_064)


def test_byte_letters_are_the_librarys():
    assert set(pre_tokenizers.ByteLevel.alphabet()) == LETTERS
    word = "".join(chr(code) for code in range(0x800)) + "漢👍"
    spelled = "".join(part for part, _ in pre_tokenizers.ByteLevel(False, use_regex=False).pre_tokenize_str(word))
    assert bytes_of_letters(spelled) == word.encode()


@pytest.mark.parametrize("name", SPLITTINGS)
def test_a_splitting_rule_is_recognised_in_its_json(tmp_path, name):
    step = json.loads(SPLITTINGS[name].pre_tokenizer().__getstate__())
    read = Tokenizer.from_folder(write_tiny(tmp_path, pre_tokenizer=step))
    other = Tokenizer.from_gguf(tiny_gguf(pre=name), tmp_path / "m.gguf")
    texts = ["hello  world 12345 it's\n\n x", "\u00e9 \u0665\u0666  7"]
    assert [read.encode(text) for text in texts] == [other.encode(text) for text in texts]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("llama-bpe", ["123", "456", "7", "Ġa", "12"]),
        ("qwen2", [*"1234567", "Ġa", "1", "2"]),
        ("smollm", [*"1234567", "Ġa", "1", "2"]),
        ("gpt-2", ["1234567", "Ġa", "12"]),
    ],
)
def test_how_many_digits_make_a_word(name, words):
    assert [word for word, _ in SPLITTINGS[name].pre_tokenizer().pre_tokenize_str("1234567 a12")] == words


def test_an_unknown_splitting_rule_is_refused_by_name(tmp_path):
    step = {"type": "Split", "pattern": {"Regex": "(x+x+)+y"}, "behavior": "Isolated", "invert": False}
    steps = {"type": "Sequence", "pretokenizers": [step, {"type": "ByteLevel", "use_regex": False}]}
    with pytest.raises(UnsupportedModel, match=r"Split, ByteLevel.*qwen2, llama-bpe, smollm, gpt-2"):
        Tokenizer.from_folder(write_tiny(tmp_path, pre_tokenizer=steps))


def test_llama_3_takes_whole_words_and_starts_with_its_bos(tmp_path):
    metadata = tiny_gguf(pre="llama-bpe", bos_token_id=len(tiny_vocabulary()))
    metadata["tokenizer.ggml.merges"] = metadata["tokenizer.ggml.merges"][:2]  # "hell" has lost its merge
    read = Tokenizer.from_gguf(metadata, tmp_path / "m.gguf")
    assert read.encode("hell") == [read.id_of("hell")]
    assert read.prefix_ids == (read.id_of(SPECIAL),)
    other = Tokenizer.from_gguf(metadata | {"tokenizer.ggml.pre": "gpt-2"}, tmp_path / "m.gguf")
    assert other.encode("hell") == [other.id_of("he"), other.id_of("ll")]
    assert other.prefix_ids == ()


def test_bos_of_a_tokenizer_json(tmp_path):
    number = len(tiny_vocabulary())
    template = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": SPECIAL, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "special_tokens": {SPECIAL: {"id": SPECIAL, "ids": [number], "tokens": [SPECIAL]}},
    }
    processor = {"type": "Sequence", "processors": [{"type": "ByteLevel"}, template]}
    assert Tokenizer.from_folder(write_tiny(tmp_path, post_processor=processor)).prefix_ids == (number,)


def test_padding_tokens_of_a_gguf_stand_for_nothing(tmp_path):
    metadata = tiny_gguf()
    metadata["tokenizer.ggml.tokens"] += ["[PAD1]", "[PAD2]"]
    metadata["tokenizer.ggml.token_type"] += [5, 5]
    read = Tokenizer.from_gguf(metadata, tmp_path / "m.gguf")
    assert read.vocab_size == read.id_of(NOT_SPECIAL) + 1
    assert read.decode([read.vocab_size, read.vocab_size + 1]) == ""
    assert read.id_of("[PAD1]") is None
    read.check_fits(read.vocab_size)


def test_qwen_in_a_gguf_is_normalised_as_the_released_tokenizer_is(tmp_path):
    read = Tokenizer.from_gguf(tiny_gguf(pre="qwen2"), tmp_path / "m.gguf")
    assert read.encode("e\u0301") == read.encode("\u00e9") == [read.id_of("Ã©")]


def test_an_added_token_is_found_longest_first_and_normalised_ones_last(tmp_path):
    number = len(tiny_vocabulary())
    spelled = [("<a>", False), ("<a><b>", False), ("caf\u00e9", True), ("<b>", True)]
    added = [
        {"id": number + index, "content": text, "special": False, "normalized": normalized}
        for index, (text, normalized) in enumerate(spelled)
    ]
    read = Tokenizer.from_folder(write_tiny(tmp_path, added_tokens=added))
    assert read.encode("<a><b><a>") == [number + 1, number]
    assert read.encode("cafe\u0301<b>") == [number + 2, number + 3]


def test_ids_that_only_pad_the_embedding_have_no_text(qwen):
    assert qwen.decode([152_000, qwen.id_of("hello"), 2**31]) == "hello"


@pytest.mark.parametrize("number", [-1, 2**32, 1.5, "7", None, [7]], ids=repr)
def test_what_is_no_token_id_is_refused(tiny, number):
    with pytest.raises(InvalidRequest, match="token id must be an integer"):
        tiny.decode([number])


@pytest.mark.parametrize("text", [b"bytes", None, 7, ["a"]], ids=repr)
def test_what_is_no_text_is_refused(tiny, text):
    with pytest.raises(InvalidRequest, match="must be a str, not"):
        tiny.encode(text)


@pytest.mark.parametrize("allow_special", [True, False])
def test_half_a_surrogate_pair_is_refused_with_its_place(tiny, allow_special):
    with pytest.raises(InvalidRequest, match=r"U\+D83D at 3"):
        tiny.encode("abc\ud83d", allow_special=allow_special)


def test_a_text_beyond_the_limit_is_refused(tiny, monkeypatch):
    monkeypatch.setattr(tokenizer_module, "MAX_TEXT_LENGTH", 10)
    assert tiny.decode(tiny.encode("0123456789")) == "0123456789"
    with pytest.raises(LimitExceeded, match="11 characters; at most 10"):
        tiny.encode("0123456789a")


def test_more_ids_than_embedding_rows_names_both(tiny):
    tiny.check_fits(tiny.vocab_size)
    with pytest.raises(CorruptFile, match=rf"at most {tiny.vocab_size - 1}, found {tiny.vocab_size}"):
        tiny.check_fits(tiny.vocab_size - 1)


def test_the_empty_tokenizer_has_no_text():
    empty = Tokenizer.empty()
    assert (empty.vocab_size, empty.decode([0, 5]), empty.special_ids) == (0, "", frozenset())


def test_other_threads_run_while_a_long_text_is_encoded(qwen):
    text = "one two three four five " * 50_000
    turns = 0
    with ThreadPoolExecutor(1) as thread:
        encoding = thread.submit(qwen.encode, text, allow_special=False)
        while not encoding.done():
            time.sleep(0.001)
            turns += 1
    assert turns > 20, "the interpreter was stopped meanwhile"
    assert encoding.result() == qwen._plain.encode(text, add_special_tokens=False).ids
