"""What the talker computed of users' turns is not computed again, and no answer is another for it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

import lluda
from lluda.engine.kv_cache import CacheOptions, KVCache
from lluda.engine.request import SpeechChunk, Token
from lluda.engine.speech.talker_prefixes import TalkerPrefixes
from lluda.engine.speech.talker_prompt import ASSISTANT_ROWS
from tests.cli.omni import write_speaking_omni
from tests.inputs.media.recordings import RATE, sound

GREEDY = {"temperature": 0, "max_tokens": 4, "ignore_eos": True}
SPEECH = lluda.SpeechParams(sampling=lluda.SamplingParams(temperature=0), max_frames=4)
PATIENCE = 120.0
SYSTEM = {"role": "system", "content": "say what you hear"}
ANSWER = {"role": "assistant", "content": "a hum"}

LOADED = {
    # Whole steps of turns are kept where sums hang on how many rows are computed at once.
    "reference": {"backend": "reference", "dtype": "f32", "prefill_chunk": 16},
    "deterministic": {"dtype": "bf16", "deterministic": True},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_speaking_omni(tmp_path_factory.mktemp("omni") / "speaks")


@pytest.fixture(scope="module", params=LOADED)
def loaded(request, folder):
    model = lluda.load(folder, max_context=2048, **LOADED[request.param])
    yield model
    model.close()


@pytest.fixture
def model(loaded):
    loaded.engine.release_prefixes()
    return loaded


@pytest.fixture(scope="module")
def loaded_fast(folder):
    """Not deterministic: all rows that are known are taken."""
    model = lluda.load(folder, max_context=2048, dtype="bf16")
    yield model
    model.close()


@pytest.fixture
def fast(loaded_fast):
    loaded_fast.engine.release_prefixes()
    return loaded_fast


def heard(seconds, seed=0):
    return {"role": "user", "content": [{"type": "audio", "audio": sound(seconds, seed=seed), "sampling_rate": RATE}]}


def said(text):
    return {"role": "user", "content": text}


def spoken(model, messages, *, speaker=None, salt=b"", **options):
    """Ids, codes and samples of the answer."""
    chat, chosen = model.chosen(None, GREEDY)
    prompt, _ = model.read_prompt(messages, chat)
    request = model.request(replace(prompt, salt=salt), chosen, spoken=True, speech=SPEECH, speaker=speaker, **options)
    events = [*model.engine.submit(request)]
    chunks = [event for event in events if isinstance(event, SpeechChunk)]
    ids = [event.id for event in events if isinstance(event, Token)]
    return ids, [chunk.codes for chunk in chunks], np.concatenate([chunk.samples for chunk in chunks]).tobytes()


@pytest.fixture
def rows(monkeypatch):
    """Of each step that the talker of a model makes over more than one row, from when it is asked for."""

    def counted(model):
        decoder, counts = model.speech_stack().talker.decoder, []
        original = type(decoder).run

        def run(x, *rest):
            if len(x) > 1:
                counts.append(len(x))
            return original(decoder, x, *rest)

        monkeypatch.setattr(decoder, "run", run, raising=False)
        return counts

    return counted


CONVERSATIONS = {
    "text": ([SYSTEM, said("tell me all that you know of rivers")], said("and of the sea that they run to?")),
    "sound": ([SYSTEM, heard(4)], heard(2, seed=1)),
    "sound after text": ([said("listen to this, and tell me what it is")], heard(3)),
    "text after sound": ([heard(3)], said("what was that?")),
}


@pytest.mark.parametrize("name", CONVERSATIONS)
def test_a_second_turn_is_what_it_is_where_nothing_is_known(model, rows, name):
    first, second = CONVERSATIONS[name]
    spoken(model, first)
    counts = rows(model)
    both = [*first, ANSWER, second]
    found, computed = spoken(model, both), sum(counts)
    counts.clear()
    assert found == spoken(model, both, reuse="none")
    assert computed < sum(counts), "the first turn was computed again"


@pytest.mark.parametrize("seconds", [3, 9])
@pytest.mark.parametrize("expects", [False, True])
def test_a_turn_that_was_heard_is_what_it_is_where_nothing_is_known(model, rows, seconds, expects):
    samples = sound(seconds)
    samples[: RATE // 2] *= 4  # nothing in it is louder than its beginning
    history = [SYSTEM, heard(2, seed=2), ANSWER]
    with model.listen(history, spoken=True) as listener:
        for start in range(0, len(samples), RATE):
            listener.push(samples[start : start + RATE])
            assert listener.settled(PATIENCE)
        if expects:
            listener.expect_end(len(samples))
            assert listener.settled(PATIENCE)
        counts = rows(model)
        messages = [*history, {"role": "user", "content": [{"type": "audio", "audio": listener.finish()}]}]
        found, computed = spoken(model, messages), sum(counts)
    counts.clear()
    assert found == spoken(model, messages, reuse="none")
    if expects or seconds > 8:
        assert computed < sum(counts), "what was heard was computed again"


def test_where_an_end_was_expected_only_the_answers_own_rows_are_left(fast, rows):
    samples = sound(5)
    with fast.listen([SYSTEM], spoken=True) as listener:
        listener.push(samples)
        listener.expect_end(len(samples))
        assert listener.settled(PATIENCE)
        counts = rows(fast)
        spoken(fast, [SYSTEM, {"role": "user", "content": [{"type": "audio", "audio": listener.finish()}]}])
    assert counts[0] == ASSISTANT_ROWS


def test_a_judged_end_computes_them_too(fast, rows):
    samples = sound(5)
    with fast.listen([SYSTEM], spoken=True, judged=True) as listener:
        listener.push(samples)
        listener.expect_end(len(samples))
        assert listener.settled(PATIENCE)
        assert listener.first_token is not None
        counts = rows(fast)
        spoken(fast, [SYSTEM, {"role": "user", "content": [{"type": "audio", "audio": listener.finish()}]}])
    assert counts[0] == ASSISTANT_ROWS


def test_a_listener_whose_answer_is_not_spoken_computes_none(fast, rows):
    counts = rows(fast)
    with fast.listen([SYSTEM]) as listener:
        listener.push(sound(3))
        listener.expect_end(3 * RATE)
        assert listener.settled(PATIENCE)
    assert counts == []


def test_another_speaker_speaks_after_the_same_rows(model, rows):
    first, second = model.speakers[:2]
    messages = [SYSTEM, heard(4)]
    spoken(model, messages, speaker=first)
    counts = rows(model)
    found, computed = spoken(model, messages, speaker=second), sum(counts)
    counts.clear()
    assert found == spoken(model, messages, speaker=second, reuse="none")
    assert computed < sum(counts)


EDITS = {
    "another turn of the user instead of an answer": [SYSTEM, heard(3), said("go on, say more of it")],
    "the first turn is another": [SYSTEM, heard(3, seed=5), ANSWER, heard(2, seed=1)],
    "the system message is another": [{"role": "system", "content": "sing"}, heard(3), ANSWER, heard(2, seed=1)],
    "the first turn was forgotten": [SYSTEM, heard(2, seed=1)],
    "the turn was cut": [SYSTEM, heard(2)],
    "the answer was cut": [SYSTEM, heard(3), {"role": "assistant", "content": "a"}, heard(2, seed=1)],
}


@pytest.mark.parametrize("edit", EDITS)
def test_a_conversation_that_was_edited(model, edit):
    spoken(model, [SYSTEM, heard(3), ANSWER, heard(2, seed=1), ANSWER, said("and now for something else")])
    assert spoken(model, EDITS[edit]) == spoken(model, EDITS[edit], reuse="none")


def test_nothing_is_shared_between_salts(fast, rows):
    messages = [SYSTEM, heard(4)]
    counts = rows(fast)
    for salt in (b"one", b"two", b"one"):
        spoken(fast, messages, salt=salt)
    assert counts[0] == counts[1]
    assert counts[2] == ASSISTANT_ROWS


def test_a_request_that_shares_nothing_keeps_nothing(fast):
    spoken(fast, [SYSTEM, heard(3)], reuse="none")
    assert fast.speech_stack().prefixes.rows == 0


def test_released_prefixes_are_forgotten(fast):
    spoken(fast, [SYSTEM, heard(3)])
    assert fast.speech_stack().prefixes.rows > 39
    fast.engine.release_prefixes()
    assert fast.speech_stack().prefixes.rows == fast.speech_stack().prefixes.nbytes == 0


def test_what_was_used_longest_ago_makes_place(fast):
    """Each of the three takes memory for 256 rows."""
    stack, options = fast.speech_stack(), CacheOptions(600, dtype="bf16")
    prefixes = TalkerPrefixes(stack.talker, stack.prompts, options, step=64, exact=False)
    prompts = [fast.read_prompt([said(f"{number} " * 40)], fast.chosen(None, {})[0])[0] for number in "123"]

    def known(prompt):
        cache = KVCache(stack.talker.config.decoder, CacheOptions(2048, dtype="bf16"), stack.talker.backend.device)
        prefixes.begin(cache, prompt, None, reuse=True)
        return cache.length

    first, second, third = prompts
    prefixes.compute(first, None, len(first))
    prefixes.compute(second, None, len(second))
    assert known(first) == 64, "as many as a step may have"
    prefixes.compute(third, None, len(third))
    assert known(first) == 64
    assert known(second) == 0
    assert known(third) == 64
    assert prefixes.nbytes <= options.bytes_for(stack.talker.config.decoder, 600)


def test_no_more_rows_are_kept_than_there_is_place_for(fast):
    stack = fast.speech_stack()
    prompt, _ = fast.read_prompt([said("la " * 100)], fast.chosen(None, {})[0])
    prefixes = TalkerPrefixes(stack.talker, stack.prompts, CacheOptions(50, dtype="bf16"), step=32, exact=False)
    for rows in (32, 50, 50):
        prefixes.compute(prompt, None, len(prompt))
        assert prefixes.rows == rows
