"""Sinks for streamed speech: a file, standard output, a sound device.

All take mono float32 samples in [-1, 1] as they come and are closed once; what was written before an interruption is a
whole, playable recording.
"""

from __future__ import annotations

import os
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import IO, TYPE_CHECKING, Any, Self

from lluda.errors import InvalidRequest, LludaError, MissingDependency
from lluda.extras import missing, require
from lluda.files.system_errors import remedy_for
from lluda.outputs.wav_header import pcm16, wav_header

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

STDOUT = "-"
DEVICE = "speakers"

ENCODINGS = {"pcm16": "PCM_16", "float": "FLOAT"}
"""How samples are stored: by the name a user gives, soundfile's subtype."""

_CONTAINERS = {".wav": "WAV", ".flac": "FLAC"}


class AudioSink(ABC):
    """Takes samples in order; a context that closes it."""

    @abstractmethod
    def write(self, samples: NDArray[np.float32]) -> None:
        """Take ``samples [n]``. LludaError: they cannot be written, and none can be from now on."""

    @abstractmethod
    def close(self) -> None:
        """End the recording. May be called twice."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


def open_audio_sink(target: str, rate: int, encoding: str = "pcm16") -> AudioSink:
    """The sink that ``target`` names: ``-`` standard output (wav), ``speakers`` the default sound device, else a file
    ending in .wav or .flac. ``rate`` in Hz; ``encoding`` pcm16 or float (not in flac).

    InvalidRequest: an ending or encoding that there is not, or a file that cannot be made. MissingDependency: files
    without soundfile (``lluda[media]``), the device without sounddevice (``lluda[speakers]``). LludaError: no device.
    """
    if encoding not in ENCODINGS:
        raise InvalidRequest(f"encoding {encoding!r:.40} is not one of {', '.join(ENCODINGS)}")
    if target == STDOUT:
        return _StreamSink(sys.stdout.buffer, rate, encoding)
    if target == DEVICE:
        return _DeviceSink(rate)
    return _FileSink(Path(target), rate, encoding)


class _FileSink(AudioSink):
    """A file whose header is brought up to date with every write, so that it can be played while it grows.

    It is made with the first samples, or at a close that no error led to: so a request that fails before its first
    samples leaves no empty recording, and an earlier file of that name stays.
    """

    def __init__(self, path: Path, rate: int, encoding: str) -> None:
        container = _CONTAINERS.get(path.suffix.lower())
        if container is None:
            raise InvalidRequest(f"{path}: speech is written as {' or '.join(_CONTAINERS)}; choose such a name")
        if container == "FLAC" and encoding == "float":
            raise InvalidRequest(f"{path}: flac stores no floats; choose .wav, or the encoding pcm16")
        require(f"writing {path}", "media", otherwise=f"name {STDOUT}, for a wav on standard output")
        _require_writable(path)
        self._path = path
        self._format = {"samplerate": rate, "channels": 1, "subtype": ENCODINGS[encoding], "format": container}
        self._file: Any = None
        self._begun = self._closed = False
        self._samples = 0

    def write(self, samples: NDArray[np.float32]) -> None:
        import soundfile

        with self._write_errors():
            if self._file is None:
                self._begun = True
                self._file = soundfile.SoundFile(self._path, "w", **self._format)
            self._file.write(samples)
            self._file.flush()
        self._samples += len(samples)

    def close(self) -> None:
        if self._closed:
            return
        import numpy as np

        if self._file is None:
            self.write(np.empty(0, np.float32))  # no samples: an empty recording
        self._closed = True
        with self._write_errors():
            self._file.close()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if kind is None:
            self.close()
            return
        self._closed = True
        # The error that led here is the one to report.
        if self._file is not None:
            with suppress(LludaError), self._write_errors():
                self._file.close()
        if self._begun and not self._samples:
            with suppress(OSError):
                self._path.unlink()

    @contextmanager
    def _write_errors(self) -> Iterator[None]:
        """LludaError for whatever goes wrong with the file."""
        import soundfile

        try:
            yield
        except (soundfile.SoundFileError, OSError) as error:
            reason = str(error).rstrip(".")
            remedy = "free disk space, or raise the limit on the size of files (ulimit -f)"
            raise LludaError(f"{self._path}: writing failed: {reason}; {remedy}") from error


class _StreamSink(AudioSink):
    """A wav stream. Its header gives the largest sizes there are, as players expect of a stream without an end."""

    def __init__(self, stream: IO[bytes], rate: int, encoding: str) -> None:
        self._stream, self._floats = stream, encoding == "float"
        self._write(wav_header(rate, floats=self._floats))

    def write(self, samples: NDArray[np.float32]) -> None:
        self._write(samples.astype("<f4").tobytes() if self._floats else pcm16(samples).tobytes())

    def close(self) -> None:
        return

    def _write(self, data: bytes) -> None:
        try:
            self._stream.write(data)
            self._stream.flush()
        except (BrokenPipeError, ValueError):
            raise LludaError("standard output was closed by its reader; the speech was stopped") from None


class _DeviceSink(AudioSink):
    """The default sound device. Writing waits while its buffer is full."""

    def __init__(self, rate: int) -> None:
        try:
            import sounddevice
        except ImportError:
            raise missing("playing sound", "sounddevice", otherwise="write to a file") from None
        except OSError:  # its wheels for Linux are without the library
            raise MissingDependency(
                "playing sound needs the PortAudio library (on Debian: apt install libportaudio2); or write to a file"
            ) from None
        self._error: type[Exception] = sounddevice.PortAudioError
        try:
            self._stream: Any = sounddevice.OutputStream(samplerate=rate, channels=1, dtype="float32")
            self._stream.start()
        except self._error:
            raise LludaError("there is no sound device that plays this rate; write to a file instead") from None

    def write(self, samples: NDArray[np.float32]) -> None:
        try:
            self._stream.write(samples[:, None])
        except self._error as error:
            raise LludaError(f"the sound device plays no more: {error}; is it still connected?") from None

    def close(self) -> None:
        if not self._stream.closed:
            self._stream.stop()
            self._stream.close()


def _require_writable(path: Path) -> None:
    """InvalidRequest if no file of that name can be written; what is there is left as it is."""
    if not path.parent.is_dir():
        raise InvalidRequest(f"{path}: the folder {path.parent} does not exist; make it first")
    try:
        if path.exists():
            os.close(os.open(path, os.O_WRONLY | os.O_NONBLOCK))
        else:
            os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
            path.unlink()
    except OSError as error:
        remedy = remedy_for(error) or "choose another name"
        raise InvalidRequest(f"{path}: the file cannot be written: {error.strerror}; {remedy}") from None
