"""Which tokens came so far, and how often: what penalties look at."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor

from lluda.backends.sampling_table import sampling_table


class Occurrences:
    """Ids that came so far, each once, and how often each came in the answer: what penalties change, so that they do
    not pass over a whole vocabulary. ``ids``: the prompt's, each once."""

    def __init__(self, ids: Sequence[int]) -> None:
        self._places = {token: place for place, token in enumerate(ids)}
        self._ids = torch.tensor(ids, dtype=torch.int64)
        self._counts = torch.zeros(len(ids))
        self._in_prompt = len(ids)
        self._times: Counter[int] = Counter()
        self._last = 0
        self._table: Tensor | None = None

    def on(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Ids and their counts (float32), from now on kept on ``device``."""
        self._ids, self._counts = self._ids.to(device), self._counts.to(device)
        return self._ids[: len(self._places)], self._counts[: len(self._places)]

    @torch.inference_mode()  # tensors that were made in this mode can only be changed in it
    def add(self, token: int) -> None:
        """Count one more of the answer."""
        place = self._places.setdefault(token, len(self._places))
        if place == len(self._ids):
            room = max(64, place)
            self._ids = torch.cat((self._ids, self._ids.new_zeros(room)))
            self._counts = torch.cat((self._counts, self._counts.new_zeros(room)))
        self._ids[place] = token
        self._counts[place] += 1
        self._times[token] += 1
        self._last = token

    @torch.inference_mode()
    def table_on(self, device: torch.device, vocab: int) -> tuple[int, int]:
        """Address of the table on ``device`` that `RowSampling` tells of, and what stands in it for the last token of
        the answer. The step that is given the table counts that token: every token is fed to one step."""
        if self._table is None:
            codes = sampling_table(vocab, torch.int32)
            codes[list(self._places)] = torch.tensor([self._code(token) for token in self._places], dtype=torch.int32)
            self._table = codes.to(device)
        return self._table.data_ptr(), self._code(self._last)

    def _code(self, token: int) -> int:
        return 2 * self._times[token] + (self._places.get(token, self._in_prompt) < self._in_prompt)
