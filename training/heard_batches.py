"""Batches of heard examples: sound drawn, augmented, made into features; the ids of its rows counted out around it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from torch import Tensor

from training.augment import (
    RATE,
    Augmentation,
    coloured_features,
    masked_features,
    stretched_features,
    warped_features,
    within,
)
from training.features import LogMel
from training.heard_examples import MARGIN, SLOWEST, TASKS, HeardExamples
from training.noises import noise_questions
from training.prompts import LEARNT, PAD
from training.unclear import NOISES

FRAMES_A_SECOND = 100
ROWS_A_SECOND = 13
LEAST_NOISE_SECONDS = 0.6
_NOISE = TASKS.index("noise")
_NOISES_AT_ONCE = 8
"""A batch makes a multiple of it: each number of clips is a plan of its own to the Fourier transform."""


@dataclass(frozen=True, slots=True)
class HeardBatch:
    """``features`` float32 ``[batch, frames, 128]``, zero behind each clip's ``frames`` (int64 ``[batch]``); ``ids``
    int64 ``[batch, rows]`` marked with ``LEARNT``, `PAD` where a row is sound or behind the end; ``places`` int64 of
    the same shape: which row of the encoder stands there, -1 for text; ``spoken`` int64 ``[batch, n]`` and
    ``spoken_count``: the words heard, for CTC (no words: a noise)."""

    features: Tensor
    frames: Tensor
    ids: Tensor
    places: Tensor
    spoken: Tensor
    spoken_count: Tensor


def encoder_rows(frames: Tensor) -> Tensor:
    """Rows that the encoder makes of so many frames: 13 a second, and an eighth of the rest, rounded up."""
    return frames // FRAMES_A_SECOND * ROWS_A_SECOND + (frames % FRAMES_A_SECOND + 7) // 8


class HeardBatches:
    """Draws from sets that are on the device already. What is drawn is decided on the host; all else is the device's
    work, in one shape for each size, and nothing waits for it."""

    def __init__(self, sound: Tensor, examples: Sequence[HeardExamples], device: str, seed: int) -> None:
        self.sound = sound.to(device)
        self.examples = [_on(device, one) for one in examples]
        self.augmentation = Augmentation(seed, device)
        self.log_mel = LogMel(device)
        self.generator = self.augmentation.generator
        self._choice = np.random.default_rng(seed)
        tasks = [one.task.numpy() for one in examples]
        self._numbers = [[np.flatnonzero(found == task) for task in range(len(TASKS))] for found in tasks]

    def draw(self, shares: Mapping[str, float], seconds_at_once: float, augmented: bool = True) -> HeardBatch:
        """Clips of one size, drawn so that over many batches each task has its share.

        Args:
            shares: by name of `TASKS`; what is not named, or has no example, is not drawn.
            seconds_at_once: of sound, padding included, that a batch has.
            augmented: False leaves speed, noise, room and level as they are, and masks nothing.
        """
        counts = np.array([[len(found) for found in of_size] for of_size in self._numbers], float)
        wanted = np.array([shares.get(task, 0.0) for task in TASKS])
        weights = counts / counts.sum(0).clip(1) * wanted
        seconds = np.array([one.seconds for one in self.examples])
        totals = weights.sum(1) * seconds
        size = self._choice.choice(len(totals), p=totals / totals.sum())
        count = max(1, int(seconds_at_once / seconds[size]))
        tasks = self._choice.choice(len(TASKS), count, p=weights[size] / weights[size].sum())
        tasks = tasks[np.argsort(tasks != _NOISE, kind="stable")]  # noises first
        places = self._choice.random(count)
        numbers = [self._numbers[size][task] for task in tasks]
        index = torch.tensor([found[int(place * len(found))] for found, place in zip(numbers, places, strict=True)])
        noises = -(-int((tasks == _NOISE).sum()) // _NOISES_AT_ONCE) * _NOISES_AT_ONCE
        index = index.to(self.sound.device, non_blocking=True)
        return self.batch(self.examples[size], index, augmented, min(noises, count))

    def batch(self, examples: HeardExamples, index: Tensor, augmented: bool, noises: int | None = None) -> HeardBatch:
        """The examples of these numbers; none behind the first ``noises`` is a noise."""
        sound, lengths = self._clips(examples, index, len(index) if noises is None else noises)
        if augmented:
            sound, lengths = self.augmentation(sound, lengths, examples.seconds * RATE)
        features, frames = self.log_mel(sound, lengths, examples.seconds * FRAMES_A_SECOND)
        if augmented:
            features, frames = stretched_features(features, frames, self.generator)
            features = warped_features(features, self.generator)
            features = coloured_features(features, frames, self.generator)
            masked = masked_features(features.transpose(1, 2), frames, self.generator)
            features = masked.transpose(1, 2).contiguous()
        ids, places = self._rows(examples, index, encoder_rows(frames))
        return HeardBatch(features, frames, ids, places, examples.spoken[index].long(), examples.spoken_count[index])

    def _clips(self, examples: HeardExamples, index: Tensor, noises: int) -> tuple[Tensor, Tensor]:
        """float32 ``[batch, samples]`` and lengths, noises drawn."""
        start, lengths = examples.start[index], examples.samples[index]
        noise = lengths == 0
        longest = int((examples.seconds - MARGIN) * RATE)
        drawn = torch.rand(len(index), generator=self.generator, device=start.device)
        least = LEAST_NOISE_SECONDS * RATE
        lengths = torch.where(noise, (least + drawn * (SLOWEST * longest - least)).long(), lengths)
        place = start[:, None] + torch.arange(longest, device=start.device)
        sound = self.sound[place.clamp(max=len(self.sound) - 1)].float() / 32768
        if noises:
            voices = (sound * within(sound, torch.where(noise, 0, lengths)))[-noises:]
            kinds = torch.randint(len(NOISES), (noises,), generator=self.generator, device=start.device)
            made = noise_questions(kinds, longest, RATE, voices, self.generator)
            sound = torch.cat((torch.where(noise[:noises, None], made, sound[:noises]), sound[noises:]))
        return sound * within(sound, lengths), lengths

    def _rows(self, examples: HeardExamples, index: Tensor, heard: Tensor) -> tuple[Tensor, Tensor]:
        """Ids and places: the text before, the rows of sound, the text after."""
        size = examples.rows + examples.seconds * ROWS_A_SECOND
        place = torch.arange(size, device=heard.device).expand(len(index), size)
        first = examples.before_count[index, None]
        then = first + heard[:, None]
        end = then + examples.after_count[index, None]
        last = examples.rows - 1
        before = examples.before[index].long().gather(1, place.clamp(max=last))
        after = examples.after[index].long().gather(1, (place - then).clamp(0, last))
        ids = torch.where(place < first, before, torch.where((place >= then) & (place < end), after, PAD))
        places = torch.where((place >= first) & (place < then), place - first, -1)
        return ids, places


def _on(device: str, examples: HeardExamples) -> HeardExamples:
    tensors = {field.name: getattr(examples, field.name) for field in fields(examples)}
    return replace(examples, **{name: one.to(device) for name, one in tensors.items() if isinstance(one, Tensor)})


def learnt_targets(ids: Tensor) -> Tensor:
    """What each row but the last should say next: int64 ``[batch, rows - 1]``, -100 where nothing is learned."""
    wanted = ids[:, 1:]
    return torch.where(wanted >= LEARNT, wanted - LEARNT, -100)
