"""Where turns start, pause and end: the table of states on given probabilities, and real sound in any cut."""

import math

import numpy as np
import pytest

from lluda.engine.listening.turn_detector import (
    LONGEST_TURN,
    TAIL,
    SpeechAwaited,
    SpeechEnded,
    SpeechPaused,
    SpeechResumed,
    SpeechStarted,
    TurnDetector,
    TurnSettings,
)
from lluda.engine.listening.turn_end import WAITS, likely_over, silence_ms
from lluda.engine.listening.vad import CHUNK, RATE
from lluda.errors import InvalidRequest
from tools.silero_vad import sample_sound

PADDING = 300 * RATE // 1000
LOUD, BETWEEN, QUIET = 0.9, 0.4, 0.1


def found(detector, *runs):
    """Events of runs ``(probability, frames)``, each with how many frames were heard by then."""
    events = []
    for probability, frames in runs:
        for _ in range(frames):
            events += [(detector.heard // CHUNK, event) for event in detector.frame(probability)]
    return events


def turn(first: int, *, padding: int = PADDING) -> SpeechStarted:
    return SpeechStarted(first * CHUNK, max(first * CHUNK - padding, 0))


def frames_of(milliseconds: int) -> int:
    return math.ceil(milliseconds / 32)


def test_a_turn_starts_with_three_frames_and_ends_with_silence():
    detector = TurnDetector(TurnSettings())
    events = found(detector, (QUIET, 20), (LOUD, 30), (QUIET, 40))
    end = 50 * CHUNK + TAIL
    assert events == [(23, turn(20)), (57, SpeechPaused(end)), (66, SpeechEnded(end))]
    assert not detector.speaking


@pytest.mark.parametrize("duration", [100, 200, 224, 225, 300, 500, 700, 5000])
def test_silence_is_rounded_up_to_frames_and_the_tail_is_what_was_heard(duration):
    events = found(TurnDetector(TurnSettings(silence_duration_ms=duration)), (LOUD, 10), (QUIET, 200))
    end = 10 * CHUNK + min(frames_of(duration) * CHUNK, TAIL)
    assert events[-1] == (10 + frames_of(duration), SpeechEnded(end))
    assert (SpeechPaused(end) in [event for _, event in events]) == (duration >= 200 - 8)


def test_two_frames_are_no_speech():
    assert found(TurnDetector(TurnSettings()), *[(LOUD, 2), (BETWEEN, 1)] * 50) == []


def test_what_lies_between_keeps_speech_and_keeps_silence():
    detector = TurnDetector(TurnSettings())
    assert [event for _, event in found(detector, (LOUD, 5), (BETWEEN, 100))] == [turn(0)]
    # The clock of silence goes on, and a frame of silence is what it ends with.
    events = found(detector, (QUIET, 1), (BETWEEN, 30), (QUIET, 1))
    end = 105 * CHUNK + TAIL
    assert events == [(137, SpeechPaused(end)), (137, SpeechEnded(end))]


def test_speech_goes_on_after_a_pause():
    events = found(TurnDetector(TurnSettings()), (LOUD, 5), (QUIET, 10), (LOUD, 1), (QUIET, 16))
    assert [event for _, event in events] == [
        turn(0),
        SpeechPaused(5 * CHUNK + TAIL),
        SpeechResumed(15 * CHUNK),
        SpeechPaused(16 * CHUNK + TAIL),
        SpeechEnded(16 * CHUNK + TAIL),
    ]


@pytest.mark.parametrize(("threshold", "starts", "ends"), [(0.5, 0.5, 0.34), (0.9, 0.9, 0.74), (0.1, 0.1, 0.009)])
def test_thresholds(threshold, starts, ends):
    settings = TurnSettings(threshold=threshold)
    assert found(TurnDetector(settings), (starts - 0.001, 50)) == []
    for last, over in ((ends, True), (ends + 0.02, False)):
        events = found(TurnDetector(settings), (starts, 5), (last, 50))
        assert isinstance(events[-1][1], SpeechEnded if over else SpeechStarted)


def test_padding_is_never_before_the_first_sample_nor_inside_the_turn_before():
    detector = TurnDetector(TurnSettings(prefix_padding_ms=2000, silence_duration_ms=200))
    events = found(detector, (QUIET, 3), (LOUD, 5), (QUIET, 8), (LOUD, 5), (QUIET, 100), (LOUD, 5))
    starts = [event for _, event in events if isinstance(event, SpeechStarted)]
    assert starts[0] == SpeechStarted(3 * CHUNK, 0)
    assert starts[1] == SpeechStarted(16 * CHUNK, 8 * CHUNK + TAIL)
    assert starts[2] == SpeechStarted(121 * CHUNK, 121 * CHUNK - 2 * RATE)


def test_what_is_needed_is_what_a_turn_may_begin_with():
    detector = TurnDetector(TurnSettings())
    found(detector, (QUIET, 100))
    assert detector.needed_from == 100 * CHUNK - PADDING
    found(detector, (LOUD, 2))
    assert detector.needed_from == 100 * CHUNK - PADDING
    ((_, started),) = found(detector, (LOUD, 1))
    assert started.padded_sample == detector.needed_from == 100 * CHUNK - PADDING
    assert found(detector, (LOUD, 50), (QUIET, 10))
    assert detector.needed_from == started.padded_sample
    *_, (_, ended) = found(detector, (QUIET, 6))
    assert detector.needed_from == detector.heard - PADDING > ended.sample


def test_over_our_own_speech_it_takes_more():
    detector = TurnDetector(TurnSettings())
    detector.speaking_back = True
    assert found(detector, (0.59, 20), (QUIET, 1), (LOUD, 4), (QUIET, 1)) == []
    assert found(detector, (0.61, 5)) == [(31, turn(26))]
    # Once it is a turn, it is one as any other.
    assert [type(event) for _, event in found(detector, (0.5, 20), (QUIET, 16))] == [SpeechPaused, SpeechEnded]


@pytest.mark.parametrize(("threshold", "enough"), [(0.9, 0.951), (1, 1)])
def test_over_our_own_speech_a_high_threshold_can_still_be_reached(threshold, enough):
    detector = TurnDetector(TurnSettings(threshold=threshold))
    detector.speaking_back = True
    assert len(found(detector, (enough, 5))) == 1


@pytest.mark.parametrize("eagerness", ["low", "medium", "high"])
def test_eagerness_without_a_judge(eagerness):
    events = found(TurnDetector(TurnSettings(eagerness=eagerness)), (LOUD, 5), (QUIET, 200))
    assert events[-1] == (5 + frames_of(WAITS[eagerness].unjudged), SpeechEnded(5 * CHUNK + TAIL))


@pytest.mark.parametrize("eagerness", ["low", "medium", "high"])
@pytest.mark.parametrize("probability", [0.0, 0.5, 0.9, 1.0])
def test_a_judge_is_asked_once_at_each_pause(eagerness, probability):
    asked = []

    def judge(sample):
        asked.append(sample)
        return probability

    detector = TurnDetector(TurnSettings(eagerness=eagerness), judge)
    events = found(detector, (LOUD, 5), (QUIET, 7), (LOUD, 5), (QUIET, 200))
    first, last = 5 * CHUNK + TAIL, 17 * CHUNK + TAIL
    heard = max(frames_of(silence_ms(eagerness, probability)), 7)  # no judgement before the tail was heard
    if heard == 7:
        assert [event for _, event in events] == [
            *(turn(0), SpeechPaused(first), SpeechEnded(first)),
            *(SpeechStarted(12 * CHUNK, first), SpeechPaused(last), SpeechEnded(last)),
        ]
    else:
        assert events[-1] == (17 + heard, SpeechEnded(last))
    assert asked == [first, last]


def test_a_judge_may_take_its_time():
    answers = [None, None, None, 1.0]
    detector = TurnDetector(TurnSettings(eagerness="high"), lambda _: answers.pop(0))
    events = found(detector, (LOUD, 5), (QUIET, 200))
    assert events[-1] == (5 + 7 + 3, SpeechEnded(5 * CHUNK + TAIL))
    assert answers == []


def test_a_judge_that_never_answers_does_not_keep_a_turn_open():
    detector = TurnDetector(TurnSettings(eagerness="medium"), lambda _: None)
    events = found(detector, (LOUD, 5), (QUIET, 200))
    assert events[-1] == (5 + frames_of(WAITS["medium"].unjudged), SpeechEnded(5 * CHUNK + TAIL))


def test_a_server_vad_asks_no_judge():
    detector = TurnDetector(TurnSettings(), lambda _: pytest.fail("asked"))
    assert len(found(detector, (LOUD, 5), (QUIET, 50))) == 3


def test_more_eager_is_never_later():
    for probability in (None, *np.linspace(0, 1, 101)):
        waits = [silence_ms(eagerness, probability) for eagerness in ("high", "medium", "low")]
        assert waits == sorted(waits)


@pytest.mark.parametrize("eagerness", ["low", "medium", "high"])
def test_more_likely_over_is_never_later(eagerness):
    waits = [silence_ms(eagerness, probability) for probability in np.linspace(0, 1, 101)]
    assert waits == sorted(waits, reverse=True)
    assert waits[0] > silence_ms(eagerness, None) > waits[-1]


def test_what_the_first_token_says():
    unclear, others = 7, range(100, 119)
    spread = [(number, math.log(1 / 20)) for number in (unclear, *others)]
    assert likely_over([(1, 0.0), *((number, -math.inf) for number in others)], unclear) == 1
    assert likely_over([(unclear, 0.0), (1, -60.0)], unclear) < 1e-6
    assert likely_over(spread, unclear) < 1e-6
    half = [(1, math.log(0.5)), (2, math.log(0.5))]
    assert 0.5 < likely_over(half, unclear) < likely_over([(1, math.log(0.9)), (2, math.log(0.1))], unclear) < 1


@pytest.mark.parametrize("probability", [LOUD, BETWEEN])
def test_a_turn_of_ten_minutes_is_ended(probability):
    detector = TurnDetector(TurnSettings())
    events = [event for _, event in found(detector, (QUIET, 50), (LOUD, 3), (probability, LONGEST_TURN // CHUNK + 1))]
    assert events[:2] == [turn(50), SpeechEnded(events[0].padded_sample + LONGEST_TURN)]
    assert all(event.padded_sample == events[1].sample for event in events[2:])  # the next begins behind it


def test_reset_forgets_the_turn_and_goes_on_counting():
    detector = TurnDetector(TurnSettings())
    detector.push(np.zeros(100, np.float32))
    assert detector.heard == 100
    found(detector, (LOUD, 5))
    assert detector.speaking
    heard = detector.heard
    detector.reset()
    assert not detector.speaking
    assert (detector.heard, detector.needed_from) == (heard, heard)
    events = found(detector, (LOUD, 3), (QUIET, 16))
    assert events[0][1] == SpeechStarted(heard, heard)
    assert isinstance(events[-1][1], SpeechEnded)


def test_the_first_sample_may_have_any_number():
    detector = TurnDetector(TurnSettings(), first_sample=1000)
    assert found(detector, (LOUD, 3))[0][1] == SpeechStarted(1000, 1000)


def test_speech_is_awaited_once_and_only_where_it_was_asked_for():
    detector = TurnDetector(TurnSettings(idle_timeout_ms=5000))
    assert found(detector, (QUIET, 400)) == []
    detector.await_speech(after_ms=320)
    start = 410 * CHUNK
    last = 410 + frames_of(5000)
    assert found(detector, (QUIET, 1000)) == [(last, SpeechAwaited(start, last * CHUNK))]


def test_no_timeout_while_someone_speaks():
    detector = TurnDetector(TurnSettings(idle_timeout_ms=5000))
    detector.await_speech()
    events = [event for _, event in found(detector, (QUIET, 150), (LOUD, 300), (QUIET, 500))]
    assert [type(event) for event in events] == [SpeechStarted, SpeechPaused, SpeechEnded]


def test_without_a_timeout_speech_is_awaited_for_ever():
    detector = TurnDetector(TurnSettings())
    detector.await_speech()
    assert found(detector, (QUIET, 2000)) == []


@pytest.mark.parametrize(
    "settings",
    [
        *({"threshold": value} for value in (-0.1, 1.1, math.nan)),
        *({"prefix_padding_ms": value} for value in (-1, 2001)),
        *({"silence_duration_ms": value} for value in (99, 5001)),
        *({"idle_timeout_ms": value} for value in (4999, 30_001)),
        {"eagerness": "auto"},
    ],
)
def test_settings_out_of_range(settings):
    with pytest.raises(InvalidRequest, match=next(iter(settings))):
        TurnSettings(**settings)


@pytest.fixture(scope="module")
def two_turns():
    """Silence, what the network takes for speech, silence, and it again."""
    sound = np.concatenate((sample_sound()[int(2.9 * RATE) :], np.zeros(RATE // 2, np.float32)))
    return np.concatenate((sound, sound))


def test_real_sound_in_any_cut(two_turns):
    found = []
    for size in (1, 160, 977, CHUNK, 2 * CHUNK, len(two_turns)):
        detector = TurnDetector(TurnSettings())
        pieces = [two_turns[at : at + size] for at in range(0, len(two_turns), size)]
        found.append([event for piece in pieces for event in detector.push(piece)])
        assert detector.heard == len(two_turns)
    assert all(events == found[0] for events in found)
    assert [type(event) for event in found[0] if isinstance(event, SpeechStarted | SpeechEnded)] == [
        *(SpeechStarted, SpeechEnded) * 2
    ]


def test_silence_and_noise_are_no_turn():
    random = np.random.default_rng(0)
    for sound in (np.zeros(5 * RATE), random.normal(0, 0.1, 5 * RATE), np.ones(5 * RATE)):
        assert TurnDetector(TurnSettings()).push(sound.astype(np.float32)) == []
