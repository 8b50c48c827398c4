"""Answers whose frames are captured: each has its talker's past and numbers of its own, and launches are of many."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from lluda.backends.batch import Segment
from lluda.backends.capture import store_row
from lluda.engine.kv_cache import CacheOptions, KVCache
from lluda.engine.sampling.sampling_params import SamplingParams
from lluda.engine.speech.frame_graph import ANSWERS, BUCKETS, FrameGraph, FrameRow, FrameState
from lluda.engine.speech.speech_params import SpeechParams
from lluda.errors import NumericalError
from lluda.models.code_predictor import CodePredictor
from lluda.models.talker import Talker

_DRAWN = 64
"""Frames whose uniform numbers are drawn at a time: the generators give the same ones in the same order."""


class FrameGraphs:
    """The captured frames of one talker, its predictor and one way of sampling, for up to ``ANSWERS`` answers at once.

    Args:
        sampling: as the talker's of `SpeechParams`, without None; the seeds are the answers' own.
        capture: without, launches go out one by one, to compare.
    """

    def __init__(
        self, talker: Talker, predictor: CodePredictor, sampling: SamplingParams, kv_dtype: str, *, capture: bool = True
    ) -> None:
        self.talker, self.kv_dtype = talker, kv_dtype
        self.state = FrameState(talker, predictor, kv_dtype)
        self._sampling, self._capture = sampling, capture
        self._graphs: dict[tuple[int, bool], FrameGraph] = {}
        self._unread: dict[FrameGraph, Sequence[GraphFrames]] = {}
        self._free = list(range(ANSWERS))

    @property
    def warm_up_seconds(self) -> float:
        """Seconds that compiling and capturing took so far."""
        return sum(graph.warm_up_seconds for graph in self._graphs.values())

    @property
    def is_full(self) -> bool:
        """Whether it has no place for one more answer."""
        return not self._free

    def answer(self, params: SpeechParams, max_rows: int) -> GraphFrames:
        """A new answer, of at most so many rows of the talker."""
        return GraphFrames(self, self._free.pop(), params, max_rows)

    def give_back(self, answer: GraphFrames) -> None:
        """The place of an answer that has ended."""
        self._free.append(answer.number)

    def launch_first(self, answer: GraphFrames, hidden: Tensor, logits: Tensor) -> None:
        """Start the first frame of ``answer``, whose talker gave these rows ``[1, …]`` after the prompt."""
        graph = self._graph(1, first=True)
        graph.hidden.copy_(hidden)
        graph.logits.copy_(logits)
        self._launch(graph, [answer], [answer.row(store_row(answer.cache))])

    def launch(self, answers: Sequence[GraphFrames], text: Tensor) -> None:
        """Start the next frame of each answer, whose talkers step over ``text [answers, hidden]`` and the codes before.
        At most ``BUCKETS[-1]`` answers."""
        graph = self._graph(len(answers), first=False)
        graph.text[: len(answers)] = text
        rows = [answer.row(store_row(answer.cache)) for answer in answers]
        self._launch(graph, answers, rows)
        for answer in answers:
            answer.cache.advance(1)

    @torch.inference_mode()
    def warm_up(self, answers: int, *, first: bool = False) -> None:
        """Compile and capture what so many answers launch, by a launch of nobody's."""
        graph = self._graph(answers, first=first)
        graph.launch(())
        graph.result()

    def read(self, answer: GraphFrames) -> None:
        """Wait for what was launched with ``answer``."""
        graph = next(graph for graph, answers in self._unread.items() if answer in answers)
        self._read(graph)

    def _graph(self, answers: int, *, first: bool) -> FrameGraph:
        """One that nobody waits for any more."""
        rows = next(bucket for bucket in BUCKETS if bucket >= answers)
        if (rows, first) not in self._graphs:
            self._graphs[rows, first] = FrameGraph(self.state, self._sampling, rows, first=first, capture=self._capture)
        self._read(self._graphs[rows, first])
        return self._graphs[rows, first]

    def _launch(self, graph: FrameGraph, answers: Sequence[GraphFrames], rows: Sequence[FrameRow]) -> None:
        graph.launch(rows)
        self._unread[graph] = answers

    def _read(self, graph: FrameGraph) -> None:
        answers = self._unread.pop(graph, ())
        if answers:
            for answer, codes, peaks in zip(answers, *graph.result(), strict=False):  # others fill up
                answer.found = _codes(codes, peaks)


