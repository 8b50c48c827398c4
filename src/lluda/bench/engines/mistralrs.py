"""mistral.rs (candle underneath), driven by requests: it has no step, so the times of streamed tokens are taken."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import mistralrs

from lluda.bench.job import Job
from lluda.bench.session import EngineInfo, Session

_ARCHITECTURES = {"qwen3": "Qwen3", "qwen3_moe": "Qwen3Moe", "llama": "Llama"}


def open_session(job: Job) -> Session:
    """Load the folder that `lluda.bench.peer_files` made, whose tokenizer spells id 7 as ``t7``."""
    return MistralRsSession(job)


class MistralRsSession:
    """Implements ``Session`` over streamed chat requests with a template that is the prompt itself."""

    def __init__(self, job: Job) -> None:
        model_type = json.loads((Path(job.model) / "config.json").read_text())["model_type"]
        which = mistralrs.Which.Plain(
            model_id=job.model,
            arch=getattr(mistralrs.Architecture, _ARCHITECTURES[model_type]),
            dtype=mistralrs.ModelDType.BF16,
        )
        # No prefix cache: the same prompt must be computed again each time.
        self._runner = mistralrs.Runner(which, max_seqs=max(job.plan.streams), prefix_cache_n=0, token_source="none")
        self.info = EngineInfo("BF16", 2.0, "BF16, no prefix cache; times of streamed tokens")

    def first_token(self, prompt: Sequence[int]) -> float:
        """See ``Session``."""
        begun = time.perf_counter()
        return self._token_times(prompt, 1)[0] - begun

    def decode(self, prompts: Sequence[Sequence[int]], steps: int) -> float:
        """See ``Session``. The rate is taken while all streams decode: from the last stream's first token to the first
        stream's last one."""
        with ThreadPoolExecutor(len(prompts)) as pool:
            streams = list(pool.map(lambda prompt: self._token_times(prompt, steps + 1), prompts))
        begin = max(times[0] for times in streams)
        end = min(times[-1] for times in streams)
        tokens = sum(begin < when <= end for times in streams for when in times)
        if end <= begin or not tokens:
            raise RuntimeError(f"{len(prompts)} streams never decoded together; use more steps (--gen)")
        return (end - begin) * len(prompts) * steps / tokens

    def _token_times(self, prompt: Sequence[int], tokens: int) -> list[float]:
        request = mistralrs.ChatCompletionRequest(
            messages=[{"role": "user", "content": " ".join(f"t{token}" for token in prompt)}],
            model="default",
            max_tokens=tokens,
            temperature=0.0,
            ignore_eos=True,
            stream=True,
        )
        chunks: Any = self._runner.send_chat_completion_request(request)
        times = [time.perf_counter() for _ in chunks]
        if len(times) < tokens:
            raise RuntimeError(f"mistralrs streamed {len(times)} tokens instead of {tokens}")
        return times
