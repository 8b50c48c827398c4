"""A step of the decoder: rows of prompts, or one token of each of several sequences, with their caches.

Sequences stand below each other in one step where each gets the numbers that it gets alone, or where that is not asked
for (``deterministic``). Where the backend can, a step is launched whole.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace

import torch
from torch import Tensor

from lluda.backends.batch import Segment
from lluda.backends.capture import ARGMAX, CapturedDecode, RowChoice, RowSampling
from lluda.backends.components import Observer, StageObserver
from lluda.engine.forked import require_own_threads
from lluda.engine.kv_cache import STORAGE_DTYPES, CacheOptions, KVCache
from lluda.engine.parallel.leader import Leader, LedEmbedding, state_of
from lluda.engine.parallel.steps import Forward, InjectedShape, Launch, StepRows, send_injected
from lluda.engine.prompt_rows import PromptRows
from lluda.engine.sampling.sampler import Sampler
from lluda.models.causal_lm import CausalLM
from lluda.models.decoder import MultimodalEmbeddings
from lluda.models.linear import Embedding

ObserverAt = Callable[[int], Observer | None]
"""Given the row of the prompt that a step of its prefill begins with, whom to tell of the step."""

Score = Callable[[int, Tensor], None]
"""Given a row of the prompt, and the float logits ``[rows, vocab]`` (on the CPU) after it and those that follow it."""

SCORED_ROWS = 128
"""Rows of a prompt whose logits there are at once, where they are wanted: 78 MB of a vocabulary of 151,936."""

PREFILL_CHUNK, GPU_PREFILL_CHUNK = 512, 8192
"""Rows of a prompt computed at once, on a CPU and on a GPU."""

BUCKETS = (1, 2, 4, 8, 16, 32, 64)
"""Sequences that a captured step is made for; one of fewer is filled up. The last: sequences in one step at most."""


class Runner:
    """Steps of one model. ``max_context`` positions at most for each sequence, prompt and answer together."""

    def __init__(
        self,
        model: CausalLM,
        cache_options: CacheOptions,
        prefill_chunk: int = PREFILL_CHUNK,
        *,
        deterministic: bool = False,
        leader: Leader | None = None,
    ) -> None:
        """``leader``: of the other ranks, on the first of several that share the model."""
        self.model = model
        self._leader = leader
        self.cache_options = cache_options
        self.prefill_chunk = prefill_chunk
        self.deterministic = deterministic or model.backend.name == "reference"
        self._graphs: dict[tuple[int, bool], CapturedDecode | None] = {}
        self._padding: KVCache | None = None

    def new_cache(self, capacity: int | None = None) -> KVCache:
        """An empty cache for one sequence, with memory for ``capacity`` positions where it is known."""
        config, device = self.model.cached_config, self.model.backend.device
        if self._leader is not None:
            return self._leader.new_cache(config, self.cache_options, device, capacity)
        return KVCache(config, self.cache_options, device, capacity)

    @property
    def table_of_tokens(self) -> Embedding:
        """The model's, for what else needs rows of it; of several ranks that share it, all look them up."""
        table = self.model.decoder.embed_tokens
        return table if self._leader is None else LedEmbedding(self._leader, table)

    @property
    def leads(self) -> bool:
        """Whether other ranks make the same steps."""
        return self._leader is not None

    @property
    def few_rows(self) -> int | None:
        """Rows of a step up to which sums are in another order than of more, where nothing else about the rows beside
        it changes a row's numbers; None: they depend on where chunks begin."""
        return self.model.backend.few_rows

    def chunk(self, start: int, end: int, wanted: int) -> int:
        """Rows of a prompt of ``end`` to compute after the first ``start``, of ``wanted`` ones. In deterministic mode
        such that what is computed does not depend on who waits beside it: where chunks matter they lie on a grid; else
        all rows of a prompt are summed as those of many rows are, so that no small rest is left."""
        left, few = end - start, self.few_rows
        if not self.deterministic:
            return min(wanted, left)
        if few is None:
            return min(self.prefill_chunk - start % self.prefill_chunk, left)
        rows = min(max(wanted, few + 1), left)
        if 0 < left - rows <= few:
            rows = left if left <= max(wanted, self.prefill_chunk) else left - few - 1
        return rows

    def reusable(self, shared: int, prompt: int) -> int:
        """How many of ``shared`` rows that are stored a prompt of so many rows may begin with, for its other rows to be
        computed as they are alone."""
        few = self.few_rows
        if few is None:
            return shared - shared % self.prefill_chunk if self.deterministic else shared
        return max(0, min(shared, prompt - few - 1))

    @torch.inference_mode()
    def prefill(self, prompt: Sequence[int] | PromptRows, cache: KVCache, observe: ObserverAt | None = None) -> Tensor:
        """Run the rows the cache does not hold yet, in chunks; returns float logits ``[vocab]`` after the last."""
        require_own_threads()
        rows = rows_of(prompt)
        logits = None
        while cache.length < len(rows):
            count = self.chunk(cache.length, len(rows), self.prefill_chunk)
            logits = self.prefill_rows(rows, cache, count, observe)
        assert logits is not None, "the last row of a prompt is always left to compute"
        return logits

    @torch.inference_mode()
    def prefill_rows(
        self,
        prompt: PromptRows,
        cache: KVCache,
        rows: int,
        observe: ObserverAt | None = None,
        score: Score | None = None,
    ) -> Tensor | None:
        """Run the next ``rows`` rows of a prompt. Float logits ``[vocab]`` after the last; None before. ``score`` is
        given those of all rows."""
        start = cache.length
        end = start + rows
        last = end == len(prompt)
        # Only the very last row's logits are wanted; earlier chunks need none.
        step = StepRows(prompt.ids[start:end], prompt.positions_of(start, end), [rows - 1] if last else [])
        injected, observer = prompt.injected_between(start, end), observe(start) if observe else None
        given = None if score is None else lambda row, logits: score(start + row, logits)
        logits = self.forward(step, [(rows, cache)], injected, observer, given)
        cache.advance(rows)
        cache.position_offset = prompt.position_offset
        return logits[0].float() if last else None

    @torch.inference_mode()
    def forward(
        self,
        rows: StepRows,
        caches: Sequence[tuple[int, KVCache]],
        injected: MultimodalEmbeddings | None = None,
        observe: Observer | None = None,
        score: Score | None = None,
    ) -> Tensor:
        """Run ``rows``, so many of each of ``caches`` in turn, which are not advanced: logits ``[wanted, vocab]``.
        ``injected``: rows of media; ``score`` is given the float logits of all rows."""
        device = self.model.backend.device
        segments: list[Segment] = []
        for count, cache in caches:
            cache.reserve(count)  # what does not fit is refused before anyone is told
            segments.append(Segment(sum(each.rows for each in segments), count, cache))
        injected = injected.to(device) if injected else None
        with self._leading_forward(rows, caches, injected, observe, score), self.model.backend.single_threaded_torch():
            ids, positions, wanted = rows.tensors(device)
            if score is None:
                return self.model(ids, positions, segments, wanted, observe, injected)
            hidden = self.model.decoder(ids, positions, segments, observe, injected)
            self._score(hidden, 0, score)
            return self.model.head(hidden if wanted is None else hidden[wanted])

    @contextmanager
    def _leading_forward(
        self,
        rows: StepRows,
        caches: Sequence[tuple[int, KVCache]],
        injected: MultimodalEmbeddings | None,
        observe: Observer | None,
        score: Score | None,
    ) -> Iterator[None]:
        """Around a step that the other ranks make too, where there are others."""
        if self._leader is None:
            yield
            return
        segments = [(count, state_of(cache)) for count, cache in caches]
        shape = InjectedShape.of(injected) if injected else None
        stage = observe.stage if isinstance(observe, StageObserver) else None if observe is None else ""
        with self._leader.leading(Forward(rows, segments, shape, stage, score is not None)):
            if injected:
                send_injected(injected, self._leader.group)
            yield

    def _score(self, hidden: Tensor, start: int, score: Score) -> None:
        """In parts of about the same size: none of so few rows that they are summed in another order."""
        parts = -(-len(hidden) // SCORED_ROWS)
        for part in hidden.tensor_split(parts):
            score(start, self.model.head(part).float().cpu())
            start += len(part)

    @torch.inference_mode()
    def step(self, ids: Sequence[int], caches: Sequence[KVCache]) -> Tensor:
        """One token for each sequence; returns float logits ``[sequences, vocab]``."""
        require_own_threads()
        parts = [self._step(ids[part], caches[part]) for part in self._parts(len(ids))]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    @torch.inference_mode()
    def step_with_prompt(
        self, ids: Sequence[int], caches: Sequence[KVCache], prompt: PromptRows, cache: KVCache, rows: int
    ) -> tuple[Tensor, Tensor | None]:
        """One token for each sequence, and beside them the next ``rows`` of a prompt of text alone, for one reading of
        the weights: float logits ``[sequences, vocab]``, and ``[vocab]`` after the prompt's last row."""
        require_own_threads()
        start, count = cache.length, len(ids)
        last = start + rows == len(prompt)
        step = StepRows(
            [*ids, *prompt.ids[start : start + rows]],
            [*_next_positions(caches), *range(start, start + rows)],
            [*range(count), *([count + rows - 1] if last else [])],
        )
        logits = self.forward(step, [*((1, each) for each in caches), (rows, cache)]).float()
        for each in caches:
            each.advance(1)
        cache.advance(rows)
        cache.position_offset = prompt.position_offset
        return logits[:count], logits[count] if last else None

    @property
    def rows_together(self) -> int:
        """Rows of a step, of sequences and of a prompt, that cost about as much as fewer; 0 where they do not go
        together."""
        return 0 if self.deterministic else self.few_rows or 0

    @torch.inference_mode()
    def greedy_step(self, ids: Sequence[int], caches: Sequence[KVCache]) -> list[int]:
        """As :meth:`step`, but returns the most likely id of each sequence: where the backend launches steps whole, no
        logits leave the device."""
        return self.argmax_step(ids, caches)[0]

    @torch.inference_mode()
    def argmax_step(self, ids: Sequence[int], caches: Sequence[KVCache]) -> tuple[list[int], list[float]]:
        """The most likely id of each sequence, and its logit (NaN if any is)."""
        require_own_threads()
        chosen: list[int] = []
        peaks: list[float] = []
        for part in self._parts(len(ids)):
            graph = self._graph(part.stop - part.start)
            if graph is None:
                found = self._step(ids[part], caches[part]).max(-1)
                tokens, largest = found.indices.tolist(), found.values.tolist()
            else:
                self._launch(graph, ids[part], caches[part])
                tokens, largest = graph.result()
            chosen += tokens[: part.stop - part.start]
            peaks += largest[: part.stop - part.start]
        return chosen, peaks

    @torch.inference_mode()
    def choose_step(
        self, ids: Sequence[int], caches: Sequence[KVCache], samplers: Sequence[Sampler]
    ) -> list[RowChoice]:
        """As :meth:`step`, with what each of ``samplers`` is to take (`Sampler.accept`): where the backend launches
        steps whole, what it chose; else, and of a sampler that needs them, the logits."""
        if not self.launches_whole(len(ids)):
            return list(self.step(ids, caches))
        if all(sampler.takes_argmax for sampler in samplers):
            return list(zip(*self.argmax_step(ids, caches), strict=True))
        require_own_threads()
        settings = [sampler.on_device(self.model.backend.device) for sampler in samplers]
        if not any(settings):
            return list(self.step(ids, caches))
        choices: list[RowChoice] = []
        for part in self._parts(len(ids)):
            choices += self._choose(ids[part], caches[part], settings[part])
        return choices

    def _choose(
        self, ids: Sequence[int], caches: Sequence[KVCache], settings: Sequence[RowSampling | None]
    ) -> list[RowChoice]:
        graph = self._graph(len(caches), sampled=True)
        assert graph is not None, "a backend that launches steps whole samples in them"
        self._launch(graph, ids, caches, [setting or ARGMAX for setting in settings])
        tokens, peaks = graph.result()
        return [
            (token, peak) if setting is not None and token >= 0 else graph.logits[row].clone()
            for row, (setting, token, peak) in enumerate(zip(settings, tokens, peaks, strict=False))  # others fill up
        ]

    def launches_whole(self, sequences: int) -> bool:
        """Whether a step of so many sequences is one launch, after which the ids alone come to the host."""
        return all(self._graph(part.stop - part.start) is not None for part in self._parts(sequences))

    def _parts(self, sequences: int) -> Iterator[slice]:
        if self.deterministic:
            yield from self.model.backend.step_parts([1] * sequences)
            return
        for start in range(0, sequences, BUCKETS[-1]):
            yield slice(start, min(start + BUCKETS[-1], sequences))

    def _step(self, ids: Sequence[int], caches: Sequence[KVCache]) -> Tensor:
        graph = self._graph(len(caches))
        if graph is not None:
            self._launch(graph, ids, caches)
            graph.result()
            return graph.logits[: len(caches)].clone()
        logits = self.forward(StepRows(ids, _next_positions(caches)), [(1, cache) for cache in caches])
        for cache in caches:
            cache.advance(1)
        return logits.float()

    def _graph(self, sequences: int, *, sampled: bool = False) -> CapturedDecode | None:
        """A step of at least so many sequences as one launch, where the backend can; made once for each bucket."""
        rows = next(bucket for bucket in BUCKETS if bucket >= sequences)
        if (rows, sampled) not in self._graphs:
            self._graphs[rows, sampled] = self.model.backend.decode_graph(
                lambda ids, positions, segments: self.model(ids, positions, segments, None),
                rows,
                STORAGE_DTYPES[self.cache_options.dtype],
                sampled=sampled,
            )
        return self._graphs[rows, sampled]

    @torch.inference_mode()
    def launch(self, ids: Sequence[int], caches: Sequence[KVCache], *, sampled: bool) -> None:
        """Launch the step of the sequences, as rank 0 did, and wait for it; what it chooses is of no interest."""
        graph = self._graph(len(ids), sampled=sampled)
        assert graph is not None, "rank 0 launched it"
        self._launch(graph, ids, caches, [ARGMAX] * len(ids) if sampled else ())
        graph.result()

    def _launch(
        self, graph: CapturedDecode, ids: Sequence[int], caches: Sequence[KVCache], sampling: Sequence[RowSampling] = ()
    ) -> None:
        """The step of the sequences; the rows that fill up a bucket write where nobody looks."""
        self._padding = self._padding or self._padding_cache()
        padding = [self._padding] * (graph.rows - len(caches))
        positions = _next_positions((*caches, *padding))
        filled = [*sampling, *[ARGMAX] * len(padding)] if sampling else ()
        with self._leading_launch(ids, caches, sampled=bool(sampling)):
            graph.launch([*ids, *[0] * len(padding)], positions, [*caches, *padding], filled)
        for cache in caches:
            cache.advance(1)

    def _leading_launch(
        self, ids: Sequence[int], caches: Sequence[KVCache], *, sampled: bool
    ) -> AbstractContextManager[None]:
        if self._leader is None:
            return nullcontext()
        for cache in caches:
            cache.reserve(1)  # what does not fit is refused before anyone is told
        return self._leader.leading(Launch(ids, [state_of(cache) for cache in caches], sampled))

    def _padding_cache(self) -> KVCache:
        """Of one position, of this rank alone. All rows that fill up are the same row, and write the same to it."""
        options = replace(self.cache_options, max_length=1)
        return KVCache(self.model.cached_config, options, self.model.backend.device)


def _next_positions(caches: Sequence[KVCache]) -> list[float]:
    """Of each sequence the position of its next row."""
    return [cache.length + cache.position_offset for cache in caches]


def rows_of(prompt: Sequence[int] | PromptRows) -> PromptRows:
    """A prompt of ids alone, or as it is."""
    return prompt if isinstance(prompt, PromptRows) else PromptRows(list(prompt))
