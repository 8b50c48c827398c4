"""Answers that a script writes in place of a model: a vocabulary of whole pieces, and the engine's events for them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from lluda.engine.request import Completion, SpeechChunk, SpeechCompletion, SpeechEvent, Token
from lluda.inputs.text.text_stream import TextStream
from lluda.serving.reading.answer_reader import AnswerForm, AnswerReader
from lluda.serving.reading.marks import Marks
from lluda.serving.reading.pieces import CallArguments, Content, Piece, Thought

END = 0
_MARKS = ("<think>", "</think>", "<tool_call>", "</tool_call>")


class Pieces:
    """A vocabulary that grows: each text (or bytes) is a token. Marks are tokens; ``plain(mark)`` is their spelling."""

    def __init__(self) -> None:
        self._ids: dict[tuple[bytes, bool], int] = {(b"", False): END}
        self._bytes = [b""]
        for mark in _MARKS:
            self._id(mark.encode(), True)

    def id_of(self, token: str) -> int | None:
        return self._ids.get((token.encode(), True))

    def bytes_of(self, number: int, skip_special: bool = True) -> bytes:  # noqa: ARG002 (as `Vocabulary` has it)
        return self._bytes[number]

    def token(self, text: str | bytes) -> int:
        """The mark of that spelling, else the token of that text."""
        letters = text.encode() if isinstance(text, str) else text
        return self._id(letters, text in _MARKS)

    def plain(self, text: str) -> int:
        return self._id(text.encode(), False)

    def _id(self, letters: bytes, mark: bool) -> int:
        if (letters, mark) not in self._ids:
            self._ids[letters, mark] = len(self._bytes)
            self._bytes.append(letters)
        return self._ids[letters, mark]


VOCABULARY = Pieces()


def form(**changes: Any) -> AnswerForm:
    values = {"vocabulary": VOCABULARY, "marks": Marks.find(VOCABULARY), "end_ids": {END}}
    return AnswerForm(**(values | changes))


def script(
    parts: Sequence[str | bytes | int],
    *,
    stop: Sequence[str] = (),
    reason: str = "stop",
    index: int = 0,
    ends: Iterable[int] = (END,),
    logprobs: bool = False,
) -> list[SpeechEvent]:
    """The events of an answer of these tokens, cut at stop strings as the engine does; an end token comes last where
    the reason is ``stop`` and no stop string came."""
    stream, tokens, ended = TextStream(VOCABULARY, stop), [], False  # type: ignore[arg-type]
    ids = [part if isinstance(part, int) else VOCABULARY.token(part) for part in parts]
    for number in [*ids, *([END] if reason == "stop" else [])]:
        ended = number in ends
        text = "" if ended else stream.push(number)
        if ended:
            text += stream.finish()
        value = -0.25 if logprobs else None
        tokens.append(Token(index, number, text, value, ((number, -0.25), (END, -1.5)) if logprobs else ()))
        if ended or stream.stopped is not None:
            ended = True
            break
    if not ended and tokens:
        last = tokens[-1]
        tokens[-1] = Token(index, last.id, last.text + stream.finish(), last.logprob, last.top)
    text = "".join(token.text for token in tokens)
    done = Completion(index, text, tuple(t.id for t in tokens), reason, 7, tuple(tokens), 0.0, 0.0, 3)
    return [*tokens, done]


def sound(*lengths: int, reason: str = "stop") -> list[SpeechEvent]:
    """Chunks of speech of so many samples, and the end."""
    rng = np.random.default_rng(0)
    chunks = [SpeechChunk(rng.uniform(-1, 1, n).astype(np.float32), (), 0.1) for n in lengths]
    frames = sum(lengths) // 1920
    return [*chunks, SpeechCompletion(frames, sum(lengths), reason, 0.1, 0.2, 0.3)]


def read(events: Iterable[SpeechEvent], **changes: Any) -> list[Piece]:
    """The pieces of an answer."""
    reader = AnswerReader(form(**changes))
    return [piece for event in events for piece in reader.push(event)]


def content(pieces: Iterable[Piece]) -> str:
    return "".join(piece.text for piece in pieces if isinstance(piece, Content))


def thought(pieces: Iterable[Piece]) -> str:
    return "".join(piece.text for piece in pieces if isinstance(piece, Thought))


def arguments(pieces: Iterable[Piece], index: int = 0) -> str:
    return "".join(piece.text for piece in pieces if isinstance(piece, CallArguments) and piece.index == index)
