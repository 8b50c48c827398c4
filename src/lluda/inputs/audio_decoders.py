"""The two decoders of sound: libsndfile for wav, flac, ogg, opus and their like, FFmpeg for mp3 and containers.

Which one is asked depends on what a file's bytes are, never on its name. FFmpeg is kept to formats of recordings: no
playlists, nothing that opens a further file or address.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Protocol

from lluda.errors import CorruptFile

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

BLOCK_VALUES = 1 << 18
"""Values decoded at once: 1 MiB of float32."""

_CONTAINERS = (
    "aac,ac3,aiff,amr,asf,avi,caf,eac3,flac,flv,matroska,webm,mov,mp4,m4a,3gp,3g2,mj2,mp3,mpeg,mpegts,ogg,w64,wav"
)
_TRUE_LENGTH = ("mov", "matroska", "asf", "avi", "flv")  # formats that store it; FFmpeg guesses it for the rest
_MICROSECONDS = 1_000_000
_UNKNOWN_SIZES = (0, 0x7FFFFFFF, 0xFFFFFFFF)  # what writers that cannot seek back leave in a header


class Decoder(Protocol):
    """One open recording: its ``kind`` in words, its ``rate`` (Hz), its ``channels``, and the ``seconds`` its header
    promises (None: it does not say)."""

    kind: str
    rate: int
    channels: int
    seconds: float | None

    def blocks(self) -> Iterator[NDArray[np.float32]]:
        """The samples in order, ``[samples, channels]``, full scale 1. CorruptFile where they cannot be decoded."""

    def close(self) -> None:
        """Let go of what was allocated. May be called twice."""


def open_decoder(path: Path, file: BinaryIO) -> Decoder:
    """The decoder that knows the open ``file``, which stays the caller's to close, after the decoder.

    CorruptFile: neither decoder knows it, or it holds no sound.
    """
    _check_wav(path, file.fileno())
    return _SoundFileDecoder.open(path, file) or _FFmpegDecoder(path, file)


class _SoundFileDecoder:
    def __init__(self, path: Path, file: Any) -> None:
        self._path, self._file = path, file
        self.kind = f"libsndfile: {file.format} {file.subtype}"
        self.rate, self.channels = int(file.samplerate), int(file.channels)
        self.seconds: float | None = file.frames / self.rate if self.rate > 0 else None

    @classmethod
    def open(cls, path: Path, file: BinaryIO) -> _SoundFileDecoder | None:
        """None: libsndfile does not know the format. Of an mp3 it reads as much as it guesses from the first frame's
        bit rate, which may be a third."""
        import soundfile

        try:
            found = soundfile.SoundFile(file.fileno(), closefd=False)
        except (soundfile.SoundFileError, TypeError):  # TypeError: headerless formats, which it wants described
            return None
        if found.format == "MP3":
            found.close()
            return None
        return cls(path, found)

    def blocks(self) -> Iterator[NDArray[np.float32]]:
        import soundfile

        frames, done = max(BLOCK_VALUES // self.channels, 1), 0
        while True:
            try:
                block = self._file.read(frames, dtype="float32", always_2d=True)
            except soundfile.SoundFileError:
                raise _damaged(self._path, done / self.rate) from None
            if not len(block):
                return
            done += len(block)
            yield block

    def close(self) -> None:
        self._file.close()


class _FFmpegDecoder:
    def __init__(self, path: Path, file: BinaryIO) -> None:
        import av

        self._path = path
        file.seek(0)
        try:
            options = {"format_whitelist": _CONTAINERS, "protocol_whitelist": "none"}
            self._container: Any = av.open(file, metadata_errors="ignore", options=options)
        except (av.FFmpegError, OSError, ValueError):
            rule = "not a recording that can be decoded; convert it to wav, flac, mp3, m4a, ogg, opus or webm"
            raise CorruptFile(path, rule) from None
        streams = self._container.streams.audio
        if not streams:
            raise CorruptFile(path, "the file holds no sound track")
        self._stream = streams[0]
        codec = self._stream.codec_context
        if codec is None:
            raise CorruptFile(path, "the sound track's codec is not supported; convert it to flac or opus")
        self.kind = f"ffmpeg: {self._container.format.name} {codec.name}"
        self.rate, self.channels = int(codec.sample_rate or 0), int(codec.layout.nb_channels)
        self.seconds = self._promised_seconds()
        self._done = 0  # samples

    def _promised_seconds(self) -> float | None:
        """The track's own length; else the file's, if the track is alone in it. Of other formats it is a guess."""
        if self._container.format.name.split(",")[0] not in _TRUE_LENGTH:
            return None
        if self._stream.duration and self._stream.time_base:
            return float(self._stream.duration * self._stream.time_base)
        alone = len(self._container.streams) == 1
        return self._container.duration / _MICROSECONDS if alone and self._container.duration else None

    def blocks(self) -> Iterator[NDArray[np.float32]]:
        import av

        try:
            yield from _joined(self._frames(), max(BLOCK_VALUES // self.channels, 1))
        except (av.FFmpegError, OSError, ValueError):
            raise _damaged(self._path, self._done / self.rate) from None

    def _frames(self) -> Iterator[NDArray[np.float32]]:
        import av

        resampler = av.AudioResampler(format="fltp")  # only to float: rate and channels stay the first frame's
        for frame in self._container.decode(self._stream):
            for converted in resampler.resample(frame):
                self._done += converted.samples
                samples: NDArray[np.float32] = converted.to_ndarray()  # type: ignore[assignment]
                yield samples.T

    def close(self) -> None:
        self._container.close()


def _joined(frames: Iterator[NDArray[np.float32]], size: int) -> Iterator[NDArray[np.float32]]:
    """Frames, of a thousand samples or so, put together to about ``size``."""
    import numpy as np

    parts: list[NDArray[np.float32]] = []
    for frame in frames:
        parts.append(frame)
        if sum(map(len, parts)) >= size:
            yield np.concatenate(parts)
            parts = []
    if parts:
        yield np.concatenate(parts)


def _check_wav(path: Path, descriptor: int) -> None:
    """CorruptFile if a wav header promises more bytes of sound than there are: libsndfile would take those."""
    size = os.fstat(descriptor).st_size
    if size == 0:
        raise CorruptFile(path, "the file is empty")
    head = os.pread(descriptor, 12, 0)
    if head[:4] != b"RIFF" or head[8:] != b"WAVE":
        return
    offset = 12
    while len(chunk := os.pread(descriptor, 8, offset)) == 8:
        length = int.from_bytes(chunk[4:], "little")
        if chunk[:4] == b"data":
            if length not in _UNKNOWN_SIZES and offset + 8 + length > size:
                rule = "the wav header promises more sound than the file holds; it is cut off: copy it again"
                raise CorruptFile(path, rule, expected=f"{length} bytes", found=size - offset - 8)
            return
        offset += 8 + length + length % 2


def _damaged(path: Path, seconds: float) -> CorruptFile:
    return CorruptFile(path, f"the sound cannot be decoded beyond {seconds:.1f} s; the file is damaged or cut off")
