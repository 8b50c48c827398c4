"""The talker's prompt: what the user said and sent, and how the assistant's speech begins (spec 6.1 and 6.2)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lluda.backends.components import Observer
from lluda.config.omni import OmniConfig, SpeechTokens
from lluda.engine.prompt_rows import PromptRows
from lluda.errors import InvalidRequest
from lluda.inputs.media.media_positions import Span, TextSpan, media_positions
from lluda.models.linear import Embedding
from lluda.models.talker import Talker

HEADER = 3
"""Ids that open the assistant's turn: ``<|im_start|>``, ``assistant``, a line's end."""


class CapturedHiddenStates:
    """The thinker's rows at the media of a prompt, before its layer ``accept_hidden_layer``: collected while the prompt
    runs through the thinker."""

    def __init__(self, prompt: PromptRows, accept_hidden_layer: int) -> None:
        self._stage = f"layers.{accept_hidden_layer - 1}" if accept_hidden_layer else "embeddings"
        self.rows: list[int] = prompt.injected.rows.tolist() if prompt.injected else []
        self.hidden: dict[int, Tensor] = {}

    def take_over(self, earlier: Mapping[int, Tensor], shared: int) -> int:
        """Keep what ``earlier`` has of this prompt's first ``shared`` rows. Returns how many rows need not run again:
        up to the first medium whose rows it does not have."""
        for row in self.rows:
            if row >= shared:
                break
            if row not in earlier:
                return row
            self.hidden[row] = earlier[row]
        return shared

    def observer(self, start: int) -> Observer:
        """To be told of a step whose first row is row ``start`` of the prompt."""

        def observe(stage: str, x: Tensor) -> None:
            if stage == self._stage:
                for row in self.rows:
                    if start <= row < start + len(x):
                        self.hidden[row] = x[row - start].clone()

        return observe


@dataclass(frozen=True, slots=True)
class TalkerPrompt:
    """Rows ``[n, hidden]`` and positions ``[3, n]`` (None: 0, 1, 2, …)."""

    rows: Tensor
    positions: Tensor | None


class TalkerPromptBuilder:
    """Makes talker prompts from the thinker's. ``embed`` is the thinker's table of tokens, on the thinker's device."""

    def __init__(self, omni: OmniConfig, talker: Talker, embed: Embedding) -> None:
        assert omni.speech is not None
        self._omni, self._speech, self._talker = omni, omni.speech, talker
        self._embed = embed

    @property
    def tokens(self) -> SpeechTokens:
        """Ids of the tokens around speech."""
        return self._speech.tokens

    def speaker_id(self, name: str | None) -> int:
        """The id of a speaker by name, in any case of letters; the first of the config if None. InvalidRequest: there
        is none of that name; the known ones are listed."""
        speakers = self._speech.talker.speakers
        found = speakers.get(name.lower()) if name is not None else next(iter(speakers.values()))
        if found is None:
            raise InvalidRequest(f"speaker {name!r:.60} does not exist; choose one of {', '.join(speakers)}")
        return found

    def text_row(self, token: int) -> Tensor:
        """The row ``[1, hidden]`` that a token of the answer, or one of the tts ids, adds."""
        return self._text([token])

    def build(
        self, prompt: PromptRows, media: CapturedHiddenStates | None, first: int, speaker: str | None
    ) -> TalkerPrompt:
        """The prompt for an answer whose first token is ``first``. ``prompt`` is the thinker's and ends with the header
        of the assistant's turn; ``media`` is complete (None: there are none)."""
        segments = list(user_segments(prompt.ids, self._speech.tokens))
        header = assistant_header(prompt.ids, self._speech.tokens)
        parts = [self._user_rows(prompt, media, start, end) for start, end in segments]
        rows = torch.cat([*parts, self._assistant_rows(header, first, self.speaker_id(speaker))])
        return TalkerPrompt(rows, self._positions(prompt, segments))

    def _user_rows(self, prompt: PromptRows, media: CapturedHiddenStates | None, start: int, end: int) -> Tensor:
        rows = self._text(prompt.ids[start:end])
        seen = [row for row in (media.rows if media else ()) if start <= row < end]
        if seen and media:
            hidden = torch.stack([media.hidden[row] for row in seen])
            places = torch.tensor(seen, device=rows.device) - start
            rows[places] = self._talker.hidden_projection(hidden.to(rows.device, rows.dtype))
        return rows

    def _assistant_rows(self, header: Sequence[int], first: int, speaker: int) -> Tensor:
        tokens, codec = self._speech.tokens, self._speech.talker.codec
        text = [*header, *[tokens.tts_pad] * 4, tokens.tts_bos, first]
        codes = [codec.nothink, codec.think_bos, codec.think_eos, speaker, codec.pad, codec.bos]
        rows = self._text(text)
        rows[HEADER:] += self._talker.codec_embedding(torch.tensor(codes, device=rows.device))
        return rows

    def _text(self, ids: Sequence[int]) -> Tensor:
        rows = self._embed(torch.tensor(list(ids), device=self._embed.device))
        return self._talker.text_projection(rows.to(self._talker.backend.device))

    def _positions(self, prompt: PromptRows, segments: Sequence[tuple[int, int]]) -> Tensor | None:
        """Of the talker's own sequence, counted from its first user segment."""
        if not prompt.spans:
            return None
        spans = [span for start, end in segments for span in spans_between(prompt.spans, start, end)]
        found = media_positions(
            [*spans, TextSpan(HEADER + 6)],
            merge_size=self._omni.vision.spatial_merge_size,
            positions_per_second=self._speech.talker.position_id_per_seconds,
        )
        return torch.tensor(found, dtype=torch.float32)


def assistant_header(ids: Sequence[int], tokens: SpeechTokens) -> Sequence[int]:
    """The ids that open the last turn of the assistant. InvalidRequest: there is none."""
    for start in range(len(ids) - HEADER, -1, -1):
        if ids[start] == tokens.im_start and ids[start + 1] == tokens.assistant:
            return ids[start : start + HEADER]
    raise InvalidRequest("the prompt opens no turn of the assistant, so there is nothing to speak; use a chat prompt")


def user_segments(ids: Sequence[int], tokens: SpeechTokens) -> Iterator[tuple[int, int]]:
    """First row and end of each turn of the user, its header and what closes it included."""
    starts = [index for index, token in enumerate(ids) if token == tokens.im_start]
    for start, end in zip(starts, [*starts[1:], len(ids)], strict=True):
        if start + 1 < len(ids) and ids[start + 1] == tokens.user:
            yield start, end


def spans_between(spans: Sequence[tuple[Span, int]], start: int, end: int) -> Iterator[Span]:
    """The spans of rows from ``start`` to ``end``, both of which lie in text; each span with its number of rows."""
    at = 0
    for span, count in spans:
        first, last = max(at, start), min(at + count, end)
        if first < last:
            whole = last - first == count
            assert whole or isinstance(span, TextSpan), f"a turn begins or ends inside {span}"
            yield span if whole else TextSpan(last - first)
        at += count
