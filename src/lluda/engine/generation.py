"""Generation: prompts in, tokens out, one step at a time for all sequences together.

A prompt is run in chunks through an empty (or partly filled) cache; then every unfinished sequence adds one row to each
step, so that the weights are read once for all of them. ``generate`` is the fold of ``stream``.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lluda.backends.blocks import Segment
from lluda.engine.forked import require_own_threads
from lluda.engine.kv_cache import STORAGE_DTYPES, CacheOptions, KVCache
from lluda.engine.prompt_rows import PromptRows
from lluda.engine.sampler import SampledToken, Sampler
from lluda.engine.sampling_params import SamplingParams
from lluda.errors import InvalidRequest, LimitExceeded, OutOfMemory
from lluda.inputs.text.text_stream import TextStream
from lluda.inputs.text.tokenizer import Tokenizer
from lluda.models.causal_lm import CausalLM
from lluda.models.decoder import Observer

if TYPE_CHECKING:
    from lluda.backends.cuda.graph import DecodeGraph

PREFILL_CHUNK, GPU_PREFILL_CHUNK = 512, 2048
"""Rows of a prompt computed at once, on a CPU and on a GPU."""

MAX_STREAMS = 16


@dataclass(frozen=True, slots=True)
class Token:
    """One generated token of sequence ``index``: the text that became safe to show with it (may be empty), where
    log-probabilities were asked for, its own and the likeliest alternatives'."""

    index: int
    id: int
    text: str
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Completion:
    """A finished answer. ``finish_reason``: ``stop`` (end-of-text id, stop id or stop string) or ``length``. Seconds:
    ``prefill_seconds`` from the sequence's start to its first token, ``decode_seconds`` from there to its last."""

    index: int
    text: str
    token_ids: tuple[int, ...]
    finish_reason: str
    prompt_tokens: int
    tokens: tuple[Token, ...]
    prefill_seconds: float
    decode_seconds: float

    @property
    def tokens_per_second(self) -> float:
        """Decode rate, the first token not counted (it belongs to the prefill)."""
        return (len(self.token_ids) - 1) / self.decode_seconds if self.decode_seconds > 0 else 0.0


@dataclass(slots=True)
class _Sequence:
    index: int
    prompt: PromptRows
    params: SamplingParams
    cache: KVCache
    sampler: Sampler
    observe: ObserverAt | None
    text: TextStream
    stop_ids: frozenset[int]
    max_tokens: int
    tokens: list[Token] = field(default_factory=list)
    finish_reason: str = ""
    started: float = 0.0
    first_token: float = 0.0

    def take(self, sampled: SampledToken) -> Token:
        """Record one sampled token and decide whether it was the last."""
        if not self.tokens:
            self.first_token = time.perf_counter()
        ended = sampled.id in self.stop_ids
        text = "" if ended else self.text.push(sampled.id)
        if ended or self.text.stopped is not None:
            self.finish_reason = "stop"
        elif len(self.tokens) + 1 >= self.max_tokens:
            self.finish_reason = "length"
        if self.finish_reason and self.text.stopped is None:
            text += self.text.finish()
        token = Token(self.index, sampled.id, text, sampled.logprob, sampled.top)
        self.tokens.append(token)
        return token

    def completion(self) -> Completion:
        return Completion(
            index=self.index,
            text="".join(token.text for token in self.tokens),
            token_ids=tuple(token.id for token in self.tokens),
            finish_reason=self.finish_reason,
            prompt_tokens=len(self.prompt),
            tokens=tuple(self.tokens),
            prefill_seconds=self.first_token - self.started,
            decode_seconds=time.perf_counter() - self.first_token,
        )


ObserverAt = Callable[[int], Observer]
"""Given the row of the prompt that a step of its prefill begins with, whom to tell of the step."""


