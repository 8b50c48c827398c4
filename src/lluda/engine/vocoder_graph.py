"""Code2Wav one frame at a time as one launch each, from the second frame of a stream on."""

from __future__ import annotations

import torch
from torch import Tensor

from lluda.layers.conv import FixedRows
from lluda.models.code2wav import Code2Wav, Code2WavState


class _FixedState(Code2WavState):
    """A stream's state in places that do not change; its transformer's cache is a ring of one window."""

    def __init__(self, network: Code2Wav, begun: Code2WavState) -> None:
        from lluda.backends.cuda_graph import DeviceStore

        super().__init__(network.config, network.backend)
        decoder, device = network.config.transformer, network.backend.device
        shape = (decoder.num_hidden_layers, decoder.num_key_value_heads, network.config.window, decoder.head_dim)
        self.ring = torch.zeros((2, *shape), dtype=network.backend.precision.compute, device=device)
        self.inputs = torch.zeros(4, dtype=torch.int64, device=device)
        self.store = DeviceStore(self.inputs.view(1, 4), 0, self.ring.dtype)
        self.cache = self.store  # type: ignore[assignment]
        self.kept = FixedRows(begun.kept)

    def positions(self, count: int, device: torch.device) -> Tensor:
        """Of the next frame: how many went before, as the device knows it."""
        assert count == 1 and device == self.inputs.device, "one frame at a time"
        return self.inputs[2:3]


class VocoderGraph:
    """The captured frame of one network; streams use it in turn, each from ``begin`` to its end."""

    def __init__(self, network: Code2Wav, *, capture: bool = True) -> None:
        from lluda.backends.cuda_graph import Graph, pinned

        self._network, device = network, network.backend.device
        self._capture, self._graph_of = capture and device.type == "cuda", Graph
        self._host = pinned((4 + network.config.num_quantizers,), torch.int64, device)
        self._inputs = torch.zeros_like(self._host, device=device)
        self._samples = pinned((network.config.samples_per_frame,), torch.float32, device)
        self._state: _FixedState | None = None
        self._graph: Graph | None = None
        self._frames = 0

    @property
    def warm_up_seconds(self) -> float:
        """Seconds that compiling and capturing took."""
        return self._graph.warm_up_seconds if self._graph else 0.0

    @torch.inference_mode()
    def begin(self, codes: Tensor) -> Tensor:
        """Start a stream: its first frame, int64 ``[num_quantizers, 1]`` -> its samples (float32, on the host)."""
        begun = self._network.stream()
        samples = self._network.push(codes, begun)
        if self._state is None:
            self._state = _FixedState(self._network, begun)
        assert isinstance(self._state.kept, FixedRows)
        self._state.kept.begin(begun.kept)
        for ring, buffer in zip(self._state.ring, begun.cache.room(0), strict=True):
            ring[:, :, :1] = buffer[:, :, :1]
        self._frames = 1
        return samples.float().cpu()

    @torch.inference_mode()
    def push(self, codes: list[int]) -> Tensor:
        """The next frame: float32 ``[samples_per_frame]`` on the host."""
        self.launch(codes)
        assert self._graph is not None
        self._graph.wait()
        return self._samples.clone()

    @torch.inference_mode()
    def launch(self, codes: list[int]) -> None:
        """Start the next frame."""
        state = self._state
        assert state is not None, "begin comes first"
        keys, values = state.ring
        self._host[:] = torch.tensor([keys.data_ptr(), values.data_ptr(), self._frames, keys.shape[2], *codes])
        if self._graph is None:
            assert isinstance(state.kept, FixedRows)
            device, kept = self._network.backend.device, state.kept.tensors
            self._graph = self._graph_of(self._body, device, capture=self._capture, state=kept)
        self._graph.launch()
        self._frames += 1

    def _body(self) -> None:
        state = self._state
        assert state is not None
        self._inputs.copy_(self._host, non_blocking=True)
        state.inputs.copy_(self._inputs[:4])
        samples = self._network.frame(self._inputs[4:, None], state)
        self._samples.copy_(samples.float(), non_blocking=True)
