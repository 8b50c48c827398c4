"""What a validation runs: a prompt, with media for an Omni model, and the text that its talker speaks by itself."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass
from typing import Any

import numpy as np

from lluda.config.omni import OmniConfig
from lluda.errors import InvalidRequest
from lluda.inputs.media.media_parts import MediaPart

SAMPLE_TEXT = (
    "A lighthouse is a tower with a bright lamp at the top. It stands on a cliff, an island or a harbour wall, and "
    "tells sailors where the land begins. Before there were electric lamps, keepers lived in these towers with their "
    "families. Every evening they climbed the stairs, filled the lamp with oil, cleaned the glass and lit the wick. "
    "During storms they stayed awake all night, because a lamp that went out could cost a ship and its crew.\n\n"
    "Each lighthouse has its own pattern of flashes. A captain who counts one long flash and two short ones can look "
    "the pattern up in a list and know exactly which tower it is. In fog, when no light can be seen, a horn is used "
    "instead. Today most lighthouses run on their own, and ships find their way by satellite, but many towers are "
    "still kept in good repair. People visit them for the view, for the history, and because a light that shines for "
    "strangers is a friendly thing to build.\n"
)
"""Ordinary text, for comparisons that need a model to know what comes next."""

_HEADER = 3  # ids that open a turn: <|im_start|>, the role, a line's end
_SPOKEN = 12


@dataclass(frozen=True, slots=True)
class ValidationInput:
    """``ids`` of the prompt; of an Omni model as a chat template gives them: one placeholder for each of ``media``, the
    whole a turn of the user and the header of the assistant's. ``spoken``: ids of an answer for a talker that runs
    without its thinker. ``source`` says for the report where all this is from."""

    ids: tuple[int, ...]
    source: str
    media: tuple[MediaPart, ...] = ()
    spoken: tuple[int, ...] = ()

    @property
    def reaches_audio(self) -> bool:
        """Whether there is anything for the audio encoder."""
        return any(part.kind == "audio" or part.options.get("use_audio") for part in self.media)

    @property
    def reaches_vision(self) -> bool:
        """Whether there is anything for the vision encoder."""
        return any(part.kind != "audio" for part in self.media)


def random_ids(vocab_size: int, count: int, seed: int) -> tuple[int, ...]:
    """``count`` ids drawn evenly from the vocabulary."""
    if count < 1:
        raise InvalidRequest(f"tokens must be at least 1, not {count}")
    draw = random.Random(seed)
    return tuple(draw.randrange(vocab_size) for _ in range(count))


def synthetic_media(seed: int) -> list[MediaPart]:
    """A sound of 2.4 s, a picture of 128 x 96 pixels and a video of four frames: tones and ramps under noise."""
    draw = np.random.default_rng(seed)
    seconds = np.arange(int(2.4 * 16000)) / 16000
    tones = 0.2 * np.sin(2 * np.pi * (220 + 300 * seconds) * seconds)
    samples = (tones + draw.normal(0, 0.02, len(seconds))).astype(np.float32)
    return [
        MediaPart("audio", samples, {"sampling_rate": 16000}, "the synthetic sound"),
        MediaPart("image", _pixels(draw, 96, 128), {}, "the synthetic picture"),
        MediaPart("video", np.stack([_pixels(draw, 64, 96) for _ in range(4)]), {"fps": 2.0}, "the synthetic video"),
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
) -> ValidationInput:
    """A turn of the user with ``media`` and then ``text`` (None: ``tokens`` random ids, none of them a marker)."""
    if tokens < 1:
        raise InvalidRequest(f"tokens must be at least 1, not {tokens}")
    draw, marks, speech = random.Random(seed), omni.tokens, omni.speech.tokens if omni.speech else None
    special = {*astuple(marks), *(astuple(speech) if speech else ())}

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
    ids = _header((speech.im_start, speech.user) if speech else (), words)
    for part in media:
        ids += placeholders[part.kind]
    ids += [*question, *_header((speech.im_start, speech.assistant) if speech else (), words)]
    return ValidationInput(tuple(ids), source or f"random ids, seed {seed}", tuple(media), tuple(words(_SPOKEN)))


def _header(opening: tuple[int, ...], words: Callable[[int], list[int]]) -> list[int]:
    """What opens a turn; its third id, a line's end in released prompts, may be any. Nothing where no ids are known."""
    return [*opening, *words(_HEADER - len(opening))] if opening else []
