"""How much audio a header promises, checked against the file: wav (RIFF, RIFX, RF64, BW64), AIFF, AU, Wave64 and CAF.

A program that writes to a pipe cannot come back to fill in sizes, and leaves what it began with: 0 (mpg123, FFmpeg's
AIFF and RF64), 0x7ffff000 (espeak-ng, SoX), 0x7f000000 (SoX's AIFF), all ones (FFmpeg's wav, AU), the largest of 64
bits (FFmpeg's Wave64). Such a size means "to the end of the file". Any other that reaches beyond the file means that it
was cut off, which the decoders would not say.
"""

from __future__ import annotations

import io
import os
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from lluda.errors import CorruptFile

_LEAST_PLACEHOLDER = 1_900_000_000
"""Smaller sizes may be true: those that programs leave lie at 2^31 or 2^32, less a header's few bytes or a margin."""

_MAX_CHUNKS = 4096
_W64 = bytes.fromhex("2e91cf11a5d628db04c10000")
_W64_CHUNK = bytes.fromhex("f3acd3118cd100c04f8edb8a")
_PLAIN_AIFC = b"NONE", b"sowt", b"twos", b"raw ", b"in24", b"in32", b"fl32", b"FL32", b"fl64", b"FL64"


@dataclass(frozen=True, slots=True)
class _Layout:
    """Chunks of one kind of file: where they begin, the widths of a chunk's name and size, whether the size counts
    both, and which chunk has the audio. ``whole``: the place of the file's size, and how many bytes it leaves out.
    """

    start: int
    name: int
    size: int
    order: Any
    counts_header: bool
    padding: int
    audio: bytes
    whole: tuple[int, int]


_RIFF = _Layout(12, 4, 4, "little", False, 2, b"data", (4, 8))
_RIFX = _Layout(12, 4, 4, "big", False, 2, b"data", (4, 8))
_AIFF = _Layout(12, 4, 4, "big", False, 2, b"SSND", (4, 8))
_WAVE64 = _Layout(40, 16, 8, "little", True, 8, b"data" + _W64_CHUNK, (16, 0))
_CAF = _Layout(8, 4, 8, "big", False, 1, b"data", (0, 0))


@dataclass(frozen=True, slots=True)
class _Chunk:
    name: bytes
    content: int
    size: int


def completed(path: Path, file: BinaryIO) -> BinaryIO:
    """``file``, or, where its header has placeholders for sizes, a view of it with the true ones in their place.

    CorruptFile: the header promises more audio than the file holds, or is no header but thousands of empty chunks.
    """
    head = os.pread(file.fileno(), 40, 0)
    layout = _layout(head)
    if layout is not None:
        patches = _chunk_patches(path, file.fileno(), layout)
    elif head[:4] in (b".snd", b"dns.") and len(head) >= 24:
        patches = _au_patches(path, file.fileno(), head)
    else:
        return file
    return io.BufferedReader(_Patched(file, patches)) if patches else file


def has_placeholder_size(file: BinaryIO) -> bool:
    """Whether the whole of a RIFF file (AVI) has a placeholder for its size: then no other in its header is true."""
    head = os.pread(file.fileno(), 12, 0)
    if head[:4] != b"RIFF":
        return False
    return _is_placeholder(int.from_bytes(head[4:8], "little"), os.fstat(file.fileno()).st_size - 8)


def _is_placeholder(promised: int, there: int) -> bool:
    return promised == 0 or (promised >= _LEAST_PLACEHOLDER and promised > there)


def _layout(head: bytes) -> _Layout | None:
    magic, form = head[:4], head[8:12]
    if magic in (b"RIFF", b"RIFX", b"RF64", b"BW64") and form == b"WAVE":
        return _RIFX if magic == b"RIFX" else _RIFF
    if magic == b"FORM" and form in (b"AIFF", b"AIFC"):
        return _AIFF
    if magic == b"riff" and head[4:16] == _W64:
        return _WAVE64
    return _CAF if magic == b"caff" else None


def _chunks(path: Path, descriptor: int, layout: _Layout, start: int) -> Iterator[_Chunk]:
    length = layout.name + layout.size
    for _ in range(_MAX_CHUNKS):
        head = os.pread(descriptor, length, start)
        if len(head) < length:
            return
        size = int.from_bytes(head[layout.name :], layout.order)
        size = max(size - length, 0) if layout.counts_header and size else size
        yield _Chunk(head[: layout.name], start + length, size)
        start += length + size
        start += -start % layout.padding if layout.padding == 8 else size % layout.padding
    raise CorruptFile(path, f"the header has more than {_MAX_CHUNKS} chunks before any sound; it is damaged")


