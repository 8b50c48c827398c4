"""What the thinker learns to hear from: clips of hearing sets with the ids around them, by length.

Every clip is an example of each task it can be: its transcript; its answer, heard alone or with a typed order beside
it; with the turns before it, which are typed. Noises without a question are examples of their own.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
from torch import Tensor

from training.augment import RATE
from training.domains import WRITE_DOWN
from training.parallel import in_processes
from training.phrasing import typed
from training.prompts import LEARNT, PromptWriter, padded, writer
from training.unclear import SORRY

TASKS = ("transcript", "answer", "instructed", "followed", "noise")
ANSWER_ORDERS = ("Answer the question.", "Please answer.", "Answer.", "Do what I say.", "Reply to this.")
SIZES = ((4, 56), (6, 56), (6, 120), (8, 120))
"""Of batches: seconds of sound, and rows that are no sound. Few, since each is compiled. 8 seconds are a whole block of
the encoder's attention; what is longer is left out."""

SPOKEN = 48
"""Tokens of the words heard, at most."""

MARGIN = 1.3
"""Seconds that silence before may take, so that no speech is cut off."""

SLOWEST = 0.85
_LINES_AT_ONCE = 2000


@dataclass(frozen=True, slots=True)
class HeardExamples:
    """Examples of at most ``seconds`` of sound and ``rows`` of text, on one device; ids int16, marked with ``LEARNT``.

    ``before``/``after`` ``[n, rows]``: ids in front of the sound and behind it, filled up with `PAD`, and how many;
    ``spoken`` ``[n, SPOKEN]``: the tokens of the words heard, for CTC; ``start``, ``samples``: where the clip lies (no
    samples: a noise); ``task`` index into `TASKS`.
    """

    seconds: int
    rows: int
    before: Tensor
    after: Tensor
    spoken: Tensor
    before_count: Tensor
    after_count: Tensor
    spoken_count: Tensor
    start: Tensor
    samples: Tensor
    task: Tensor

    def __len__(self) -> int:
        return len(self.start)


@dataclass(frozen=True, slots=True)
class _Row:
    before: list[int]
    after: list[int]
    spoken: list[int]
    start: int
    samples: int
    task: int


class ExampleWriter:
    """Index lines to examples."""

    def __init__(self, writer: PromptWriter, rng: Random) -> None:
        self.writer, self.rng = writer, rng
        audio = [writer.tokenizer.id_of(name) for name in ("<|audio_start|>", "<|audio_end|>")]
        self.audio_start, self.audio_end = (int(found or 0) for found in audio)

    def of_clip(self, entry: dict[str, Any], start: int) -> Iterator[_Row]:
        """The examples of one clip whose sound begins at a sample."""
        where = start, entry["samples"]
        words = self.writer.plain(entry["text"])
        yield self._row("transcript", None, [], self.rng.choice(WRITE_DOWN), entry["text"], words, *where)
        if entry["domain"] == "transcript":
            return
        asked = entry["system"], entry["before"]
        task = "followed" if entry["before"] else "answer"
        yield self._row(task, *asked, "", entry["answer"], words, *where)
        if not entry["before"]:
            yield self._row("instructed", *asked, self.rng.choice(ANSWER_ORDERS), entry["answer"], words, *where)

    def of_noise(self) -> _Row:
        """An example whose sound is drawn anew each time."""
        order = self.rng.choice(("", "", *ANSWER_ORDERS))
        return self._row("noise", None, [], order, SORRY, [], 0, 0)

    def _row(
        self,
        task: str,
        system: str | None,
        earlier: Sequence[Sequence[str]],
        order: str,
        answer: str,
        words: list[int],
        start: int,
        samples: int,
    ) -> _Row:
        writer = self.writer
        before = writer.turn("system", writer.plain(system)) if system else []
        for question, told in earlier:
            before += writer.turn("user", writer.plain(typed(question, self.rng)))
            before += writer.turn("assistant", writer.plain(told))
        before += [writer.start, *writer.plain("user"), writer.line, self.audio_start]
        told = [one | LEARNT for one in (*writer.plain(answer), writer.end)]
        after = [self.audio_end, *writer.plain(order), writer.end, writer.line, *writer.header, *told]
        return _Row(before, after, words, start, samples, TASKS.index(task))


