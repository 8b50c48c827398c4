"""The forms in which a transcript is answered: JSON, plain text, SubRip and WebVTT subtitles."""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

from lluda.engine.request import Token
from lluda.serving.transcription.transcript import Segment, Transcript

CONTENT_TYPES: Mapping[str, str] = {
    "json": "application/json",
    "verbose_json": "application/json",
    "text": "text/plain",
    "srt": "text/plain",
    "vtt": "text/plain",
}


def plain_object(transcript: Transcript, *, logprobs: bool = False) -> dict[str, Any]:
    """OpenAI's ``Transcription``."""
    found: dict[str, Any] = {"text": transcript.text, "usage": _duration(transcript)}
    if logprobs:
        found["logprobs"] = logprob_objects([token for segment in transcript.segments for token in segment.tokens])
    return found


def verbose_object(transcript: Transcript, *, task: str, language: str, temperature: float) -> dict[str, Any]:
    """OpenAI's ``TranscriptionVerbose``; ``language`` in words."""
    segments = [_segment(number, segment, temperature) for number, segment in enumerate(_audible(transcript))]
    return {
        "task": task,
        "language": language,
        "duration": round(transcript.seconds, 3),
        "text": transcript.text,
        "segments": segments,
        "usage": _duration(transcript),
    }


def usage_object(transcript: Transcript) -> dict[str, Any]:
    """Tokens of all prompts and answers, as a stream reports them."""
    given = sum(completion.prompt_tokens for completion in transcript.completions)
    written = sum(len(completion.token_ids) for completion in transcript.completions)
    audio = transcript.audio_tokens
    return {
        "type": "tokens",
        "input_tokens": given,
        "input_token_details": {"audio_tokens": audio, "text_tokens": given - audio},
        "output_tokens": written,
        "total_tokens": given + written,
    }


def logprob_objects(tokens: Sequence[Token]) -> list[dict[str, Any]]:
    """Tokens that show text, with their log-probabilities."""
    return [
        {"token": token.text, "logprob": token.logprob, "bytes": list(token.text.encode())}
        for token in tokens
        if token.text
    ]


def srt(transcript: Transcript) -> str:
    """SubRip subtitles, one for each segment."""
    return "".join(
        f"{number}\n{_clock(segment.start, ',')} --> {_clock(segment.end, ',')}\n{_line(segment.text)}\n\n"
        for number, segment in enumerate(_audible(transcript), start=1)
    )


def vtt(transcript: Transcript) -> str:
    """WebVTT subtitles, one for each segment."""
    escapes = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;"})
    return "WEBVTT\n\n" + "".join(
        f"{_clock(segment.start, '.')} --> {_clock(segment.end, '.')}\n{_line(segment.text).translate(escapes)}\n\n"
        for segment in _audible(transcript)
    )


def _audible(transcript: Transcript) -> list[Segment]:
    return [segment for segment in transcript.segments if segment.text]


def _line(text: str) -> str:
    """An empty line would end the subtitle."""
    return " ".join(text.split())


def _clock(seconds: float, point: str) -> str:
    whole = round(seconds * 1000)
    minutes, milliseconds = divmod(whole, 60_000)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:02}:{minutes:02}:{milliseconds // 1000:02}{point}{milliseconds % 1000:03}"


def _duration(transcript: Transcript) -> dict[str, Any]:
    return {"type": "duration", "seconds": math.ceil(transcript.seconds)}


def _segment(number: int, segment: Segment, temperature: float) -> dict[str, Any]:
    logprobs = [token.logprob for token in segment.tokens if token.logprob is not None]
    text = segment.text.encode()
    return {
        "id": number,
        "seek": 0,
        "start": round(segment.start, 3),
        "end": round(segment.end, 3),
        "text": segment.text,
        "tokens": [token.id for token in segment.tokens],
        "temperature": temperature,
        "avg_logprob": sum(logprobs) / len(logprobs) if logprobs else 0.0,
        "compression_ratio": round(len(text) / len(zlib.compress(text)), 3),
        "no_speech_prob": round(1 - segment.speech, 4),
    }
