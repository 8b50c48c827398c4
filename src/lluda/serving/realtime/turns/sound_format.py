"""Sound as a realtime session sends and receives it, to and from samples: 16-bit PCM, G.711 mu-law and A-law.

Rates are converted by FFmpeg's swresample (PyAV): its streams hold back 2 ms at most, where soxr's, which the decoder
of files uses, hold back up to 37 ms at 24 kHz and 115 ms at 8 kHz, by which every turn and every barge-in would be
late. G.711's tables are libsndfile's.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from functools import cache
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from lluda.errors import InvalidRequest
from lluda.outputs.wav_header import pcm16

if TYPE_CHECKING:
    from numpy.typing import NDArray

SoundFormat = Literal["audio/pcm", "audio/pcmu", "audio/pcma"]

RATES: Mapping[SoundFormat, tuple[int, ...]] = MappingProxyType(
    {"audio/pcm": (24_000, 16_000, 8_000), "audio/pcmu": (8_000,), "audio/pcma": (8_000,)}
)
"""Hz that each format may have; the first is the usual one."""

SAMPLE_BYTES: Mapping[SoundFormat, int] = MappingProxyType({"audio/pcm": 2, "audio/pcmu": 1, "audio/pcma": 1})

HEARD_RATE = 16_000
SPOKEN_RATE = 24_000
"""Hz of the samples that a decoder gives and of those that an encoder takes."""

_SUBTYPES: Mapping[SoundFormat, str] = MappingProxyType({"audio/pcmu": "ULAW", "audio/pcma": "ALAW"})


class SoundDecoder:
    """One stream of sound that comes in: `push` its bytes in order.

    InvalidRequest: ``rate`` (Hz) is none that ``sound_format`` may have.
    """

    def __init__(self, sound_format: SoundFormat, rate: int) -> None:
        _check_rate(sound_format, rate)
        self._format = sound_format
        self._stream = _RateConverter(rate, HEARD_RATE)

    def push(self, data: bytes) -> NDArray[np.float32]:
        """Mono float32 ``[n]`` at 16 kHz, full scale 1, of what came so far but 2 ms at most. The cut into pushes
        changes nothing.

        InvalidRequest: half a sample; nothing was taken then.
        """
        if len(data) % SAMPLE_BYTES[self._format]:
            raise InvalidRequest(
                f"audio holds {len(data)} bytes, which are no whole 16-bit samples; send an even number of bytes"
            )
        if self._format == "audio/pcm":
            return self._stream.push(np.frombuffer(data, "<i2") * np.float32(1 / 32768))
        return self._stream.push(_decoding_table(self._format)[np.frombuffer(data, np.uint8)])

    def finish(self) -> NDArray[np.float32]:
        """The samples still held back. What is pushed afterwards is another stream."""
        return self._stream.finish()


class SoundEncoder:
    """One stream of sound that goes out: `push` its samples in order.

    InvalidRequest: ``rate`` (Hz) is none that ``sound_format`` may have.
    """

    def __init__(self, sound_format: SoundFormat, rate: int) -> None:
        _check_rate(sound_format, rate)
        self._format = sound_format
        self._stream = _RateConverter(SPOKEN_RATE, rate)

    def push(self, samples: NDArray[np.float32]) -> bytes:
        """``samples [n]``, mono float32 at 24 kHz, as whole samples of the format; beyond full scale is clipped."""
        return self._encoded(self._stream.push(samples))

    def finish(self) -> bytes:
        """The samples still held back. What is pushed afterwards is another stream."""
        return self._encoded(self._stream.finish())

    def _encoded(self, samples: NDArray[np.float32]) -> bytes:
        integers = pcm16(samples)
        if self._format == "audio/pcm":
            return integers.tobytes()
        return _encoding_table(self._format)[integers.astype(np.int32) + 32768].tobytes()


class _RateConverter:
    """A stream of samples at one rate as one at another: of ``n`` samples ``ceil(n * rate / source_rate)``."""

    def __init__(self, source_rate: int, rate: int) -> None:
        self._source_rate, self._rate = source_rate, rate
        self._begin()

    def push(self, samples: NDArray[np.float32]) -> NDArray[np.float32]:
        if self._source_rate == self._rate:
            return samples
        self._taken += len(samples)
        return self._converted(samples)

    def finish(self) -> NDArray[np.float32]:
        if not self._taken:
            return np.zeros(0, np.float32)
        missing = -(-self._taken * self._rate // self._source_rate) - self._given
        rest = self._converted(np.zeros(self._source_rate // 20, np.float32))[:missing]
        self._begin()
        return rest

    def _begin(self) -> None:
        self._stream: Any = None  # made with the first samples
        self._taken = self._given = 0

    def _converted(self, samples: NDArray[np.float32]) -> NDArray[np.float32]:
        import av

        if self._stream is None:
            self._stream = av.AudioResampler(format="flt", layout="mono", rate=self._rate)
        if not len(samples):
            return samples
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(samples)[None], format="flt", layout="mono")
        frame.sample_rate = self._source_rate
        found = [converted.to_ndarray()[0] for converted in self._stream.resample(frame)]
        joined: NDArray[np.float32] = np.concatenate(found) if found else np.zeros(0, np.float32)
        self._given += len(joined)
        return joined


def _check_rate(sound_format: SoundFormat, rate: int) -> None:
    if rate not in RATES[sound_format]:
        rates = ", ".join(str(known) for known in RATES[sound_format])
        raise InvalidRequest(f"the rate of {sound_format} must be one of {rates} Hz, not {rate}")


@cache
def _decoding_table(sound_format: SoundFormat) -> NDArray[np.float32]:
    """The sample of each byte."""
    import soundfile

    codes = io.BytesIO(bytes(range(256)))
    samples, _ = soundfile.read(
        codes, dtype="float32", format="RAW", subtype=_SUBTYPES[sound_format], channels=1, samplerate=8_000
    )
    table: NDArray[np.float32] = samples
    return table


@cache
def _encoding_table(sound_format: SoundFormat) -> NDArray[np.uint8]:
    """The byte of each 16-bit sample, from -32768 on."""
    import soundfile

    codes = io.BytesIO()
    samples = np.arange(-32768, 32768).astype(np.int16)
    soundfile.write(codes, samples, 8_000, format="RAW", subtype=_SUBTYPES[sound_format])
    return np.frombuffer(codes.getvalue(), np.uint8)
