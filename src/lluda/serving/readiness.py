"""Whether the engine answers: one token, at most every ten seconds."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from lluda.engine.prompt_rows import PromptRows
from lluda.engine.request import Completion, Request
from lluda.engine.sampling.sampling_params import SamplingParams

if TYPE_CHECKING:
    from lluda.api.model import Model

_FRESH_SECONDS = 10.0
_PROBE_SECONDS = 5.0


class Readiness:
    """Asks the engine for a token, and remembers what came of it."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self._asked, self._answered = float("-inf"), False
        self._lock = asyncio.Lock()

    async def check(self) -> bool:
        """Whether a token came, or another step was made, within the last `_FRESH_SECONDS`."""
        async with self._lock:
            if time.monotonic() - self._asked > _FRESH_SECONDS:
                self._answered = await self._probe()
                self._asked = time.monotonic()
            return self._answered

    def forget(self) -> None:
        """Ask anew next time."""
        self._asked = float("-inf")

    async def _probe(self) -> bool:
        model = self._model
        steps = model.engine.stats().steps
        sampling = SamplingParams(max_tokens=1, temperature=0.0).with_defaults(model.files.generation_config)
        prompt = PromptRows([min(model.ends.turn, default=0)])
        try:
            with model.engine.submit(Request(prompt=prompt, sampling=sampling, reuse="none", priority=-1)) as stream:
                async with asyncio.timeout(_PROBE_SECONDS):
                    async for event in stream:
                        if isinstance(event, Completion):
                            return True
        except TimeoutError:  # it waits behind others, which is as good while these get on
            return model.engine.stats().steps > steps
        except Exception:
            return False
        return False
