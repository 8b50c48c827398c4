"""Judges of whether a turn is over that are measured beside `lluda.engine.listening.smart_turn`."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from lluda.engine.listening.vad import RATE
from lluda.engine.sampling.sampling_params import SamplingParams

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from lluda.api.model import Model
    from lluda.engine.request import Token

_ALTERNATIVES = 20


class ThinkerJudge:
    """What the thinker's first token behind the turn tells, whose rows are there anyway.

    ``kind`` "answered": one less the probability that it begins ``unclear``, the answer to what was not understood.
    "certain": one less the entropy of its likeliest tokens as a share of what it could be.
    """

    def __init__(self, model: Model, kind: str, unclear: str = "Sorry") -> None:
        self._model, self._kind = model, kind
        self._unclear = model.tokenizer.encode(unclear, allow_special=False)[0]
        self._params = SamplingParams(temperature=0, max_tokens=1, logprobs=_ALTERNATIVES)
        self._tokens: dict[int, tuple[tuple[int, float], ...]] = {}

    def __call__(self, samples: NDArray[np.float32]) -> float:
        """How likely a turn of these samples is over, 0 to 1."""
        message = {"role": "user", "content": [{"type": "audio", "audio": samples, "sampling_rate": RATE}]}
        token: Any = next(iter(self._model.chat_stream([message], self._params)))
        return self._over(token)

    def _over(self, token: Token) -> float:
        chances = {number: math.exp(logprob) for number, logprob in token.top}
        if self._kind == "answered":
            return 1 - chances.get(self._unclear, 0.0)
        entropy = -sum(chance * math.log(chance) for chance in chances.values() if chance > 0)
        return max(0.0, 1 - entropy / math.log(_ALTERNATIVES))
