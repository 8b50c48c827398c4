"""Rank 0: tells the other ranks of each step before it makes it, so that all make the same one."""

from __future__ import annotations

import itertools
import subprocess
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

import torch
from torch import Tensor, distributed

from lluda.backends.backend import ComputeBackend
from lluda.backends.group import Group, ProcessGroup
from lluda.config.decoder import DecoderConfig
from lluda.engine.kv_cache import CacheOptions, KVCache
from lluda.engine.parallel.channel import Channel, pickled
from lluda.engine.parallel.ranks import gather_ranks, open_group, rank_device
from lluda.engine.parallel.steps import CopyRows, LookUp, NewCache, Order, Stop, StoreState
from lluda.engine.parallel.watch import RankWatch
from lluda.errors import RankLost
from lluda.models.linear import Embedding

if TYPE_CHECKING:
    from lluda.engine.parallel.setup import Setup

_END_SECONDS = 5.0
"""Within which the other ranks end when they are told to."""

_NEWS_SECONDS = 3.0
"""Within which a rank that is gone is known to be, after a collective or a connection failed."""


class Leader:
    """The other ranks of one model, as rank 0 leads them. Any thread may; one at a time does.

    A step that fails on one rank leaves the others in the middle of it, so it ends all: `RankLost`."""

    def __init__(self, setup: Setup, ranks: int) -> None:
        """Start the other ranks, or find those that torchrun started; they begin to load. Errors as `gather_ranks`."""
        store, links, processes = gather_ranks(ranks)
        self._store = store  # which lives here
        self._orders = {rank: link.orders for rank, link in links.items()}
        self._processes = list(processes.values())
        self._lock = threading.RLock()
        self._numbers = itertools.count()
        self._dropped: deque[int] = deque()
        self._listeners: list[weakref.WeakMethod[Callable[[RankLost], None]]] = []
        reports = {rank: link.reports for rank, link in links.items()}
        self._watch = RankWatch(reports, processes, weakref.WeakMethod(self._lose))
        self._ending = weakref.finalize(self, _end, self._watch, list(self._orders.values()), self._processes)
        self.group: Group = _NO_GROUP
        self.bytes_of_ranks: dict[int, int] = {}
        """Of weights, in each rank's memory."""
        try:
            for channel in self._orders.values():
                channel.send(setup)
            open_group(store, 0, ranks, rank_device(setup.device))
            self.group = ProcessGroup()
        except BaseException:
            self.close()
            raise

    def join(self, backend: ComputeBackend, nbytes: int) -> Group:
        """When the other ranks have loaded their shares, the group, as ``backend`` uses it; this one has ``nbytes``.
        RankLost: one cannot."""
        self.bytes_of_ranks = {0: nbytes} | self._watch.wait_ready()
        self.group = backend.connect(self.group)
        return self.group

    @property
    def pids(self) -> list[int]:
        """Of the processes that were started here, by rank."""
        return [process.pid for process in self._processes]

    @property
    def error(self) -> RankLost | None:
        """Why nothing can be computed any more."""
        return self._watch.error

    def on_lost(self, listener: Callable[[RankLost], None]) -> None:
        """Call ``listener``, a method, on another thread, when a rank is lost."""
        self._listeners.append(weakref.WeakMethod(listener))
        if self.error is not None:
            listener(self.error)

    @contextmanager
    def leading(self, order: Order) -> Iterator[None]:
        """Around what rank 0 itself does for ``order``, of which the others have been told. RankLost: one is gone, or
        the step failed."""
        with self._lock:
            self._tell(order)
            try:
                yield
            except BaseException as error:
                # What a collective says of a rank that is gone comes before the news of it.
                lost = error if isinstance(error, RankLost) else self._watch.wait_error(_NEWS_SECONDS)
                if lost is None:
                    said = str(error).partition("\n")[0]
                    why = f"rank 0 failed in a step ({type(error).__name__}: {said:.200}); load the model again"
                    lost = RankLost(why)
                    self._watch.give_up(lost)
                raise lost from error
            self._require_all()

    def new_cache(
        self, config: DecoderConfig, options: CacheOptions, device: torch.device, capacity: int | None
    ) -> KVCache:
        """An empty cache here, and one on every other rank."""
        cache = LedCache(self, next(self._numbers), config, options, device, capacity)
        with self.leading(NewCache(cache.number, capacity)):
            return cache

    def drop(self, number: int) -> None:
        """Cache ``number`` is not used any more; the others hear of it with the next order."""
        self._dropped.append(number)

    def close(self) -> None:
        """End the other ranks."""
        with self._lock:
            if self._ending.detach() is not None:  # else it has been done
                _end(self._watch, list(self._orders.values()), self._processes, _END_SECONDS)

    def _tell(self, order: Order) -> None:
        self._require_all()
        try:
            self._send(order)
        except OSError as error:
            lost = self._watch.wait_error(_NEWS_SECONDS) or RankLost("a rank is gone; load the model again")
            raise lost from error

    def _send(self, order: Order) -> None:
        dropped = []
        while self._dropped:
            dropped.append(self._dropped.popleft())
        data = pickled((dropped, order))
        for channel in self._orders.values():
            channel.send_bytes(data)

    def _require_all(self) -> None:
        if self._watch.error is not None:
            raise self._watch.error

    def _lose(self, error: RankLost) -> None:
        """On the watching thread: let go of what waits for a rank that is gone."""
        for process in self._processes:
            process.kill()
        self.group.abort()
        for listener in self._listeners:
            call = listener()
            if call is not None:
                call(error)


