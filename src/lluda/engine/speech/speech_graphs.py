"""What is captured of one voice: made when first wanted, used by all answers, of which each has a place in it while it
speaks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from lluda.backends.backend import ComputeBackend
from lluda.backends.batch import Segment
from lluda.engine.kv_cache import CacheOptions, KVCache
from lluda.engine.speech.graph_frames import FrameGraphs, GraphFrames
from lluda.engine.speech.speech_params import SpeechParams
from lluda.engine.speech.vocoder_graph import BUCKETS, VocoderGraph, VocoderStream
from lluda.models.code2wav import Code2Wav, Code2WavState
from lluda.models.code_predictor import CodePredictor
from lluda.models.talker import Talker

_SAMPLING = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")


class CodesStream:
    """The waveform of one answer: frames in, samples out."""

    def __init__(self, network: Code2Wav, captured: VocoderStream | None) -> None:
        self.network, self.captured = network, captured
        self.state: Code2WavState | None = network.stream() if captured is None else None

    def push(self, frames: list[list[int]]) -> Tensor:
        """Codes of the next frames, one list each -> the samples that they complete."""
        return push_all([self], [frames], together=False)[0]


class SpeechGraphs:
    """What is captured of one voice, where its backends capture: a frame for each way of sampling, and the vocoder."""

    def __init__(self, talker: Talker, predictor: CodePredictor, code2wav: Code2Wav, kv_dtype: str) -> None:
        self._talker, self._predictor, self._code2wav, self._kv_dtype = talker, predictor, code2wav, kv_dtype
        self.made: dict[Any, list[Any]] = {}
        """Graphs by what they are for; more than one where answers fill the first."""

    def frames(self, params: SpeechParams, max_rows: int) -> GraphFrames | None:
        """The frames of one answer; None where they cannot be captured."""
        return self._frame_graphs(params).answer(params, max_rows) if self._captures_frames(params) else None

    def vocoder(self) -> CodesStream:
        """The waveform of one answer."""
        if not self._code2wav.backend.captures:
            return CodesStream(self._code2wav, None)
        return CodesStream(self._code2wav, self._vocoder_graph().stream())

    def warm_up(self, params: SpeechParams, answers: int) -> None:
        """Compile, side by side, and capture what up to so many answers at once launch, of this way of sampling, and
        the talker's prompts."""
        for backend in dict.fromkeys((self._talker.backend, self._code2wav.backend)):
            backend.compile([work for its, work in self._works(params, answers, capture=False) if its is backend])
        for backend, work in self._works(params, answers, capture=True):
            work()
            backend.synchronize()

    def _works(
        self, params: SpeechParams, answers: int, *, capture: bool
    ) -> Iterator[tuple[ComputeBackend, Callable[[], None]]]:
        """What runs once all that `warm_up` is to make ready, and where; without ``capture`` launch by launch."""
        talker, code2wav = self._talker.backend, self._code2wav.backend
        counts = [bucket for bucket in BUCKETS if bucket < answers] + [min(answers, BUCKETS[-1])]
        if talker.captures:
            for rows in talker.prompt_rows:
                yield talker, partial(self._prompt, rows)
        if self._captures_frames(params):
            frames = self._frame_graphs(params) if capture else self._new_frames(params, capture=False)
            yield talker, partial(frames.warm_up, 1, first=True)
            for count in counts:
                yield talker, partial(frames.warm_up, count)
        if code2wav.captures:
            vocoder = self._vocoder_graph() if capture else VocoderGraph(self._code2wav, capture=False)
            for count in counts:
                yield code2wav, partial(vocoder.warm_up, count)

    @torch.inference_mode()
    def _prompt(self, rows: int) -> None:
        """A prompt of the talker, of nobody's answer."""
        decoder, backend = self._talker.config.decoder, self._talker.backend
        cache = KVCache(decoder, CacheOptions(rows, "growing", self._kv_dtype), backend.device)
        x = torch.zeros(rows, decoder.hidden_size, dtype=backend.precision.residual, device=backend.device)
        places = torch.arange(rows, device=backend.device)
        self._talker(x, places, [Segment(0, rows, cache)], places[-1:])

    def _captures_frames(self, params: SpeechParams) -> bool:
        together = self._talker.backend is self._predictor.backend and self._talker.backend.captures
        return together and not (params.sampling.presence_penalty or params.sampling.frequency_penalty)

    def _new_frames(self, params: SpeechParams, *, capture: bool) -> FrameGraphs:
        return FrameGraphs(self._talker, self._predictor, params.sampling, self._kv_dtype, capture=capture)

    def _frame_graphs(self, params: SpeechParams) -> FrameGraphs:
        """Those of this way of sampling that have a place."""
        made: list[FrameGraphs] = self.made.setdefault(_key(params), [])
        if all(graphs.is_full for graphs in made):
            made.append(self._new_frames(params, capture=True))
        return next(graphs for graphs in made if not graphs.is_full)

    def _vocoder_graph(self) -> VocoderGraph:
        """One that has a place."""
        made: list[VocoderGraph] = self.made.setdefault("vocoder", [])
        if all(graph.is_full for graph in made):
            made.append(VocoderGraph(self._code2wav))
        return next(graph for graph in made if not graph.is_full)

    def give_back(self, frames: object, stream: CodesStream | None) -> None:
        """The places of an answer that has ended."""
        if isinstance(frames, GraphFrames):
            frames.graphs.give_back(frames)
        if stream is not None and stream.captured is not None:
            stream.captured.graph.give_back(stream.captured)


def push_all(streams: Sequence[CodesStream], frames: Sequence[list[list[int]]], *, together: bool) -> list[Tensor]:
    """Codes of the next frames of each stream of one network -> the samples that they complete. ``together``: where
    frames are captured, in launches of many, which take their sums in another order than launches of one."""
    made: dict[int, Tensor] = {}
    plain = [index for index, stream in enumerate(streams) if stream.captured is None]
    if plain:
        states = [state for index in plain if (state := streams[index].state) is not None]
        codes = [torch.tensor(frames[index]).T for index in plain]
        made.update(zip(plain, streams[plain[0]].network.push_all(codes, states), strict=True))
    captured = [index for index, stream in enumerate(streams) if stream.captured is not None]
    for part in [captured] if together else [[index] for index in captured]:
        made.update(_push_captured({index: streams[index] for index in part}, frames))
    return [made[index] for index in range(len(streams))]


def _push_captured(streams: dict[int, CodesStream], frames: Sequence[list[list[int]]]) -> dict[int, Tensor]:
    """A frame of each that has one left, again and again."""
    made: dict[int, list[Tensor]] = {index: [] for index in streams}
    for number in range(max((len(frames[index]) for index in streams), default=0)):
        by_graph: dict[VocoderGraph, dict[int, VocoderStream]] = {}
        for index, stream in streams.items():
            if stream.captured is not None and number < len(frames[index]):
                by_graph.setdefault(stream.captured.graph, {})[index] = stream.captured
        for graph, own in by_graph.items():
            samples = graph.push(list(own.values()), [frames[index][number] for index in own])
            for index, part in zip(own, samples, strict=True):
                made[index].append(part)
    return {index: torch.cat(parts) for index, parts in made.items()}


def _key(params: SpeechParams) -> tuple[object, ...]:
    return tuple(getattr(params.sampling, name) for name in _SAMPLING)
