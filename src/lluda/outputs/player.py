"""Speech that can be interrupted: played in real time from a queue, which is emptied at once."""

from __future__ import annotations

import threading
import time
from types import TracebackType
from typing import TYPE_CHECKING, Self

from lluda.outputs.audio_sink import AudioSink

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_PIECE_SECONDS = 0.02
"""Handed to the sink at once."""

_LEAD_SECONDS = 0.06
"""Given to the sink before it is heard, so that a device does not run dry: what still sounds after `flush`."""


class Player:
    """Plays samples at ``rate`` Hz into ``sink`` as fast as one hears them, on a thread of its own: a file then holds
    what was heard. A context that closes the sink; `error` is what the sink raised, after which nothing is played."""

    def __init__(self, sink: AudioSink, rate: int) -> None:
        self.error: Exception | None = None
        self.played = 0
        """Samples since `begin`."""
        self.began: float | None = None
        """When the first of them was played, by the monotonic clock."""
        self._sink, self._rate, self._piece = sink, rate, int(_PIECE_SECONDS * rate)
        self._queue: list[NDArray[np.float32]] = []
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="lluda player", daemon=True)
        self._thread.start()

    @property
    def is_playing(self) -> bool:
        """Whether something is left to be played."""
        return bool(self._queue)

    def begin(self) -> None:
        """What follows is another answer."""
        with self._changed:
            self.played, self.began = 0, None

    def play(self, samples: NDArray[np.float32]) -> None:
        """More to be played: mono, full scale 1. Returns at once."""
        with self._changed:
            if len(samples):
                self._queue.append(samples)
                self._changed.notify_all()

    def flush(self) -> None:
        """Play no more of what was given; `played` says how far that came."""
        with self._changed:
            self._queue.clear()
            self._changed.notify_all()

    def wait(self) -> None:
        """Until all is played."""
        with self._changed:
            self._changed.wait_for(lambda: not self._queue or self.error is not None)

    def close(self) -> None:
        """Stop playing, and close the sink."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join()
        self._sink.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _run(self) -> None:
        due = 0.0
        while (piece := self._next()) is not None:
            due = max(due, time.monotonic())
            try:
                self._sink.write(piece)
            except Exception as error:
                with self._changed:
                    self.error = error
                    self._queue.clear()
                    self._changed.notify_all()
                return
            due += len(piece) / self._rate
            time.sleep(max(0.0, due - _LEAD_SECONDS - time.monotonic()))
            with self._changed:
                self._changed.notify_all()

    def _next(self) -> NDArray[np.float32] | None:
        """The next piece, waited for; None when closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._queue or self._closed)
            if self._closed:
                return None
            first = self._queue[0]
            piece, rest = first[: self._piece], first[self._piece :]
            if len(rest):
                self._queue[0] = rest
            else:
                del self._queue[0]
            self.began = self.began or time.monotonic()
            self.played += len(piece)
            return piece
