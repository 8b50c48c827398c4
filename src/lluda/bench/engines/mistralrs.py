"""mistral.rs (candle underneath), driven by requests: it has no step, so the times of streamed tokens are taken.

It runs in F32, which holds BF16 weights exactly and is its best setting on a CPU: candle's BF16 products there are
several times slower, and F16 would be other weights.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import mistralrs

from lluda.bench.process.job import Job
from lluda.bench.session import EngineInfo, Session
from lluda.convert.mistralrs_folder import ARCHITECTURES


def open_session(job: Job) -> Session:
    """Load the folder that `lluda.convert.mistralrs_folder` made, whose tokenizer spells id 7 as ``t7``."""
    return MistralRsSession(job)


class MistralRsSession:
    """Implements ``Session`` over streamed chat requests with a template that is the prompt itself."""

    samples = False
    runner = None

    def __init__(self, job: Job) -> None:
        model_type = json.loads((Path(job.model) / "config.json").read_text())["model_type"]
        which = mistralrs.Which.Plain(
            model_id=job.model,
            arch=getattr(mistralrs.Architecture, ARCHITECTURES[model_type]),
            dtype=mistralrs.ModelDType.F32,
        )
        # No prefix cache: the same prompt must be computed again each time.
        self._runner = mistralrs.Runner(which, max_seqs=max(job.plan.streams), prefix_cache_n=0, token_source="none")

    @property
    def info(self) -> EngineInfo:
        """See ``Session``."""
        return EngineInfo("F32", 4.0, "F32, no prefix cache; times of streamed tokens")

    def first_token(self, prompt: Sequence[int]) -> float:
        """See ``Session``."""
        begun = time.perf_counter()
        return _arrivals(self._send(prompt, 1), 1)[0] - begun

    def decode(self, prompts: Sequence[Sequence[int]], steps: int, *, sampled: bool = False) -> float:
        """See ``Session``. The rate is taken while all streams decode: from the last stream's first token to the first
        stream's last one."""
        assert not sampled, "asked for greedy steps alone"
        # Sending returns at once but must not overlap with another sending; receiving waits without Python's lock.
        chunks = [self._send(prompt, steps + 1) for prompt in prompts]
        with ThreadPoolExecutor(len(prompts)) as pool:
            streams = list(pool.map(lambda stream: _arrivals(stream, steps + 1), chunks))
        begin = max(times[0] for times in streams)
        end = min(times[-1] for times in streams)
        tokens = sum(begin < when <= end for times in streams for when in times)
        if not tokens:
            raise RuntimeError(f"{len(prompts)} streams never decoded together; use more steps (--gen)")
        return (end - begin) * len(prompts) * steps / tokens

    def _send(self, prompt: Sequence[int], tokens: int) -> Iterator[object]:
        request = mistralrs.ChatCompletionRequest(
            messages=[{"role": "user", "content": " ".join(f"t{token}" for token in prompt)}],
            model="default",
            max_tokens=tokens,
            temperature=0.0,
            ignore_eos=True,
            stream=True,
        )
        chunks: Iterator[object] = self._runner.send_chat_completion_request(request)
        return chunks


def _arrivals(chunks: Iterator[object], tokens: int) -> list[float]:
    """When each of ``tokens`` tokens came, on the performance clock."""
    times = [time.perf_counter() for _ in chunks]
    if len(times) != tokens:
        raise RuntimeError(f"mistralrs streamed {len(times)} pieces for {tokens} tokens; their times cannot be matched")
    return times
