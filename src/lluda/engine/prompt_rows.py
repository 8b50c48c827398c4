"""What a prompt is to the model: ids, and where it holds media, positions and the rows that encoders made."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lluda.inputs.media.media_positions import Span, TextSpan
from lluda.models.decoder import MultimodalEmbeddings


@dataclass(frozen=True, slots=True, eq=False)
class PromptRows:
    """``ids``; ``positions [3, rows]`` (time, height, width; spec section 5.2), or None for 0, 1, 2, …; ``injected``
    rows, ascending, that take the place of their ids' embeddings; ``spans`` of media and the text between, each with
    its number of rows (none: text alone), and the ``media_keys`` of the media among them: digests of their content.
    ``salt``: only prompts of one salt share rows, so that nobody learns from the time of an answer what others asked.
    """

    ids: Sequence[int]
    positions: Tensor | None = None
    injected: MultimodalEmbeddings | None = None
    spans: Sequence[tuple[Span, int]] = ()
    media_keys: Sequence[bytes] = ()
    salt: bytes = b""

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def position_offset(self) -> int | float:
        """What to add to the number of rows so far to get the position of each row after the prompt."""
        if self.positions is None:
            return 0
        offset = float(self.positions.max()) + 1 - len(self.ids)
        return int(offset) if offset.is_integer() else offset

    def extended(self, ids: Sequence[int]) -> PromptRows:
        """With generated ``ids`` behind it."""
        if self.positions is None:
            return PromptRows([*self.ids, *ids], salt=self.salt)
        after = torch.arange(len(self.ids), len(self.ids) + len(ids)) + self.position_offset
        positions = torch.cat((self.positions, after.to(self.positions.dtype).expand(3, -1)), dim=1)
        spans = [*self.spans, (TextSpan(len(ids)), len(ids))]
        return PromptRows([*self.ids, *ids], positions, self.injected, spans, self.media_keys, self.salt)

    def chunk(self, start: int, end: int, device: torch.device) -> tuple[Tensor, Tensor, MultimodalEmbeddings | None]:
        """Ids, positions and injected rows of the rows from ``start`` to ``end``, on ``device``."""
        ids = torch.tensor(self.ids[start:end], device=device)
        if self.positions is None:
            positions = torch.arange(start, end, device=device)
        else:
            positions = self.positions[:, start:end].to(device)
        return ids, positions, self._injected(start, end, device)

    def shares_rows(self, other: PromptRows, limit: int) -> int:
        """How many of the first ``limit`` rows are the same in both: same ids, and the same media (and so the same
        positions). A medium that differs shares none of its rows; prompts of different salts share nothing."""
        if self.salt != other.salt:
            return 0
        shared = 0
        limit = min(limit, len(self.ids), len(other.ids))
        while shared < limit and self.ids[shared] == other.ids[shared]:
            shared += 1
        mine, theirs = self.media_starts(), other.media_starts()
        differing = [row for row in mine.keys() | theirs.keys() if mine.get(row) != theirs.get(row)]
        return min(shared, *differing) if differing else shared

    def media_starts(self) -> dict[int, bytes]:
        """The first row of each medium, and its key."""
        starts, row, keys = {}, 0, iter(self.media_keys)
        for span, count in self.spans:
            if not isinstance(span, TextSpan):
                starts[row] = next(keys)
            row += count
        assert starts or self.injected is None, "rows without a key could be taken for others"
        return starts

    def _injected(self, start: int, end: int, device: torch.device) -> MultimodalEmbeddings | None:
        injected = self.injected
        if injected is None:
            return None
        rows, embeddings = _between(injected.rows, (injected.embeddings,), start, end)
        deep_rows, deepstack = _between(injected.deepstack_rows, injected.deepstack, start, end)
        if not len(rows) and not len(deep_rows):
            return None
        return MultimodalEmbeddings(
            rows.to(device), embeddings[0].to(device), deep_rows.to(device), [part.to(device) for part in deepstack]
        )


def _between(rows: Tensor, parts: Sequence[Tensor], start: int, end: int) -> tuple[Tensor, list[Tensor]]:
    """The ascending ``rows`` in [start, end), counted from ``start``, and what belongs to them of each part."""
    first, last = (int(torch.searchsorted(rows, bound)) for bound in (start, end))
    return rows[first:last] - start, [part[first:last] for part in parts]
