"""Another rank than the first: loads its share of the model, then does what rank 0 tells it to, until that ends.

``python -m lluda.engine.parallel.follower`` is what rank 0 starts; under torchrun `lluda.load` comes here.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import distributed
from torch._C._distributed_c10d import Store

from lluda.backends.backend import ComputeBackend
from lluda.backends.components import Observer, StageObserver
from lluda.backends.group import Group, ProcessGroup
from lluda.engine.kv_cache import KVCache
from lluda.engine.parallel.channel import Channel
from lluda.engine.parallel.ranks import join_ranks, open_group, rank_device
from lluda.engine.parallel.setup import Setup
from lluda.engine.parallel.steps import CopyRows, Forward, Launch, LookUp, NewCache, Order, Stop, StoreState
from lluda.engine.parallel.watch import BEAT_SECONDS, Beat, Failed, Ready
from lluda.engine.runner import Runner
from lluda.errors import LludaError
from lluda.parameters import Share

_LOST = 3
"""Exit code where rank 0 is gone."""


class Follower:
    """Does one order after the other with this rank's network and caches."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        self._caches: dict[int, KVCache] = {}

    @torch.inference_mode()
    def do(self, order: Order) -> None:
        """The same as rank 0 does."""
        runner = self._runner
        if isinstance(order, Launch):
            runner.launch(order.ids, [self._cache(state) for state in order.stores], sampled=order.sampled)
        elif isinstance(order, Forward):
            self._forward(order)
        elif isinstance(order, NewCache):
            self._caches[order.number] = runner.new_cache(order.capacity)
        elif isinstance(order, CopyRows):
            self._cache(order.target).copy_rows(self._cache(order.source), order.rows)
        elif isinstance(order, LookUp):
            model = runner.model
            model.decoder.embed_tokens(torch.tensor(list(order.ids), device=model.backend.device))

    def drop(self, numbers: Sequence[int]) -> None:
        """These caches are not used any more."""
        for number in numbers:
            del self._caches[number]

    def _forward(self, order: Forward) -> None:
        group, device = self._runner.model.group, self._runner.model.backend.device
        assert group is not None, "a follower is of a group"
        injected = order.injected.receive(group, device) if order.injected else None
        segments = [(count, self._cache(state)) for count, state in order.segments]
        observe: Observer | None = None
        if order.observed is not None:
            observe = StageObserver(order.observed, _unseen) if order.observed else _nobody
        self._runner.forward(order.rows, segments, injected, observe, _no_score if order.scored else None)

    def _cache(self, state: StoreState) -> KVCache:
        cache = self._caches[state.number]
        cache.length, cache.position_offset = state.length, state.position_offset
        return cache


def follow() -> None:
    """Be one of the ranks that the environment (RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT) tells of, until rank 0 ends
    it; where rank 0 is gone, the process ends here. A fault is told to rank 0, then raised."""
    store, links = join_ranks()
    setup = cast("Setup", links.orders.receive())  # which rank 0 sends first
    threading.Thread(target=_beat, args=(links.reports,), name="lluda beats", daemon=True).start()
    try:
        _work(setup, store, links.orders, links.reports)
    except (EOFError, ConnectionError):
        os._exit(_LOST)
    except BaseException as error:
        said = str(error) if isinstance(error, LludaError) else f"{type(error).__name__}: {error}"
        _report(links.reports, Failed(said[:500]))
        raise


def _work(setup: Setup, store: Store, orders: Channel, reports: Channel) -> None:
    runner = _load(setup, store, reports)
    follower = Follower(runner)
    orders.spins = runner.model.backend.device.type == "cuda"
    while True:
        message: Any = orders.receive()
        dropped, order = message
        follower.drop(dropped)
        if isinstance(order, Stop):
            break
        follower.do(order)
    distributed.destroy_process_group()


def _load(setup: Setup, store: Store, reports: Channel) -> Runner:
    share = Share(int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]))
    open_group(store, share.rank, share.ranks, rank_device(setup.device))

    def join(backend: ComputeBackend, nbytes: int) -> Group:
        _report(reports, Ready(nbytes))
        return backend.connect(ProcessGroup())

    return setup.runner(share, join)


_sending = threading.Lock()


def _report(reports: Channel, report: object) -> None:
    with _sending:
        reports.send(report)


def _beat(reports: Channel) -> None:
    """Say that this rank lives. Where nobody hears it, whatever this process waits for will not come."""
    while True:
        try:
            _report(reports, Beat())
        except OSError:
            os._exit(_LOST)
        time.sleep(BEAT_SECONDS)


def _nobody(stage: str, rows: torch.Tensor) -> None:
    """Observes nothing: rank 0 looks."""


def _unseen(rows: torch.Tensor) -> None:
    """Observes nothing of one stage: rank 0 looks."""


def _no_score(rows: int, logits: torch.Tensor) -> None:
    """Keeps nothing: rank 0 does."""


if __name__ == "__main__":
    follow()