def _chunk_patches(path: Path, descriptor: int, layout: _Layout) -> dict[int, bytes]:
    """The true sizes by their places; none if the header's are true."""
    size = os.fstat(descriptor).st_size
    long_sizes: _Chunk | None = None  # of RF64, for what does not fit 32 bits
    form: _Chunk | None = None
    for chunk in _chunks(path, descriptor, layout, layout.start):
        if chunk.name == b"ds64":
            long_sizes = chunk
        elif chunk.name == b"COMM":
            form = chunk
        elif chunk.name == layout.audio:
            break
    else:
        return {}
    promised, there = chunk.size, size - chunk.content
    if long_sizes is not None and promised == 0xFFFFFFFF:
        promised = int.from_bytes(os.pread(descriptor, 8, long_sizes.content + 8), "little")
    if not _to_the_end(path, descriptor, layout, _Chunk(chunk.name, chunk.content, promised), there):
        return {}
    patches = _sizes(layout, chunk, size)
    if long_sizes is not None:
        patches = {long_sizes.content: struct.pack("<QQ", size - 8, there)}
    if layout is _AIFF and form is not None:
        patches |= _aiff_frames(descriptor, form, there)
    return patches


def _to_the_end(path: Path, descriptor: int, layout: _Layout, audio: _Chunk, there: int) -> bool:
    """Whether the audio reaches to the end of the file, whatever its size says. CorruptFile: it was cut off."""
    if audio.size == 0 and (there == 0 or _only_chunks(path, descriptor, layout, audio.content)):
        return False  # really none
    if _is_placeholder(audio.size, there):
        return True
    if audio.size > there + 1:  # one: a byte of padding, which some count and do not write
        rule = "the header promises more sound than the file holds; it is cut off: copy it again"
        raise CorruptFile(path, rule, expected=f"{audio.size} bytes", found=there)
    return False


def _only_chunks(path: Path, descriptor: int, layout: _Layout, start: int) -> bool:
    """Whether what follows is further chunks up to the end of the file, and so no audio."""
    end, size = start, os.fstat(descriptor).st_size
    for chunk in _chunks(path, descriptor, layout, start):
        if not chunk.name[:4].isalnum() and not chunk.name[:4].strip().isalnum():
            return False
        end = chunk.content + chunk.size
    return size <= end <= size + 1 or end == size - 1


def _sizes(layout: _Layout, audio: _Chunk, size: int) -> dict[int, bytes]:
    there = size - audio.content + (layout.name + layout.size if layout.counts_header else 0)
    places = {audio.content - layout.size: there}
    if layout.whole[0]:
        places[layout.whole[0]] = size - layout.whole[1]
    most = (1 << 8 * layout.size) - 1
    # A file of over 4 GiB keeps its placeholder, which the decoders know too.
    return {at: min(value, most).to_bytes(layout.size, layout.order) for at, value in places.items()}


def _aiff_frames(descriptor: int, form: _Chunk, there: int) -> Mapping[int, bytes]:
    """How many frames fill the audio chunk, which begins with two numbers of its own; known for plain samples only."""
    values = os.pread(descriptor, 22, form.content)
    if len(values) < 18 or (form.size >= 22 and values[18:22] not in _PLAIN_AIFC):
        return {}
    channels, _, bits = struct.unpack(">hIh", values[:8])
    width = channels * -(-bits // 8)
    return {form.content + 2: struct.pack(">I", max(there - 8, 0) // width)} if width > 0 else {}


def _au_patches(path: Path, descriptor: int, head: bytes) -> dict[int, bytes]:
    order: Any = "big" if head[:4] == b".snd" else "little"
    content, promised = (int.from_bytes(head[at : at + 4], order) for at in (4, 8))
    there = os.fstat(descriptor).st_size - content
    layout = _Layout(0, 4, 4, order, False, 1, b"", (0, 0))
    if there <= 0 or not _to_the_end(path, descriptor, layout, _Chunk(b"", content, promised), there):
        return {}
    return {8: min(there, 0xFFFFFFFF).to_bytes(4, order)}


class _Patched(io.RawIOBase):
    """An open file, read-only, in which some bytes are others than on disk. The file stays the caller's to close."""

    def __init__(self, file: BinaryIO, patches: Mapping[int, bytes]) -> None:
        self._descriptor, self._patches, self._at = file.fileno(), patches, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: os.fstat(self._descriptor).st_size}[whence]
        if start + offset < 0:
            raise ValueError("a place before the file")
        self._at = start + offset
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: Any) -> int:
        data = bytearray(os.pread(self._descriptor, len(buffer), self._at))
        for place, right in self._patches.items():
            first, end = max(place, self._at), min(place + len(right), self._at + len(data))
            if first < end:
                data[first - self._at : end - self._at] = right[first - place : end - place]
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)
