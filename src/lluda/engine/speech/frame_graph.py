"""Frames of speech as one launch for several answers: the talker's step, the code predictor's passes, the choice of all
codes and the talker's next rows, with nothing asked of the host in between.

What a frame computes is what `engine/speech/frames.py` computes, for backends that can capture it.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from itertools import chain
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lluda.backends.batch import Segment
from lluda.backends.capture import STORE_WIDTH, CapturedStep, CodeRows, DeviceStore, SaidCodes, store_row
from lluda.engine.kv_cache import STORAGE_DTYPES, CacheOptions, KVCache
from lluda.engine.sampling.sampling_params import SamplingParams
from lluda.engine.speech.speech_params import code_predictor_sampling
from lluda.models.code_predictor import CodePredictor
from lluda.models.talker import Talker

ANSWERS = 16
"""Answers whose codes so far lie together; the last place is nobody's."""

BUCKETS = (1, 2, 4, 8, 16)
"""Answers that a launch is made for; one of fewer is filled up with nobody's."""


class FrameRow(NamedTuple):
    """An answer's part of a launch: the place of its codes, where the talker's keys and values lie (`store_row`), the
    position of the talker's row, and a uniform number for each code."""

    answer: int
    store: tuple[int, int, int, int]
    position: float
    uniforms: Sequence[float]


class FrameState:
    """What the frames of ``ANSWERS`` answers share: the codes that each said, and its talker's next row; the code
    predictor's keys and values of one frame, which always lie in the same places."""

    def __init__(self, talker: Talker, predictor: CodePredictor, kv_dtype: str) -> None:
        config, device = talker.config, talker.backend.device
        vocabulary, hidden, groups = config.decoder.vocab_size, config.decoder.hidden_size, config.num_code_groups
        self.talker, self.predictor, self.cache_dtype = talker, predictor, STORAGE_DTYPES[kv_dtype]
        self.seen = torch.zeros(ANSWERS + 1, vocabulary, dtype=torch.uint8, device=device)
        self.next = torch.zeros(ANSWERS + 1, hidden, device=device)
        self.suppressed = torch.zeros_like(self.seen[0])
        self.suppressed[config.code_predictor.vocab_size :] = 1
        self.suppressed[config.codec.eos] = 0
        own = CacheOptions(groups, "preallocated", kv_dtype)
        self._caches = [KVCache(config.code_predictor, own, device) for _ in range(ANSWERS)]
        self._padding = KVCache(config.decoder, CacheOptions(1, "preallocated", kv_dtype), device)

    @property
    def changed(self) -> tuple[Tensor, Tensor]:
        """What a launch changes, and running it to warm up must not."""
        return self.seen, self.next

    def frame_stores(self, rows: int) -> list[list[DeviceStore]]:
        """The code predictor's stores of so many answers, with 0, 1, 2, … rows in them."""
        groups = self.talker.config.num_code_groups
        places = [
            [[*store_row(cache)[:2], length, store_row(cache)[3]] for cache in self._caches[:rows]]
            for length in range(groups)
        ]
        tables = torch.tensor(places, device=self.seen.device)
        return [[DeviceStore(table, row, self.cache_dtype, groups) for row in range(rows)] for table in tables]

    def nobody(self) -> FrameRow:
        """A row that fills up a launch."""
        return FrameRow(ANSWERS, store_row(self._padding), 0.0, [0.0] * self.talker.config.num_code_groups)


