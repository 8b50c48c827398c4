"""Speech as the bytes of a sound format, block by block while it is made: wav, pcm, flac, mp3, opus, aac.

wav and pcm are written here, the others by FFmpeg (PyAV), which compresses on the calling thread.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Protocol

from lluda.errors import InvalidRequest
from lluda.extras import require
from lluda.outputs.wav_header import pcm16, wav_header

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class _Compression:
    """FFmpeg's names of a format and its codec. ``lossless``: it is given 16-bit integers, else floats. ``options``:
    of the container, so that its bytes come as the sound does and nothing in it is filled in afterwards."""

    container: str
    codec: str
    bits_per_second: int | None
    lossless: bool = False
    options: Mapping[str, str] = field(default_factory=dict)


_COMPRESSIONS: Mapping[str, _Compression] = MappingProxyType(
    {
        "mp3": _Compression("mp3", "libmp3lame", 64_000, options={"write_xing": "0", "id3v2_version": "0"}),
        "flac": _Compression("flac", "flac", None, lossless=True, options={"metadata_header_padding": "0"}),
        "opus": _Compression("ogg", "libopus", 32_000, options={"page_duration": "80000"}),  # microseconds
        "aac": _Compression("adts", "aac", 64_000),
    }
)

CONTENT_TYPES: Mapping[str, str] = MappingProxyType(
    {
        "wav": "audio/wav",
        "pcm": "audio/pcm;rate=24000",
        "mp3": "audio/mpeg",
        "flac": "audio/flac",
        "opus": "audio/ogg",
        "aac": "audio/aac",
    }
)
"""Media types of the formats; pcm is 16-bit little-endian, and its rate that of every released model's speech."""

FORMATS = tuple(CONTENT_TYPES)

_OTHER_NAMES = {"pcm16": "pcm"}


class _Writer(Protocol):
    def write(self, samples: NDArray[np.float32]) -> bytes: ...
    def finish(self) -> bytes: ...


class RecordingEncoder:
    """Mono float32 samples in [-1, 1] at ``sample_rate`` Hz go in, the bytes of ``format`` come out; all bytes in
    order, those of `finish` last, are one recording. ``samples`` is the number of samples in all where it is known:
    a wav header then has its true sizes, else the largest there are. One thread at a time may call it; what it holds
    is released with the object, also where a recording is left unfinished.

    InvalidRequest: a ``format`` that is not one of `FORMATS` (or ``pcm16``). MissingDependency: a compressed one
    without PyAV (``lluda[media]``).
    """

    def __init__(self, format: str, sample_rate: int, samples: int | None = None) -> None:
        self.format = _OTHER_NAMES.get(format, format)
        if self.format not in FORMATS:
            raise InvalidRequest(f"sound format {format!r:.40} is not one of {', '.join(FORMATS)}")
        self._rate = sample_rate
        compression = _COMPRESSIONS.get(self.format)
        if compression is not None:
            self._writer: _Writer = _Compressed(compression, sample_rate)
        else:
            self._writer = _Plain(wav_header(sample_rate, samples=samples) if self.format == "wav" else b"")

    def write(self, samples: NDArray[np.float32]) -> bytes:
        """``samples [n]``, and the bytes that are ready with them; none if the codec waits for more. Called with no
        more than a second at once, encoders give their bytes early and take little memory; more is cut up."""
        return b"".join(
            self._writer.write(samples[start : start + self._rate]) for start in range(0, len(samples), self._rate)
        )

    def finish(self) -> bytes:
        """The last bytes; nothing can be written after."""
        return self._writer.finish()


def encoded_audio(format: str, sample_rate: int, samples: NDArray[np.float32]) -> bytes:
    """A whole recording; arguments and errors as of `RecordingEncoder`."""
    encoder = RecordingEncoder(format, sample_rate, len(samples))
    return encoder.write(samples) + encoder.finish()


class _Plain:
    """Samples as they are, behind a header."""

    def __init__(self, header: bytes) -> None:
        self._header = header

    def write(self, samples: NDArray[np.float32]) -> bytes:
        return self._before() + pcm16(samples).tobytes()

    def finish(self) -> bytes:
        return self._before()

    def _before(self) -> bytes:
        header, self._header = self._header, b""
        return header


class _Compressed:
    def __init__(self, compression: _Compression, rate: int) -> None:
        require(f"sound as {compression.container}", "media")
        import av

        self._rate, self._lossless = rate, compression.lossless
        self._out = _Bytes()
        options = {"flush_packets": "1", **compression.options}
        self._container: Any = av.open(self._out, "w", format=compression.container, options=options)
        self._stream: Any = self._container.add_stream(compression.codec, rate=rate, layout="mono")
        codec: Any = self._stream.codec_context
        codec.thread_count = 1
        if compression.bits_per_second is not None:
            codec.bit_rate = compression.bits_per_second
        self._samples = 0

    def write(self, samples: NDArray[np.float32]) -> bytes:
        import av

        if self._lossless:
            frame = av.AudioFrame.from_ndarray(pcm16(samples)[None], format="s16", layout="mono")
        else:
            frame = av.AudioFrame.from_ndarray(samples.clip(-1, 1)[None], format="flt", layout="mono")
        frame.sample_rate, frame.pts = self._rate, self._samples
        self._samples += len(samples)
        self._container.mux(self._stream.encode(frame))
        return self._out.take()

    def finish(self) -> bytes:
        self._container.mux(self._stream.encode(None))
        self._container.close()
        return self._out.take()


class _Bytes:
    """What the container writes to: no seek, as on a network."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []

    def write(self, data: bytes) -> int:
        self._parts.append(bytes(data))
        return len(data)

    def take(self) -> bytes:
        taken = b"".join(self._parts)
        self._parts.clear()
        return taken
