"""Frames of speech as one launch each: the talker's step, the code predictor's passes, the choice of all codes and the
talker's next row, with nothing asked of the host in between.

What a frame computes is what `engine/speech/frames.py` computes, for backends that can capture it.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from lluda.backends.batch import Segment
from lluda.backends.capture import STORE_WIDTH, CapturedStep, DeviceStore, store_row
from lluda.engine.kv_cache import STORAGE_DTYPES, CacheOptions, KVCache
from lluda.engine.sampling.sampling_params import SamplingParams
from lluda.engine.speech.speech_params import SpeechParams, code_predictor_sampling
from lluda.errors import NumericalError
from lluda.models.code_predictor import CodePredictor
from lluda.models.talker import Talker


class FrameGraph:
    """The captured frame of one talker, its predictor and one way of sampling; requests use it in turn.

    Args:
        sampling: as the talker's of `SpeechParams`, without None; the seed is the request's own.
        capture: without, launches go out one by one, to compare.
    """

    def __init__(
        self, talker: Talker, predictor: CodePredictor, sampling: SamplingParams, kv_dtype: str, *, capture: bool = True
    ) -> None:
        self._backend = talker.backend
        self._talker, self._predictor, self.kv_dtype = talker, predictor, kv_dtype
        config, device = talker.config, talker.backend.device
        self._capture = capture
        groups, hidden, vocabulary = config.num_code_groups, config.decoder.hidden_size, config.decoder.vocab_size
        self._sampling = sampling.with_defaults({})
        # From the host: the talker's store, its position, and a uniform number for each code.
        self._host = self._backend.pinned((STORE_WIDTH + 1 + groups,), torch.int64)
        self._inputs = torch.zeros_like(self._host, device=device)
        self._position = self._inputs[STORE_WIDTH : STORE_WIDTH + 1].view(torch.float64)
        self._uniforms = self._inputs[STORE_WIDTH + 1 :].view(torch.float64)
        self.text = torch.zeros(1, hidden, device=device)
        self.hidden, self.logits = torch.zeros(1, hidden, device=device), torch.zeros(1, vocabulary, device=device)
        self.seen = torch.zeros(vocabulary, dtype=torch.uint8, device=device)
        self._next = torch.zeros(1, hidden, device=device)
        self._codes = torch.zeros(groups, dtype=torch.int64, device=device)
        self._peaks = torch.zeros(groups, device=device)
        self._chosen = self._backend.pinned((2, groups), torch.float64)
        self._suppressed = torch.zeros_like(self.seen)
        self._suppressed[config.code_predictor.vocab_size :] = 1
        self._suppressed[config.codec.eos] = 0
        dtype = STORAGE_DTYPES[kv_dtype]
        self._segment = Segment(0, 1, DeviceStore(self._inputs[:STORE_WIDTH].view(1, -1), 0, dtype))
        # The predictor's rows of one frame always lie in the same places.
        self._frame_cache = KVCache(config.code_predictor, CacheOptions(groups, "preallocated", kv_dtype), device)
        places = [[*store_row(self._frame_cache)] for _ in range(groups)]
        for length, place in enumerate(places):
            place[2] = length
        tables = torch.tensor(places, device=device)
        self._stores = [DeviceStore(tables[length : length + 1], 0, dtype) for length in range(groups)]
        self._places = torch.arange(groups, device=device)
        self._last = torch.zeros(1, dtype=torch.int64, device=device)
        self._first_graph: CapturedStep | None = None
        self._frame_graph: CapturedStep | None = None

    @property
    def warm_up_seconds(self) -> float:
        """Seconds that compiling and capturing took so far."""
        return sum(graph.warm_up_seconds for graph in (self._first_graph, self._frame_graph) if graph)

    @torch.inference_mode()
    def launch_first(self, uniforms: list[float]) -> None:
        """The codes of the first frame, of ``hidden`` and ``logits`` after the prompt."""
        self._fill([0] * 4, 0.0, uniforms)
        if self._first_graph is None:
            self._first_graph = self._backend.new_graph(self._first, capture=self._capture, state=(self.seen,))
        self._first_graph.launch()

    @torch.inference_mode()
    def launch(self, cache: KVCache, position: float, uniforms: list[float]) -> None:
        """The talker's step over the last frame's codes and ``text``, and the next frame's codes."""
        self._fill(list(store_row(cache)), position, uniforms)
        if self._frame_graph is None:
            state = (self.seen, self._next)
            self._frame_graph = self._backend.new_graph(self._frame, capture=self._capture, state=state)
        self._frame_graph.launch()

    def codes(self) -> list[int]:
        """Wait for the codes of the frame that was launched. NumericalError: the logits hold NaN or infinity."""
        graph = self._frame_graph or self._first_graph
        assert graph is not None, "nothing was launched"
        graph.wait()
        codes, peaks = self._chosen.tolist()
        if not all(math.isfinite(peak) for peak in peaks):
            raise NumericalError(
                "the talker's or code predictor's logits hold NaN or infinity, so no code can be sampled; "
                "check the weights with --check-tensors, or compute in float32 (--dtype f32)"
            )
        return [int(code) for code in codes]

    def _fill(self, store: list[int], position: float, uniforms: list[float]) -> None:
        self._host[:4] = torch.tensor(store)
        self._host[4:].view(torch.float64)[:] = torch.tensor([position, *uniforms], dtype=torch.float64)

    def _first(self) -> None:
        self._inputs.copy_(self._host, non_blocking=True)
        self._choose_codes(self.hidden, self.logits)

    def _frame(self) -> None:
        self._inputs.copy_(self._host, non_blocking=True)
        row = self._next + self.text
        self._choose_codes(*self._talker(row, self._position, [self._segment], self._last))

    def _choose_codes(self, hidden: Tensor, logits: Tensor) -> None:
        sampling, predictor = self._sampling, self._predictor
        self._sample(0, logits, sampling, suppressed=self._suppressed, seen=self.seen)
        parts = [self._talker.codec_embedding(self._codes[:1])]
        rows = torch.cat((hidden.float(), parts[0]))
        others = code_predictor_sampling(sampling).with_defaults({})
        for group in range(1, predictor.passes + 1):
            start = 0 if group == 1 else group
            segments = [Segment(0, len(rows), self._stores[start])]
            logits = predictor(rows, self._places[start : start + len(rows)], segments, group)
            self._sample(group, logits, others)
            rows = predictor.embed(group, self._codes[group : group + 1])
            parts.append(rows.clone() if group < predictor.passes else rows)
        self._next.copy_(torch.cat(parts).sum(0, keepdim=True))
        self._chosen.copy_(torch.stack((self._codes.double(), self._peaks.double())), non_blocking=True)

    def _sample(
        self, group: int, logits: Tensor, params: SamplingParams, suppressed: Tensor | None = None,
        seen: Tensor | None = None,
    ) -> None:  # fmt: skip
        at = slice(group, group + 1)
        chosen: dict[str, Any] = {name: getattr(params, name) for name in ("temperature", "top_k", "top_p", "min_p")}
        self._backend.sample(
            logits, self._uniforms[at], self._codes[at], self._peaks[at], **chosen,
            repetition=params.repetition_penalty or 1.0, suppressed=suppressed, seen=seen,
        )  # fmt: skip


