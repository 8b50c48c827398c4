"""POST /v1/chat/completions as OpenAI's own client sees it."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI, OpenAI

from tests.serving import openai_types
from tests.serving.oracle import check_well
from tests.serving.running import RunningServer

ASKED: list[Any] = [{"role": "user", "content": "What is two plus three?"}]
SUM = "Two plus three is five."
MODEL = "tiny-omni"
UNCLEAR: list[Any] = [{"role": "user", "content": "?!"}]
VARIED: dict[str, Any] = {"temperature": 2.0, "extra_body": {"top_k": 0}, "max_tokens": 12}
"""A question that the model has no answer to, and sampling under which its answers differ."""


def body(**changes: Any) -> dict[str, Any]:
    return {"model": MODEL, "messages": ASKED, **changes}


def test_an_answer_is_the_models(client: OpenAI, server: RunningServer) -> None:
    answer = client.chat.completions.create(model=MODEL, messages=ASKED)
    inside = server.model.chat(ASKED)
    assert (answer.choices[0].message.content, answer.choices[0].finish_reason) == (inside.text, "stop")
    assert inside.text == SUM
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == inside.prompt_tokens
    assert answer.usage.completion_tokens == len(inside.token_ids)
    assert answer.model == MODEL
    check_well(server)


def test_a_whole_answer_validates_strictly(server: RunningServer) -> None:
    openai_types.chat_completion(server.post("/v1/chat/completions", body(logprobs=True, top_logprobs=3, n=2)).json())


def chunks_of(server: RunningServer, **changes: Any) -> list[dict[str, Any]]:
    response = server.post("/v1/chat/completions", body(stream=True, **changes))
    assert response.status_code == 200, response.text
    *lines, done = [line for line in response.text.split("\n\n") if line]
    assert done == "data: [DONE]"
    return [json.loads(line.removeprefix("data: ")) for line in lines]


def test_each_chunk_validates_strictly(server: RunningServer) -> None:
    chunks = chunks_of(server, logprobs=True, top_logprobs=2, n=2, stream_options={"include_usage": True})
    for chunk in chunks:
        openai_types.chat_chunk(chunk)
    assert chunks[-1]["choices"] == []
    whole = server.post("/v1/chat/completions", body(n=2)).json()["usage"]
    assert {name: chunks[-1]["usage"][name] for name in ("prompt_tokens", "completion_tokens")} == {
        name: whole[name] for name in ("prompt_tokens", "completion_tokens")
    }


def test_a_stream_says_what_a_whole_answer_says(client: OpenAI) -> None:
    whole = client.chat.completions.create(model=MODEL, messages=UNCLEAR, seed=5, n=3, **VARIED)
    texts, reasons = {0: "", 1: "", 2: ""}, {}
    for chunk in client.chat.completions.create(model=MODEL, messages=UNCLEAR, seed=5, n=3, stream=True, **VARIED):
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
            if choice.finish_reason:
                reasons[choice.index] = choice.finish_reason
    assert texts == {choice.index: choice.message.content for choice in whole.choices}
    assert reasons == {choice.index: choice.finish_reason for choice in whole.choices}


def test_choices_are_what_their_seeds_give_alone(client: OpenAI) -> None:
    together = client.chat.completions.create(model=MODEL, messages=UNCLEAR, n=3, seed=7, **VARIED)
    alone = [client.chat.completions.create(model=MODEL, messages=UNCLEAR, seed=7 + n, **VARIED) for n in range(3)]
    texts = [one.choices[0].message.content for one in alone]
    assert [choice.message.content for choice in together.choices] == texts
    assert len(set(texts)) > 1


def test_the_asynchronous_client_reads_several_streams_at_once(server: RunningServer) -> None:
    async def ask(client: AsyncOpenAI, text: str) -> str:
        messages: list[Any] = [{"role": "user", "content": text}]
        parts = [
            chunk.choices[0].delta.content or ""
            async for chunk in await client.chat.completions.create(model=MODEL, messages=messages, stream=True)
        ]
        return "".join(parts)

    async def ask_all(texts: list[str]) -> list[str]:
        async with AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
            return await asyncio.gather(*(ask(client, text) for text in texts))

    texts = ["What is two plus three?", "What is four plus four?", "What is the capital of France?"]
    answers = asyncio.run(ask_all(texts))
    assert answers == [server.model.chat([{"role": "user", "content": text}]).text for text in texts]


@pytest.mark.parametrize(
    ("stop", "shown"),
    [(" is", "Two plus three"), (["zz", "ee i"], "Two plus thr"), (SUM, ""), ("Two", ""), ("xyz", SUM)],
)
@pytest.mark.parametrize("stream", [False, True])
def test_a_stop_string_cuts_exactly(server: RunningServer, stop: str | list[str], shown: str, stream: bool) -> None:
    if stream:
        chunks = chunks_of(server, stop=stop)
        text = "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks)
        reason = chunks[-1]["choices"][0]["finish_reason"]
    else:
        choice = server.post("/v1/chat/completions", body(stop=stop)).json()["choices"][0]
        text, reason = choice["message"]["content"], choice["finish_reason"]
    assert (text, reason) == (shown, "stop")


def test_more_tokens_than_there_is_room_for_are_all_the_room(server: RunningServer) -> None:
    changed = body(max_tokens=2**40, ignore_eos=True, stop=["five"])
    assert server.post("/v1/chat/completions", changed).json()["choices"][0]["finish_reason"] == "stop"
    answer = server.post("/v1/chat/completions", body(max_completion_tokens=3)).json()
    assert (answer["choices"][0]["finish_reason"], answer["usage"]["completion_tokens"]) == ("length", 3)


def test_logprobs_are_those_of_the_engine(client: OpenAI, server: RunningServer) -> None:
    answer = client.chat.completions.create(model=MODEL, messages=ASKED, logprobs=True, top_logprobs=2)
    inside = server.model.chat(ASKED, logprobs=2)
    assert answer.choices[0].logprobs is not None
    entries = answer.choices[0].logprobs.content or []
    shown = [token for token in inside.tokens if token.id not in server.model.ends.turn]
    assert [entry.logprob for entry in entries] == [token.logprob for token in shown]
    assert [[top.logprob for top in entry.top_logprobs] for entry in entries] == [
        [value for _, value in token.top] for token in shown
    ]
    assert "".join(entry.token for entry in entries) == SUM


def test_a_bias_forbids_and_forces(client: OpenAI, server: RunningServer) -> None:
    first = server.model.chat(ASKED).token_ids[0]
    other = client.chat.completions.create(model=MODEL, messages=ASKED, logit_bias={str(first): -100}, max_tokens=1)
    assert other.choices[0].message.content != server.model.tokenizer.decode([first])
    forced = client.chat.completions.create(model=MODEL, messages=ASKED, logit_bias={"9": 100}, max_tokens=4)
    assert forced.choices[0].message.content == server.model.tokenizer.decode([9] * 4)


def test_penalties_and_extensions_reach_the_sampler(client: OpenAI, server: RunningServer) -> None:
    changed = client.chat.completions.create(
        model=MODEL,
        messages=ASKED,
        presence_penalty=1.5,
        frequency_penalty=1.0,
        extra_body={"repetition_penalty": 1.3, "min_tokens": 12, "top_k": 5, "min_p": 0.01},
        max_tokens=14,
    )
    inside = server.model.chat(
        ASKED, presence_penalty=1.5, frequency_penalty=1.0, repetition_penalty=1.3, min_tokens=12, top_k=5, min_p=0.01,
        max_tokens=14,
    )  # fmt: skip
    assert changed.choices[0].message.content == inside.text
    assert inside.text != SUM


def test_messages_of_all_roles_are_one_conversation(client: OpenAI, server: RunningServer) -> None:
    messages: list[Any] = [
        {"role": "developer", "content": [{"type": "text", "text": "Be "}, {"type": "text", "text": "short."}]},
        {"role": "user", "content": "Weather?", "name": "ann"},
        {
            "role": "assistant",
            "content": None,
            "refusal": None,
            "annotations": None,
            "function_call": None,
            "tool_calls": [
                {"id": "call_1", "type": "function", "function": {"name": "look", "arguments": '{"city": "Oslo"}'}}
            ],
        },
        {"role": "tool", "tool_call_id": "call_1", "content": "rain"},
        {"role": "assistant", "content": "Rain.", "reasoning_content": "It rains."},
        {"role": "user", "content": [{"type": "text", "text": "What is two plus three?"}]},
    ]
    answer = client.chat.completions.create(model=MODEL, messages=messages, max_tokens=8)
    inside = server.model.chat(
        [
            {"role": "system", "content": "Be short."},
            {"role": "user", "content": "Weather?"},
            {
                "role": "assistant",
                "content": "",
                "tool_calls": [{"type": "function", "function": {"name": "look", "arguments": {"city": "Oslo"}}}],
            },
            {"role": "tool", "content": "rain"},
            {"role": "assistant", "content": "Rain.", "reasoning_content": "It rains."},
            *ASKED,
        ],
        max_tokens=8,
    )
    assert answer.choices[0].message.content == inside.text
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == inside.prompt_tokens


def test_a_second_turn_computes_what_is_new(client: OpenAI) -> None:
    messages: list[Any] = [{"role": "system", "content": "Be very short. " * 30}, *ASKED]
    first = client.chat.completions.create(model=MODEL, messages=messages)
    messages += [{"role": "assistant", "content": first.choices[0].message.content}, *ASKED]
    second = client.chat.completions.create(model=MODEL, messages=messages)
    assert first.usage is not None
    assert second.usage is not None
    assert second.usage.prompt_tokens_details is not None
    assert (second.usage.prompt_tokens_details.cached_tokens or 0) >= first.usage.prompt_tokens


def test_thinking_is_switched_by_effort_and_by_template_argument(server: RunningServer) -> None:
    def prompt_tokens(**changes: Any) -> int:
        answer = server.post("/v1/chat/completions", body(max_tokens=1, **changes))
        assert answer.status_code == 200, answer.text
        return int(answer.json()["usage"]["prompt_tokens"])

    plain = prompt_tokens()
    assert prompt_tokens(reasoning_effort="high") == plain
    closed = prompt_tokens(reasoning_effort="none")
    assert closed > plain  # the template writes an empty thought
    assert closed == prompt_tokens(reasoning_effort="minimal")
    assert closed == prompt_tokens(chat_template_kwargs={"enable_thinking": False})


def test_fields_without_meaning_are_taken(client: OpenAI) -> None:
    answer = client.chat.completions.create(
        model=MODEL,
        messages=ASKED,
        user="u",
        store=True,
        metadata={"a": "b"},
        service_tier="auto",
        safety_identifier="s",
        prompt_cache_key="k",
        verbosity="low",
        stream_options=openai.omit,
    )
    assert answer.choices[0].message.content == SUM


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"temperature": 3}, openai.BadRequestError),
        ({"model": "gpt-9"}, openai.NotFoundError),
    ],
)
def test_errors_are_of_the_clients_classes(
    client: OpenAI, changes: dict[str, Any], error: type[openai.APIStatusError]
) -> None:
    with pytest.raises(error) as raised:
        client.chat.completions.create(**({"model": MODEL, "messages": ASKED} | changes))
    assert raised.value.body is not None
    assert set(raised.value.body) == {"message", "type", "param", "code"}  # type: ignore[call-overload]
