"""Who runs when: numbers and clocks in, the next step out. No tensors, so that tables can test it.

A step decodes one token of every answer that is under way and, beside it, computes some rows of the prompts that wait:
so many that those who decode feel little of it. Speech has deadlines, a frame every 80 ms from its first on: while a
listener is about to run dry, prompts wait, and answers that are only read take turns.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

FIRST_ROWS, LEAST_ROWS = 32, 4
"""Rows of a prompt beside others' decoding, before anything was measured and at least."""

_STRETCH = 1.5
"""Seconds that a prompt's rows may add to a step, as a share of the step without them. Reading the weights for them
takes about as long as a step alone, so less would leave no rows."""

_STRETCH_TOGETHER = 1.2
"""The same of a prompt's rows in the step that decodes."""

_CHANGE = 0.5, 1.25
"""How much fewer and more rows a step may have than the one before."""

_LATE, _AHEAD = 0.24, 4.0
"""Seconds of sound in hand: with fewer a listener is served before all others, with more it waits for them."""

_PATIENCE = 8
"""Steps that a prompt waits at most for listeners who are late."""

_MEASURED_EVERY = 16
"""Steps with a prompt's rows in them after which one is made without, for what it takes to be known."""


@dataclass(slots=True, eq=False)
class Entry:
    """What is to be known of one request. ``positions``: of the cache, at most; ``prompt_left``: rows of its prompt not
    computed; ``shares_steps``: they can be computed in the step of others' tokens; ``speaking``: its speech can make a
    frame now. ``heard_until``: when a listener who plays all as it comes has heard what was handed out (None: nothing
    was); ``frames_to_go``: frames to be made before more is."""

    id: int
    positions: int = 0
    prompt_left: int = 0
    shares_steps: bool = True
    priority: int = 0
    deadline: float | None = None
    running: bool = False
    decoding: bool = False
    stalled: bool = False
    spoken: bool = False
    speaking: bool = False
    heard_until: float | None = None
    frames_to_go: int = 0

    def in_hand(self, now: float) -> float:
        """Seconds of sound that a listener has left."""
        return 0.0 if self.heard_until is None else self.heard_until - now