class Generator:
    """Runs sequences through one model. ``max_context`` positions at most for each, prompt and answer together."""

    def __init__(
        self,
        model: CausalLM,
        tokenizer: Tokenizer,
        eos_ids: Sequence[int],
        cache_options: CacheOptions,
        prefill_chunk: int = PREFILL_CHUNK,
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.eos_ids = tuple(eos_ids)
        self.cache_options = cache_options
        self.prefill_chunk = prefill_chunk
        self._graphs: dict[int, DecodeGraph | None] = {}

    def new_cache(self) -> KVCache:
        """An empty cache for one sequence."""
        return KVCache(self.model.config, self.cache_options, self.model.backend.device)

    def stream(
        self,
        prompts: Sequence[Sequence[int] | PromptRows],
        params: SamplingParams,
        cache: KVCache | None = None,
        observe: ObserverAt | None = None,
        *,
        end_ids: Iterable[int] | None = None,
    ) -> Iterator[Token | Completion]:
        """Yields every token as it is sampled and each sequence's Completion after its last one.

        ``params`` has no None left (``SamplingParams.with_defaults``). ``cache``, for a single prompt, may already hold
        the first positions of that prompt; only the rest is computed. ``observe`` is told of the prompts' prefill.
        ``end_ids`` end these answers in place of the generator's ``eos_ids``.

        Raises:
            InvalidRequest: an empty prompt or ids outside the vocabulary.
            LimitExceeded: prompt and max_tokens do not fit the context.
        """
        rows = [_rows_of(prompt) for prompt in prompts]
        ends = frozenset(self.eos_ids if end_ids is None else end_ids)
        waiting = [self._sequence(index, prompt, params, cache, observe, ends) for index, prompt in enumerate(rows)]
        return _told_of_memory(self._run(waiting[::-1]))

    @torch.inference_mode()
    def _run(self, waiting: list[_Sequence]) -> Iterator[Token | Completion]:
        active: list[_Sequence] = []
        while waiting or active:
            while waiting and len(active) < MAX_STREAMS:
                sequence = waiting.pop()
                sequence.started = time.perf_counter()
                yield self._sampled(sequence, self._first_logits(sequence))
                active.append(sequence)
            for sequence in active:
                if sequence.finish_reason:
                    yield sequence.completion()
            active = [sequence for sequence in active if not sequence.finish_reason]
            if active:
                ids, caches = [s.tokens[-1].id for s in active], [s.cache for s in active]
                if all(s.sampler.takes_argmax for s in active) and self._graph(len(active)) is not None:
                    for sequence, token, peak in zip(active, *self._greedy_step(ids, caches), strict=True):
                        yield sequence.take(sequence.sampler.take_argmax(token, peak))
                    continue
                for sequence, row in zip(active, self.step(ids, caches), strict=True):
                    yield self._sampled(sequence, row)

    def _sampled(self, sequence: _Sequence, logits: Tensor) -> Token:
        with self.model.backend.single_threaded_torch():
            return sequence.take(sequence.sampler.sample(logits))

    def _first_logits(self, sequence: _Sequence) -> Tensor:
        return self.prefill(sequence.prompt, sequence.cache, sequence.observe)

    @torch.inference_mode()
    def prefill(self, prompt: Sequence[int] | PromptRows, cache: KVCache, observe: ObserverAt | None = None) -> Tensor:
        """Run the rows the cache does not hold yet, in chunks; returns float logits ``[vocab]`` after the last."""
        require_own_threads()
        device, prompt = self.model.backend.device, _rows_of(prompt)
        logits = torch.empty(0)
        while cache.length < len(prompt):
            start = cache.length
            rows = min(self.prefill_chunk, len(prompt) - start)
            last = start + rows == len(prompt)
            # Only the very last row's logits are wanted; earlier chunks need none.
            wanted = torch.tensor([rows - 1] if last else [], dtype=torch.int64, device=device)
            ids, positions, injected = prompt.chunk(start, start + rows, device)
            told = observe(start) if observe else None
            with self.model.backend.single_threaded_torch():
                logits = self.model(ids, positions, [Segment(0, rows, cache)], wanted, told, injected)
            cache.advance(rows)
        cache.position_offset = prompt.position_offset
        return logits[0].float()

    @torch.inference_mode()
    def step(self, ids: Sequence[int], caches: Sequence[KVCache]) -> Tensor:
        """One token for each sequence; returns float logits ``[sequences, vocab]``."""
        require_own_threads()
        graph = self._graph(len(caches))
        if graph is not None:
            self._launch(graph, ids, caches)
            graph.result()
            return graph.logits.clone()
        device = self.model.backend.device
        positions = torch.tensor([cache.length + cache.position_offset for cache in caches], device=device)
        segments = [Segment(row, 1, cache) for row, cache in enumerate(caches)]
        with self.model.backend.single_threaded_torch():
            logits = self.model(torch.tensor(list(ids), device=device), positions, segments, None)
        for cache in caches:
            cache.advance(1)
        return logits.float()

    @torch.inference_mode()
    def greedy_step(self, ids: Sequence[int], caches: Sequence[KVCache]) -> list[int]:
        """As :meth:`step`, but returns the likeliest id of each sequence: where the backend launches steps whole, no
        logits leave the device."""
        if self._graph(len(caches)) is None:
            chosen: list[int] = self.step(ids, caches).argmax(-1).tolist()
            return chosen
        return self._greedy_step(ids, caches)[0]

    def _greedy_step(self, ids: Sequence[int], caches: Sequence[KVCache]) -> tuple[list[int], list[float]]:
        graph = self._graph(len(caches))
        assert graph is not None, "asked for where there is one"
        self._launch(graph, ids, caches)
        return graph.result()

    def _graph(self, rows: int) -> DecodeGraph | None:
        """A step of so many sequences as one launch, where the backend can; made once."""
        if rows not in self._graphs:
            self._graphs[rows] = self.model.backend.decode_graph(
                lambda ids, positions, segments: self.model(ids, positions, segments, None),
                rows,
                STORAGE_DTYPES[self.cache_options.dtype],
            )
        return self._graphs[rows]

    @staticmethod
    def _launch(graph: DecodeGraph, ids: Sequence[int], caches: Sequence[KVCache]) -> None:
        graph.launch(ids, [cache.length + cache.position_offset for cache in caches], caches)
        for cache in caches:
            cache.advance(1)

    def _sequence(
        self,
        index: int,
        prompt: PromptRows,
        params: SamplingParams,
        cache: KVCache | None,
        observe: ObserverAt | None,
        end_ids: frozenset[int],
    ) -> _Sequence:
        vocabulary = self.model.config.vocab_size
        limit = self.cache_options.max_length
        if not prompt.ids:
            raise InvalidRequest("the prompt is empty: give at least one token")
        outside = next((token for token in prompt.ids if not 0 <= token < vocabulary), None)
        if outside is not None:
            raise InvalidRequest(f"the prompt holds token id {outside}; ids go from 0 to {vocabulary - 1}")
        if len(prompt) >= limit:
            raise LimitExceeded(f"the prompt has {len(prompt)} tokens but the context holds {limit}; shorten it")
        room = limit - len(prompt)
        if params.max_tokens is None and params.max_length is not None:
            room = min(room, params.max_length - len(prompt))
        if room < 1:
            raise LimitExceeded(
                f"the prompt has {len(prompt)} tokens but max_length (of generation_config.json, where the request has "
                f"none) is {params.max_length} for prompt and answer together; ask for a number of max_tokens instead"
            )
        if params.max_tokens is not None and params.max_tokens > room:
            raise LimitExceeded(
                f"max_tokens {params.max_tokens} after a prompt of {len(prompt)} tokens exceeds the context of "
                f"{limit}; ask for at most {room}"
            )
        stop_ids = frozenset(params.stop_token_ids).union(() if params.ignore_eos else end_ids)
        return _Sequence(
            index=index,
            prompt=prompt,
            params=params,
            cache=cache if cache is not None else self.new_cache(),
            sampler=Sampler(params, prompt.ids, vocabulary, end_ids=frozenset(i for i in stop_ids if i < vocabulary)),
            observe=observe,
            text=TextStream(self.tokenizer, params.stop or ()),
            stop_ids=stop_ids,
            max_tokens=params.max_tokens if params.max_tokens is not None else room,
        )


def _told_of_memory(events: Iterator[Token | Completion]) -> Iterator[Token | Completion]:
    """The same events; where the device's memory runs out, OutOfMemory, and what was taken is free again."""
    try:
        yield from events
    except torch.OutOfMemoryError:
        torch.cuda.empty_cache()
        raise OutOfMemory(
            "the device's memory ran out during this request, which is given up; what is loaded stays: ask for fewer "
            "sequences at once or a shorter prompt, or load with a smaller --max-context"
        ) from None


def _rows_of(prompt: Sequence[int] | PromptRows) -> PromptRows:
    return prompt if isinstance(prompt, PromptRows) else PromptRows(list(prompt))