def read_heard(
    folders: Sequence[Path], split: str, noises: int, seed: int, jobs: int = 1
) -> tuple[Tensor, list[HeardExamples]]:
    """The sound of all sets that have clips of a split, int16 one after the other, and their examples by size, on the
    CPU.

    Args:
        folders: sets at 16 kHz.
        split: "train" or "test".
        noises: how many examples of noise.
        seed: of the orders typed beside the sound.
        jobs: processes that write the examples.

    Raises:
        ValueError: a set of another rate.
    """
    sounds, parts, offset = [np.zeros(0, np.int16)], [_Part([], 0, noises, f"{seed}")], 0
    for folder in folders:
        rate = json.loads((folder / "set.json").read_text(encoding="utf-8"))["rate"]
        if rate != RATE:
            raise ValueError(f"{folder}: hearing is trained at {RATE} Hz, not {rate}")
        lines = (folder / "index.jsonl").read_text(encoding="utf-8").splitlines()
        lines = [line for line in lines if json.loads(line)["split"] == split]
        if not lines:
            continue
        for first in range(0, len(lines), _LINES_AT_ONCE):
            chosen = lines[first : first + _LINES_AT_ONCE]
            parts.append(_Part(chosen, offset, 0, f"{seed} {folder.name} {first}"))
        sounds.append(np.fromfile(folder / "sound.i16", np.int16))
        offset += len(sounds[-1])
    return torch.from_numpy(np.concatenate(sounds)), list(_joined(in_processes(_sized, parts, jobs)))


@dataclass(frozen=True, slots=True)
class _Part:
    """Index lines of a set whose sound begins at a sample, or a number of noises."""

    lines: list[str]
    offset: int
    noises: int
    seed: str


_Arrays = dict[str, np.ndarray]


def _sized(part: _Part) -> dict[tuple[int, int], _Arrays]:
    """Its examples, by the least of `SIZES` that holds them."""
    examples = ExampleWriter(writer(), Random(part.seed))
    rows = [examples.of_noise() for _ in range(part.noises)]
    for entry in map(json.loads, part.lines):
        rows += examples.of_clip(entry, part.offset + entry["start"])
    found: dict[tuple[int, int], list[_Row]] = {}
    for row in rows:
        longest, text = row.samples / RATE / SLOWEST + MARGIN, len(row.before) + len(row.after)
        size = next((size for size in SIZES if longest <= size[0] and text <= size[1]), None)
        if size and len(row.spoken) <= SPOKEN:
            found.setdefault(size, []).append(row)
    return {size: _arrays(size[1], chosen) for size, chosen in found.items()}


def _arrays(text: int, rows: Sequence[_Row]) -> _Arrays:
    """The fields of `HeardExamples`."""
    made = {name: np.array([getattr(row, name) for row in rows]) for name in ("start", "samples", "task")}
    for name, size in (("before", text), ("after", text), ("spoken", SPOKEN)):
        ids = [getattr(row, name) for row in rows]
        made |= {name: padded(ids, size), f"{name}_count": np.array([len(one) for one in ids])}
    return made


def _joined(parts: Sequence[dict[tuple[int, int], _Arrays]]) -> Iterator[HeardExamples]:
    for seconds, text in SIZES:
        found = [part[seconds, text] for part in parts if (seconds, text) in part]
        if found:
            joined = {name: np.concatenate([part[name] for part in found]) for name in found[0]}
            yield HeardExamples(seconds, text, **{name: torch.from_numpy(one) for name, one in joined.items()})
