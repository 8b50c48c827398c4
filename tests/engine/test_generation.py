from __future__ import annotations

import pytest
import torch

import lluda
from lluda.engine.request import Completion, Token
from lluda.engine.sampling.sampler import Sampler
from lluda.errors import InvalidRequest, LimitExceeded

PROMPTS = ["The capital of France is", "1 2 3 4 5", "Once upon a time there was a small robot who wanted to"]


@pytest.fixture(scope="module")
def model(smollm2):
    return lluda.load(smollm2, dtype="f32", max_context=512)


def test_greedy_answer_of_a_real_model(model):
    completion = model.generate("The capital of France is", temperature=0, max_tokens=4)
    assert completion.text.startswith(" Paris")
    assert completion.finish_reason == "length"
    assert completion.prompt_tokens == 5
    assert len(completion.token_ids) == 4


def test_the_answer_is_the_folded_stream(model):
    options = {"temperature": 0.8, "seed": 7, "max_tokens": 30, "logprobs": 3}
    whole = model.generate(PROMPTS[2], **options)
    events = list(model.stream(PROMPTS[2], **options))
    tokens = [event for event in events if isinstance(event, Token)]
    assert isinstance(events[-1], Completion)
    assert "".join(token.text for token in tokens) == whole.text
    assert tuple(token.id for token in tokens) == whole.token_ids
    assert all(len(token.top) == 3 and token.logprob <= 0 for token in tokens)


@pytest.mark.parametrize("options", [{"temperature": 0}, {"temperature": 1.0, "seed": 3}], ids=["greedy", "sampled"])
def test_a_batch_gives_what_single_runs_give(model, options):
    together = model.generate(PROMPTS, max_tokens=12, **options)
    single = [model.generate(prompt, max_tokens=12, **options) for prompt in PROMPTS]
    assert [c.token_ids for c in together] == [c.token_ids for c in single]
    assert [c.index for c in together] == [0, 1, 2]


def test_the_cpu_backends_tokens_are_chosen_on_one_thread(smollm2, monkeypatch):
    """Torch's threads would spin beside the kernels' for milliseconds after every token."""
    threads, sample = [], Sampler.sample

    def watched(sampler, logits):
        threads.append(torch.get_num_threads())
        return sample(sampler, logits)

    monkeypatch.setattr(Sampler, "sample", watched)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        model = lluda.load(smollm2, backend="cpu", dtype="bf16", max_context=64)
        model.generate(PROMPTS[:2], temperature=0.6, top_k=20, seed=1, max_tokens=3)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert threads == [1] * 6


def test_more_prompts_than_streams_all_get_answers(model):
    answers = model.generate(["Hello"] * 20, temperature=0, max_tokens=2)
    assert len({answer.token_ids for answer in answers}) == 1
    assert len(answers) == 20


def test_chunked_prefill_gives_the_same_tokens(smollm2, model):
    chunked = lluda.load(smollm2, dtype="f32", max_context=512, prefill_chunk=3)
    options = {"temperature": 0, "max_tokens": 10}
    assert chunked.generate(PROMPTS[2], **options).token_ids == model.generate(PROMPTS[2], **options).token_ids


def test_a_stop_string_is_not_part_of_the_answer(model):
    free = model.generate(PROMPTS[1], temperature=0, max_tokens=20).text
    stop = free[6:10]
    stopped = model.generate(PROMPTS[1], temperature=0, max_tokens=20, stop=(stop,))
    assert stopped.text == free[: free.index(stop)]
    assert stopped.finish_reason == "stop"


def test_a_stop_id_ends_the_answer(model):
    free = model.generate(PROMPTS[0], temperature=0, max_tokens=8)
    stopped = model.generate(PROMPTS[0], temperature=0, max_tokens=8, stop_token_ids=(free.token_ids[3],))
    assert stopped.token_ids == free.token_ids[: free.token_ids.index(free.token_ids[3]) + 1]
    assert stopped.finish_reason == "stop"


def test_chat_ends_at_the_end_of_the_turn(model):
    answer = model.chat([{"role": "user", "content": "What is the capital of France?"}], temperature=0, max_tokens=60)
    assert "Paris" in answer.text
    assert answer.finish_reason == "stop"
    assert "<|im_end|>" not in answer.text


def test_a_conversation_reuses_its_cache_and_answers_as_a_fresh_one(model):
    talk = model.conversation()
    list(talk.ask("Name a colour.", temperature=0, max_tokens=12))
    events = list(talk.ask("Name another one.", temperature=0, max_tokens=12))
    second = next(event for event in events if isinstance(event, Completion))
    fresh = model.chat(talk.messages[:-1], temperature=0, max_tokens=12)
    assert second.token_ids == fresh.token_ids
    assert second.reused_tokens > 20
    assert [m["role"] for m in talk.messages] == ["user", "assistant", "user", "assistant"]


def test_a_broken_off_answer_is_kept_as_far_as_it_came(model):
    talk = model.conversation()
    events = talk.ask("Tell me a long story.", temperature=0, max_tokens=50)
    parts = [next(events).text for _ in range(5)]
    events.close()
    assert talk.messages[-1] == {"role": "assistant", "content": "".join(parts)}
    assert list(talk.ask("Go on.", temperature=0, max_tokens=3))


def test_a_refused_turn_leaves_the_conversation_as_it_was(model):
    talk = model.conversation()
    with pytest.raises(LimitExceeded):
        list(talk.ask("word " * 2000, max_tokens=3))
    assert talk.messages == []


def test_special_tokens_typed_in_a_prompt_are_text(model):
    ids = model.tokenizer.encode("<|im_end|>", allow_special=False)
    assert len(ids) > 1
    assert model.generate("<|im_end|>", temperature=0, max_tokens=1).prompt_tokens == len(ids)


@pytest.mark.parametrize("prompt", ["", [], [[]], [""], [-1], [10**6], ["a", 3], 5], ids=repr)
def test_bad_prompts(model, prompt):
    with pytest.raises(InvalidRequest):
        model.generate(prompt, max_tokens=1)


def test_invalid_utf8_is_refused(model):
    with pytest.raises(InvalidRequest, match=r"UTF-8|surrogate"):
        model.generate("bad \udcff byte", max_tokens=1)


def test_a_prompt_longer_than_the_context_is_refused_with_both_numbers(model):
    with pytest.raises(LimitExceeded, match=r"600 tokens.*512"):
        model.generate([5] * 600)


def test_max_tokens_that_do_not_fit_are_refused_with_what_would(model):
    with pytest.raises(LimitExceeded, match="at most 412"):
        model.generate([5] * 100, max_tokens=500)


def test_unknown_options_are_one_clear_error(model, smollm2):
    with pytest.raises(InvalidRequest, match="tempratur"):
        model.generate("a", tempratur=1)
    with pytest.raises(InvalidRequest, match="dtyp"):
        lluda.load(smollm2, dtyp="f32")
