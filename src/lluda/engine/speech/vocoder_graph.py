"""Code2Wav a frame at a time as one launch each, for as many streams as have one to make."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from itertools import chain

import torch
from torch import Tensor

from lluda.backends.batch import Segment
from lluda.backends.capture import STORE_WIDTH, CapturedStep, DeviceStore, StreamContexts, StreamRows
from lluda.models.code2wav import Code2Wav

STREAMS = 16
"""Streams whose pasts lie together; the last place is nobody's."""

BUCKETS = (1, 2, 4, 8, 16)
"""Streams that a launch is made for; one of fewer is filled up with nobody's."""


class VocoderStream:
    """The waveform of one answer among others."""

    def __init__(self, graph: VocoderGraph, number: int) -> None:
        self.graph, self.number = graph, number
        self.frames = 0
        """Pushed so far."""


class VocoderGraph:
    """The captured frames of one network, and the pasts of ``STREAMS`` streams of it.

    Args:
        capture: without, launches go out one by one, to compare.
    """

    def __init__(self, network: Code2Wav, *, capture: bool = True) -> None:
        self._network, self._capture = network, capture
        decoder, device = network.config.transformer, network.backend.device
        shape = (decoder.num_hidden_layers, decoder.num_key_value_heads, network.config.window, decoder.head_dim)
        self._rings = torch.zeros((2, STREAMS + 1, *shape), dtype=network.backend.precision.compute, device=device)
        self._contexts = StreamContexts(STREAMS + 1)
        self._batches: dict[int, _Batch] = {}
        self._free = list(range(STREAMS))

    @property
    def warm_up_seconds(self) -> float:
        """Seconds that compiling and capturing took."""
        return sum(batch.graph.warm_up_seconds for batch in self._batches.values() if batch.graph)

    @property
    def is_full(self) -> bool:
        """Whether it has no place for one more stream."""
        return not self._free

    def stream(self) -> VocoderStream:
        """A new stream."""
        return VocoderStream(self, self._free.pop())

    def give_back(self, stream: VocoderStream) -> None:
        """The place of a stream that has ended."""
        self._free.append(stream.number)

    @torch.inference_mode()
    def push(self, streams: Sequence[VocoderStream], codes: Sequence[Sequence[int]]) -> list[Tensor]:
        """The next frame of each stream, its codes one of each codebook -> the samples that it completes, float32 on
        the host: of a stream's first frame fewer than of others."""
        found: list[Tensor] = []
        for start in range(0, len(streams), BUCKETS[-1]):
            part = slice(start, start + BUCKETS[-1])
            self.launch(streams[part], codes[part]).wait()
            samples = self._batch(len(streams[part])).samples
            for row, stream in enumerate(streams[part]):
                stream.frames += 1
                found.append(samples[row, len(samples[row]) - self._completed(stream.frames) :].clone())
        return found

    @torch.inference_mode()
    def launch(self, streams: Sequence[VocoderStream], codes: Sequence[Sequence[int]]) -> CapturedStep:
        """Start the next frame of up to ``BUCKETS[-1]`` streams, which are not counted on."""
        return self._start(self._batch(len(streams)), streams, codes)

    @torch.inference_mode()
    def warm_up(self, streams: int) -> None:
        """Compile and capture what so many streams launch, by a launch of nobody's."""
        self._start(self._batch(streams), (), ()).wait()

    def _start(self, batch: _Batch, streams: Sequence[VocoderStream], codes: Sequence[Sequence[int]]) -> CapturedStep:
        nobody = batch.rows - len(streams)
        stores = [self._store(stream.number, stream.frames) for stream in streams]
        stores += [self._store(STREAMS, 0)] * nobody
        numbers = [stream.number for stream in streams] + [STREAMS] * nobody
        filled = [*codes, *[[0] * self._network.config.num_quantizers] * nobody]
        batch.fill(stores, numbers, [store[2] for store in stores], zip(*filled, strict=True))
        if batch.graph is None:
            # What is run to warm up reads what it then writes again: nothing has to be put back.
            batch.graph = self._network.backend.new_graph(lambda: self._frame(batch), capture=self._capture)
        batch.graph.launch()
        return batch.graph

    def _batch(self, streams: int) -> _Batch:
        rows = next(bucket for bucket in BUCKETS if bucket >= streams)
        if rows not in self._batches:
            self._batches[rows] = _Batch(self._network, rows, self._rings.dtype, self._contexts)
        return self._batches[rows]

    def _store(self, stream: int, frames: int) -> tuple[int, int, int, int]:
        keys, values = self._rings[:, stream]
        return keys.data_ptr(), values.data_ptr(), frames, keys.shape[2]

    def _completed(self, frames: int) -> int:
        """Samples that the last of so many frames completes."""
        config = self._network.config
        return config.samples(frames) - config.samples(frames - 1)

    def _frame(self, batch: _Batch) -> None:
        batch.inputs.copy_(batch.host, non_blocking=True)
        samples = self._network.frames_together(batch.codes, batch.stream_rows)
        batch.samples.copy_(samples.float(), non_blocking=True)


class _Batch:
    """What a launch of ``rows`` streams is given and gives back."""

    def __init__(self, network: Code2Wav, rows: int, cache: torch.dtype, contexts: StreamContexts) -> None:
        backend, codebooks = network.backend, network.config.num_quantizers
        self.rows = rows
        self.host = backend.pinned((rows * (STORE_WIDTH + 2 + codebooks),), torch.int64)
        self._format = struct.Struct(f"={len(self.host)}q")
        self._bytes = self.host.numpy().data.cast("B")
        self.inputs = torch.zeros_like(self.host, device=backend.device)
        sizes = [rows * STORE_WIDTH, rows, rows, rows * codebooks]
        stores, streams, frames, codes = torch.split(self.inputs, sizes)
        self.codes = codes.view(codebooks, rows)
        table = stores.view(rows, STORE_WIDTH)
        segments = [Segment(row, 1, DeviceStore(table, row, cache)) for row in range(rows)]
        self.stream_rows = StreamRows(streams, frames, segments, contexts)
        self.samples = backend.pinned((rows, network.config.samples_per_frame), torch.float32)
        self.graph: CapturedStep | None = None

    def fill(
        self,
        stores: Sequence[Sequence[int]],
        streams: Sequence[int],
        frames: Sequence[int],
        codes: Iterable[Sequence[int]],
    ) -> None:
        """Numbers of the next launch: of each row its store, stream and frames before; of each codebook its codes."""
        self._format.pack_into(
            self._bytes, 0, *chain.from_iterable(stores), *streams, *frames, *chain.from_iterable(codes)
        )
