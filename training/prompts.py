"""Conversations as the ids that the engine makes of them, with the ids that the thinker must learn to write marked.

Written out here because the template's renderer takes a hundred times as long; a test compares both.
"""

from __future__ import annotations

from functools import lru_cache, partial
from random import Random

import numpy as np
import torch
from torch import Tensor

from lluda.inputs.text.tokenizer import Tokenizer
from training.config import TOKENIZER
from training.domains import STUDIED
from training.parallel import in_processes
from training.phrasing import typed
from training.world import Conversation, sample

LEARNT = 1 << 14
"""Added to an id that is written by the assistant."""

PAD = 0
STUDIED_SHARE = 0.12
"""Of typed conversations to train on: begun with a question of the `STUDIED` domains."""

SIZES = (64, 160)
"""Rows of a batch's examples; what is longer than the last is left out."""


class PromptWriter:
    """Conversations to ids."""

    def __init__(self) -> None:
        self.tokenizer = Tokenizer.from_folder(TOKENIZER)
        found = {name: self.tokenizer.id_of(name) for name in ("<|im_start|>", "<|im_end|>")}
        self.start, self.end = (int(found[name] or 0) for name in ("<|im_start|>", "<|im_end|>"))
        (self.line,) = self.plain("\n")

    def plain(self, text: str) -> list[int]:
        """The ids of text in which nothing is special."""
        return self.tokenizer.encode(text, allow_special=False)

    def turn(self, role: str, content: list[int], learnt: bool = False) -> list[int]:
        """A whole turn; its content and end ``LEARNT`` or not."""
        written = [one | LEARNT for one in (*content, self.end)] if learnt else [*content, self.end]
        return [self.start, *self.plain(role), self.line, *written, self.line]

    def conversation(self, found: Conversation, rng: Random) -> list[int]:
        """All turns as typed ones; where a turn has an instruction, it and what it is about are one question."""
        ids = self.turn("system", self.plain(found.system)) if found.system else []
        for turn in found.turns:
            asked = typed(turn.question, rng)
            ids += self.turn("user", self.plain(f"{turn.instruction} {asked}" if turn.instruction else asked))
            ids += self.turn("assistant", self.plain(turn.answer), learnt=True)
        return ids[:-1]

    def question(self, text: str, system: str | None = None) -> list[int]:
        """A prompt up to the header of the answer."""
        ids = self.turn("system", self.plain(system)) if system else []
        return [*ids, *self.turn("user", self.plain(text)), *self.header]

    @property
    def header(self) -> list[int]:
        """What opens the assistant's turn."""
        return [self.start, *self.plain("assistant"), self.line]


@lru_cache(maxsize=1)
def writer() -> PromptWriter:
    """One for each process."""
    return PromptWriter()


def padded(rows: list[list[int]], size: int) -> np.ndarray:
    """int16 ``[len(rows), size]``."""
    out = np.full((len(rows), size), PAD, np.int16)
    for index, row in enumerate(rows):
        out[index, : len(row)] = row
    return out


def _typed_part(count: int, split: str, seed: int) -> list[np.ndarray]:
    rng = Random(f"{split} {seed}")
    studied = STUDIED_SHARE if split == "train" else 0.0
    domains = (rng.choice(STUDIED) if rng.random() < studied else None for _ in range(count))
    rows = [writer().conversation(sample(split, rng, domain), rng) for domain in domains]
    return _sized(rows)


def _sized(rows: list[list[int]]) -> list[np.ndarray]:
    """The rows by the least of ``SIZES`` that holds them."""
    bounds = [0, *SIZES]
    return [padded([row for row in rows if bounds[index] < len(row) <= size], size) for index, size in enumerate(SIZES)]


def typed_conversations(count: int, split: str, seed: int, jobs: int) -> list[Tensor]:
    """So many conversations of a split as ids, int16 ``[n, size]`` for each of ``SIZES``, by ``jobs`` processes."""
    make = partial(_typed_part, -(-count // (4 * jobs)), split)
    parts = in_processes(make, range(seed, seed + 4 * jobs), jobs)
    return [torch.from_numpy(np.concatenate([part[index] for part in parts])) for index in range(len(SIZES))]
