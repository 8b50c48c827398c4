"""The model writes down the pieces of a recording, several at once, and the text comes in order."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lluda.engine.listening.vad import RATE
from lluda.engine.request import Completion, Token
from lluda.engine.sampling.sampling_params import SamplingParams
from lluda.inputs.chat.chat_options import ChatOptions
from lluda.serving.reading.marks import Marks
from lluda.serving.transcription.languages import LANGUAGES
from lluda.serving.transcription.pieces import Piece
from lluda.serving.transcription.recording import Recording
from lluda.serving.transcription.transcript import Segment, Transcript, space_between

if TYPE_CHECKING:
    from lluda.api.model import Model
    from lluda.engine.media import EncodedMedia
    from lluda.engine.prompt_rows import PromptRows
    from lluda.engine.request import Request, SpeechEvent
    from lluda.serving.service import Service
    from lluda.serving.ticket import Ticket

AT_ONCE = 4
"""Pieces that are written down together."""

_LEAST_TOKENS, _TOKENS_A_SECOND = 32, 16
"""More than speech has: what goes on for longer repeats itself."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """What is to be written: in English if it ``translates``, else in the language that is spoken, which ``language``
    (a code of `LANGUAGES`) names; ``prompt``: words that may occur. Greedy at ``temperature`` 0."""

    translates: bool = False
    language: str | None = None
    prompt: str | None = None
    temperature: float = 0.0
    logprobs: bool = False

    @property
    def instruction(self) -> str:
        """The text beside the sound."""
        text = "Write what you hear."
        if self.translates:
            text = "Translate what you hear into English, and write nothing else."
        if self.language is not None:
            text += f" The language is {LANGUAGES[self.language]}."
        if self.prompt:
            text += f" It may have these words: {self.prompt}"
        return text


async def written_down(
    service: Service, ticket: Ticket, recording: Recording, wish: Wish, transcript: Transcript
) -> AsyncGenerator[str]:
    """Text in order as it is heard; ``transcript`` is filled. Silent pieces are not asked about. Errors as
    `Model.read_prompt` and `Ticket.submit`."""
    heard: list[tuple[Piece, Segment]] = []
    for piece in recording.pieces:
        start, end = recording.bounds(piece)
        segment = Segment(start, end, piece.speech)
        transcript.segments.append(segment)
        if not piece.silent:
            heard.append((piece, segment))
    before = ""
    for first in range(0, len(heard), AT_ONCE):
        group = heard[first : first + AT_ONCE]
        requests = await service.in_worker(_requests, service.model, recording, [piece for piece, _ in group], wish)
        transcript.audio_tokens += await service.in_worker(_audio_tokens, service.model, requests)
        order = _Order([segment for _, segment in group], before, requests[0].end_ids)
        async for event in ticket.submit(*requests):
            for text in order.take(event):
                yield text
        before = order.written


def _requests(model: Model, recording: Recording, pieces: Sequence[Piece], wish: Wish) -> list[Request]:
    requests = []
    for index, piece in enumerate(pieces):
        sound = recording.sound(piece)
        content: list[Mapping[str, Any]] = [
            {"type": "audio", "audio": sound, "sampling_rate": RATE},
            {"type": "text", "text": wish.instruction},
        ]
        prompt, _ = verbatim_prompt(model, content)
        start, end = recording.bounds(piece)
        requests.append(model.request(prompt, verbatim_sampling(wish, end - start), index=index))
    return requests


def verbatim_sampling(wish: Wish, seconds: float) -> SamplingParams:
    """How the text of so many seconds of sound is chosen."""
    return SamplingParams(
        temperature=wish.temperature,
        repetition_penalty=1.0,
        max_tokens=_LEAST_TOKENS + int(_TOKENS_A_SECOND * seconds),
        clamp_max_tokens=True,
        logprobs=0 if wish.logprobs else None,
    )


def verbatim_prompt(model: Model, content: Sequence[Mapping[str, Any]]) -> tuple[PromptRows, Sequence[EncodedMedia]]:
    """The rows of a message of sound and instruction, and its sound encoded; blocking. Without a thought, for a model
    that would begin with one; others are asked as they were trained."""
    message = {"role": "user", "content": content}
    prompt, media = model.read_prompt([message], ChatOptions())
    if Marks.find(model.tokenizer).thought_is_open(prompt.ids, model.tokenizer.id_of("<|im_start|>")):
        return model.read_prompt([message], ChatOptions(enable_thinking=False))
    return prompt, media


def _audio_tokens(model: Model, requests: Sequence[Request]) -> int:
    omni = model.config.omni
    assert omni is not None, "a model that hears"
    return sum(number == omni.tokens.audio_pad for request in requests for number in request.prompt.ids)


class _Order:
    """Texts of several segments that are written at the same time: the first one that is not done streams, the others
    wait. ``before``: the text that theirs follows; ``end_ids``: tokens that are no part of a text."""

    def __init__(self, segments: Sequence[Segment], before: str, end_ids: Collection[int]) -> None:
        self._segments, self._end_ids = segments, end_ids
        self._streaming = 0
        self._shown = 0  # characters of the segment that streams
        self.written = before

    def take(self, event: SpeechEvent) -> Iterator[str]:
        """What can be shown now."""
        if isinstance(event, Token):
            self._segments[event.index].add(event, ends=event.id in self._end_ids)
        elif isinstance(event, Completion):
            self._segments[event.index].completion = event
        while self._streaming < len(self._segments):
            segment = self._segments[self._streaming]
            if len(segment.text) > self._shown:
                added = segment.text[self._shown :]
                if not self._shown:
                    added = space_between(self.written, added) + added
                self._shown = len(segment.text)
                self.written += added
                yield added
            if segment.completion is None:
                return
            self._streaming, self._shown = self._streaming + 1, 0
