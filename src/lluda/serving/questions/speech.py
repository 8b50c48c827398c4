"""What a body asks of the talker."""

from __future__ import annotations

import math

from lluda.engine.sampling.sampling_params import SamplingParams
from lluda.engine.speech.speech_params import MAX_FRAMES, SpeechParams

FRAMES_A_SECOND = 12.5


def speech_params(seed: int | None, temperature: float | None, max_seconds: float | None) -> SpeechParams:
    """``speech_seed``, ``speech_temperature`` and ``max_audio_seconds`` of a body; None is the model's default."""
    frames = None if max_seconds is None else math.ceil(min(max_seconds * FRAMES_A_SECOND, MAX_FRAMES))
    return SpeechParams(sampling=SamplingParams(temperature=temperature, seed=seed), max_frames=frames)
