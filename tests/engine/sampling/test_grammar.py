"""Answers that keep to a grammar: each token is one that some text of the grammar goes on with, to its very end."""

from __future__ import annotations

import builtins
import json
import re
import threading

import numpy as np
import pytest

from lluda.engine.engine import Engine
from lluda.engine.kv_cache import CacheOptions
from lluda.engine.prompt_rows import PromptRows
from lluda.engine.request import Completion, Request
from lluda.engine.runner import Runner
from lluda.engine.sampling import grammar as grammar_module
from lluda.engine.sampling.grammar import Grammars
from lluda.engine.sampling.sampling_params import SamplingParams
from lluda.errors import InvalidRequest, MissingDependency
from lluda.inputs.text.gguf_tokenizer import vocabulary_from_gguf
from lluda.inputs.text.tokenizer import Tokenizer
from tests.conftest import TINY_QWEN3
from tests.engine.test_engine import CONTEXT, assert_idle, network
from tests.inputs.conftest import NOT_SPECIAL, SPECIAL, tiny_vocabulary, write_tiny

pytest.importorskip("llguidance", reason="grammars are compiled by llguidance (lluda[serve])")

END, THINK = len(tiny_vocabulary()), len(tiny_vocabulary()) + 1
VOCABULARY = TINY_QWEN3["vocab_size"]
SCHEMA = {
    "type": "object",
    "properties": {"name": {"enum": ["Oslo", "Rome"]}, "days": {"type": "array", "items": {"type": "integer"}}},
    "required": ["name", "days"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return Tokenizer.from_folder(write_tiny(tmp_path_factory.mktemp("tokenizer")))


@pytest.fixture(scope="module")
def grammars(tokenizer):
    return Grammars(tokenizer, VOCABULARY)


@pytest.fixture(scope="module")
def model():
    return network()


@pytest.fixture
def engine(model, tokenizer):
    runner = Runner(model, CacheOptions(CONTEXT, dtype="f32"))
    return Engine(runner, tokenizer, kv_positions=8 * CONTEXT)


def asked(constraint, params=None, *, ends=(END,), index=0, **sampling):
    params = params or SamplingParams(**{"temperature": 1.0, "seed": index, "max_tokens": 400} | sampling)
    return Request(
        prompt=PromptRows([72, 101 + index]),
        sampling=params.with_defaults({}),
        end_ids=frozenset(ends),
        constraint=constraint,
        index=index,
    )


def answer(engine, constraint, **options):
    *_, completion = engine.submit(asked(constraint, **options), capacity=1000)
    assert isinstance(completion, Completion)
    return completion


def accepted(state, tokenizer, text):
    """Whether all of ``text`` is taken."""
    for token in tokenizer.encode(text, allow_special=False):
        if not state.allowed()[token]:
            return False
        state.accept(token)
    return True


def test_random_weights_write_json_of_the_schema(engine, grammars):
    for seed in range(4):
        completion = answer(engine, grammars.json_schema(SCHEMA), index=seed)
        found = json.loads(completion.text)
        assert found["name"] in ("Oslo", "Rome") and all(isinstance(day, int) for day in found["days"])
        assert completion.finish_reason == "stop"
        assert END not in completion.token_ids, "nothing can follow, so nothing more is sampled"
    assert_idle(engine)


def test_greedy_answers_keep_to_it_too(engine, grammars):
    completion = answer(engine, grammars.regex("[a-c]{3}-[0-9]{2}"), temperature=0)
    assert re.fullmatch("[a-c]{3}-[0-9]{2}", completion.text)


def test_an_answer_is_the_same_alone_and_among_others(engine, grammars):
    constraints = [grammars.json_schema(SCHEMA), grammars.regex("(ab|cd)+e"), grammars.json_object(), None]
    options = [{"index": index, "max_tokens": 60, "logprobs": 2} for index in range(4)]
    alone = [answer(engine, each, **own) for each, own in zip(constraints, options, strict=True)]
    requests = [asked(each, **own) for each, own in zip(constraints, options, strict=True)]
    together = [event for event in engine.submit(*requests, capacity=1000) if isinstance(event, Completion)]
    together.sort(key=lambda completion: completion.index)
    assert [each.tokens for each in together] == [each.tokens for each in alone]
    assert_idle(engine)


def test_the_end_may_be_chosen_exactly_where_the_grammar_may_end(engine, grammars, tokenizer):
    state = grammars.regex("ab*").begin()
    letter = tokenizer.encode("a", allow_special=False)[0]
    assert (state.may_end, state.must_end) == (False, False)
    assert not state.allowed()[[END, THINK]].any()
    state.accept(letter)
    assert (state.may_end, state.must_end) == (True, False)
    wanted = SamplingParams(temperature=0, max_tokens=9, logit_bias={END: 100})
    assert answer(engine, grammars.regex("ab*"), params=wanted).token_ids == (letter, END)
    never = SamplingParams(temperature=0, max_tokens=9, logit_bias={END: 100}, ignore_eos=True)
    assert answer(engine, grammars.regex("ab*"), params=never).text == "abbbbbbbb"


def test_min_tokens_holds_while_the_grammar_can_go_on(engine, grammars):
    params = {"temperature": 0, "min_tokens": 5, "logit_bias": {END: 100}}
    assert answer(engine, grammars.regex("ab*"), **params).text == "abbbb"
    assert answer(engine, grammars.regex("ab?"), **params).text == "ab"


def test_stop_strings_and_stop_ids_end_it_anywhere(engine, grammars, tokenizer):
    assert answer(engine, grammars.regex("(ab){9}"), stop=["aba"]).text == ""
    (number,) = tokenizer.encode("b", allow_special=False)
    completion = answer(engine, grammars.regex("(ab){9}"), stop_token_ids=(number,))
    assert (completion.text, completion.finish_reason) == ("a", "stop")


def test_max_tokens_cuts_it(engine, grammars):
    completion = answer(engine, grammars.regex("a{50}"), max_tokens=7)
    assert (completion.text, completion.finish_reason) == ("a" * 7, "length")


def test_added_tokens_are_no_text_and_lark_can_name_them(engine, grammars):
    state = grammars.regex(r"(?s:.*)").begin()
    assert not state.allowed()[[END, THINK]].any()
    assert state.allowed().sum() > 90
    completion = answer(engine, grammars.lark(f'start: {NOT_SPECIAL} "x" <[{END}]> "y"'), ends=())
    assert completion.token_ids[0] == THINK and completion.token_ids[2] == END


def test_spelling_an_added_token_makes_text_of_it(grammars, tokenizer):
    state = grammars.json_object().begin()
    assert accepted(state, tokenizer, json.dumps({"a": SPECIAL + NOT_SPECIAL}))
    assert state.must_end


def test_white_space_in_json_is_bounded(grammars, tokenizer):
    assert accepted(grammars.json_object().begin(), tokenizer, '{"a": 1, "b":\n    [1,2]}')
    assert not accepted(grammars.json_object().begin(), tokenizer, "{" + " " * 50)


def test_rows_of_the_embedding_without_a_token_are_never_allowed(grammars):
    assert not grammars.regex(r"(?s:.*)").begin().allowed()[THINK + 1 :].any()


def test_a_gguf_tokenizer_serves_as_well(tmp_path):
    letters = sorted(tiny_vocabulary(), key=tiny_vocabulary().get)
    metadata = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "qwen2",
        "tokenizer.ggml.tokens": [*letters, SPECIAL],
        "tokenizer.ggml.token_type": [1] * len(letters) + [3],
        "tokenizer.ggml.merges": [],
        "tokenizer.ggml.eos_token_id": len(letters),
    }
    tokenizer = Tokenizer(vocabulary_from_gguf(metadata, tmp_path / "a.gguf").checked())
    state = Grammars(tokenizer, 300).json_schema(SCHEMA).begin()
    assert accepted(state, tokenizer, '{"name": "Oslo", "days": [1, 20]}')
    assert state.must_end


@pytest.mark.parametrize(
    ("kind", "source", "reason"),
    [
        ("json_schema", {"type": 42}, "type must be a string or array"),
        ("json_schema", {"$ref": "http://127.0.0.1:9/x"}, "does not fetch"),
        ("json_schema", {"$ref": "#/nowhere"}, "does not exist"),
        ("json_schema", {"$ref": "#"}, "allows no text"),
        ("json_schema", {"type": "string", "pattern": "(?=a)b"}, "look-around"),
        ("json_schema", {"allOf": [{"type": "string"}, {"type": "integer"}]}, "Unsatisfiable"),
        ("json_schema", {"type": "array", "uniqueItems": True}, "uniqueItems"),
        ("json_schema", [1], "must be an object, not list"),
        ("json_schema", {"enum": [{1, 2}]}, "is no JSON"),
        ("regex", "(", "unclosed group"),
        ("regex", "a" * (1 << 21), "at most 1048576"),
        ("lark", "start: start", "allows no text"),
        ("lark", "start: <nope>", "unknown special token"),
        ("lark", "start: " + "(" * 5000 + '"a"' + ")" * 5000, "too deeply nested"),
    ],
)
def test_what_does_not_compile_is_refused_with_its_reason(grammars, kind, source, reason):
    with pytest.raises(InvalidRequest, match=reason) as caught:
        getattr(grammars, kind)(source)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500


@pytest.mark.parametrize("depth", [200, 10_000])
def test_deep_schemas_are_refused(grammars, depth):
    schema: dict = {"type": "integer"}
    for _ in range(depth):
        schema = {"type": "array", "items": schema}
    with pytest.raises(InvalidRequest, match="JSON schema"):
        grammars.json_schema(schema)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("pattern", ["(a+)+$", "(((a{100}){100}){100})b", "(a|b)*a(a|b){300}c", "(.*a.*){40}"])
def test_patterns_that_explode_elsewhere_are_used_or_refused_in_bounded_time(grammars, tokenizer, pattern):
    try:
        accepted(grammars.regex(pattern).begin(), tokenizer, "ab" * 200)
    except InvalidRequest as error:
        assert "regular expression" in str(error)


def test_compiled_grammars_are_kept_within_bounds(tokenizer, monkeypatch):
    grammars = Grammars(tokenizer, VOCABULARY)
    assert grammars.json_object() is grammars.json_object()
    monkeypatch.setattr(grammar_module, "_KEPT", 3)
    first = grammars.regex("a0")
    for number in range(1, 5):
        grammars.regex(f"a{number}")
    assert len(grammars._kept) == 3
    assert grammars.regex("a0") is not first


def test_one_grammar_serves_answers_of_several_threads(grammars, tokenizer):
    constraint, found = grammars.json_schema(SCHEMA), []

    def read():
        for _ in range(20):
            state = constraint.begin()
            found.append(accepted(state, tokenizer, '{"name": "Rome", "days": [1, 2]}') and state.must_end)

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert found == [True] * 80


def test_without_the_library_its_extra_is_named(tokenizer, monkeypatch):
    real = builtins.__import__

    def missing(name, *rest):
        if name == "llguidance":
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(MissingDependency, match=r"lluda\[serve\]"):
        Grammars(tokenizer, VOCABULARY).json_object()


def test_masks_are_of_the_models_vocabulary(grammars):
    allowed = grammars.json_object().begin().allowed()
    assert allowed.shape == (VOCABULARY,) and allowed.dtype == np.bool_
