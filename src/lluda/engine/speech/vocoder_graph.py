"""Code2Wav one frame at a time as one launch each."""

from __future__ import annotations

import torch
from torch import Tensor

from lluda.backends.capture import STORE_WIDTH, CapturedStep, DeviceStore
from lluda.models.code2wav import Code2Wav, Code2WavState
from lluda.models.conv import ConvState, FixedConvState


class _FixedState(Code2WavState):
    """A stream's state in places that do not change; its transformer's cache is a ring of one window."""

    def __init__(self, network: Code2Wav, begun: Code2WavState) -> None:
        super().__init__(network.config, network.backend)
        decoder, device = network.config.transformer, network.backend.device
        shape = (decoder.num_hidden_layers, decoder.num_key_value_heads, network.config.window, decoder.head_dim)
        self.ring = torch.zeros((2, *shape), dtype=network.backend.precision.compute, device=device)
        self.inputs = torch.zeros(STORE_WIDTH, dtype=torch.int64, device=device)
        self.store = DeviceStore(self.inputs.view(1, STORE_WIDTH), 0, self.ring.dtype)
        self.cache = self.store  # type: ignore[assignment]
        self.conv_state = self.fixed = FixedConvState(begun.conv_state)

    def positions(self, count: int, device: torch.device) -> Tensor:
        """Of the next frame: how many went before, as the device knows it."""
        assert count == 1 and device == self.inputs.device, "one frame at a time"
        return self.inputs[2:3]


class VocoderGraph:
    """The captured frames of one network, a stream's first and any other; streams use them in turn."""

    def __init__(self, network: Code2Wav, *, capture: bool = True) -> None:
        self._network, device = network, network.backend.device
        self._capture = capture
        self._host = network.backend.pinned((STORE_WIDTH + network.config.num_quantizers,), torch.int64)
        self._inputs = torch.zeros_like(self._host, device=device)
        sizes = (network.config.samples(1), network.config.samples_per_frame)
        self._samples = [network.backend.pinned((size,), torch.float32) for size in sizes]
        self._state: _FixedState | None = None
        self._graphs: list[CapturedStep | None] = [None, None]
        self._frames = 0

    @property
    def warm_up_seconds(self) -> float:
        """Seconds that compiling and capturing took."""
        return sum(graph.warm_up_seconds for graph in self._graphs if graph)

    @torch.inference_mode()
    def push(self, codes: list[int], *, first: bool) -> Tensor:
        """A stream's next frame (``first``: of a new one) -> its samples, float32 on the host: ``samples_per_frame``,
        of the first fewer."""
        graph = self.launch(codes, first=first)
        graph.wait()
        return self._samples[not first].clone()

    @torch.inference_mode()
    def launch(self, codes: list[int], *, first: bool) -> CapturedStep:
        """Start the next frame."""
        state = self._state = self._state or self._make_state()
        self._frames = 0 if first else self._frames + 1
        keys, values = state.ring
        self._host[:] = torch.tensor([keys.data_ptr(), values.data_ptr(), self._frames, keys.shape[2], *codes])
        graph = self._graphs[not first]
        if graph is None:
            body = self._first if first else self._next
            kept = state.fixed.tensors
            graph = self._graphs[not first] = self._network.backend.new_graph(body, capture=self._capture, state=kept)
        graph.launch()
        return graph

    def _make_state(self) -> _FixedState:
        """Of the shapes that a stream's state has after a frame."""
        begun = self._network.stream()
        codes = torch.zeros(self._network.config.num_quantizers, 1, dtype=torch.int64)
        self._network.push(codes, begun)
        return _FixedState(self._network, begun)

    def _first(self) -> None:
        state = self._state
        assert state is not None
        state.conv_state = ConvState()
        self._frame(state, self._samples[0])
        state.fixed.begin(state.conv_state)
        state.conv_state = state.fixed

    def _next(self) -> None:
        assert self._state is not None
        self._frame(self._state, self._samples[1])

    def _frame(self, state: _FixedState, out: Tensor) -> None:
        self._inputs.copy_(self._host, non_blocking=True)
        state.inputs.copy_(self._inputs[:STORE_WIDTH])
        samples = self._network.frame(self._inputs[STORE_WIDTH:, None], state)
        out.copy_(samples.float(), non_blocking=True)
