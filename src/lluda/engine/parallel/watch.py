"""Whether the other ranks live: what rank 0 hears of them, and how it finds that one is gone."""

from __future__ import annotations

import select
import signal
import subprocess
import threading
import time
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from lluda.engine.parallel.channel import Channel
from lluda.errors import RankLost

BEAT_SECONDS = 1.0
"""How often another rank says that it lives."""

_SILENCE_SECONDS = 6.0
"""After which one that said nothing is given up: it is stopped, or its machine is gone."""


@dataclass(frozen=True, slots=True)
class Beat:
    """A rank lives."""


@dataclass(frozen=True, slots=True)
class Ready:
    """A rank has loaded its share, of so many bytes."""

    nbytes: int


@dataclass(frozen=True, slots=True)
class Failed:
    """A rank cannot go on, and why."""

    reason: str


class RankWatch:
    """A thread of rank 0 that reads the ``reports`` of the other ranks. ``processes``: those that were started here.
    ``lost`` is called once, on that thread, when one is gone."""

    def __init__(
        self,
        reports: Mapping[int, Channel],
        processes: Mapping[int, subprocess.Popen[bytes]],
        lost: weakref.WeakMethod[Callable[[RankLost], None]],
    ) -> None:
        self._reports, self._processes, self._lost = dict(reports), processes, lost
        self._ready: dict[int, int] = {}
        self._news = threading.Condition()
        self._closed = False
        self.error: RankLost | None = None
        """Why nothing can be computed any more."""
        self._thread = threading.Thread(target=self._watch, name="lluda ranks", daemon=True)
        self._thread.start()

    def wait_ready(self) -> dict[int, int]:
        """The bytes that each other rank has loaded, when all have. RankLost: one cannot."""
        with self._news:
            self._news.wait_for(lambda: self.error is not None or len(self._ready) == len(self._reports))
            if self.error is not None:
                raise self.error
            return dict(sorted(self._ready.items()))

    def wait_error(self, seconds: float) -> RankLost | None:
        """Why nothing can be computed, if that is found within ``seconds``."""
        with self._news:
            self._news.wait_for(lambda: self.error is not None, seconds)
            return self.error

    def give_up(self, error: RankLost) -> None:
        """Nothing can be computed any more, for the reason given or one that was found before."""
        with self._news:
            if self.error is not None or self._closed:
                return
            self.error = error
            self._news.notify_all()
        lost = self._lost()
        if lost is not None:
            lost(error)

    def close(self) -> None:
        """What becomes of the ranks is of no interest any more."""
        with self._news:
            self._closed = True
        if threading.current_thread() is not self._thread:
            self._thread.join()
        for channel in self._reports.values():
            channel.close()

    def _watch(self) -> None:
        heard = dict.fromkeys(self._reports, time.monotonic())
        numbers = {channel: rank for rank, channel in self._reports.items()}
        while not self._closed and self.error is None:
            readable, _, _ = select.select(list(numbers), [], [], BEAT_SECONDS / 2)
            for channel in readable:
                heard[numbers[channel]] = time.monotonic()
                self._hear(numbers[channel], channel)
            for rank, last in heard.items():
                if time.monotonic() - last > _SILENCE_SECONDS:
                    self._give_up(rank, f"said nothing for {_SILENCE_SECONDS:.0f} s")

    def _hear(self, rank: int, channel: Channel) -> None:
        try:
            report = channel.receive()
        except (EOFError, OSError):
            self._give_up(rank, self._end_of(rank))
            return
        if isinstance(report, Failed):
            self._give_up(rank, f"failed: {report.reason}")
        elif isinstance(report, Ready):
            with self._news:
                self._ready[rank] = report.nbytes
                self._news.notify_all()

    def _give_up(self, rank: int, what: str) -> None:
        ranks = len(self._reports) + 1
        self.give_up(RankLost(f"rank {rank} of {ranks} {what}, so the model it had a share of is gone; load it again"))

    def _end_of(self, rank: int) -> str:
        process = self._processes.get(rank)
        if process is None:
            return "closed its connection"
        try:
            code = process.wait(1)
        except subprocess.TimeoutExpired:
            return "closed its connection"
        return f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