class FrameGraph:
    """The captured frame of ``rows`` answers of one talker, its predictor and one way of sampling.

    Args:
        sampling: as the talker's of `SpeechParams`, without None; the seeds are the answers' own.
        first: whether it is an answer's first, of ``hidden`` and ``logits`` after its prompt; else the talker steps
            over the last frame's codes and ``text``.
        capture: without, launches go out one by one, to compare.
    """

    def __init__(
        self, state: FrameState, sampling: SamplingParams, rows: int, *, first: bool, capture: bool = True
    ) -> None:
        self._state, self.rows, self._is_first, self._capture = state, rows, first, capture
        self._backend, config = state.talker.backend, state.talker.config
        device, groups = self._backend.device, config.num_code_groups
        hidden, vocabulary = config.decoder.hidden_size, config.decoder.vocab_size
        self._sampling = sampling.with_defaults({})
        self._others = code_predictor_sampling(self._sampling).with_defaults({})
        sizes = [rows, rows * STORE_WIDTH, rows, rows * groups]
        self._format = struct.Struct(f"={sum(sizes[:2])}q{sum(sizes[2:])}d")
        self._host = self._backend.pinned((sum(sizes),), torch.int64)
        self._bytes = self._host.numpy().data.cast("B")
        self._inputs = torch.zeros_like(self._host, device=device)
        self._answers, stores, positions, uniforms = torch.split(self._inputs, sizes)
        self._positions, self._uniforms = positions.view(torch.float64), uniforms.view(torch.float64).view(groups, rows)
        table = stores.view(rows, STORE_WIDTH)
        self._segments = [Segment(row, 1, DeviceStore(table, row, state.cache_dtype)) for row in range(rows)]
        self._stores = state.frame_stores(rows)
        self._all = torch.arange(rows, device=device)
        self._places = torch.arange(groups, device=device)[:, None].expand(groups, rows).contiguous()
        self._first_places = torch.arange(2, device=device).repeat(rows)
        self.text = torch.zeros(rows, hidden, device=device)
        self.hidden = torch.zeros(rows, hidden, device=device)
        self.logits = torch.zeros(rows, vocabulary, device=device)
        self._codes = torch.zeros(groups, rows, dtype=torch.int64, device=device)
        self._peaks = torch.zeros(groups, rows, device=device)
        self._chosen = self._backend.pinned((2, groups, rows), torch.float64)
        self._graph: CapturedStep | None = None

    @property
    def warm_up_seconds(self) -> float:
        """Seconds that compiling and capturing took so far."""
        return self._graph.warm_up_seconds if self._graph else 0.0

    def launch(self, rows: Sequence[FrameRow]) -> None:
        """Start the next frame of each; what was launched before has been read."""
        filled = [*rows, *[self._state.nobody()] * (self.rows - len(rows))]
        answers, stores, positions, uniforms = zip(*filled, strict=True)
        numbers = chain.from_iterable(zip(*uniforms, strict=True))
        self._format.pack_into(self._bytes, 0, *answers, *chain.from_iterable(stores), *positions, *numbers)
        if self._graph is None:
            body = self._first if self._is_first else self._frame
            self._graph = self._backend.new_graph(body, capture=self._capture, state=self._state.changed)
        self._graph.launch()

    def result(self) -> tuple[list[list[float]], list[list[float]]]:
        """Wait; of each row its codes, and the largest score that each was chosen of (NaN where any logit is)."""
        assert self._graph is not None, "nothing was launched"
        self._graph.wait()
        codes, peaks = self._chosen.transpose(1, 2).tolist()
        return codes, peaks

    def _first(self) -> None:
        self._inputs.copy_(self._host, non_blocking=True)
        self._choose_codes(self.hidden, self.logits)

    def _frame(self) -> None:
        self._inputs.copy_(self._host, non_blocking=True)
        x = self._state.next.index_select(0, self._answers) + self.text
        self._choose_codes(*self._state.talker(x, self._positions, self._segments, self._all))

    def _choose_codes(self, hidden: Tensor, logits: Tensor) -> None:
        state, predictor = self._state, self._state.predictor
        # Two rows of each answer come first: the talker's, and that of code 0.
        rows = torch.empty(self.rows, 2, hidden.shape[1], device=hidden.device)
        rows[:, 0] = hidden
        total = torch.empty(self.rows, hidden.shape[1], device=hidden.device)
        said = SaidCodes(state.seen, self._answers)
        begin = CodeRows(state.talker.codec_embedding.weight, rows[:, 1], total, begins=True)
        self._sample(0, logits, self._sampling, begin, suppressed=state.suppressed, seen=said)
        x, positions, count = rows.flatten(0, 1), self._first_places, 2
        for group in range(1, predictor.passes + 1):
            start = 0 if group == 1 else group
            segments = [Segment(row * count, count, store) for row, store in enumerate(self._stores[start])]
            logits = predictor(x, positions, segments, group)
            x, positions, count = torch.empty_like(total), self._places[(group + 1) % len(self._places)], 1
            self._sample(group, logits, self._others, CodeRows(predictor.table(group), x, total, begins=False))
        state.next.index_copy_(0, self._answers, total)
        self._chosen.copy_(torch.stack((self._codes.double(), self._peaks.double())), non_blocking=True)

    def _sample(
        self, group: int, logits: Tensor, params: SamplingParams, embedded: CodeRows,
        suppressed: Tensor | None = None, seen: SaidCodes | None = None,
    ) -> None:  # fmt: skip
        chosen: dict[str, Any] = {name: getattr(params, name) for name in ("temperature", "top_k", "top_p", "min_p")}
        self._backend.sample(
            logits, self._uniforms[group], self._codes[group], self._peaks[group], **chosen,
            repetition=params.repetition_penalty or 1.0, suppressed=suppressed, seen=seen, embedded=embedded,
        )  # fmt: skip
