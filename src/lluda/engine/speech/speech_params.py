"""What a request asks of its speech, checked, and completed by the model's ``generation_config.json``."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from lluda.engine.sampling.sampling_params import SamplingParams
from lluda.engine.sampling.sampling_values import checked_number
from lluda.engine.speech.speech_guard import SpeechGuard
from lluda.errors import InvalidRequest

MAX_FRAMES = 4096
_RELEASED = {"temperature": 0.9, "top_k": 50, "top_p": 1.0, "repetition_penalty": 1.05}

# The code predictor's own sampling: transformers passes top_k and top_p in code, and no file names them.
_PREDICTOR_SAMPLING = SamplingParams(temperature=1.0, top_k=50, top_p=0.8)


def code_predictor_sampling(talker: SamplingParams) -> SamplingParams:
    """How the code predictor chooses codes 1 and up of each frame: greedy when the talker is, else at temperature
    1 with top_k 50 and top_p 0.8 (spec section 7). The talker's seed is its seed."""
    temperature = _PREDICTOR_SAMPLING.temperature if talker.temperature else 0.0
    return replace(_PREDICTOR_SAMPLING, temperature=temperature, seed=talker.seed)


@dataclass(frozen=True, slots=True, kw_only=True)
class SpeechParams:
    """How speech is sampled. ``sampling`` chooses codebook 0 (its seed, drawn if None, also seeds the code predictor,
    which is greedy when the talker is); ``max_frames`` of 80 ms at most are spoken; ``guard`` bounds them by the text
    (None: not at all)."""

    sampling: SamplingParams = field(default_factory=SamplingParams)
    max_frames: int | None = None
    guard: SpeechGuard | None = field(default_factory=SpeechGuard)

    def __post_init__(self) -> None:
        frames = self.max_frames
        if frames is not None and (isinstance(frames, bool) or not isinstance(frames, int) or frames < 1):
            raise InvalidRequest(f"max_frames must be at least 1, not {frames!r:.60}")
        if self.guard is not None and not isinstance(self.guard, SpeechGuard):
            raise InvalidRequest(f"guard must be a SpeechGuard, or None for none; not {self.guard!r:.60}")

    def with_defaults(self, generation_config: Mapping[str, Any]) -> SpeechParams:
        """These values with each None replaced by ``talker_*`` of the generation_config.json, else by the released
        model's (temperature 0.9, top_k 50, repetition_penalty 1.05, 4096 frames). InvalidRequest: a value there out of
        its range."""
        own = {name: getattr(self.sampling, name) for name in _RELEASED}
        chosen: dict[str, Any] = {
            name: _of_file(generation_config, name, f"talker_{name}", value) if own[name] is None else own[name]
            for name, value in _RELEASED.items()
        }
        seed = secrets.randbits(63) if self.sampling.seed is None else self.sampling.seed
        limit = _of_file(generation_config, "max_tokens", "talker_max_new_tokens", MAX_FRAMES)
        frames = self.max_frames if self.max_frames is not None else int(limit)
        return replace(self, sampling=replace(self.sampling, **chosen, seed=seed), max_frames=frames)


def _of_file(generation_config: Mapping[str, Any], field_name: str, key: str, default: float) -> float:
    """A value of generation_config.json; ``default`` where it is absent or null."""
    value = generation_config.get(key)
    return default if value is None else checked_number(field_name, value, f"generation_config.json: {key}")
