"""What is heard while it is spoken is answered as if it had been sent at once, and little is left to do at its end."""

from __future__ import annotations

import numpy as np
import pytest

import lluda
from lluda.engine.cache import MIN_REUSED
from lluda.engine.request import SpeechChunk, Token
from lluda.engine.sampling.sampling_params import SamplingParams
from lluda.engine.speech.speech_params import SpeechParams
from lluda.errors import InvalidRequest, LimitExceeded
from lluda.inputs.media.audio_features import GrowingLogMel
from tests.cli.omni import write_omni, write_speaking_omni
from tests.inputs.media.recordings import RATE, sound

GREEDY = {"temperature": 0, "max_tokens": 6, "ignore_eos": True}
PATIENCE = 120.0
BLOCK = 8 * RATE
"""Samples of a block of attention, of 104 tokens."""
LATER = 400
"""Samples behind a block's last that its last frame needs, at most."""
SYSTEM = {"role": "system", "content": "say what you hear, in a word or two"}

LOADED = {"reference": {"backend": "reference", "dtype": "f32"}, "bf16": {"dtype": "bf16", "deterministic": True}}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("omni")
    return {"hears": write_omni(folder / "hears"), "speaks": write_speaking_omni(folder / "speaks")}


@pytest.fixture(scope="module", params=LOADED)
def model(request, folders):
    model = lluda.load(folders["speaks"], max_context=4096, **LOADED[request.param])
    yield model
    model.close()


@pytest.fixture
def fast(folders):
    """Not deterministic: all rows of a prefix are taken over."""
    model = lluda.load(folders["hears"], max_context=4096, dtype="bf16")
    yield model
    model.close()


def burst_late():
    """The floor rises in the third block, above what was heard in the first."""
    quiet = 1e-3 * sound(20)
    quiet[18 * RATE : 18 * RATE + 800] = sound(1)[:800]
    return quiet


SOUNDS = {
    "5 s": lambda: sound(5),
    "20 s": lambda: sound(20),
    "60 s": lambda: sound(60),
    "half a second": lambda: sound(0.5),
    "a loud burst late": burst_late,
    "silence first": lambda: np.concatenate([np.zeros(9 * RATE, np.float32), sound(4)]),
    "whole blocks": lambda: sound(16),
}


