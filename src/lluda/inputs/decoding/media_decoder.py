"""Decoding of files in child processes: a crash of a decoder becomes an error about one file.

Files are untrusted, and the libraries that read them are large and written in C: a valid recording of eight channels
has crashed one. Every file is decoded in a child process, wav as well. The process is started at the first file (about
0.3 s) and reused. Arrays are converted in this process.

The process is bounded by the system, in proportion to the file: data memory, and seconds of processor time, which does
not include waiting (`media_jobs.py` sets both).
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from lluda import errors
from lluda.errors import CorruptFile, LimitExceeded, LludaError
from lluda.extras import require
from lluda.inputs.child.child_messages import framed
from lluda.inputs.child.child_process import ChildFailed, ChildProcess
from lluda.inputs.decoding import media_worker
from lluda.inputs.decoding.media_file import MediaFile
from lluda.inputs.decoding.media_limits import processor_seconds

if TYPE_CHECKING:
    from numpy.typing import NDArray

_START_SECONDS = 60.0
_SILENCE_SECONDS = 120.0
_SLOWEST_DISK = 10e6
"""Bytes a second: a file may be read whole between two answers."""

_IDLE = 2
"""Idle processes at most."""

_ONE_THREAD = {f"{name}_NUM_THREADS": "1" for name in ("OMP", "OPENBLAS", "MKL")}


class MediaDecoder:
    """Child processes that decode media, each one file at a time. May be used from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._idle: list[ChildProcess] = []

    def open(self, kind: str, file: MediaFile, **request: Any) -> DecodingJob:
        """Begin to decode ``file`` as ``kind``, a function of `media_jobs`, which is given ``request``.

        Raises the errors of decoding, CorruptFile if the decoder crashed, and MissingDependency without the libraries
        that decode (``lluda[media]``).
        """
        require(f"reading {file.path}", "media")
        return DecodingJob(self, self._worker(), kind, file, request)

    def close(self) -> None:
        """End the idle processes. A later file starts another."""
        with self._lock:
            idle, self._idle = self._idle, []
        for worker in idle:
            worker.close()

    def _worker(self) -> ChildProcess:
        while True:
            with self._lock:
                worker = self._idle.pop() if self._idle else None
            if worker is None:
                return _started()
            if worker.usable:
                return worker

    def _take_back(self, worker: ChildProcess) -> None:
        with self._lock:
            if len(self._idle) < _IDLE and worker.usable:
                self._idle.append(worker)
                return
        worker.close()


class DecodingJob:
    """One file in a child process; ``about`` is what is known of it before it is decoded."""

    def __init__(
        self, decoder: MediaDecoder, worker: ChildProcess, kind: str, file: MediaFile, request: dict[str, Any]
    ) -> None:
        self._decoder, self._worker, self._file = decoder, worker, file
        self._begun = self._over = False
        worker.last_stderr_line()  # of other files
        message = {"job": kind, "path": str(file.path), "kind": file.kind, "size": file.size, **request}
        self.about = self._ask(message, file.descriptor)

    def arrays(self, **options: Any) -> Iterator[NDArray[Any]]:
        """Decode, once: arrays in the order in which they are made. A job that is broken off here is killed."""
        import numpy as np

        assert not self._begun and not self._over, f"{self._file.path} is decoded again, or after it was closed"
        self._begun = True
        try:
            answer = self._ask({"go": options})
            while "payload" in answer:
                values = np.frombuffer(self._received(answer["payload"]), answer["dtype"])
                yield values.reshape(answer["shape"])
                answer = self._answer()
            self._end()
        finally:
            if not self._over:
                self._end(unusable=True)

    def close(self) -> None:
        """End a job that was not decoded. May be called twice, and after decoding."""
        if not self._begun and not self._over:
            self._end()

    def _end(self, *, unusable: bool = False) -> None:
        self._over = True
        if unusable:
            self._worker.close()
        else:
            self._decoder._take_back(self._worker)

    def _ask(self, message: dict[str, Any], descriptor: int | None = None) -> dict[str, Any]:
        try:
            self._worker.allow(self._answer_seconds)
            self._worker.send(framed(message), descriptor)
        except ChildFailed as failed:
            raise self._failure(failed) from None
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        try:
            self._worker.allow(self._answer_seconds)
            answer = self._worker.receive()
        except ChildFailed as failed:
            raise self._failure(failed) from None
        if "error" not in answer:
            return answer
        error = self._error(answer)
        self._end(unusable=bool(answer.get("unusable")))
        raise error

    def _received(self, size: int) -> bytearray:
        try:
            return self._worker.receive_payload(size)
        except ChildFailed as failed:
            raise self._failure(failed) from None

    @property
    def _answer_seconds(self) -> float:
        """Seconds for one answer. A decoder that computes is stopped earlier, by the limit of processor time."""
        return _SILENCE_SECONDS + self._file.size / _SLOWEST_DISK

    def _error(self, answer: dict[str, Any]) -> Exception:
        """What the child raised, with the library's last line on stderr."""
        path, text, words = self._file.path, str(answer["message"]), self._worker.last_stderr_line()
        kind: type[Exception] = getattr(errors, str(answer["error"]), AssertionError)
        if kind is CorruptFile:
            rule = text.removeprefix(str(CorruptFile(path, "")))
            return CorruptFile(path, f"{rule}; the decoder says: {words}" if words else rule)
        return kind(text)

    def _failure(self, failed: ChildFailed) -> LludaError:
        self._end(unusable=True)
        path, kind, words = self._file.path, self._file.kind, self._worker.last_stderr_line()
        if failed.signal == signal.SIGXCPU:
            seconds = processor_seconds(self._file.size)
            return LimitExceeded(
                f"{path}: decoding it takes more than {seconds} s of processor time, the most for one {kind} of "
                f"{self._file.size} bytes; make it shorter or smaller, or convert it with another program"
            )
        how = str(failed) if failed.signal is None else signal.strsignal(failed.signal) or f"signal {failed.signal}"
        rule = f"the decoder crashed on this {kind} ({how}); it is damaged, or must be converted by another program"
        return CorruptFile(path, f"{rule}; the decoder says: {words}" if words else rule)


def _started() -> ChildProcess:
    words = ""
    try:
        worker = ChildProcess(media_worker.__file__, **_ONE_THREAD)
        worker.allow(_START_SECONDS)
        try:
            worker.receive()
        finally:
            words = worker.last_stderr_line()
    except ChildFailed as failed:
        raise LludaError(f"the process that decodes media does not start: {words or failed}") from None
    return worker


DECODER = MediaDecoder()
"""The decoder of this process, shared by all readers of media."""
