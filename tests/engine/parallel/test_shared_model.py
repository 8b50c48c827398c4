"""Models in two processes (four in test-slow): the same tokens, codes and samples as in one; and what becomes of them
when a process is lost."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch

import lluda
from lluda.engine.engine import Engine
from lluda.engine.request import Completion, PromptLogprobs, Request, SpeechChunk
from lluda.engine.runner import rows_of
from lluda.engine.sampling.sampling_params import SamplingParams
from lluda.errors import LludaError, RankLost
from lluda.inputs.text.tokenizer import Tokenizer
from tests.conftest import TINY_MIXED, TINY_QWEN3, watchdog
from tests.engine.parallel.ranks import folder_of, shared, single

DENSE = TINY_QWEN3 | {"attention_bias": True}
PROMPTS = [list(range(3, 60)), [7, 7, 9], list(range(100, 140))]
GREEDY = SamplingParams(temperature=0, max_tokens=12)
SAMPLED = SamplingParams(temperature=1.0, top_k=30, seed=4, max_tokens=12)
CHOICES = pytest.mark.parametrize("params", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
RANKS = pytest.mark.parametrize(
    "ranks", [2, pytest.param(4, marks=pytest.mark.slow)], ids=["2 ranks", "4 ranks"], scope="class"
)
QUESTION = Path(__file__).resolve().parents[3] / "examples" / "question.flac"
ENCODERS = ("thinker.audio_tower.", "thinker.visual.")
HEARD = [{"role": "user", "content": [{"type": "audio", "audio": str(QUESTION)}]}]


def engine_of(runner):
    return Engine(runner, Tokenizer.empty(), kv_positions=8192, retained_positions=1024)


def submit(engine, params, prompts=PROMPTS):
    rows = [rows_of(prompt) for prompt in prompts]
    wanted = params.with_defaults({})
    return engine.submit(
        *(Request(prompt=row, sampling=wanted, index=index, reuse="any") for index, row in enumerate(rows))
    )


def completions(engine, params, prompts=PROMPTS):
    return sorted((e for e in submit(engine, params, prompts) if isinstance(e, Completion)), key=lambda e: e.index)


def tokens(engine, params, prompts=PROMPTS):
    return [completion.token_ids for completion in completions(engine, params, prompts)]


@pytest.fixture(scope="class")
def dense(tmp_path_factory, ranks):
    """A tied model with biases in this process, and the same on several ranks."""
    folder = folder_of(DENSE, tmp_path_factory.mktemp("dense") / "model")
    with shared(folder, ranks) as (runner, leader):
        several = engine_of(runner)
        leader.on_lost(several.fail)
        yield engine_of(single(folder)), several, leader
        several.close()


@RANKS
class TestDense:
    """One model for all of these; the last one ends a rank."""

    @CHOICES
    def test_answers_side_by_side_are_those_of_one_process(self, dense, params):
        alone, several, _ = dense
        assert tokens(several, params) == tokens(alone, params)

    def test_logits_are_those_of_one_process(self, dense):
        expected, found = (e.runner.prefill(PROMPTS[0], e.runner.new_cache()) for e in dense[:2])
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)

    def test_a_prompt_is_scored(self, dense):
        params = SamplingParams(temperature=0, max_tokens=1, prompt_logprobs=2)
        expected, found = (
            [token.logprob for event in submit(engine, params) if isinstance(event, PromptLogprobs)
             for token in event.tokens[1:]]
            for engine in dense[:2]
        )  # fmt: skip
        assert found == pytest.approx(expected, abs=1e-4)

    def test_a_prefix_that_is_kept_is_continued(self, dense):
        """By two at once, of which one copies it: the ranks' caches say the same as the first's."""
        alone, several, leader = dense
        prompt = PROMPTS[0] * 2
        tokens(several, GREEDY, [prompt])
        longer = [[*prompt, 9], [*prompt, 8]]
        again = completions(several, GREEDY, longer)
        assert [completion.reused_tokens for completion in again] == [len(prompt)] * 2
        assert [completion.token_ids for completion in again] == tokens(alone, GREEDY, longer)
        assert leader.error is None

    def test_a_rank_that_is_killed_ends_all_with_an_error(self, dense, ranks):
        _, several, leader = dense
        stream = submit(several, SamplingParams(temperature=0, max_tokens=900))
        next(stream)
        os.kill(leader.pids[-1], signal.SIGKILL)
        with watchdog(10), pytest.raises(RankLost, match=rf"rank {ranks - 1} of {ranks} was ended by SIGKILL"):
            list(stream)
        with watchdog(10), pytest.raises(LludaError, match=r"stopped at an error \(RankLost\); load the model again"):
            submit(several, GREEDY)


@pytest.fixture(scope="module")
def alone():
    return lluda.load("tiny-omni", dtype="f32", threads=1)


@pytest.fixture(scope="class")
def omni(ranks):
    model = lluda.load("tiny-omni", dtype="f32", threads=1, tensor_parallel=ranks)
    yield model
    model.close()


@RANKS
class TestOmni:
    """tiny-omni: a mixture of experts that hears and speaks."""

    @CHOICES
    def test_a_heard_question_is_answered_alike(self, alone, omni, params):
        expected, found = (model.chat(HEARD, params) for model in (alone, omni))
        assert found.token_ids == expected.token_ids and len(found.token_ids) > 3

    def test_a_spoken_answer_has_the_same_tokens_codes_and_samples(self, alone, omni):
        expected, found = (list(model.speak(HEARD, GREEDY)) for model in (alone, omni))
        for part in ("text", "codes"):
            assert _said(found)[part] == _said(expected)[part] != ()
        np.testing.assert_allclose(_said(found)["samples"], _said(expected)["samples"], atol=1e-4)

    def test_what_each_rank_holds(self, alone, omni, ranks):
        """The first has the encoders too; of the decoder each has its share and what is too small to share."""
        whole = sum(alone.report.sizes.values())
        encoders = sum(size for name, size in alone.report.sizes.items() if name.startswith(ENCODERS))
        first, *others = omni.rank_bytes
        assert set(others) == {first - encoders} and len(others) == ranks - 1
        assert others[0] <= 1.05 * (whole - encoders) / ranks
        assert f"rank 0 of {ranks}, weights of the ranks" in omni.describe()


def _said(events):
    chunks = [event for event in events if isinstance(event, SpeechChunk)]
    text = next(event.token_ids for event in events if isinstance(event, Completion))
    samples = np.concatenate([chunk.samples for chunk in chunks])
    return {"text": text, "codes": tuple(code for chunk in chunks for code in chunk.codes), "samples": samples}


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [2, 4])
def test_a_mixture_between_dense_layers(tmp_path, ranks):
    folder = folder_of(TINY_MIXED, tmp_path / "model")
    with shared(folder, ranks) as (runner, _):
        assert tokens(engine_of(runner), SAMPLED) == tokens(engine_of(single(folder)), SAMPLED)


@pytest.mark.slow
def test_a_rank_that_stands_still_is_given_up(tmp_path):
    folder = folder_of(DENSE, tmp_path / "model")
    with shared(folder, 2) as (runner, leader):
        engine = engine_of(runner)
        leader.on_lost(engine.fail)
        stream = submit(engine, SamplingParams(temperature=0, max_tokens=900))
        next(stream)
        os.kill(leader.pids[0], signal.SIGSTOP)
        with watchdog(10), pytest.raises(RankLost, match="rank 1 of 2 said nothing for 6 s"):
            list(stream)
