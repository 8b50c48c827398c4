"""The two decoders of audio: libsndfile for wav, flac, ogg, opus and their like, FFmpeg for mp3 and containers.

They run in the process that decodes media (`media_jobs.py`). Which one is asked depends on what a file's bytes are,
never on its name. FFmpeg is limited to audio formats: no playlists, nothing that opens a further file or address.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Protocol

from lluda.config.audio import AudioLimits
from lluda.errors import CorruptFile
from lluda.inputs.decoding import audio_header
from lluda.inputs.decoding.audio_samples import BLOCK_VALUES, check_form, check_seconds
from lluda.inputs.decoding.library_errors import library_errors

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_CONTAINERS = (
    "aac,ac3,aiff,amr,asf,avi,caf,eac3,flac,flv,matroska,webm,mov,mp4,m4a,3gp,3g2,mj2,mp3,mpeg,mpegts,ogg,w64,wav"
)
_TRUE_LENGTH = ("mov", "matroska", "asf", "avi", "flv")  # formats that store it; FFmpeg guesses it for the rest
_MICROSECONDS = 1_000_000
_UNKNOWN_FRAMES = 1 << 62  # libsndfile's number of frames where a FLAC header does not say it


class Decoder(Protocol):
    """One open recording: its ``kind`` in words, its ``rate`` (Hz), its ``channels``, its ``seconds`` as far as they
    can be known before it is decoded, and whether those are ``promised`` by its header."""

    kind: str
    rate: int
    channels: int
    seconds: float | None
    promised: bool

    def blocks(self) -> Iterator[NDArray[np.float32]]:
        """The samples in order, ``[samples, channels]``, full scale 1. CorruptFile where they cannot be decoded."""

    def close(self) -> None:
        """Release what was allocated. May be called twice."""


def open_decoder(path: Path, file: BinaryIO, limits: AudioLimits) -> Decoder:
    """The decoder that knows the open ``file``, which stays the caller's to close, after the decoder.

    CorruptFile: neither decoder knows it, it holds no audio, or less than its header promises. LimitExceeded: beyond
    the limits.
    """
    view = audio_header.completed(path, file)
    decoder: Decoder = _SoundFileDecoder.open(path, view) or _FFmpegDecoder(path, view)
    try:
        check_form(str(path), decoder.rate, decoder.channels, limits)
        check_seconds(str(path), decoder.seconds or 0, limits)
    except BaseException:
        decoder.close()
        raise
    return decoder


def checked_blocks(path: Path, decoder: Decoder, limits: AudioLimits) -> Iterator[NDArray[np.float32]]:
    """What the decoder gives. CorruptFile: the number of channels changes, or the audio ends before its header says."""
    count = 0
    for block in decoder.blocks():
        if block.shape[1] != decoder.channels:
            raise CorruptFile(path, "the number of channels changes", expected=decoder.channels)
        count += len(block)
        yield block
    promised, found = decoder.seconds if decoder.promised else None, count / decoder.rate
    if count and promised is not None and found < promised - limits.missing_seconds:
        rule = "the sound ends before its header says; the file is cut off: copy it again"
        raise CorruptFile(path, rule, expected=f"{promised:.1f} s", found=f"{found:.1f} s")


class _SoundFileDecoder:
    def __init__(self, path: Path, file: Any) -> None:
        self._path, self._file = path, file
        self.kind = f"libsndfile: {file.format} {file.subtype}"
        self.rate, self.channels = int(file.samplerate), int(file.channels)
        self.promised = self.rate > 0
        self.seconds: float | None = file.frames / self.rate if self.promised else None

    @classmethod
    def open(cls, path: Path, file: BinaryIO) -> _SoundFileDecoder | None:
        """None: libsndfile does not know the format, or reads it wrong: of an mp3 as much as it guesses from the first
        frame's bit rate, which may be a third; of a flac that came through a pipe, and does not say how long it is, its
        last block not at all."""
        import soundfile

        try:
            plain = isinstance(getattr(file, "raw", None), io.FileIO)
            found = soundfile.SoundFile(file.fileno() if plain else file, closefd=False)
        except (soundfile.SoundFileError, TypeError):  # TypeError: headerless formats, which it wants described
            return None
        if found.format == "MP3" or found.frames >= _UNKNOWN_FRAMES:
            found.close()
            return None
        return cls(path, found)

    def blocks(self) -> Iterator[NDArray[np.float32]]:
        frames, done = max(BLOCK_VALUES // self.channels, 1), 0
        while True:
            with library_errors(self._path, _damaged(done / self.rate)):
                block = self._file.read(frames, dtype="float32", always_2d=True)
            if not len(block):
                return
            done += len(block)
            yield block

    def close(self) -> None:
        self._file.close()


class _FFmpegDecoder:
    def __init__(self, path: Path, file: BinaryIO) -> None:
        self._path = path
        self._container, self._stream = self._opened(file)
        codec = self._stream.codec_context
        if codec is None:
            raise CorruptFile(path, "the sound track's codec is not supported; convert it to flac or opus")
        self.kind = f"ffmpeg: {self._container.format.name} {codec.name}"
        self.rate, self.channels = int(codec.sample_rate or 0), int(codec.layout.nb_channels)
        self.seconds = None if audio_header.has_placeholder_size(file) else self._promised_seconds()
        self.promised = self.seconds is not None
        if self.seconds is None and self.rate > 0:
            self.seconds = self._seconds_of_packets()
            self._container.close()
            self._container, self._stream = self._opened(file)
        self._done = 0  # samples

    def _opened(self, file: BinaryIO) -> tuple[Any, Any]:
        import av

        file.seek(0)
        rule = "not a readable recording; convert it to wav, flac, mp3, m4a, ogg, opus or webm"
        with library_errors(self._path, rule):
            options = {"format_whitelist": _CONTAINERS, "protocol_whitelist": "none"}
            container: Any = av.open(file, metadata_errors="ignore", options=options)
            streams = container.streams.audio
        if not streams:
            raise CorruptFile(self._path, "the file holds no sound track")
        return container, streams[0]

    def _promised_seconds(self) -> float | None:
        """The track's own length; else the file's, if the track is alone in it. Of other formats it is a guess."""
        if self._container.format.name.split(",")[0] not in _TRUE_LENGTH:
            return None
        if self._stream.duration and self._stream.time_base:
            return float(self._stream.duration * self._stream.time_base)
        alone = len(self._container.streams) == 1
        return self._container.duration / _MICROSECONDS if alone and self._container.duration else None

    def _seconds_of_packets(self) -> float | None:
        """The length by what each packet says of its own: all of the file is read and nothing decoded."""
        total = 0.0
        with library_errors(self._path, _damaged(0.0)):
            for packet in self._container.demux(self._stream):
                if packet.duration and packet.time_base:
                    total += float(packet.duration * packet.time_base)
        return total or None

    def blocks(self) -> Iterator[NDArray[np.float32]]:
        with library_errors(self._path, lambda: _damaged(self._done / self.rate)):
            yield from _joined(self._frames(), max(BLOCK_VALUES // self.channels, 1))

    def _frames(self) -> Iterator[NDArray[np.float32]]:
        import av

        # Only to float: rate and channels stay the first frame's. Packed samples, since of a planar frame of eight
        # channels or more PyAV reads planes that are not there.
        resampler = av.AudioResampler(format="flt")
        for frame in self._container.decode(self._stream):
            for converted in resampler.resample(frame):
                self._done += converted.samples
                samples: NDArray[np.float32] = converted.to_ndarray()  # type: ignore[assignment]
                yield samples.reshape(converted.samples, -1)

    def close(self) -> None:
        self._container.close()


def _joined(frames: Iterator[NDArray[np.float32]], size: int) -> Iterator[NDArray[np.float32]]:
    """Frames, of a thousand samples or so, put together to about ``size``."""
    import numpy as np

    parts: list[NDArray[np.float32]] = []
    count = 0
    for frame in frames:
        parts.append(frame)
        count += len(frame)
        if count >= size:
            yield np.concatenate(parts)
            parts, count = [], 0
    if parts:
        yield np.concatenate(parts)


def _damaged(seconds: float) -> str:
    return f"the sound cannot be decoded beyond {seconds:.1f} s; the file is damaged or cut off"
