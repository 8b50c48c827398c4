"""The captured frames of one voice: made when first wanted, lent to one answer at a time, and kept for the next."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import Tensor

from lluda.engine.frame_graph import FrameGraph, GraphFrames
from lluda.engine.frames import SpeechParams
from lluda.engine.vocoder_graph import VocoderGraph
from lluda.models.code2wav import Code2Wav, Code2WavState
from lluda.models.code_predictor import CodePredictor
from lluda.models.talker import Talker

_SAMPLING = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")


class CodesStream:
    """The waveform of one answer: frames in, samples out."""

    def __init__(self, network: Code2Wav, graph: VocoderGraph | None) -> None:
        self._network, self._graph = network, graph
        self._state: Code2WavState | None = network.stream() if graph is None else None
        self._begun = False

    def push(self, frames: list[list[int]]) -> Tensor:
        """Codes of the next frames, one list each -> the samples that they complete."""
        if self._graph is None:
            assert self._state is not None
            return self._network.push(torch.tensor(frames).T, self._state)
        parts = []
        for codes in frames:
            parts.append(self._graph.push(codes, first=not self._begun))
            self._begun = True
        return torch.cat(parts)


class SpeechGraphs:
    """What is captured of one voice, where its backends capture: a frame for each way of sampling, and the vocoder.

    Each is given back when the answer that it was lent to is let go of."""

    def __init__(self, talker: Talker, predictor: CodePredictor, code2wav: Code2Wav, kv_dtype: str) -> None:
        self._talker, self._predictor, self._code2wav, self._kv_dtype = talker, predictor, code2wav, kv_dtype
        self._free: dict[Any, list[Any]] = {}

    def frames(self, params: SpeechParams, max_rows: int) -> GraphFrames | None:
        """The frames of one answer; None where they cannot be captured."""
        sampling = params.sampling
        together = self._talker.backend is self._predictor.backend and self._talker.backend.captures
        if not together or sampling.presence_penalty or sampling.frequency_penalty:
            return None
        key = tuple(getattr(sampling, name) for name in _SAMPLING)
        free = self._free.setdefault(key, [])
        graph = free.pop() if free else FrameGraph(self._talker, self._predictor, sampling, self._kv_dtype)
        frames = GraphFrames(graph, self._talker, params, max_rows=max_rows)
        weakref.finalize(frames, free.append, graph)
        return frames

    def vocoder(self) -> CodesStream:
        """The waveform of one answer."""
        if not self._code2wav.backend.captures:
            return CodesStream(self._code2wav, None)
        free = self._free.setdefault("vocoder", [])
        graph = free.pop() if free else VocoderGraph(self._code2wav)
        stream = CodesStream(self._code2wav, graph)
        weakref.finalize(stream, free.append, graph)
        return stream
