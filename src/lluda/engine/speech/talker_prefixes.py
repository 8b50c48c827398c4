"""What the talker computed of users' turns, kept for later answers: of the turn being heard, and of earlier ones.

The talker's prompt is the rows of all turns of the user, and nine of the answer. A row of a turn hangs on the thinker's
rows up to its own, so it is known by these: where two prompts of the thinker begin alike (`PromptRows.shares_rows`),
the rows of the turns in that beginning are the same, whoever speaks the answer.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from lluda.backends.batch import Segment
from lluda.engine.cache import MIN_REUSED
from lluda.engine.kv_cache import CacheOptions, KVCache
from lluda.engine.prompt_rows import PromptRows
from lluda.engine.speech.talker_prompt import (
    ASSISTANT_ROWS,
    CapturedHiddenStates,
    TalkerPrompt,
    TalkerPromptBuilder,
)
from lluda.models.talker import Talker

RETAINED_ROWS = 8192
"""Rows of turns that are kept at most, of all conversations: ten minutes of sound, 168 MB of the released model's."""


@dataclass(slots=True, eq=False)
class _Kept:
    """The first rows of the turns in ``prompt``, the thinker's."""

    prompt: PromptRows
    cache: KVCache


class TalkerPrefixes:
    """Keys and values of the talker, of the turns of thinker's prompts. Used on the engine's thread.

    Args:
        options: of a cache; ``max_length`` rows are kept of all prompts together.
        step: rows computed at once ahead of an answer.
        exact: an answer is to the bit what it is where nothing is known. Where sums hang on how many rows are computed
            at once, whole steps of turns are then computed by themselves, and only these are kept.
    """

    def __init__(
        self, talker: Talker, prompts: TalkerPromptBuilder, options: CacheOptions, *, step: int, exact: bool
    ) -> None:
        self._talker, self._prompts, self._options, self._step = talker, prompts, options, step
        self._few = (talker.backend.few_rows or 0) if exact else 0
        self._in_steps = exact and talker.backend.few_rows is None
        self._kept: list[_Kept] = []  # the last used at the end

    @property
    def rows(self) -> int:
        """Rows that are kept."""
        return sum(kept.cache.length for kept in self._kept)

    @property
    def nbytes(self) -> int:
        """Bytes allocated."""
        return sum(kept.cache.nbytes for kept in self._kept)

    def clear(self) -> None:
        """Let go of all."""
        self._kept.clear()

    @torch.inference_mode()
    def begin(self, cache: KVCache, prompt: PromptRows, media: CapturedHiddenStates | None, *, reuse: bool) -> None:
        """Put into the empty cache of an answer what comes before the rows that are computed with the answer's own."""
        places = self._prompts.places(prompt)
        found = self._find(prompt, places) if reuse else None
        if found is not None:
            kept, shared = found
            self._touch(kept)
            cache.copy_rows(kept.cache, self._usable(shared, len(places) + ASSISTANT_ROWS))
        while self._in_steps and cache.length + self._step <= len(places):
            self._run(cache, self._prompts.turns(prompt, media, cache.length, cache.length + self._step))

    @torch.inference_mode()
    def keep(self, cache: KVCache, prompt: PromptRows) -> None:
        """Keep the turns' rows of an answer that was begun."""
        places = self._prompts.places(prompt)
        if len(places) + ASSISTANT_ROWS > self._few:  # else a longer prompt sums the same rows in another order
            kept = self._take(prompt, places)
            rows = self._whole(min(len(places), self._options.max_length))
            if rows > kept.cache.length:
                kept.cache.copy_rows(cache, rows)
            self._put(kept)

    @torch.inference_mode()
    def compute(self, prompt: PromptRows, media: CapturedHiddenStates | None, computed: int) -> None:
        """Compute and keep the turns' rows among the first ``computed`` of the thinker's, which were computed; so many
        at once as a step may have."""
        places = self._prompts.places(prompt)
        wanted = min(bisect_left(places, computed), self._options.max_length)
        kept = self._take(prompt, places)
        known = kept.cache.length
        end = self._whole(min(wanted, known + max(self._step, self._few + 1)))
        begin = self._usable(known, end)
        if end > known and end - begin > self._few:
            kept.cache.truncate(begin)
            self._run(kept.cache, self._prompts.turns(prompt, media, begin, end))
        self._put(kept)

    def _usable(self, known: int, rows: int) -> int:
        """How many of ``known`` rows a prompt of so many rows may begin with, for the others to be computed as they are
        alone."""
        return max(0, min(known, rows - self._few - 1)) if self._few else self._whole(known)

    def _whole(self, rows: int) -> int:
        return rows - rows % self._step if self._in_steps else rows

    def _run(self, cache: KVCache, turns: TalkerPrompt) -> None:
        talker, count = self._talker, len(turns.rows)
        device, start = talker.backend.device, cache.length
        positions = torch.arange(start, start + count) if turns.positions is None else turns.positions
        with talker.backend.single_threaded_torch():
            talker.decoder.run(turns.rows, positions.to(device), [Segment(0, count, cache)])
        cache.advance(count)

    def _find(self, prompt: PromptRows, places: Sequence[int]) -> tuple[_Kept, int] | None:
        """What holds the most rows of the turns of ``prompt``, and how many."""
        best: tuple[_Kept, int] | None = None
        for kept in self._kept:
            shared = kept.prompt.shares_rows(prompt, len(prompt))
            if shared and prompt.ids[shared - 1] == self._prompts.tokens.im_start:
                shared -= 1  # whose turn it begins is said by the next one
            rows = min(kept.cache.length, bisect_left(places, shared))
            if rows >= MIN_REUSED and (best is None or rows > best[1]):
                best = kept, rows
        return best

    def _take(self, prompt: PromptRows, places: Sequence[int]) -> _Kept:
        """With the rows that are known of ``prompt``: that one itself where little else is in it, else a copy."""
        found = self._find(prompt, places)
        cache = KVCache(self._talker.config.decoder, self._options, self._talker.backend.device)
        if found is not None:
            kept, rows = found
            if 2 * rows >= kept.cache.length:
                self._kept.remove(kept)
                cache = kept.cache
                cache.truncate(rows)
            else:
                self._touch(kept)
                cache.copy_rows(kept.cache, rows)
        return _Kept(prompt.key, cache)

    def _put(self, kept: _Kept) -> None:
        if kept.cache.length >= MIN_REUSED:
            self._kept.append(kept)
        while sum(each.cache.capacity for each in self._kept) > self._options.max_length:
            self._kept.pop(0)

    def _touch(self, kept: _Kept) -> None:
        self._kept.remove(kept)
        self._kept.append(kept)
