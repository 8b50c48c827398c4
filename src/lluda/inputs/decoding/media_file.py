"""A file that is given as a medium: opened once, checked against what is given by mistake, known by its content."""

from __future__ import annotations

import hashlib
import os
import re
import sys
import tempfile
import weakref
from pathlib import Path
from typing import Any

from lluda.errors import CorruptFile, InvalidRequest, LimitExceeded, ModelNotFound
from lluda.files.mapped_file import open_regular

_PIECE = 2**22
_HEAD = 512

_ADDRESS = re.compile(r"([a-z][a-z0-9+.-]*)://", re.IGNORECASE)

_MISTAKES: tuple[tuple[re.Pattern[bytes], str], ...] = tuple(
    (re.compile(pattern, re.IGNORECASE | re.DOTALL), words)
    for pattern, words in (
        (rb"version https://git-lfs\.github\.com/spec/", "a Git LFS pointer to the {kind}; fetch it: git lfs pull"),
        (
            rb"(\xef\xbb\xbf)?\s*(<!doctype html|<html|<head|<body)",
            "a web page, {not_it}; a download was answered with a page (an error, a login): download the file itself",
        ),
        (
            rb"(\xef\xbb\xbf)?\s*(<\?xml[^>]*>\s*)?(<!--.*?-->\s*)*(<!doctype svg[^>]*>\s*)?<svg",
            "a drawing (SVG), {not_it}; convert it to PNG",
        ),
        (rb"%PDF-", "a PDF, {not_it}; convert it to PNG: pdftoppm -png"),
        (rb"%!PS", "PostScript, {not_it}; convert it to PNG"),
        (
            rb"(\xef\xbb\xbf)?(#EXTM3U|\[playlist\]|ffconcat version)",
            "a list of other files, {not_it}; give one of the files it names",
        ),
        (
            rb"....ftyp(heic|heix|heim|heis|hevc|hevx|mif1(?!.{0,64}avif))",
            "a HEIC image, {not_it}; convert it to JPEG or PNG",
        ),
        (rb"PK\x03\x04", "a zip archive, {not_it}; unpack it and give one file of it"),
        (rb"\x1f\x8b\x08", "compressed with gzip, {not_it}; unpack it: gunzip"),
    )
)
"""How well-known files begin that are given as media by mistake, and what to say of them."""


MediaSource = str | os.PathLike[str] | bytes
"""A file: its path, or its content."""


class MediaFile:
    """One open file for a ``kind`` of medium ("recording", "image", "video"); ``size`` in bytes. It is closed with
    the object, or by ``close()``. Of a content that is given, ``path`` is ``where`` it was given, for messages.

    Raises:
        InvalidRequest: absent, not permitted, or an address where a file is needed.
        LimitExceeded: larger than ``max_bytes``.
        CorruptFile: empty, a folder or a device, or a well-known kind of file that is no medium.
    """

    def __init__(self, source: MediaSource, kind: str, max_bytes: int, where: str = "") -> None:
        if isinstance(source, bytes):
            self.path, self.kind, self.size = Path(where), kind, len(source)
            self._check(max_bytes, source[:_HEAD])  # before it is copied
            self.descriptor = _opened(source)
            self.close = weakref.finalize(self, os.close, self.descriptor)
            return
        check_path(source, kind)
        self.path, self.kind = Path(source), kind
        try:
            self.descriptor, status = open_regular(self.path)
        except ModelNotFound:
            raise InvalidRequest(f"{source}: no such {kind}, or no permission to read it; check the path") from None
        self.close = weakref.finalize(self, os.close, self.descriptor)
        self.size = status.st_size
        try:
            self._check(max_bytes, os.pread(self.descriptor, _HEAD, 0))
        except BaseException:
            self.close()
            raise

    def _check(self, max_bytes: int, head: bytes) -> None:
        if not self.size:
            raise CorruptFile(self.path, f"the file is empty; copy or download the {self.kind} again")
        if self.size > max_bytes:
            rule = f"{self.size} bytes exceed the {max_bytes} of one {self.kind}; make it smaller, or cut it up"
            raise LimitExceeded(f"{self.path}: {rule}")
        for pattern, words in _MISTAKES:
            if pattern.match(head):
                not_it = f"not a readable {self.kind}"
                raise CorruptFile(self.path, "this is " + words.format(kind=self.kind, not_it=not_it))

    def digest(self, hasher: Any | None = None) -> bytes:
        """SHA-256 of the whole content, added to what ``hasher`` was given before."""
        hasher = hasher or hashlib.sha256()
        offset = 0
        while piece := os.pread(self.descriptor, _PIECE, offset):
            hasher.update(piece)
            offset += len(piece)
        found: bytes = hasher.digest()
        return found


def _opened(content: bytes) -> int:
    """A descriptor of a file that has no name, and goes away with it."""
    if sys.platform == "linux":
        descriptor = os.memfd_create("medium", os.MFD_CLOEXEC)
    else:
        with tempfile.TemporaryFile() as file:
            descriptor = os.dup(file.fileno())
    try:
        view = memoryview(content)
        while view:
            view = view[os.write(descriptor, view) :]
        os.lseek(descriptor, 0, os.SEEK_SET)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def check_path(path: str | os.PathLike[str], kind: str) -> None:
    """InvalidRequest: ``path`` is an address; CorruptFile: a folder. ``kind`` says what it should be."""
    text = os.fspath(path)
    if text.lower().startswith("data:"):
        raise InvalidRequest(
            f"{text[:40]}…: a data: URL holds the {kind} as text, and a file's path is needed; decode it to a file"
        )
    address = _ADDRESS.match(text)
    if address and address[1].lower() == "file":
        raise InvalidRequest(f"{text:.200}: a file's path is needed, not its address; leave out file://")
    if address:
        raise InvalidRequest(
            f"{text:.200}: this is an address, and the {kind} must be a file; download it first (curl -LO ADDRESS)"
        )
    if os.path.isdir(text):  # noqa: PTH112  (Path.is_dir raises where a name is too long)
        raise CorruptFile(path, f"this is a folder, and a regular file is needed; give one {kind} in it")
