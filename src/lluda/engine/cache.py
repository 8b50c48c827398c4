"""KV memory shared by many sequences: slots, a budget of positions, and prefixes that later prompts begin with.

A sequence has one slot: a contiguous cache of its own, which every kernel reads as it lies (journal/16-engine.md says
why not blocks). All positions that a request may take are counted before it begins, so nothing that runs has to be
given up for want of memory. A slot whose request ended is retained while the budget allows, and a prompt with the same
first rows (the same ids, and media of the same digests) takes it over, or copies what it needs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from torch import Tensor

from lluda.engine.kv_cache import KVCache
from lluda.engine.prompt_rows import PromptRows

MIN_REUSED = 16
"""Rows that a prefix has at least: fewer are computed faster than looked after."""


@dataclass(slots=True, eq=False)
class Slot:
    """The cache of one sequence; ``positions`` of the budget are counted for it. ``rows`` says what it holds, of which
    the first ``prompt_rows`` were computed as rows of a prompt; ``captured``: hidden states of some, for the talker."""

    cache: KVCache
    positions: int
    rows: PromptRows
    prompt_rows: int = 0
    captured: Mapping[int, Tensor] = field(default_factory=dict)
    last_used: int = 0


@dataclass(frozen=True, slots=True)
class Prefix:
    """What a prompt may begin with: the first ``rows`` of ``slot``."""

    slot: Slot
    rows: int


@dataclass(slots=True, eq=False)
class CachePool:
    """Slots for as many positions as ``budget``. ``new_cache`` makes a cache for the given number of positions.

    ``retained_budget``: positions that retained prefixes may hold together.
    """

    new_cache: Callable[[int | None], KVCache]
    budget: int
    retained_budget: int
    running: list[Slot] = field(default_factory=list)
    retained: list[Slot] = field(default_factory=list)
    _clock: int = 0

    @property
    def used(self) -> int:
        """Positions counted for what runs."""
        return sum(slot.positions for slot in tuple(self.running))

    @property
    def nbytes(self) -> int:
        """Bytes allocated."""
        return sum(slot.cache.nbytes for slot in (*self.running, *self.retained))

    def fits(self, positions: int) -> bool:
        """Whether a request of so many positions can begin now; retained prefixes make place for it."""
        return self.used + positions <= self.budget

    def find(self, prompt: PromptRows, *, prompt_rows_only: bool) -> Prefix | None:
        """The longest prefix of ``prompt`` that some slot holds; the last row is always left to compute.
        ``prompt_rows_only``: of rows that were computed as rows of a prompt."""
        best: Prefix | None = None
        for slot in (*self.retained, *self.running):
            limit = min(slot.cache.length, len(prompt) - 1)
            if prompt_rows_only:
                limit = min(limit, slot.prompt_rows)
            if limit <= (best.rows if best else 0):
                continue
            shared = slot.rows.shares_rows(prompt, limit)
            if shared >= MIN_REUSED and (best is None or shared > best.rows):
                best = Prefix(slot, shared)
        return best

    def acquire(self, positions: int, prompt: PromptRows, prefix: Prefix | None, *, exact: bool = False) -> Slot:
        """A slot for a request of so many positions, which fits; it holds the rows of ``prefix``. ``exact``: it will
        take just as many, so memory for all is taken at once."""
        assert self.fits(positions), "asked for more than fits: see fits"
        capacity = positions if exact else None
        slot = self._with_prefix(capacity, prefix) if prefix else self._empty(capacity)
        slot.positions, slot.rows = positions, prompt
        shared = prefix.rows if prefix else 0
        slot.prompt_rows = min(slot.prompt_rows, shared)
        slot.captured = {row: hidden for row, hidden in slot.captured.items() if row < shared}
        self.running.append(slot)
        self._evict()
        return slot

    def release(self, slot: Slot, rows: PromptRows, *, retain: bool) -> None:
        """Give a slot back; ``rows`` are what it holds now. Where it is retained, others may begin with them."""
        self.running.remove(slot)
        if retain and slot.cache.length >= MIN_REUSED:
            self._clock += 1
            slot.rows, slot.last_used, slot.positions = rows, self._clock, 0
            self.retained.append(slot)
            self._evict()

    def clear(self) -> None:
        """Let go of all retained prefixes."""
        self.retained.clear()

    def check_integrity(self) -> None:
        """Assert what must hold between any two steps."""
        slots = [*self.running, *self.retained]
        assert len({id(slot) for slot in slots}) == len(slots), "a slot is held twice"
        assert self.used <= self.budget, f"{self.used} positions of {self.budget} are taken"
        for slot in slots:
            assert slot.prompt_rows <= slot.cache.length, "a slot counts rows that it does not hold"
            assert slot.positions == 0 or slot.cache.length <= slot.positions, "a slot outgrew what is counted for it"

    def _empty(self, capacity: int | None) -> Slot:
        return Slot(self.new_cache(capacity), 0, PromptRows(()))

    def _with_prefix(self, capacity: int | None, prefix: Prefix) -> Slot:
        """The slot itself, where it is free and little else is in it; else a copy."""
        source = prefix.slot
        free = source in self.retained
        if free and (2 * prefix.rows >= source.cache.length or not self.retained_budget):
            self.retained.remove(source)
            source.cache.truncate(prefix.rows)
            return source
        if free:
            self._clock += 1
            source.last_used = self._clock
        copy = self._empty(capacity)
        copy.cache.copy_rows(source.cache, prefix.rows)
        copy.prompt_rows, copy.captured = source.prompt_rows, source.captured
        return copy

    def _evict(self) -> None:
        """Let go of the prefixes that were used longest ago, until the budgets hold."""
        self.retained.sort(key=lambda slot: slot.last_used)
        while self.retained:
            held = sum(slot.cache.capacity for slot in self.retained)
            if held <= self.retained_budget and self.used + held <= self.budget:
                return
            self.retained.pop(0)
