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
from training.phrasing import typed
from training.prompts import LEARNT, PAD, PromptWriter
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


def read_heard(folders: Sequence[Path], split: str, noises: int, seed: int) -> tuple[Tensor, list[HeardExamples]]:
    """The sound of all sets, int16 one after the other, and their examples of a split by size, on the CPU.

    Args:
        folders: sets at 16 kHz.
        split: "train" or "test".
        noises: how many examples of noise.
        seed: of the orders typed beside the sound.

    Raises:
        ValueError: a set of another rate.
    """
    examples = ExampleWriter(PromptWriter(), Random(seed))
    sounds, rows, offset = [], [examples.of_noise() for _ in range(noises)], 0
    for folder in folders:
        rate = json.loads((folder / "set.json").read_text(encoding="utf-8"))["rate"]
        if rate != RATE:
            raise ValueError(f"{folder}: hearing is trained at {RATE} Hz, not {rate}")
        sounds.append(np.fromfile(folder / "sound.i16", np.int16))
        for line in (folder / "index.jsonl").read_text(encoding="utf-8").splitlines():
            entry = json.loads(line)
            if entry["split"] == split:
                rows += examples.of_clip(entry, offset + entry["start"])
        offset += len(sounds[-1])
    return torch.from_numpy(np.concatenate(sounds)), list(_by_size(rows))


def _by_size(rows: list[_Row]) -> Iterator[HeardExamples]:
    found: dict[tuple[int, int], list[_Row]] = {}
    for row in rows:
        longest, text = row.samples / RATE / SLOWEST + MARGIN, len(row.before) + len(row.after)
        size = next((size for size in SIZES if longest <= size[0] and text <= size[1]), None)
        if size and len(row.spoken) <= SPOKEN:
            found.setdefault(size, []).append(row)
    for (seconds, text), chosen in sorted(found.items()):
        parts = {name: [getattr(row, name) for row in chosen] for name in ("before", "after", "spoken")}
        padded = {name: _padded(ids, SPOKEN if name == "spoken" else text) for name, ids in parts.items()}
        counts = {f"{name}_count": torch.tensor([len(one) for one in ids]) for name, ids in parts.items()}
        numbers = {name: torch.tensor([getattr(row, name) for row in chosen]) for name in ("start", "samples", "task")}
        yield HeardExamples(seconds, text, **padded, **counts, **numbers)


def _padded(rows: list[list[int]], size: int) -> Tensor:
    out = torch.full((len(rows), size), PAD, dtype=torch.int16)
    for index, row in enumerate(rows):
        out[index, : len(row)] = torch.tensor(row, dtype=torch.int16)
    return out