@dataclass(frozen=True, slots=True)
class Step:
    """What to do next: ``prefill`` has ids and rows of their prompts; ``decode`` and ``frames`` ids. ``together``: the
    one prompt's rows are computed in the step that decodes."""

    prefill: tuple[tuple[int, int], ...] = ()
    together: bool = False
    decode: tuple[int, ...] = ()
    frames: tuple[int, ...] = ()

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to do."""
        return not (self.prefill or self.decode or self.frames)

    @property
    def numbers(self) -> set[int]:
        """The ids of all."""
        return {*self.decode, *self.frames, *(number for number, _ in self.prefill)}


@dataclass(slots=True, eq=False)
class Scheduler:
    """``max_running`` requests at once; ``chunk``: rows of prompts in one step where nothing else waits. ``whole``: a
    chunk is never made smaller, since the numbers depend on where it begins (deterministic mode of some backends).
    ``rows_together``: rows of a step that cost about as much as fewer; a prompt takes those that decoding leaves.
    ``least_rows``: of a chunk, where there are so many, however long others wait for it."""

    max_running: int
    chunk: int
    whole: bool = False
    rows_together: int = 0
    least_rows: int = LEAST_ROWS
    _entries: dict[int, Entry] = field(default_factory=dict)
    _decode_seconds: float = 0.0
    _rows_beside: float = FIRST_ROWS
    _rows_within: float = FIRST_ROWS
    _steps_without_prefill: int = 0
    _steps_together: int = 0
    _turn: int = 0

    def add(self, entry: Entry) -> None:
        """A request that waits."""
        assert entry.id not in self._entries, f"request {entry.id} is there already"
        self._entries[entry.id] = entry

    def remove(self, number: int) -> None:
        """A request that ended."""
        del self._entries[number]

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def running(self) -> int:
        """Requests that were begun."""
        return sum(entry.running for entry in tuple(self._entries.values()))

    @property
    def waiting(self) -> list[Entry]:
        """Requests that were not begun, in the order in which they will be."""
        return sorted((entry for entry in self._entries.values() if not entry.running), key=_order)

    @property
    def has_deadlines(self) -> bool:
        """Whether a request that waits has a deadline."""
        return any(entry.deadline is not None for entry in self.waiting)

    def expired(self, now: float) -> list[int]:
        """Of those that wait, the ones whose deadline is over."""
        return [entry.id for entry in self.waiting if entry.deadline is not None and entry.deadline <= now]

    def next_to_admit(self) -> Entry | None:
        """The request to begin next, if there is place for one. Nobody overtakes it while it waits for memory: a large
        one would else wait for ever."""
        waiting = self.waiting
        return waiting[0] if waiting and self.running < self.max_running else None

    def step(self, now: float) -> Step:
        """The next step of what runs."""
        entries = [entry for entry in self._entries.values() if entry.running and not entry.stalled]
        speaking = [entry for entry in entries if entry.speaking]
        decoding = [entry for entry in entries if entry.decoding]
        prompts = sorted((entry for entry in entries if entry.prompt_left), key=_order)
        late = any(self._is_late(entry, now) for entry in speaking)
        frames = [entry.id for entry in speaking if self._frame_is_due(entry, now, others=bool(decoding or prompts))]
        decode = [entry.id for entry in decoding if not late or entry.spoken or self._turn % 2]
        self._turn += 1
        prefill: tuple[tuple[int, int], ...] = ()
        left = self.rows_together - len(decode)
        together = bool(decode and prompts) and left >= LEAST_ROWS and prompts[0].shares_steps
        waits = late and self._steps_without_prefill < _PATIENCE
        if prompts and not waits and not (together and self._steps_together >= _MEASURED_EVERY):
            within = max(LEAST_ROWS, int(self._rows_within))
            first = ((prompts[0].id, min(left, within, prompts[0].prompt_left)),)
            prefill = first if together else tuple(self._rows(prompts, alone=not (decode or frames)))
        self._steps_without_prefill = 0 if prefill or not prompts else self._steps_without_prefill + 1
        self._steps_together = self._steps_together + 1 if prefill and together else 0
        return Step(prefill, bool(prefill) and together, tuple(decode), tuple(frames))

    def measured(self, step: Step, decode_seconds: float, prefill_seconds: float) -> None:
        """What a step took: its tokens and frames, and its prompts' rows."""
        rows = sum(count for _, count in step.prefill)
        if step.together:
            if self._decode_seconds:
                limit = (1 + _STRETCH_TOGETHER) * self._decode_seconds
                self._rows_within = _adapted(self._rows_within, rows, limit / max(decode_seconds, 1e-9))
            return
        if not (step.decode or step.frames):
            return
        self._decode_seconds = _average(self._decode_seconds, decode_seconds)
        if rows and prefill_seconds > 0:
            limit = _STRETCH * self._decode_seconds
            self._rows_beside = _adapted(self._rows_beside, rows, limit / prefill_seconds)

    def _is_late(self, entry: Entry, now: float) -> bool:
        """Whether a listener is about to run dry, in the time that the frames to go take."""
        return entry.heard_until is not None and entry.in_hand(now) < _LATE + entry.frames_to_go * self._decode_seconds

    def _frame_is_due(self, entry: Entry, now: float, *, others: bool) -> bool:
        """A listener with seconds in hand waits where others have something to do; a first frame never does."""
        return not others or entry.heard_until is None or entry.in_hand(now) < _AHEAD or self._turn % 4 == 0

    def _rows(self, prompts: Iterable[Entry], *, alone: bool) -> Iterator[tuple[int, int]]:
        left = self.chunk if alone or self.whole else self._beside_others()
        for entry in prompts:
            if left <= 0:
                return
            rows = min(left, entry.prompt_left)
            yield entry.id, rows
            left -= rows

    def _beside_others(self) -> int:
        return min(max(int(self._rows_beside), self.least_rows), self.chunk)


def _adapted(before: float, rows: int, change: float) -> float:
    """Rows of the next chunk after one of ``rows``, where ``before`` were allowed and ``change`` times as many would
    take as long as they may. Of a short rest nothing is learnt for a longer chunk."""
    fewer, more = _CHANGE
    return rows * min(max(change, fewer), more) if change < 1 or rows >= int(before) else before


def _order(entry: Entry) -> tuple[int, int]:
    return entry.priority, entry.id


def _average(before: float, now: float) -> float:
    return now if not before else 0.7 * before + 0.3 * now