class LedCache(KVCache):
    """Rank 0's part of a cache that has a part on every rank, by its ``number``."""

    def __init__(
        self,
        leader: Leader,
        number: int,
        config: DecoderConfig,
        options: CacheOptions,
        device: torch.device,
        capacity: int | None,
    ) -> None:
        super().__init__(config, options, device, capacity)
        self.number = number
        self._leader = leader
        weakref.finalize(self, leader.drop, number).atexit = False

    @property
    def state(self) -> StoreState:
        """What the others are told of it."""
        return StoreState(self.number, self.length, self.position_offset)

    def copy_rows(self, other: KVCache, rows: int) -> None:
        """See `KVCache.copy_rows`."""
        with self._leader.leading(CopyRows(state_of(other), self.state, rows)):
            super().copy_rows(other, rows)


class LedEmbedding(Embedding):
    """The table of tokens, of which every rank has a part, for what only rank 0 has."""

    def __init__(self, leader: Leader, table: Embedding) -> None:
        self._leader, self._table = leader, table
        self.weight = table.weight

    @property
    def device(self) -> torch.device:
        """Where its ids and rows are."""
        return self._table.device

    def __call__(self, ids: Tensor) -> Tensor:
        """See `Embedding.__call__`."""
        with self._leader.leading(LookUp(ids.tolist())):
            return self._table(ids)


def state_of(cache: object) -> StoreState:
    """What the others are told of a cache of `Leader.new_cache`."""
    assert isinstance(cache, LedCache), "the caches of a model with several ranks are its leader's"
    return cache.state


class _NoGroup:
    """Before there is one."""

    rank, ranks = 0, 1

    def sum(self, x: Tensor) -> Tensor:
        return x

    def side_by_side(self, x: Tensor) -> Tensor:
        return x

    def from_first(self, x: Tensor) -> Tensor:
        return x

    def abort(self) -> None:
        """Nothing waits."""


_NO_GROUP = _NoGroup()


def _end(
    watch: RankWatch,
    orders: Sequence[Channel],
    processes: Sequence[subprocess.Popen[bytes]],
    seconds: float = 0.0,
) -> None:
    """End the other ranks: all are told to, and those that were started here are ended by force after ``seconds``."""
    watch.close()
    for channel in orders:
        with suppress(OSError):
            channel.send(((), Stop()))
    end = time.monotonic() + seconds
    for process in processes:
        with suppress(subprocess.TimeoutExpired):
            process.wait(max(0.0, end - time.monotonic()))
        process.kill()
        process.wait()
    for channel in orders:
        channel.close()
    if distributed.is_initialized():
        distributed.destroy_process_group()