class GraphFrames:
    """The frames of one answer, as `frames.FrameGenerator`: ``prefill`` once, then in turn ``next_codes`` and
    ``feed``, which starts the next frame before it is asked for."""

    def __init__(self, graph: FrameGraph, talker: Talker, params: SpeechParams, *, max_rows: int) -> None:
        config = talker.config
        seed = params.sampling.seed
        assert seed is not None, "with_defaults draws a seed"
        self.graph, self._talker = graph, talker
        self._cache = KVCache(config.decoder, CacheOptions(max_rows, "growing", graph.kv_dtype), talker.backend.device)
        self._eos, self._passes = config.codec.eos, config.num_code_groups - 1
        # As the samplers of `frames`: one stream of numbers for the talker, one for its predictor, of one seed.
        self._first, self._others = (torch.Generator().manual_seed(seed) for _ in range(2))
        graph.seen.zero_()

    @torch.inference_mode()
    def prefill(self, rows: Tensor, positions: Tensor | None = None) -> None:
        """Run the prompt: rows ``[n, hidden]`` in the residual dtype, at ``positions [3, n]`` or 0, 1, 2, …"""
        count, device = len(rows), self._talker.backend.device
        places = torch.arange(count) if positions is None else positions
        self._cache.position_offset = 0 if positions is None else float(positions.max()) + 1 - count
        last = torch.tensor([count - 1], device=device)
        hidden, logits = self._talker(rows, places.to(device), [Segment(0, count, self._cache)], last)
        self._cache.advance(count)
        self.graph.hidden.copy_(hidden)
        self.graph.logits.copy_(logits)
        self.graph.launch_first(self._draw())

    def next_codes(self) -> list[int] | None:
        """The codes of the next frame, one of each codebook; None when the talker ends the speech."""
        codes = self.graph.codes()
        return None if codes[0] == self._eos else codes

    @torch.inference_mode()
    def feed(self, text: Tensor) -> None:
        """Start the next frame: the last one's codes and one row of text ``[1, hidden]`` become the talker's row."""
        self.graph.text.copy_(text)
        self.graph.launch(self._cache, self._cache.length + self._cache.position_offset, self._draw())
        self._cache.advance(1)

    def _draw(self) -> list[float]:
        first = torch.rand((), dtype=torch.float64, generator=self._first)
        return [float(first), *torch.rand(self._passes, dtype=torch.float64, generator=self._others).tolist()]
