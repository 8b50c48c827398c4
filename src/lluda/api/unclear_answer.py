"""What a model's answers begin with where it understood nothing."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from lluda.engine.listening.turn_end import ALTERNATIVES
from lluda.engine.listening.vad import RATE
from lluda.engine.request import Token
from lluda.engine.sampling.sampling_params import SamplingParams

if TYPE_CHECKING:
    from lluda.api.model import Model

FIRST_TOKEN = SamplingParams(temperature=0, max_tokens=1, logprobs=ALTERNATIVES)
"""Asks for the first token of an answer, and for how likely it and others were."""

_SURE = math.log(0.9)


def find_unclear_answer(model: Model) -> Token | None:
    """The token with which the model answers a second of silence and a second of noise, or None: it does not answer
    both with the same, nine times in ten each. ``model`` hears."""
    noise = np.random.default_rng(0).normal(0, 0.1, RATE).astype(np.float32)
    found = [_first_token(model, sound) for sound in (np.zeros(RATE, np.float32), noise)]
    same = len({token.id for token in found}) == 1
    return found[0] if same and all((token.logprob or 0) >= _SURE for token in found) else None


def _first_token(model: Model, sound: np.ndarray) -> Token:
    message = {"role": "user", "content": [{"type": "audio", "audio": sound, "sampling_rate": RATE}]}
    return next(event for event in model.chat_stream([message], FIRST_TOKEN) if isinstance(event, Token))
