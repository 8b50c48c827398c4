"""The captured frames of one voice: made when first wanted, lent to one answer at a time, and then to the next."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lluda.engine.speech.frame_graph import FrameGraph, GraphFrames
from lluda.engine.speech.speech_params import SpeechParams
from lluda.engine.speech.vocoder_graph import VocoderGraph
from lluda.models.code2wav import Code2Wav, Code2WavState
from lluda.models.code_predictor import CodePredictor
from lluda.models.talker import Talker

_SAMPLING = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")


class CodesStream:
    """The waveform of one answer: frames in, samples out."""

    def __init__(self, network: Code2Wav, graph: VocoderGraph | None) -> None:
        self._network, self.graph = network, graph
        self.state: Code2WavState | None = network.stream() if graph is None else None
        self._begun = False

    def push(self, frames: list[list[int]]) -> Tensor:
        """Codes of the next frames, one list each -> the samples that they complete."""
        if self.graph is None:
            assert self.state is not None
            return self._network.push(torch.tensor(frames).T, self.state)
        parts = []
        for codes in frames:
            parts.append(self.graph.push(codes, first=not self._begun))
            self._begun = True
        return torch.cat(parts)


class SpeechGraphs:
    """What is captured of one voice, where its backends capture: a frame for each way of sampling, and the vocoder.

    Each is lent to one answer, which gives it back when it ends."""

    def __init__(self, talker: Talker, predictor: CodePredictor, code2wav: Code2Wav, kv_dtype: str) -> None:
        self._talker, self._predictor, self._code2wav, self._kv_dtype = talker, predictor, code2wav, kv_dtype
        self._free: dict[Any, list[Any]] = {}

    def frames(self, params: SpeechParams, max_rows: int) -> GraphFrames | None:
        """The frames of one answer; None where they cannot be captured."""
        sampling = params.sampling
        together = self._talker.backend is self._predictor.backend and self._talker.backend.captures
        if not together or sampling.presence_penalty or sampling.frequency_penalty:
            return None
        free = self._free.setdefault(_key(params), [])
        graph = free.pop() if free else FrameGraph(self._talker, self._predictor, sampling, self._kv_dtype)
        return GraphFrames(graph, self._talker, params, max_rows=max_rows)

    def vocoder(self) -> CodesStream:
        """The waveform of one answer."""
        if not self._code2wav.backend.captures:
            return CodesStream(self._code2wav, None)
        free = self._free.setdefault("vocoder", [])
        return CodesStream(self._code2wav, free.pop() if free else VocoderGraph(self._code2wav))

    def give_back(self, params: SpeechParams, frames: object, stream: CodesStream | None) -> None:
        """What was lent to an answer that has ended."""
        if isinstance(frames, GraphFrames):
            self._free[_key(params)].append(frames.graph)
        if stream is not None and stream.graph is not None:
            self._free["vocoder"].append(stream.graph)


def _key(params: SpeechParams) -> tuple[object, ...]:
    return tuple(getattr(params.sampling, name) for name in _SAMPLING)
