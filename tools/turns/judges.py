"""The thinker as a judge of whether a turn is over, asked for each pause by itself."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lluda.engine.listening.turn_end import ALTERNATIVES, likely_over
from lluda.engine.listening.vad import RATE
from lluda.engine.sampling.sampling_params import SamplingParams

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from lluda.api.model import Model


class ThinkerJudge:
    """`likely_over` of a model whose answers to what it did not understand begin with ``unclear``."""

    def __init__(self, model: Model, unclear: str = "Sorry") -> None:
        self._model = model
        self._unclear = model.tokenizer.encode(unclear, allow_special=False)[0]
        self._params = SamplingParams(temperature=0, max_tokens=1, logprobs=ALTERNATIVES)

    def __call__(self, samples: NDArray[np.float32]) -> float:
        """How likely a turn of these samples is over, 0 to 1."""
        message = {"role": "user", "content": [{"type": "audio", "audio": samples, "sampling_rate": RATE}]}
        token: Any = next(iter(self._model.chat_stream([message], self._params)))
        return likely_over(token.top, self._unclear)
