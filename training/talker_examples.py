"""What the talker is trained on: clips, and two or three of a voice one after the other, by their number of frames."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from itertools import accumulate
from random import Random

import numpy as np
import torch
from torch import Tensor

from training.code_set import CodeSet
from training.parallel import in_processes
from training.prompts import PromptWriter, writer
from training.sound_set import Clip
from training.timing import FRAMES_A_SECOND, spoken_tokens
from training.world import sample

SIZES = (32, 56, 96, 160)
"""Frames of a batch's examples; what is longer than the last is left out."""

_USER_ROWS = 48
_GROUPS_AT_ONCE = 5000


@dataclass(frozen=True, slots=True)
class Examples:
    """Examples of at most ``size`` frames, on one device.

    ``text`` int64 ``[n, size + 1]``: the token of each frame, the first that of the row before frame 0; ``frames``
    int64 ``[n, size]``: where its codes lie, -1 behind the end; ``spoken`` int64 ``[n, size + 1]``: which token of the
    text is spoken in each frame, the number of tokens in the silence at the end, -1 where it is not known; ``speaker``
    int64 ``[n]``.
    """

    size: int
    text: Tensor
    frames: Tensor
    spoken: Tensor
    speaker: Tensor

    def __len__(self) -> int:
        return len(self.text)


def examples_of(
    codes: CodeSet,
    split: str,
    speakers: dict[str, int],
    ends: tuple[int, int],
    device: str,
    jobs: int = 1,
    neighbours: bool = True,
) -> list[Examples]:
    """All clips of a split alone, and with ``neighbours`` as many pairs, and half as many threes, of neighbours of one
    voice. ``ends``: the ids tts_eos and tts_pad; ``jobs``: processes that write them."""
    clips = [clip for clip in codes.clips if clip.split == split]
    groups: list[_Group] = []
    rng = Random(7)
    for name in sorted(speakers):
        found = [clip for clip in clips if clip.voice == name]
        shuffled = rng.sample(found, len(found))
        groups += [(clip,) for clip in found]
        if neighbours:
            groups += list(zip(found, shuffled, strict=True))
            groups += list(zip(found, shuffled[1:], shuffled[2:], strict=False))[::2]
    parts = [groups[first : first + _GROUPS_AT_ONCE] for first in range(0, len(groups), _GROUPS_AT_ONCE)]
    made = in_processes(partial(_written, speakers, ends), parts, jobs)
    return [
        Examples(size, *(torch.from_numpy(np.concatenate(one)).to(device).long() for one in zip(*found, strict=True)))
        for size in SIZES
        if (found := [part[size] for part in made if size in part])
    ]


_Group = tuple[Clip, ...]


def _written(
    speakers: dict[str, int], ends: tuple[int, int], groups: Sequence[_Group]
) -> dict[int, tuple[np.ndarray, ...]]:
    """The fields of `Examples`, int32, of clips one after the other, by the least of ``SIZES`` that holds them."""
    buckets: dict[int, list[tuple[list[int], list[int], list[int], int]]] = {}
    decode = cache(writer().tokenizer.decode)
    for group in groups:
        frames = [index for clip in group for index in range(clip.first, clip.first + clip.frames)]
        ids = writer().plain(" ".join(clip.text for clip in group))
        size = next((size for size in SIZES if len(frames) <= size), None)
        if size is None or len(ids) > len(frames):
            continue
        text = [*ids, ends[0], *[ends[1]] * size][: size + 1]
        spoken = _spoken(group, ids, lambda part: decode(tuple(part)))
        spoken = (spoken + [spoken[-1]] * (size + 1))[: size + 1]
        row = (text, frames + [-1] * (size - len(frames)), spoken, speakers[group[0].voice])
        buckets.setdefault(size, []).append(row)
    return {size: tuple(np.array(part, np.int32) for part in zip(*rows, strict=True)) for size, rows in buckets.items()}


def _spoken(group: Sequence[Clip], ids: list[int], decode: Callable[[Sequence[int]], str]) -> list[int]:
    """The token spoken in each frame of clips one after the other; -1 alone if it is not known."""
    if not all(clip.starts for clip in group):
        return [-1]
    begins = list(accumulate((clip.frames for clip in group), initial=0))
    starts = [
        begin / FRAMES_A_SECOND + start for clip, begin in zip(group, begins, strict=False) for start in clip.starts
    ]
    seconds = begins[-2] / FRAMES_A_SECOND + group[-1].seconds
    found = spoken_tokens(" ".join(clip.text for clip in group), starts, seconds, ids, decode)
    return [*(max(0, index) for index in found), len(ids)]


def user_turns(writer: PromptWriter, count: int, device: str) -> tuple[Tensor, Tensor]:
    """User turns of the world, int64 ``[count, 48]`` padded on the left with -1, and where a tenth to all of their
    content may be replaced by heard rows (bool, of the same shape)."""
    rng = Random(11)
    rows, content = [], []
    while len(rows) < count:
        question = writer.plain(sample("train", rng, turns=1).turns[0].question)
        turn = writer.turn("user", question)
        if question and len(turn) <= _USER_ROWS:
            rows.append([-1] * (_USER_ROWS - len(turn)) + turn)
            inner = [False] * 3 + [True] * len(question) + [False] * 2
            content.append([False] * (_USER_ROWS - len(turn)) + inner)
    return torch.tensor(rows, device=device), torch.tensor(content, device=device)
