"""What an Omni validation runs: a prompt with media, and the text that is spoken where no thinker answers."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lluda.config.omni import OmniConfig
from lluda.errors import InvalidRequest
from lluda.inputs.media.media_parts import MediaPart

HEADER = 3
"""Ids that open a turn."""


@dataclass(frozen=True, slots=True)
class OmniInput:
    """``ids`` as a chat template gives them: one placeholder for each of ``media``, the whole a turn of the user and
    the header of the assistant's. ``spoken``: ids of an answer for a talker that runs without its thinker. ``source``
    says for the report where all this is from."""

    ids: tuple[int, ...]
    media: tuple[MediaPart, ...]
    spoken: tuple[int, ...]
    source: str

    @property
    def hears(self) -> bool:
        """Whether there is anything for the audio encoder."""
        return any(part.kind == "audio" or part.options.get("use_audio") for part in self.media)

    @property
    def sees(self) -> bool:
        """Whether there is anything for the vision encoder."""
        return any(part.kind != "audio" for part in self.media)


def made_up_media(seed: int) -> list[MediaPart]:
    """A sound of 2.4 s, a picture of 128 x 96 pixels and a video of four frames: tones and ramps under noise."""
    draw = np.random.default_rng(seed)
    seconds = np.arange(int(2.4 * 16000)) / 16000
    tones = 0.2 * np.sin(2 * np.pi * (220 + 300 * seconds) * seconds)
    samples = (tones + draw.normal(0, 0.02, len(seconds))).astype(np.float32)
    return [
        MediaPart("audio", samples, {"sampling_rate": 16000}, "the made-up sound"),
        MediaPart("image", _pixels(draw, 96, 128), {}, "the made-up picture"),
        MediaPart("video", np.stack([_pixels(draw, 64, 96) for _ in range(4)]), {"fps": 2.0}, "the made-up video"),
    ]


def _pixels(draw: np.random.Generator, height: int, width: int) -> Any:
    rows, columns = np.mgrid[:height, :width]
    ramp = np.stack([128 + 90 * np.sin(rows / 9 + k) * np.cos(columns / 13 - k) for k in range(3)], axis=-1)
    return np.clip(ramp + draw.normal(0, 12, ramp.shape), 0, 255).astype(np.uint8)


def omni_input(
    omni: OmniConfig,
    vocab_size: int,
    *,
    media: Sequence[MediaPart],
    text: Sequence[int] | None = None,
    tokens: int = 32,
    seed: int = 0,
    source: str = "",
) -> OmniInput:
    """A turn of the user with ``media`` and then ``text`` (None: ``tokens`` ids drawn from what is no marker)."""
    if tokens < 1:
        raise InvalidRequest(f"tokens must be at least 1, not {tokens}")
    draw = random.Random(seed)
    marks = omni.tokens
    special = {getattr(marks, name) for name in type(marks).__dataclass_fields__}
    speech = omni.speech.tokens if omni.speech else None
    if speech:
        special |= {getattr(speech, name) for name in type(speech).__dataclass_fields__}

    def words(count: int) -> list[int]:
        found: list[int] = []
        while len(found) < count:
            token = draw.randrange(vocab_size)
            found += [] if token in special else [token]
        return found

    placeholders = {
        "audio": [marks.audio_start, marks.audio_pad, marks.audio_end],
        "image": [marks.vision_start, marks.image_pad, marks.vision_end],
        "video": [marks.vision_start, marks.video_pad, marks.vision_end],
    }
    question = list(text) if text is not None else words(tokens)
    ids = [*_header((speech.im_start, speech.user) if speech else None, words)]
    for part in media:
        ids += placeholders[part.kind]
    ids += [*question, *_header((speech.im_start, speech.assistant) if speech else None, words)]
    return OmniInput(tuple(ids), tuple(media), tuple(words(12)), source or f"random ids, seed {seed}")


def _header(opening: tuple[int, int] | None, words: Any) -> list[int]:
    """What opens a turn; its third id, a line's end in released prompts, may be any. Nothing where no ids are known."""
    return [*opening, *words(HEADER - len(opening))] if opening else []
