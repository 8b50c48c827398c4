"""What the talker is trained on: clips, and two or three of a voice one after the other, by their number of frames."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import accumulate
from random import Random

import torch
from torch import Tensor

from training.code_set import CodeSet
from training.prompts import PromptWriter
from training.sound_set import Clip
from training.timing import FRAMES_A_SECOND, spoken_tokens
from training.world import sample

SIZES = (32, 56, 96, 160)
"""Frames of a batch's examples; what is longer than the last is left out."""

_USER_ROWS = 48


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
    codes: CodeSet, split: str, writer: PromptWriter, speakers: dict[str, int], ends: tuple[int, int], device: str
) -> list[Examples]:
    """All clips of a split alone, and as many pairs, and half as many threes, of neighbours of one voice. ``ends``:
    the ids tts_eos and tts_pad."""
    clips = [clip for clip in codes.clips if clip.split == split]
    voices = {name: [clip for clip in clips if clip.voice == name] for name in sorted(speakers)}
    groups: list[Sequence[Clip]] = []
    rng = Random(7)
    for found in voices.values():
        shuffled = rng.sample(found, len(found))
        groups += [(clip,) for clip in found]
        groups += list(zip(found, shuffled, strict=True))
        groups += list(zip(found, shuffled[1:], shuffled[2:], strict=False))[::2]
    buckets: dict[int, list[tuple[list[int], list[int], list[int], int]]] = {size: [] for size in SIZES}
    decode = cache(writer.tokenizer.decode)
    for group in groups:
        frames = [index for clip in group for index in range(clip.first, clip.first + clip.frames)]
        ids = writer.plain(" ".join(clip.text for clip in group))
        size = next((size for size in SIZES if len(frames) <= size), None)
        if size is None or len(ids) > len(frames):
            continue
        text = [*ids, ends[0], *[ends[1]] * size][: size + 1]
        spoken = _spoken(group, ids, lambda part: decode(tuple(part)))
        spoken = (spoken + [spoken[-1]] * (size + 1))[: size + 1]
        buckets[size].append((text, frames + [-1] * (size - len(frames)), spoken, speakers[group[0].voice]))
    made = []
    for size, rows in buckets.items():
        if rows:
            made.append(Examples(size, *(torch.tensor(part, device=device) for part in zip(*rows, strict=True))))
    return made


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