def steady(seconds):
    """As speech mostly is: nothing in it is louder than its beginning."""
    samples = np.float32(0.3) * sound(seconds)
    samples[: RATE // 2] = sound(0.5)
    return samples


def pieces(samples, size):
    return [samples[start : start + size] for start in range(0, len(samples), size)]


def message(source):
    rate = {"sampling_rate": RATE} if isinstance(source, np.ndarray) else {}
    return {"role": "user", "content": [{"type": "audio", "audio": source, **rate}]}


def hear(listener, samples, size=BLOCK + LATER):
    """Each piece as if time passed between them."""
    for piece in pieces(samples, size):
        listener.push(piece)
        assert listener.settled(PATIENCE)


def answers(model, messages):
    """Ids and text, then ids, text, codes and samples of the spoken answer; what was computed before is not used."""
    return said(model, messages, reuse="none"), spoken(model, messages, reuse="none")


def said(model, messages, **options):
    chat, chosen = model.chosen(None, GREEDY)
    prompt, _ = model.read_prompt(messages, chat)
    *_, completion = model.engine.submit(model.request(prompt, chosen, **options))
    return completion.token_ids, completion.text


def spoken(model, messages, **options):
    chat, chosen = model.chosen(None, GREEDY)
    prompt, _ = model.read_prompt(messages, chat)
    speech = SpeechParams(sampling=SamplingParams(temperature=0), max_frames=3)
    events = [*model.engine.submit(model.request(prompt, chosen, spoken=True, speech=speech, **options))]
    tokens = [(event.id, event.text) for event in events if isinstance(event, Token)]
    chunks = [event for event in events if isinstance(event, SpeechChunk)]
    return tokens, [chunk.codes for chunk in chunks], np.concatenate([chunk.samples for chunk in chunks]).tobytes()


def heard_rows(medium):
    return medium.heard.float().numpy()


@pytest.mark.parametrize("name", SOUNDS)
def test_an_answer_is_the_one_to_the_whole_recording(model, name):
    samples = SOUNDS[name]()
    expected = answers(model, [SYSTEM, message(samples)])
    with model.listen([SYSTEM], spoken=True) as listener:
        hear(listener, samples)
        end = listener.finish()
        assert said(model, [SYSTEM, message(end)]) == expected[0]
        assert spoken(model, [SYSTEM, message(end)]) == expected[1]


@pytest.mark.parametrize("size", [37, 1600, 99_999])
def test_pieces_of_any_size(model, size):
    samples = SOUNDS["20 s"]()[: 9 * RATE + 5]
    _, (whole,) = model.read_prompt([message(samples)], model.chosen(None, {})[0])
    with model.listen([]) as listener:
        for piece in pieces(samples, size):
            listener.push(piece)
        found = listener.finish().result(PATIENCE)
    assert found.blocks == whole.blocks
    np.testing.assert_array_equal(heard_rows(found), heard_rows(whole))


def test_an_end_that_was_expected_and_did_not_come(model):
    samples = SOUNDS["20 s"]()
    expected = answers(model, [SYSTEM, message(samples[: 19 * RATE])])
    with model.listen([SYSTEM], spoken=True) as listener:
        hear(listener, samples[: 5 * RATE])
        listener.expect_end(5 * RATE - 77)
        assert listener.settled(PATIENCE)
        ahead = listener.prefilled
        listener.expect_end(None)
        hear(listener, samples[5 * RATE :])
        listener.expect_end(19 * RATE)
        assert listener.settled(PATIENCE)
        assert listener.prefilled > ahead
        end = listener.finish(19 * RATE)
        assert said(model, [SYSTEM, message(end)]) == expected[0]
        assert spoken(model, [SYSTEM, message(end)]) == expected[1]


def test_two_listeners_at_once(model):
    one, two = SOUNDS["20 s"](), SOUNDS["20 s"]()[::-1].copy()
    expected = [said(model, [SYSTEM, message(samples)], reuse="none") for samples in (one, two)]
    with model.listen([SYSTEM]) as first, model.listen([SYSTEM]) as second:
        for left, right in zip(pieces(one, RATE), pieces(two, RATE), strict=True):
            first.push(left)
            second.push(right)
        ends = [listener.finish() for listener in (first, second)]
        assert [said(model, [SYSTEM, message(end)]) for end in ends] == expected


def test_a_conversation_with_sound_in_it_before(model):
    before, samples = sound(9, seed=1), SOUNDS["20 s"]()
    history = [SYSTEM, message(before), {"role": "assistant", "content": "a hum"}]
    expected = answers(model, [*history, message(samples)])
    with model.listen(history, spoken=True) as listener:
        hear(listener, samples)
        end = listener.finish()
        assert said(model, [*history, message(end)]) == expected[0]
        assert spoken(model, [*history, message(end)]) == expected[1]


@pytest.mark.parametrize("expects", [False, True])
def test_little_is_left_at_the_end(fast, expects):
    """After the last full block: what follows it; and of an end that was expected, the one row that gives a token."""
    samples = steady(20)
    with fast.listen([SYSTEM]) as listener:
        hear(listener, samples)
        if expects:
            listener.expect_end(len(samples))
            assert listener.settled(PATIENCE)
        encoded = count_blocks(fast)
        answer = fast.chat([SYSTEM, message(listener.finish())], **GREEDY)
    left = answer.prompt_tokens - answer.reused_tokens
    assert len(encoded) == (0 if expects else 1)
    assert left == 1 if expects else 4 * 13 < left < 104
    assert answer.token_ids == said(fast, [SYSTEM, message(samples)], reuse="none")[0]


def test_a_turn_that_goes_on_computes_nothing_again(fast):
    """An end is expected in the second block; the first one's rows are kept when it does not come."""
    samples = steady(20)
    with fast.listen([SYSTEM]) as listener:
        hear(listener, samples[: 10 * RATE])
        first = listener.prefilled
        listener.expect_end(10 * RATE)
        assert listener.settled(PATIENCE)
        assert listener.prefilled > first
        listener.expect_end(None)
        before, encoded = fast.engine.stats().reused_tokens, count_blocks(fast)
        hear(listener, samples[10 * RATE :])
        assert fast.engine.stats().reused_tokens - before == first
        assert len(encoded) == 1


def test_features_are_not_made_again_where_it_ends_as_expected(fast, monkeypatch):
    """Though louder sound has come behind that end."""
    made, ending = [], GrowingLogMel.ending
    monkeypatch.setattr(GrowingLogMel, "ending", lambda self, end: (made.append(end), ending(self, end))[1])
    samples, end = steady(10), 9 * RATE
    with fast.listen([SYSTEM]) as listener:
        hear(listener, samples)
        listener.expect_end(end)
        assert listener.settled(PATIENCE)
        listener.push(np.float32(3) * noise(1))
        found = listener.finish(end).result(PATIENCE)
    assert made == [end]
    _, (expected,) = fast.read_prompt([message(samples[:end])], fast.chosen(None, {})[0])
    assert found.blocks == expected.blocks
    with fast.listen([SYSTEM]) as listener:
        hear(listener, samples)
        listener.expect_end(end)
        assert listener.settled(PATIENCE)
        assert listener.finish(end - RATE).result(PATIENCE).blocks != expected.blocks
    assert made[1:] == [end, end - RATE]


def test_blocks_behind_an_expected_end_wait(fast):
    samples = steady(20)
    with fast.listen([SYSTEM]) as listener:
        hear(listener, samples[: 7 * RATE])
        listener.expect_end(7 * RATE - 100)
        hear(listener, samples[7 * RATE : 12 * RATE])
        answer = fast.chat([SYSTEM, message(listener.finish(7 * RATE - 100))], **GREEDY)
    assert answer.prompt_tokens - answer.reused_tokens == 1


def test_only_blocks_under_a_floor_that_rose_are_encoded_again(fast):
    """What is loud enough to be above the new floor keeps its key."""
    first, second = np.concatenate([noise(8), np.float32(1e-4) * steady(9)]), np.float32(3) * noise(2)
    with fast.listen([SYSTEM]) as listener:
        hear(listener, first, len(first))
        encoded = count_blocks(fast)
        hear(listener, second)
        assert len(encoded) == 1, "while it is spoken"
        found = listener.finish().result(PATIENCE)
    whole = np.concatenate([first, second])
    _, (expected,) = fast.read_prompt([message(whole)], fast.chosen(None, {})[0])
    assert found.blocks == expected.blocks
    assert len(encoded) == 2
    np.testing.assert_array_equal(heard_rows(found), heard_rows(expected))


def noise(seconds):
    return np.random.default_rng(5).standard_normal(seconds * RATE).astype(np.float32) / 4


def count_blocks(model):
    """Grows by one for each block that is encoded from now on."""
    tower, encoded = model.network.audio_tower, []
    original = type(tower).encode_block

    def counted(block):
        encoded.append(block)
        return original(tower, block)

    tower.encode_block = counted
    return encoded


def test_what_is_computed_ahead_comes_after_what_was_asked_for(fast):
    """A listener's rows are of lower priority than any answer's."""
    seen, submit = [], fast.engine.submit
    fast.engine.submit = lambda *requests, **options: (seen.extend(requests), submit(*requests, **options))[1]
    with fast.listen([SYSTEM]) as listener:
        hear(listener, sound(9))
        fast.chat([SYSTEM, message(listener.finish())], **GREEDY)
    ahead, asked = [each for each in seen if each.prefill_only], [each for each in seen if not each.prefill_only]
    assert len(ahead) == 2
    assert len(asked) == 1
    assert min(each.priority for each in ahead) > asked[0].priority


def test_a_prompt_of_another_salt_does_not_begin_with_it(fast):
    samples = sound(9)
    with fast.listen([SYSTEM], salt=b"one") as listener:
        hear(listener, samples)
        answer = fast.chat([SYSTEM, message(listener.finish())], **GREEDY)
    assert answer.reused_tokens == 0


def test_nothing_is_heard_after_the_end(fast):
    listener = fast.listen([SYSTEM])
    listener.push(sound(1))
    assert listener.finish().result(PATIENCE) is listener.finish().result(PATIENCE)
    with pytest.raises(InvalidRequest, match="open another listener"):
        listener.push(sound(1))


def test_a_turn_that_was_nothing(fast):
    listener = fast.listen([SYSTEM])
    listener.push(sound(1))
    listener.discard()
    with pytest.raises(InvalidRequest, match="over"):
        listener.push(sound(1))
    assert listener.settled(PATIENCE)
    assert fast.engine.drain(PATIENCE)
    fast.engine.check_integrity()


def test_a_recording_that_is_too_short_is_refused_where_it_is_asked_about(fast):
    listener = fast.listen([SYSTEM])
    listener.push(np.zeros(100, np.float32))
    with pytest.raises(InvalidRequest, match="too short"):
        fast.chat([SYSTEM, message(listener.finish())])


def test_a_turn_that_outgrows_the_context_is_heard_and_refused_when_asked(folders, caplog):
    model = lluda.load(folders["hears"], max_context=200)
    with model.listen([SYSTEM]) as listener:
        hear(listener, sound(25))
        assert "context" in str(listener.error)
        assert [record.args[1] for record in caplog.records] == [listener.error], "said once, not hidden"
        assert MIN_REUSED < listener.prefilled < 200
        assert listener.finish().result(PATIENCE).span.tokens == 25 * 13
        with pytest.raises(lluda.errors.ContextExceeded):
            model.chat([SYSTEM, message(listener.finish())])
    model.close()


@pytest.mark.parametrize("samples", [np.zeros((4, 2), np.float32), np.zeros(4, np.int16), np.array([np.nan])])
def test_what_is_no_sound_is_refused(fast, samples):
    with fast.listen([SYSTEM]) as listener, pytest.raises(InvalidRequest, match="finite float samples"):
        listener.push(samples)


def test_a_turn_has_an_end(fast, monkeypatch):
    listener = fast.listen([SYSTEM])
    monkeypatch.setattr(listener, "_pushed", fast.media.audio_limits.max_seconds * RATE)
    with pytest.raises(LimitExceeded, match="a recording may last"):
        listener.push(sound(0.1))
    listener.discard()


def test_listening_needs_a_model_that_hears_and_speaking_one_that_speaks(fast):
    with pytest.raises(lluda.errors.UnsupportedModel):
        fast.listen([SYSTEM], spoken=True)


def test_an_expected_end_tells_what_the_answer_would_begin_with(model):
    samples = sound(5)
    with model.listen([SYSTEM], judged=True) as listener:
        listener.push(samples)
        listener.expect_end(3 * RATE)
        assert listener.settled(PATIENCE)
        first = listener.first_token
        listener.expect_end(None)
        assert listener.first_token is None
        listener.expect_end(5 * RATE)
        assert listener.settled(PATIENCE)
        last = listener.first_token
        source = listener.finish(5 * RATE)
        answer = next(iter(model.chat_stream([SYSTEM, message(source)], **GREEDY)))
    whole = [SYSTEM, message(samples)], [SYSTEM, message(samples[: 3 * RATE])]
    expected = [next(iter(model.chat_stream(messages, **GREEDY, logprobs=20))) for messages in whole]
    assert [(token.id, token.top) for token in (last, first)] == [(token.id, token.top) for token in expected]
    assert answer.id == last.id


def test_nothing_is_asked_of_a_listener_that_is_not_judged(model):
    with model.listen([]) as listener:
        listener.push(sound(1))
        listener.expect_end(RATE)
        assert listener.settled(PATIENCE)
        assert listener.prefilled
        assert listener.first_token is None
