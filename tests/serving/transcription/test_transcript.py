"""Texts of pieces become one text, and that text the forms of an answer."""

import pytest

from lluda.engine.request import Completion, Token
from lluda.serving.transcription.forms import plain_object, srt, usage_object, verbose_object, vtt
from lluda.serving.transcription.listening import _Order
from lluda.serving.transcription.transcript import Segment, Transcript, space_between
from tests.serving import openai_types

END = 99


def completion(index, count):
    return Completion(index, "", tuple(range(count)), "stop", 10, (), 0.0, 0.0)


def run(segments, events, before=""):
    order = _Order(segments, before, {END})
    return [text for event in events for text in order.take(event)], order.written


def test_pieces_that_end_in_any_order_are_shown_in_theirs():
    segments = [Segment(0, 1, 1.0), Segment(1, 2, 1.0), Segment(2, 3, 1.0)]
    shown, written = run(
        segments,
        [
            Token(1, 1, " two"),
            Token(0, 2, "One"),
            Token(1, 3, " and"),
            Token(2, 4, "Four."),
            completion(2, 1),
            Token(0, 5, " more. "),
            Token(0, END, "Also."),  # held back until the end
            completion(0, 2),
            Token(1, 6, " three."),
            completion(1, 3),
        ],
        before="Zero.",
    )
    assert shown == [" One", " more.", " Also.", " two and", " three.", " Four."]
    assert written == "Zero. One more. Also. two and three. Four."
    assert [segment.text for segment in segments] == ["One more. Also.", "two and three.", "Four."]
    assert [token.id for token in segments[0].tokens] == [2, 5]


def test_a_piece_without_words_adds_nothing():
    segments = [Segment(0, 1, 1.0), Segment(1, 2, 1.0), Segment(2, 3, 1.0)]
    events = [
        Token(0, 1, "A."),
        completion(0, 1),
        Token(1, 2, " \n"),
        completion(1, 1),
        Token(2, 3, "B."),
        completion(2, 1),
    ]
    shown, written = run(segments, events)
    assert "".join(shown) == written == "A. B."
    assert Transcript(3.0, segments).text == written


@pytest.mark.parametrize(
    ("before", "after", "between"),
    [
        ("", "a", ""),
        ("a", "", ""),
        ("a.", "B", " "),
        ("你好。", "世界", ""),
        ("これ", "は", ""),
        ("안녕", "hi", ""),
        ("a", "你", ""),
    ],
)
def test_scripts_without_spaces_get_none(before, after, between):
    assert space_between(before, after) == between


def transcript():
    segments = [Segment(0, 2.5, 0.9), Segment(2.5, 3, 0.01), Segment(3, 3661.0405, 0.75)]
    for segment, text in ((segments[0], "One & <two>."), (segments[2], "Three\n\nfour.")):
        segment.add(Token(0, 7, text, -0.5))
        segment.completion = completion(0, 3)
    return Transcript(3661.0405, segments, audio_tokens=12)


def test_subtitles():
    assert srt(transcript()) == (
        "1\n00:00:00,000 --> 00:00:02,500\nOne & <two>.\n\n2\n00:00:03,000 --> 01:01:01,040\nThree four.\n\n"
    )
    assert vtt(transcript()) == (
        "WEBVTT\n\n00:00:00.000 --> 00:00:02.500\nOne &amp; &lt;two&gt;.\n\n"
        "00:00:03.000 --> 01:01:01.040\nThree four.\n\n"
    )
    assert (srt(Transcript(1.0)), vtt(Transcript(1.0))) == ("", "WEBVTT\n\n")


def test_objects_are_those_of_the_client():
    plain = plain_object(transcript(), logprobs=True)
    openai_types.transcription(plain)
    assert plain["text"] == "One & <two>. Three\n\nfour."
    assert plain["usage"] == {"type": "duration", "seconds": 3662}
    assert plain["logprobs"][0] == {"token": "One & <two>.", "logprob": -0.5, "bytes": list(b"One & <two>.")}
    verbose = verbose_object(transcript(), task="transcribe", language="english", temperature=0.25)
    openai_types.verbose_transcription(verbose)
    first, second = verbose["segments"]
    assert (first["id"], first["start"], first["end"], first["tokens"]) == (0, 0, 2.5, [7])
    assert (second["avg_logprob"], second["no_speech_prob"], second["temperature"]) == (-0.5, 0.25, 0.25)
    assert usage_object(transcript()) == {
        "type": "tokens",
        "input_tokens": 20,
        "input_token_details": {"audio_tokens": 12, "text_tokens": 8},
        "output_tokens": 6,
        "total_tokens": 26,
    }
