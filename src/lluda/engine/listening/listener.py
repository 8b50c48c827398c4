"""One recording that is still being spoken: heard as far as it is known, so that little is left to do at its end.

The audio encoder's blocks of 8 s do not depend on each other, nor the decoder's rows on those behind them. So each
block is encoded as soon as it is full, and the conversation up to there is computed and retained, as a prefix that the
prompt of the whole recording begins with (`PromptRows.shares_rows`). Where a louder moment raises the floor under a
block's features (`GrowingLogMel`), the block has another key, and is encoded and computed again.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from typing import TYPE_CHECKING, Self

import numpy as np
from torch import Tensor

from lluda.engine.engine import Engine
from lluda.engine.media import EncodedMedia, MediaBlock, MediaReader
from lluda.engine.prompt_rows import PromptRows
from lluda.engine.request import Completion, Request, Token
from lluda.engine.stream import Stream
from lluda.errors import InvalidRequest, LimitExceeded
from lluda.inputs.media.audio_features import GrowingLogMel

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from lluda.engine.request import SpeechEvent

_log = logging.getLogger(__name__)


class Listener:
    """`push` what comes; `finish` gives what the whole recording would, encoded at once. No method waits, and any
    thread may call them; the work is done by a thread that lives while there is some.

    Args:
        prompt: the prompt that ends with a recording, and what opens the answer to it.
        request: the request that computes and retains the rows of a prompt.
        first_token: the same, and makes the first token of the answer: asked where an end is expected.
    """

    def __init__(
        self,
        engine: Engine,
        reader: MediaReader,
        prompt: Callable[[EncodedMedia], PromptRows],
        request: Callable[[PromptRows], Request],
        first_token: Callable[[PromptRows], Request] | None = None,
    ) -> None:
        self.error: Exception | None = None
        """Why nothing more is computed ahead; whoever asks for the answer is told the same, if it lasts."""
        self.prefilled = 0
        """Rows of the prompt that were computed ahead."""
        self._engine, self._reader, self._prompt, self._request = engine, reader, prompt, request
        self._ask_first_token = first_token
        self._token: tuple[int, Token] | None = None  # of the end that was expected
        self._heard: tuple[int, EncodedMedia] | None = None  # up to the end that was expected
        self._mel = GrowingLogMel(reader.mel)
        self._rows: dict[bytes, Tensor] = {}
        self._changed = threading.Condition()
        self._incoming: list[NDArray[np.float32]] = []
        self._pushed = 0
        self._expected: int | None = None
        self._end: int | None = None
        self._over = self._working = False
        self._ready = b""  # the full blocks whose rows were computed
        self._looked_at = (-1, 0.0)  # full blocks, and what their floor is counted from
        self._done: tuple[int, int | None] | None = None  # frames that were known, and the end that was expected
        self._stream: Stream[SpeechEvent] | None = None
        self._result: Future[EncodedMedia] = Future()
        self._work()

    def push(self, samples: NDArray[np.float32]) -> None:
        """More of it: mono, at the model's rate (16 kHz), full scale 1. InvalidRequest: it was finished, or the samples
        are none. LimitExceeded: a recording is not as long."""
        most = self._reader.audio_limits.max_seconds
        if samples.ndim != 1 or samples.dtype.kind != "f" or not np.isfinite(samples).all():
            raise InvalidRequest(f"a listener takes finite float samples [n], not {samples.dtype} {samples.shape}")
        with self._changed:
            if self._end is not None or self._over:
                raise InvalidRequest("this recording is over; open another listener for what follows")
            if self._pushed + len(samples) > most * self._reader.mel.sampling_rate:
                raise LimitExceeded(f"a recording may last {most} s; finish it, and open another listener")
            self._incoming.append(samples)
            self._pushed += len(samples)
        self._work()

    def expect_end(self, sample: int | None) -> None:
        """The recording may end before ``sample`` of those that were pushed: all is made ready for that. Until it is
        said that it goes on (None), or to end elsewhere, blocks behind that sample wait."""
        with self._changed:
            self._expected = None if sample is None else min(sample, self._pushed)
        self._work()

    def finish(self, end: int | None = None) -> Future[EncodedMedia]:
        """The recording ends before sample ``end`` (None: with the last one pushed). Its Future may stand in a message
        as the source of the audio; InvalidRequest there: it is too short for features."""
        with self._changed:
            if self._end is None:
                self._end = self._pushed if end is None else min(end, self._pushed)
                self._stop_prefill()
        self._work()
        return self._result

    def discard(self) -> None:
        """It was nothing: what is under way ends."""
        with self._changed:
            self._over = True
            self._stop_prefill()
            self._incoming.clear()
        self._result.cancel()

    @property
    def first_token(self) -> Token | None:
        """What the answer would begin with if the recording ended where it is expected to, once that is known."""
        with self._changed:
            found = self._token
            return found[1] if found is not None and found[0] == self._expected else None

    def settled(self, timeout: float | None = None) -> bool:
        """Wait until all that can be done by now is done; whether it is, within ``timeout`` seconds."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._working, timeout)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.discard()

    def _stop_prefill(self) -> None:
        if self._stream is not None:
            self._stream.cancel()  # the rows that were computed are retained

    @property
    def _wanted(self) -> tuple[int, int | None]:
        """What is to be ready: the full blocks of so many frames, or all for an expected end."""
        heard = self._pushed if self._expected is None else self._expected
        return self._mel.frames_after(heard), self._expected

    def _work(self) -> None:
        """Let the thread begin, where there is something to do and it does not run."""
        with self._changed:
            if self._working or not self._is_behind():
                return
            self._working = True
        threading.Thread(target=self._run, name="lluda listener", daemon=True).start()

    def _is_behind(self) -> bool:
        if self._over:
            return False
        return self._end is not None or (self.error is None and self._wanted != self._done)

    # On its own thread.

    def _run(self) -> None:
        while True:
            with self._changed:
                if not self._is_behind():
                    self._working = False
                    self._changed.notify_all()
                    return
                incoming, self._incoming = self._incoming, []
                wanted, end = self._wanted, self._end
                self._over = end is not None
            for samples in incoming:
                self._mel.push(samples)
            if end is not None:
                self._give(end)
            else:
                self._prepare(*wanted)
                self._done = wanted

    def _give(self, end: int) -> None:
        if not self._result.set_running_or_notify_cancel():
            return
        try:
            self._result.set_result(self._heard_until(end))
        except BaseException as error:
            self._result.set_exception(error)

    def _prepare(self, frames: int, expected: int | None) -> None:
        """Rows of a prompt, up to the last full block, or as they are if the recording ends as expected."""
        try:
            if expected is None:
                self._prepare_blocks(frames // self._reader.block_frames)
            elif expected >= self._reader.mel.min_samples:
                prompt = self._prompt(self._heard_until(expected))
                if self._ask_first_token is None:
                    self._prefill(prompt.head(len(prompt) - 1))  # whoever answers computes the last one in any case
                else:
                    self._ask(self._ask_first_token(prompt), expected)
        except Exception as error:  # the recording is there in any case, and is heard at its end
            self.error = error
            _log.warning("a recording is not heard ahead any more, but at its end: %s: %s", type(error).__name__, error)

    def _prepare_blocks(self, blocks: int) -> None:
        """Rows up to the last full block; again where a floor that rose changes one of them."""
        if self._looked_at == (blocks, self._mel.peak):
            return
        self._looked_at = blocks, self._mel.peak
        heard = self._encoded(self._mel.known(blocks * self._reader.block_frames))
        if heard.key != self._ready:
            prompt = self._prompt(heard)
            self._prefill(prompt.head(prompt.rows_of_last_medium()[1]))
            self._ready = heard.key

    def _heard_until(self, end: int) -> EncodedMedia:
        """The recording if it ends before sample ``end``, which is the same whatever comes behind it."""
        if self._heard is None or self._heard[0] != end:
            self._heard = end, self._encoded(self._mel.ending(end))
        return self._heard[1]

    def _encoded(self, features: NDArray[np.float32]) -> EncodedMedia:
        """The recording of these features; blocks that were encoded before are not again."""
        rows: dict[bytes, Tensor] = {}
        blocks: list[MediaBlock] = []
        for known, block in self._reader.sound_blocks(features):
            found = rows.get(known.key, self._rows.get(known.key))
            if found is None:
                found = self._engine.call(partial(self._reader.encode_block, block), kind="encoder")
            rows[known.key] = found
            blocks.append(known)
        self._rows = rows
        return self._reader.heard(blocks, [rows[block.key] for block in blocks])

    def _prefill(self, prompt: PromptRows) -> None:
        for event in self._submit(self._request(prompt)) or ():  # until it ends: a talker's rows come behind them
            if isinstance(event, Completion) and event.finish_reason != "cancelled":
                self.prefilled = len(prompt)

    def _ask(self, request: Request, expected: int) -> None:
        for event in self._submit(request) or ():
            if isinstance(event, Token):
                self._token = expected, event
                self.prefilled = len(request.prompt)

    def _submit(self, request: Request) -> Stream[SpeechEvent] | None:
        """None: the recording is over, and nothing is to be done ahead any more."""
        with self._changed:
            if self._end is not None or self._over:
                return None
            self._stream = self._engine.submit(request)
            return self._stream
