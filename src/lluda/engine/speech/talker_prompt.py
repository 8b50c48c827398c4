"""The talker's prompt: what the user said and sent, and how the assistant's speech begins (spec 6.1 and 6.2)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lluda.backends.components import Observer, StageObserver
from lluda.config.omni import OmniConfig, SpeechTokens
from lluda.engine.prompt_rows import PromptRows, spans_between
from lluda.errors import InvalidRequest
from lluda.inputs.media.media_positions import TextSpan, media_positions
from lluda.models.linear import Embedding
from lluda.models.talker import Talker

HEADER = 3
"""Ids that open the assistant's turn: ``<|im_start|>``, ``assistant``, a line's end."""

ASSISTANT_ROWS = HEADER + 6
"""Rows behind the user's turns: the header, and those of the codes that begin the speech."""


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

        def keep(x: Tensor) -> None:
            rows = [row for row in self.rows if start <= row < start + len(x)]
            if rows:
                # Copied at once, with what is between media: on a GPU each row by itself would be a launch.
                kept = x[rows[0] - start : rows[-1] + 1 - start].clone()
                self.hidden.update((row, kept[row - rows[0]]) for row in rows)

        return StageObserver(self._stage, keep)


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
        return self.text_rows([token])

    def text_rows(self, tokens: Sequence[int]) -> Tensor:
        """:meth:`text_row` of several tokens: ``[tokens, hidden]``."""
        return self._text(tokens)

    def build(
        self, prompt: PromptRows, media: CapturedHiddenStates | None, first: int, speaker: str | None, known: int = 0
    ) -> TalkerPrompt:
        """The prompt for an answer whose first token is ``first``, but for its first ``known`` rows. ``prompt`` is the
        thinker's and ends with the header of the assistant's turn; ``media`` is complete from there on (None: there
        are none)."""
        header = assistant_header(prompt.ids, self._speech.tokens)
        turns = self.turns(prompt, media, known)
        rows = torch.cat((turns.rows, self._assistant_rows(header, first, self.speaker_id(speaker))))
        positions = self._positions(prompt, answered=True)
        return TalkerPrompt(rows, None if positions is None else positions[:, known:])

    def turns(
        self, prompt: PromptRows, media: CapturedHiddenStates | None, known: int = 0, end: int | None = None
    ) -> TalkerPrompt:
        """Rows ``known`` to ``end`` (None: the last) of the user's turns, which the talker's prompt begins with."""
        places = self.places(prompt)[known:end]
        rows = self._turn_rows(prompt, media, places)
        positions = self._positions(prompt, answered=False)
        return TalkerPrompt(rows, None if positions is None else positions[:, known:end])

    def places(self, prompt: PromptRows) -> list[int]:
        """Rows of the thinker's prompt that the talker's begins with: all of the user's turns."""
        return [row for start, end in user_segments(prompt.ids, self._speech.tokens) for row in range(start, end)]

    def _turn_rows(self, prompt: PromptRows, media: CapturedHiddenStates | None, places: Sequence[int]) -> Tensor:
        ids = torch.tensor([prompt.ids[row] for row in places], dtype=torch.int64, device=self._embed.device)
        rows = self._project(self._talker.text_projection, self._embed(ids).to(self._talker.backend.device))
        at = {row: index for index, row in enumerate(places)}
        seen = [row for row in (media.rows if media else ()) if row in at]
        if seen and media:
            hidden = torch.stack([media.hidden[row] for row in seen]).to(rows.device, rows.dtype)
            indices = torch.tensor([at[row] for row in seen], device=rows.device)
            rows[indices] = self._project(self._talker.hidden_projection, hidden)
        return rows

    def _project(self, projection: Callable[[Tensor], Tensor], rows: Tensor) -> Tensor:
        """Each row as it is among many, where a few are summed in another order: how many are asked for at once depends
        on what is known already."""
        count, few = len(rows), self._talker.backend.few_rows or 0
        if count > few:
            return projection(rows)
        return projection(torch.cat((rows, rows.new_zeros(few + 1 - count, rows.shape[1]))))[:count]

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

    def _positions(self, prompt: PromptRows, *, answered: bool) -> Tensor | None:
        """Of the talker's own sequence, counted from its first user segment; ``answered``: with the assistant's."""
        if not prompt.spans:
            return None
        segments = user_segments(prompt.ids, self._speech.tokens)
        spans = [span for start, end in segments for span, _ in spans_between(prompt.spans, start, end)]
        found = media_positions(
            [*spans, TextSpan(ASSISTANT_ROWS)] if answered else spans,
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
