"""Code2wav on a GPU: each stream's past stays there."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lluda.backends.batch import VocoderState
from lluda.backends.components import Observer, Vocoder
from lluda.backends.wgpu.executor import WgpuExecutor
from lluda.backends.wgpu.runs.stream import Stream
from lluda.backends.wgpu.runs.vocoder_run import VocoderRun

FRAMES_AT_ONCE = 8
"""Of one submission, so that memory is bounded; they are cut without changing a sample."""


class WgpuVocoder(WgpuExecutor):
    """A stream's samples do not depend on how its frames come: each sum has one order."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._streams: weakref.WeakKeyDictionary[VocoderState, Stream] = weakref.WeakKeyDictionary()

    def vocode(
        self,
        vocoder: Vocoder,
        codes: Sequence[Tensor],
        states: Sequence[VocoderState],
        observe: Observer | None = None,
    ) -> list[Tensor]:
        """See `ComputeBackend.vocode`. One stream behind the other; code tables are looked up on the host."""
        if self._run_of(vocoder, 1, first=True) is None:
            return super().vocode(vocoder, codes, states, observe)
        made = []
        for own, state in zip(codes, states, strict=True):
            parts = [self._some(vocoder, part, state, observe) for part in torch.split(own, FRAMES_AT_ONCE, dim=1)]
            made.append(parts[0] if len(parts) == 1 else torch.cat(parts))
        return made

    def _some(self, vocoder: Vocoder, codes: Tensor, state: VocoderState, observe: Observer | None) -> Tensor:
        frames = codes.shape[1]
        run = self._run_of(vocoder, frames, first=state.frames == 0)
        assert run is not None, "one frame has kernels, several take no others"
        if state not in self._streams:
            self._streams[state] = run.new_stream()
        table = self.rotary_table(state.positions(frames, self.device), vocoder.layers.rotary)
        samples = run(self._embedded(vocoder, codes), table, state.frames, self._streams[state], observe)
        state.frames += frames
        return samples

    def _run_of(self, vocoder: Vocoder, frames: int, *, first: bool) -> VocoderRun | None:
        key = vocoder, frames, first
        return self.run_of(key, lambda memory: VocoderRun(memory, vocoder, frames, first=first))
