"""One launch for a whole step: what a function puts on the device is captured once and replayed.

Everything a step needs to know lies in one block of pinned memory that the graph itself copies to the device, and what
the host wants of it in another; in between the host is not asked.
"""

from __future__ import annotations

import gc
import struct
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from lluda.backends.batch import KeyValueStore, Segment
from lluda.backends.capture import (
    SAMPLING_NUMBERS,
    SAMPLING_WIDTH,
    STORE_WIDTH,
    DeviceStore,
    RowSampling,
    RowSettings,
    Run,
    store_row,
)
from lluda.backends.components import Observer

Layers = Callable[[Tensor, Tensor, Sequence[Segment], Observer | None], Tensor]
"""The layers of a stack: residual rows, positions, segments and an observer -> residual rows."""


class Graph:
    """``body()``, which reads and writes tensors of fixed places, as one launch on ``device``; without ``capture`` (a
    CPU, or to compare) it runs each time. It is run once to compile what is not compiled yet (``warm_up_seconds``);
    ``state``, which it changes, is put back after that.

    Where the body asks its backend for work `host_callback`, the launch is in parts, with that work between them."""

    recording: ClassVar[Graph | None] = None
    """The one that is being captured."""

    def __init__(
        self,
        body: Callable[[], None],
        device: torch.device,
        *,
        capture: bool,
        state: Sequence[Tensor] = (),
        pool: Any = None,
    ) -> None:
        self._body, self._device = body, device
        self._parts: list[torch.cuda.CUDAGraph | Callable[[], object]] = []
        started = time.perf_counter()
        if capture:
            self._pool = pool or torch.cuda.graph_pool_handle()
            stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call, unused-ignore]
            before = [tensor.clone() for tensor in state]
            stream.wait_stream(torch.cuda.current_stream(device))
            with torch.cuda.stream(stream):
                body()
            torch.cuda.current_stream(device).wait_stream(stream)
            for tensor, value in zip(state, before, strict=True):
                tensor.copy_(value)
            torch.cuda.synchronize(device)
            torch.cuda.empty_cache()
            with torch.cuda.stream(stream):
                self._record()
        self.warm_up_seconds = time.perf_counter() - started

    def launch(self) -> None:
        """Put it on the current stream."""
        if not self._parts:
            self._body()
        for part in self._parts:
            if isinstance(part, torch.cuda.CUDAGraph):
                part.replay()
            else:
                self.wait()
                part()

    def wait(self) -> None:
        """Until what was launched is done."""
        if self._device.type == "cuda":
            torch.cuda.current_stream(self._device).synchronize()

    def break_for(self, work: Callable[[], object]) -> None:
        """While capturing: end this part; ``work`` comes behind it, then the next."""
        self._end()
        self._parts.append(work)
        self._begin()

    def _record(self) -> None:
        Graph.recording = self
        with _garbage_kept():  # what is freed meanwhile would be freed by the graph
            self._begin()
            try:
                self._body()
            finally:
                Graph.recording = None
                self._end()

    def _begin(self) -> None:
        part = torch.cuda.CUDAGraph()
        part.capture_begin(pool=self._pool)  # type: ignore[no-untyped-call, unused-ignore]
        self._parts.append(part)

    def _end(self) -> None:
        part = self._parts[-1]
        assert isinstance(part, torch.cuda.CUDAGraph), "work on the host ends where a part begins"
        part.capture_end()


@contextmanager
def _garbage_kept() -> Iterator[None]:
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()


