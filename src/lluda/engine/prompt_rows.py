"""What a prompt is to the model: ids, and where it holds media, positions and the rows that encoders made."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lluda.inputs.media.media_positions import Span, TextSpan
from lluda.models.decoder import MultimodalEmbeddings


@dataclass(frozen=True, slots=True, eq=False)
class PromptRows:
    """``ids``; ``positions [3, rows]`` (time, height, width; spec section 5.2), or None for 0, 1, 2, …; ``injected``
    rows, ascending, that take the place of their ids' embeddings; ``spans`` of media and the text between, each with
    its number of rows (none: text alone). ``block_keys``: the first row of each block of media (a whole image or video;
    of sound what attends to itself, 8 s), and a digest of all that its rows depend on. ``salt``:
    only prompts of one salt share rows, so that nobody learns from the time of an answer what others asked.
    """

    ids: Sequence[int]
    positions: Tensor | None = None
    injected: MultimodalEmbeddings | None = None
    spans: Sequence[tuple[Span, int]] = ()
    block_keys: Mapping[int, bytes] = field(default_factory=dict)
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
        return PromptRows([*self.ids, *ids], positions, self.injected, spans, self.block_keys, self.salt)

    def positions_of(self, start: int, end: int) -> range | Tensor:
        """Of the rows from ``start`` to ``end``: ``[3, rows]`` where they are not counted one by one."""
        return range(start, end) if self.positions is None else self.positions[:, start:end]

    def chunk(self, start: int, end: int, device: torch.device) -> tuple[Tensor, Tensor, MultimodalEmbeddings | None]:
        """Ids, positions and injected rows of the rows from ``start`` to ``end``, on ``device``."""
        ids, positions = torch.tensor(self.ids[start:end], device=device), self.positions_of(start, end)
        placed = torch.arange(start, end, device=device) if isinstance(positions, range) else positions.to(device)
        injected = self.injected_between(start, end)
        return ids, placed, injected.to(device) if injected else None

    def shares_rows(self, other: PromptRows, limit: int) -> int:
        """How many of the first ``limit`` rows are the same in both: same ids, and the same blocks of media (and so the
        same positions). A block that differs shares none of its rows; prompts of different salts share nothing."""
        if self.salt != other.salt:
            return 0
        for each in (self, other):
            assert each.block_keys or each.injected is None, "rows without a key could be taken for others"
        shared = 0
        limit = min(limit, len(self.ids), len(other.ids))
        while shared < limit and self.ids[shared] == other.ids[shared]:
            shared += 1
        mine, theirs = self.block_keys, other.block_keys
        differing = [row for row in mine.keys() | theirs.keys() if mine.get(row) != theirs.get(row)]
        return min(shared, *differing) if differing else shared

    def head(self, rows: int) -> PromptRows:
        """The first ``rows`` rows, to be computed before the others are known: they end in text, or with a medium."""
        positions = None if self.positions is None else self.positions[:, :rows]
        keys = {row: key for row, key in self.block_keys.items() if row < rows}
        spans = list(spans_between(self.spans, 0, rows))
        return PromptRows(self.ids[:rows], positions, self.injected_between(0, rows), spans, keys, self.salt)

    @property
    def key(self) -> PromptRows:
        """What tells it from others (`shares_rows`), without the rows that encoders made."""
        return PromptRows(self.ids, block_keys=self.block_keys, salt=self.salt)

    def rows_of_last_medium(self) -> tuple[int, int]:
        """Its first row, and the one behind its last."""
        end = len(self.ids)
        for span, count in reversed(self.spans):
            if not isinstance(span, TextSpan):
                return end - count, end
            end -= count
        raise AssertionError("a prompt without media")

    def injected_between(self, start: int, end: int) -> MultimodalEmbeddings | None:
        """The injected rows from ``start`` to ``end``, counted from there; None: there are none."""
        injected = self.injected
        if injected is None:
            return None
        rows, embeddings = _between(injected.rows, (injected.embeddings,), start, end)
        deep_rows, deepstack = _between(injected.deepstack_rows, injected.deepstack, start, end)
        if not len(rows) and not len(deep_rows):
            return None
        return MultimodalEmbeddings(rows, embeddings[0], deep_rows, deepstack)


def spans_between(spans: Sequence[tuple[Span, int]], start: int, end: int) -> Iterator[tuple[Span, int]]:
    """The spans of rows from ``start`` to ``end``, neither of which lies inside a medium; each with its number of
    rows."""
    at = 0
    for span, count in spans:
        rows = min(at + count, end) - max(at, start)
        if rows > 0:
            whole = rows == count
            assert whole or isinstance(span, TextSpan), f"a cut inside {span}"
            yield (span if whole else TextSpan(rows)), rows
        at += count


def _between(rows: Tensor, parts: Sequence[Tensor], start: int, end: int) -> tuple[Tensor, list[Tensor]]:
    """The ascending ``rows`` in [start, end), counted from ``start``, and what belongs to them of each part."""
    first, last = (int(torch.searchsorted(rows, bound)) for bound in (start, end))
    return rows[first:last] - start, [part[first:last] for part in parts]
