"""One answer's events of the engine as pieces: content, thoughts, calls, sound, the end."""

from __future__ import annotations

import secrets
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from enum import Enum

from lluda.engine.request import Completion, SpeechChunk, SpeechCompletion, SpeechEvent, Token
from lluda.serving.http.errors import ApiError
from lluda.serving.reading.marks import Mark, MarkedText, Marks, Vocabulary
from lluda.serving.reading.pieces import (
    AnswerCounts,
    CallArguments,
    CallBroken,
    CallEnded,
    CallStarted,
    Content,
    Finished,
    Piece,
    Sound,
    Thought,
)
from lluda.serving.reading.tool_call_text import ToolCallText


class _Section(Enum):
    CONTENT = "content"
    THOUGHT = "thought"
    CALL = "call"


@dataclass(slots=True, eq=False)
class _Call:
    """Call number ``index`` while it is written; its ``id`` once it is known to be one; characters of its arguments
    that were ``given`` out."""

    index: int
    id: str | None = None
    given: int = 0
    text: ToolCallText = field(default_factory=ToolCallText)


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerForm:
    """How an answer is to be read. ``functions``: names that may be called (none: marks of calls are content);
    ``end_ids`` end it; ``in_thought``: the prompt opened a thought; ``spoken``: speech follows."""

    vocabulary: Vocabulary
    marks: Marks
    end_ids: Collection[int]
    functions: Collection[str] = ()
    in_thought: bool = False
    spoken: bool = False
    logprobs: bool = False


class AnswerReader:
    """`push` the engine's events of one answer.

    White space around thoughts and calls is no content. What breaks off in a call, or is none, becomes content as it
    was written.
    """

    def __init__(self, form: AnswerForm) -> None:
        self._form = form
        self._text = MarkedText(form.marks, form.vocabulary)
        self._section = _Section.THOUGHT if form.in_thought else _Section.CONTENT
        self._sampled_in = self._section  # of the last token; its text may come later
        self._at_start = form.in_thought  # of a section: line breaks there are no part of it
        self._held = ""  # white space at the end of what was given out
        self._call: _Call | None = None
        self._started = self._ended = 0  # calls
        self._reasoning = 0
        self._completion: Completion | None = None
        self._speech: SpeechCompletion | None = None

    def push(self, event: SpeechEvent) -> Iterator[Piece]:
        """The pieces that are complete with ``event``. ApiError: the engine gave the answer up."""
        match event:
            case Token():
                yield from self._token(event)
            case SpeechChunk():
                yield Sound(event.samples)
            case Completion():
                self._completion = event
                yield from self._end_of_text()
            case SpeechCompletion():
                self._speech = event
        if self._completion is not None and (self._speech is not None or not self._form.spoken):
            yield self._finished(self._completion)

    def _token(self, token: Token) -> Iterator[Piece]:
        ends = token.id in self._form.end_ids
        tokens = (token,) if not ends and self._is_content(token.id) and self._form.logprobs else ()
        for part in self._text.push(token.id, token.text, ends=ends):
            for piece in self._marked(part) if isinstance(part, Mark) else self._written(part):
                if tokens and isinstance(piece, Content):
                    piece, tokens = Content(piece.text, tokens), ()
                yield piece
        if tokens:
            yield Content("", tokens)

    def _is_content(self, token: int) -> bool:
        """Whether a token that was sampled now belongs to the content; counts it where it belongs to a thought."""
        before, mark = self._sampled_in, self._form.marks.by_id.get(token)
        if mark is not None:
            self._sampled_in = self._after(before, mark) or before
        if _Section.THOUGHT in (before, self._sampled_in):
            self._reasoning += 1
        return before is _Section.CONTENT and self._sampled_in is _Section.CONTENT

    def _after(self, section: _Section, mark: Mark) -> _Section | None:
        """The section after ``mark``; None: it is a spelling like any other there."""
        match section, mark:
            case _Section.CONTENT, Mark.THINK:
                return _Section.THOUGHT
            case _Section.THOUGHT, Mark.THINK_END:
                return _Section.CONTENT
            case ((_Section.CONTENT | _Section.THOUGHT), Mark.CALL) if self._form.functions:
                return _Section.CALL
            case _Section.CALL, Mark.CALL_END:
                return _Section.CONTENT
        return None

    def _marked(self, mark: Mark) -> Iterator[Piece]:
        section = self._after(self._section, mark)
        if section is None:
            yield from self._written(mark.value)
            return
        if self._section is _Section.THOUGHT:
            self._held = ""
        self._section, self._at_start = section, True
        if self._call is not None:
            yield from self._end_of_call(Mark.CALL_END.value)
        elif section is _Section.CALL:
            self._call = _Call(self._started)

    def _written(self, text: str) -> Iterator[Piece]:
        if self._call is not None:
            yield from self._call_text(self._call, text)
            return
        if self._at_start:
            text = text.lstrip("\n")
            self._at_start = not text
        text = self._held + text
        if self._section is _Section.THOUGHT or self._form.functions:
            # A mark may follow, before which white space at the end is no part of this.
            shown = text.rstrip()
            text, self._held = shown, text[len(shown) :]
        if text:
            yield Thought(text) if self._section is _Section.THOUGHT else Content(text)

    def _call_text(self, call: _Call, text: str) -> Iterator[Piece]:
        call.text.push(text)
        if call.id is None and not call.text.failed and call.text.arguments and call.text.name in self._form.functions:
            yield from self._start(call)
        if call.id is not None and len(call.text.arguments) > call.given:
            more = call.text.arguments[call.given :]
            call.given += len(more)
            yield CallArguments(call.index, more)

    def _start(self, call: _Call) -> Iterator[Piece]:
        assert call.text.name is not None, "its name is one of the functions"
        call.id = f"call_{secrets.token_hex(12)}"
        self._started += 1
        yield CallStarted(call.index, call.id, call.text.name)

    def _end_of_call(self, closing: str, *, cut: bool = False) -> Iterator[Piece]:
        """The call is complete, or is none. ``closing``: the spelling of the mark after it."""
        call, self._call = self._call, None
        assert call is not None, "a call is open"
        arguments = call.text.finish()
        if arguments is not None and call.text.name in self._form.functions:
            if call.id is None:
                yield from self._start(call)
            if len(arguments) > call.given:
                yield CallArguments(call.index, arguments[call.given :])
            self._ended += 1
            self._held = ""
            yield CallEnded(call.index)
            return
        yield CallBroken(call.index if call.id is not None else None, cut)
        held, self._held, self._at_start = self._held, "", False
        yield Content(f"{held}{Mark.CALL.value}{call.text.raw}{closing}")

    def _end_of_text(self) -> Iterator[Piece]:
        assert self._completion is not None, "the text has ended"
        if self._call is not None:
            yield from self._end_of_call("", cut=self._completion.finish_reason != "stop")
        elif self._section is _Section.CONTENT and self._held:
            yield Content(self._held)

    def _finished(self, completion: Completion) -> Finished:
        reason, spoken = completion.finish_reason, self._speech.finish_reason if self._speech is not None else ""
        if "cancelled" in (reason, spoken):
            raise ApiError(503, "draining", "the answer was given up before its end", headers={"retry-after": "2"})
        if spoken in ("length", "runaway"):  # the sound was cut
            reason = "length"
        if reason == "stop" and self._ended:
            reason = "tool_calls"
        counts = AnswerCounts(
            prompt=completion.prompt_tokens,
            cached=completion.reused_tokens,
            text=len(completion.token_ids),
            reasoning=self._reasoning,
            frames=self._speech.frames if self._speech is not None else 0,
        )
        return Finished(reason, counts)