def pinned(shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Zeros on the host that ``device`` can copy by itself."""
    return torch.zeros(tuple(shape), dtype=dtype, pin_memory=device.type == "cuda")


class _SamplingRows:
    """Where the host writes how rows are sampled: what is as it was for the step before is not written again."""

    def __init__(self, rows: Tensor) -> None:
        """``rows``: int64 ``[rows, SAMPLING_WIDTH]``."""
        self._numbers, self._addresses = rows.view(torch.float64).numpy(), rows.numpy()[:, SAMPLING_NUMBERS:]
        self._settings: tuple[RowSettings, ...] = ()
        self._tables: list[tuple[int, ...]] = []

    def write(self, sampling: Sequence[RowSampling]) -> None:
        """One of each row."""
        settings, uniforms, *tables = zip(*sampling, strict=True)
        if settings != self._settings:
            self._numbers[:, : SAMPLING_NUMBERS - 1], self._settings = settings, settings
        if tables != self._tables:
            self._addresses[:], self._tables = np.transpose(tables), tables
        self._numbers[:, SAMPLING_NUMBERS - 1] = uniforms


class DecodeGraph:
    """A step of ``rows`` sequences, one row each, and the id chosen of each.

    Args:
        run: the network's step.
        choose: float logits ``[rows, vocab]``, ids ``[rows]`` and the rows' `RowSampling` (as bytes, int64 ``[rows,
            SAMPLING_WIDTH]``) -> float64 ``[rows, 2]``: ids, and the largest logits or scores.
        kv_dtype: of the stores it will be given.
        sampled: whether rows are chosen by settings of their own.
    """

    def __init__(
        self,
        run: Run,
        choose: Callable[[Tensor, Tensor, Tensor], Tensor],
        rows: int,
        kv_dtype: torch.dtype,
        device: torch.device,
        *,
        sampled: bool = False,
        capture: bool = True,
    ) -> None:
        self.rows, self._run, self._choose, self._device, self._capture = rows, run, choose, device, capture
        # Stores, ids, positions, and how each row is sampled: copied by one call.
        widths = (STORE_WIDTH, 1, 1, SAMPLING_WIDTH if sampled else 0)
        self._format = struct.Struct(f"={rows * (STORE_WIDTH + 1)}q{rows}d")
        self._host = pinned((rows * sum(widths),), torch.int64, device)
        self._bytes = self._host.numpy().data.cast("B")
        self._sampling = (
            _SamplingRows(self._host[rows * (STORE_WIDTH + 2) :].view(rows, widths[-1])) if sampled else None
        )
        self._inputs = torch.zeros_like(self._host, device=device)
        parts = torch.split(self._inputs, [rows * width for width in widths])
        self._parts = [part.view(rows, width) for part, width in zip(parts, widths, strict=True)]
        stores = (DeviceStore(self._parts[0], row, kv_dtype) for row in range(rows))
        self._segments = [Segment(row, 1, store) for row, store in enumerate(stores)]
        self._chosen = pinned((rows, 2), torch.float64, device)
        self._logits = torch.empty(0)
        self._graph: Graph | None = None

    @property
    def warm_up_seconds(self) -> float:
        """Seconds that compiling and capturing took; 0 before the first step."""
        return self._graph.warm_up_seconds if self._graph else 0.0

    def launch(
        self,
        ids: Sequence[int],
        positions: Sequence[float],
        stores: Sequence[KeyValueStore],
        sampling: Sequence[RowSampling] = (),
    ) -> None:
        """See `CapturedDecode.launch`."""
        places = chain.from_iterable(map(store_row, stores))
        self._format.pack_into(self._bytes, 0, *places, *ids, *positions)
        if self._sampling is not None:
            self._sampling.write(sampling)
        if self._graph is None:
            self._graph = Graph(self._body, self._device, capture=self._capture)
        self._graph.launch()

    def result(self) -> tuple[list[int], list[float]]:
        """See `CapturedDecode.result`."""
        assert self._graph is not None, "nothing was launched"
        self._graph.wait()
        chosen = self._chosen.tolist()
        return [int(row[0]) for row in chosen], [row[1] for row in chosen]

    @property
    def logits(self) -> Tensor:
        """Float logits ``[rows, vocab]`` of the last step, overwritten by the next."""
        return self._logits

    def _body(self) -> None:
        self._inputs.copy_(self._host, non_blocking=True)
        _, ids, positions, sampling = self._parts
        ids = ids[:, 0]
        self._logits = self._run(ids, positions[:, 0].view(torch.float64), self._segments).float()
        self._chosen.copy_(self._choose(self._logits, ids, sampling), non_blocking=True)