class GraphFrames:
    """The frames of one answer, as `frames.FrameGenerator`: ``prefill`` once, then in turn ``next_codes`` and ``feed``,
    which starts the next frame before it is asked for."""

    def __init__(self, graphs: FrameGraphs, number: int, params: SpeechParams, max_rows: int) -> None:
        talker, seed = graphs.talker, params.sampling.seed
        assert seed is not None, "with_defaults draws a seed"
        config = talker.config
        self.graphs, self.number = graphs, number
        self.cache = KVCache(config.decoder, CacheOptions(max_rows, "growing", graphs.kv_dtype), talker.backend.device)
        self.found: list[int] | NumericalError | None = None
        """The codes of a frame that was launched and waited for."""
        self._eos = config.codec.eos
        # As the samplers of `frames`: one stream of numbers for the talker, one for its predictor, of one seed.
        first, others = (torch.Generator().manual_seed(seed) for _ in range(2))
        self._uniforms = _uniforms(first, others, config.num_code_groups - 1)
        graphs.state.seen[number].zero_()

    @torch.inference_mode()
    def prefill(self, rows: Tensor, positions: Tensor | None = None) -> None:
        """Run the rows of the prompt that the cache does not hold yet: ``[n, hidden]`` in the residual dtype, at
        ``positions [3, n]``, or counted from 0 with those that it holds."""
        talker, count = self.graphs.talker, len(rows)
        device, end = talker.backend.device, self.cache.length + count
        places = torch.arange(end - count, end, device=device) if positions is None else positions.to(device)
        self.cache.position_offset = 0 if positions is None else float(positions.max()) + 1 - end
        last = torch.arange(count - 1, count, device=device)
        hidden, logits = talker(rows, places, [Segment(0, count, self.cache)], last)
        self.cache.advance(count)
        self.graphs.launch_first(self, hidden, logits)

    def next_codes(self) -> list[int] | None:
        """The codes of the next frame, one of each codebook; None when the talker ends the speech. NumericalError: the
        logits hold NaN or infinity."""
        if self.found is None:
            self.graphs.read(self)
        codes, self.found = self.found, None
        assert codes is not None, "nothing was launched"
        if isinstance(codes, NumericalError):
            raise codes
        return None if codes[0] == self._eos else codes

    @torch.inference_mode()
    def feed(self, text: Tensor) -> None:
        """Start the next frame: the last one's codes and one row of text ``[1, hidden]`` become the talker's row."""
        self.graphs.launch([self], text)

    def row(self, store: tuple[int, int, int, int]) -> FrameRow:
        """Its part of the next launch."""
        return FrameRow(self.number, store, store[2] + self.cache.position_offset, next(self._uniforms))


def _uniforms(first: torch.Generator, others: torch.Generator, passes: int) -> Iterator[list[float]]:
    """Of each frame a number for the talker and one for each pass of the code predictor."""
    while True:
        talker = torch.rand(_DRAWN, 1, dtype=torch.float64, generator=first)
        yield from torch.cat((talker, torch.rand(_DRAWN, passes, dtype=torch.float64, generator=others)), 1).tolist()


def _codes(codes: Sequence[float], peaks: Sequence[float]) -> list[int] | NumericalError:
    if all(map(math.isfinite, peaks)):
        return [int(code) for code in codes]
    return NumericalError(
        "the talker's or code predictor's logits hold NaN or infinity, so no code can be sampled; "
        "check the weights with --check-tensors, or compute in float32 (--dtype f32)"
    )


@torch.inference_mode()
def feed(answers: Sequence[GraphFrames], text: Tensor, *, together: bool) -> None:
    """:meth:`GraphFrames.feed` of several answers: ``text [answers, hidden]``. ``together``: in launches of many, which
    take their sums in another order than launches of one."""
    at_once = BUCKETS[-1] if together else 1
    for graphs in dict.fromkeys(answer.graphs for answer in answers):
        own = [row for row, answer in enumerate(answers) if answer.graphs is graphs]
        rows = text if len(own) == len(answers) else torch.stack([text[row] for row in own])
        for start in range(0, len(own), at_once):
            part = slice(start, start + at_once)
            graphs.launch([answers[row] for row in own[part]], rows[part])
