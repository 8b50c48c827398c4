"""Sinks for speech that is still being made: a file, standard output, a sound device.

All take mono float32 samples in [-1, 1] as they come and are closed once; what was written before an interruption is a
whole, playable recording.
"""

from __future__ import annotations

import struct
import sys
from abc import ABC, abstractmethod
from pathlib import Path
from types import TracebackType
from typing import IO, TYPE_CHECKING, Any, Self

from lluda.errors import InvalidRequest, LludaError, MissingDependency

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

STDOUT = "-"
DEVICE = "speakers"

ENCODINGS = {"pcm16": "PCM_16", "float": "FLOAT"}
"""How samples are stored: by the name a user gives, soundfile's subtype."""

_CONTAINERS = {".wav": "WAV", ".flac": "FLAC"}
_UNKNOWN_SIZE = 0xFFFFFFFF


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

    InvalidRequest: an ending or encoding that there is not, or a file that cannot be made. MissingDependency,
    LludaError: no sounddevice package, or no device.
    """
    if encoding not in ENCODINGS:
        raise InvalidRequest(f"encoding {encoding!r:.40} is not one of {', '.join(ENCODINGS)}")
    if target == STDOUT:
        return _StreamSink(sys.stdout.buffer, rate, encoding)
    if target == DEVICE:
        return _DeviceSink(rate)
    return _FileSink(Path(target), rate, encoding)


class _FileSink(AudioSink):
    """A file whose header is brought up to date with every write, so that it can be played while it grows."""

    def __init__(self, path: Path, rate: int, encoding: str) -> None:
        import soundfile

        container = _CONTAINERS.get(path.suffix.lower())
        if container is None:
            raise InvalidRequest(f"{path}: speech is written as {' or '.join(_CONTAINERS)}; choose such a name")
        if container == "FLAC" and encoding == "float":
            raise InvalidRequest(f"{path}: flac stores no floats; choose .wav, or the encoding pcm16")
        if not path.parent.is_dir():
            raise InvalidRequest(f"{path}: the folder {path.parent} does not exist")
        self._path = path
        try:
            self._file = soundfile.SoundFile(path, "w", rate, 1, ENCODINGS[encoding], format=container)
        except (soundfile.SoundFileError, OSError) as error:
            raise InvalidRequest(
                f"{path}: the file cannot be written ({type(error).__name__}); check its rights"
            ) from None

    def write(self, samples: NDArray[np.float32]) -> None:
        import soundfile

        try:
            self._file.write(samples)
            self._file.flush()
        except (soundfile.SoundFileError, OSError) as error:
            raise LludaError(f"{self._path}: writing failed ({type(error).__name__}); is the disk full?") from None

    def close(self) -> None:
        self._file.close()


class _StreamSink(AudioSink):
    """A wav stream. Its header gives the largest sizes there are, as players expect of a stream without an end."""

    def __init__(self, stream: IO[bytes], rate: int, encoding: str) -> None:
        self._stream, self._floats = stream, encoding == "float"
        self._write(_wav_header(rate, floats=self._floats))

    def write(self, samples: NDArray[np.float32]) -> None:
        import numpy as np

        encoded = samples.astype("<f4") if self._floats else np.rint(samples.clip(-1, 1) * 32767).astype("<i2")
        self._write(encoded.tobytes())

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
        except (ImportError, OSError):  # OSError: the package without the PortAudio library
            raise MissingDependency(
                "playing sound needs the sounddevice package and PortAudio: pip install 'lluda[speakers]'"
            ) from None
        try:
            self._stream: Any = sounddevice.OutputStream(samplerate=rate, channels=1, dtype="float32")
            self._stream.start()
        except sounddevice.PortAudioError:
            raise LludaError("there is no sound device that plays this rate; write to a file with -o FILE") from None

    def write(self, samples: NDArray[np.float32]) -> None:
        self._stream.write(samples[:, None])

    def close(self) -> None:
        if not self._stream.closed:
            self._stream.stop()
            self._stream.close()


def _wav_header(rate: int, *, floats: bool) -> bytes:
    """RIFF header of a mono wav of unknown length (Multimedia Programming Interface and Data Specifications 1.0)."""
    width, kind = (4, 3) if floats else (2, 1)
    form = struct.pack("<4sIHHIIHH", b"fmt ", 16, kind, 1, rate, rate * width, width, 8 * width)
    return struct.pack("<4sI4s", b"RIFF", _UNKNOWN_SIZE, b"WAVE") + form + struct.pack("<4sI", b"data", _UNKNOWN_SIZE)
