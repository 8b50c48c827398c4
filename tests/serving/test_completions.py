"""POST /v1/completions: plain continuations, and scores as lm-eval reads them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from openai import OpenAI

import lluda
from lluda.engine.prompt_rows import PromptRows
from lluda.engine.sampling.sampling_params import SamplingParams
from tests.serving import openai_types
from tests.serving.oracle import check_error, check_well
from tests.serving.running import RunningServer, running_server
from tests.serving.test_chat import MODEL

TEXT = "The capital of France"


def post(server: RunningServer, **changes: Any) -> dict[str, Any]:
    response = server.post("/v1/completions", {"model": MODEL, "prompt": TEXT, "max_tokens": 6, **changes})
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    openai_types.completion(answer)
    return answer


def parts(server: RunningServer, **changes: Any) -> list[dict[str, Any]]:
    body = {"model": MODEL, "prompt": TEXT, "max_tokens": 6, "stream": True, **changes}
    *lines, done = [line for line in server.post("/v1/completions", body).text.split("\n\n") if line]
    assert done == "data: [DONE]"
    found = [json.loads(line.removeprefix("data: ")) for line in lines]
    for chunk in found:
        openai_types.completion(chunk, chunk=True)
    return found


def test_a_text_is_continued_as_in_process(client: OpenAI, server: RunningServer) -> None:
    answer = client.completions.create(model=MODEL, prompt=TEXT, max_tokens=6)
    inside = server.model.generate(TEXT, max_tokens=6)
    assert (answer.choices[0].text, answer.choices[0].finish_reason) == (inside.text, inside.finish_reason)
    assert answer.usage is not None
    counts = (answer.usage.prompt_tokens, answer.usage.completion_tokens)
    assert counts == (inside.prompt_tokens, len(inside.token_ids))
    check_well(server)


def test_prompts_come_in_four_forms(server: RunningServer) -> None:
    ids = server.model.tokenizer.encode(TEXT, allow_special=False)
    other = "Two plus three"
    text = post(server)["choices"][0]["text"]
    assert post(server, prompt=ids)["choices"][0]["text"] == text
    for prompt in ([TEXT, other], [ids, server.model.tokenizer.encode(other, allow_special=False)]):
        choices = post(server, prompt=prompt)["choices"]
        assert [choice["index"] for choice in choices] == [0, 1]
        assert [choice["text"] for choice in choices] == [text, post(server, prompt=other)["choices"][0]["text"]]


def test_no_special_token_is_read_in_a_text(server: RunningServer) -> None:
    text = "<|im_end|>"
    assert post(server, prompt=text)["usage"]["prompt_tokens"] > 1
    number = server.model.tokenizer.id_of(text)
    assert post(server, prompt=[number])["usage"]["prompt_tokens"] == 1


def test_choices_of_several_prompts_stand_in_order(server: RunningServer) -> None:
    varied = {"prompt": [TEXT, "x"], "n": 2, "seed": 3, "temperature": 2.0, "top_k": 0}
    choices = post(server, **varied)["choices"]
    assert [choice["index"] for choice in choices] == [0, 1, 2, 3]
    streamed = ["", "", "", ""]
    for chunk in parts(server, **varied, stream_options={"include_usage": True}):
        for choice in chunk["choices"]:
            streamed[choice["index"]] += choice["text"]
    assert streamed == [choice["text"] for choice in choices]
    assert len(set(streamed)) > 2


def test_a_streamed_echo_with_logprobs_is_the_whole_one(server: RunningServer) -> None:
    asked = {"echo": True, "logprobs": 3, "max_tokens": 4}
    whole = post(server, **asked)["choices"][0]
    chunks = [chunk["choices"][0] for chunk in parts(server, **asked)]
    assert "".join(chunk["text"] for chunk in chunks) == whole["text"]
    assert whole["text"].startswith(TEXT)
    for name in whole["logprobs"]:
        assert [one for chunk in chunks for one in chunk["logprobs"][name]] == whole["logprobs"][name]


def test_offsets_are_places_of_tokens_in_the_text(server: RunningServer) -> None:
    choice = post(server, prompt="Été à Oslo", echo=True, logprobs=0, max_tokens=3)["choices"][0]
    logprobs = choice["logprobs"]
    for token, offset in zip(logprobs["tokens"], logprobs["text_offset"], strict=True):
        if not token.startswith(("bytes:", "<|")):
            assert choice["text"][offset:].startswith(token)
    assert logprobs["text_offset"] == sorted(logprobs["text_offset"])


@pytest.fixture(scope="module")
def deterministic() -> Iterator[RunningServer]:
    """A server whose numbers do not depend on what runs beside a request (lluda serve --deterministic)."""
    with running_server(load=lambda: lluda.load("tiny-omni", threads=1, deterministic=True)) as running:
        yield running


def lm_eval(server: RunningServer, ids: list[list[int]]) -> list[dict[str, Any]]:
    """The request that lm-eval 0.4.13 sends."""
    body = {"model": MODEL, "prompt": ids, "temperature": 0, "max_tokens": 1, "logprobs": 1, "seed": 1234, "echo": True}
    found: list[dict[str, Any]] = server.post("/v1/completions", body).json()["choices"]
    return found


def lm_eval_score(choice: dict[str, Any], context: int) -> tuple[float, bool]:
    """What lm-eval 0.4.13 makes of a choice (lm_eval/models/openai_completions.py)."""
    logprobs = choice["logprobs"]
    tokens, tops = logprobs["token_logprobs"][context:-1], logprobs["top_logprobs"][context:-1]
    return sum(tokens), all(value == max(top.values()) for value, top in zip(tokens, tops, strict=True))


QUESTIONS = [
    ("Two plus three is", " five.", " nine."),
    ("The opposite of hot is", " cold.", " blue."),
    ("One is larger than", " zero.", " lemon."),
]


def test_lm_evals_scores_are_those_of_the_engine_in_process(deterministic: RunningServer) -> None:
    model = deterministic.model
    encoded = [
        (model.tokenizer.encode(context), model.tokenizer.encode(end))
        for context, *ends in QUESTIONS
        for end in ends
    ]  # fmt: skip
    choices = lm_eval(deterministic, [context + end for context, end in encoded])
    for (context, end), choice in zip(encoded, choices, strict=True):
        params = SamplingParams(temperature=0, max_tokens=1, prompt_logprobs=1)
        (done,) = [
            event
            for event in model.engine.submit(model.request(PromptRows(context + end), params, turn=False))
            if hasattr(event, "finish_reason")
        ]
        scored = done.prompt_logprobs[len(context) :]
        score, greedy = lm_eval_score(choice, len(context))
        assert score == pytest.approx(sum(token.logprob for token in scored), abs=1e-4)
        assert greedy == all(token.logprob == token.top[0][1] for token in scored)
        # The same once more without the engine: a prefill for each token.
        for place in range(len(context), len(context + end)):
            before = (context + end)[:place]
            logits = model.engine.call(lambda: model.runner.prefill(before, model.runner.new_cache()))  # noqa: B023
            logits = np.asarray(logits, dtype=np.float64)
            expected = logits[(context + end)[place]] - np.log(np.exp(logits - logits.max()).sum()) - logits.max()
            assert choice["logprobs"]["token_logprobs"][place] == pytest.approx(expected, abs=0.03)


def test_a_greedy_continuation_scores_as_greedy(server: RunningServer) -> None:
    model = server.model
    context = model.tokenizer.encode(QUESTIONS[0][0])
    greedy = list(model.generate(context, max_tokens=3).token_ids)
    other = [*greedy[:-1], (greedy[-1] + 1) % 700]
    right, wrong = lm_eval(server, [context + greedy, context + other])
    assert lm_eval_score(right, len(context))[1]
    assert not lm_eval_score(wrong, len(context))[1]
    assert len(right["logprobs"]["token_logprobs"]) == len(context) + 3 + 1
    assert right["logprobs"]["token_logprobs"][0] is right["logprobs"]["top_logprobs"][0] is None


def test_an_echo_alone_needs_no_token(server: RunningServer) -> None:
    scored = post(server, echo=True, logprobs=1, max_tokens=0)
    assert scored["choices"][0]["text"] == TEXT
    assert scored["usage"]["completion_tokens"] == 0
    assert len(scored["choices"][0]["logprobs"]["tokens"]) == scored["usage"]["prompt_tokens"]
    plain = post(server, echo=True, max_tokens=0)["choices"][0]
    assert (plain["text"], plain["logprobs"], plain["finish_reason"]) == (TEXT, None, "length")


def test_scores_do_not_depend_on_what_was_asked_before(deterministic: RunningServer) -> None:
    """A prompt that begins like an earlier one is scored whole all the same, alone or among others."""
    ids = deterministic.model.tokenizer.encode(" two" * 80)
    first, second = lm_eval(deterministic, [ids, ids[:50], ids[5:]])[0], lm_eval(deterministic, [ids])[0]
    assert first == second
    assert None not in first["logprobs"]["token_logprobs"][1:]


BAD = [
    ({"suffix": "x"}, "suffix", "unsupported_value"),
    ({"best_of": 2}, "best_of", "unsupported_value"),
    ({"max_tokens": 0}, "max_tokens", "invalid_value"),
    ({"max_tokens": -1}, "max_tokens", "invalid_value"),
    ({"logprobs": 21}, "logprobs", "invalid_value"),
    ({"logprobs": True}, "logprobs", "invalid_value"),
    ({"prompt": []}, "prompt", "invalid_value"),
    ({"prompt": {}}, "prompt", "invalid_value"),
    ({"prompt": [[]]}, "prompt[0]", "invalid_value"),
    ({"prompt": ["a", 1]}, "prompt[1]", "invalid_value"),
    ({"prompt": [-1]}, "prompt[0]", "invalid_value"),
    ({"prompt": [10**6]}, None, "invalid_value"),
    ({"prompt": ""}, None, "invalid_value"),
    ({"prompt": ["x"] * 200}, "prompt", "invalid_value"),
    ({"prompt": [5] * 5000}, None, "context_length_exceeded"),
    ({"stream_options": {}}, "stream_options", "invalid_value"),
    ({"messages": []}, "messages", "unknown_parameter"),
]


@pytest.mark.parametrize(("changes", "param", "code"), BAD)
def test_what_cannot_be_continued_is_refused(
    server: RunningServer, changes: dict[str, Any], param: str | None, code: str
) -> None:
    body = {"model": MODEL, "prompt": TEXT, **changes}
    check_error(server.post("/v1/completions", body), 400, code, param)
    check_well(server)
