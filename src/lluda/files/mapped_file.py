"""A file opened once for reading: positioned reads, a private memory map, and a watch on whether it changed since.

What a map cannot promise: its pages are read from the file when first touched. If another process shortens the file
after `MappedFile.check_unchanged` passed, touching a lost page ends this process: with a line that names the file and
the exit code of a CorruptFile where the native library is built, else by a bare SIGBUS. If it rewrites bytes in place,
untouched pages show the new bytes; so whoever copies weights out of a map calls ``check_unchanged`` again at the end.
Replacing a file by rename, as the Hub client and lluda's own writers do, is always safe: the map keeps the old file.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import stat
import sys
import weakref
from functools import cache
from pathlib import Path

from lluda.errors import CorruptFile, LludaError, ModelNotFound, NativeLibraryError
from lluda.files.native_file import native_file
from lluda.files.system_errors import remedy_for

_Identity = tuple[int, int, int, int]
_KIND = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a character device",
    stat.S_IFBLK: "a block device",
}
_NORESERVE = getattr(mmap, "MAP_NORESERVE", 0x4000)  # in Python's mmap since 3.13; 0x4000 on x86-64 and AArch64 Linux


class MappedFile:
    """One regular file, open until `close`; its map is made when first asked for."""

    def __init__(self, path: Path) -> None:
        """Open ``path``. ModelNotFound: absent or not permitted; CorruptFile: not a regular file, or unreadable."""
        self.path = path
        self._absolute = Path(os.path.abspath(path))  # noqa: PTH100  (Path.absolute keeps "..")
        descriptor, status = open_regular(path)
        self._descriptor = descriptor
        self._release = weakref.finalize(self, os.close, descriptor)
        self._identity = _identity(status)
        self._map: mmap.mmap | None = None
        self.size: int = status.st_size

    def read(self, offset: int, count: int) -> bytearray:
        """``count`` bytes from byte ``offset`` on, copied. CorruptFile if the file ends before."""
        assert self._release.alive, f"{self.path} is used after it was closed"
        data = bytearray(count)
        filled = 0
        with memoryview(data) as target:
            while filled < count:
                got = os.preadv(self._descriptor, [target[filled:]], offset + filled)
                if got == 0:
                    raise CorruptFile(
                        self.path, "the file ends too early", expected=f"{offset + count} bytes", found=offset + filled
                    )
                filled += got
        return data

    def map(self) -> mmap.mmap:
        """The whole file, private copy-on-write: writing to it changes neither the file nor other maps of it.
        LludaError: the system maps no more.

        Never close the map: a torch tensor made by ``frombuffer`` holds a reference to it but no buffer lock, so
        closing would unmap the memory under a living tensor. It is unmapped when its last reference is dropped.
        """
        if self._map is None:
            try:
                self._map = _map_private(self._descriptor, self.size)
            except OSError as error:
                remedy = remedy_for(error) or "copy it to a local disk"
                raise LludaError(
                    f"{self.path}: its {self.size:,} bytes cannot be mapped: {error.strerror}; {remedy}"
                ) from error
            _watch(self._map, self.path)
        return self._map

    def release(self, offset: int, count: int) -> None:
        """Release the map's whole pages within ``count`` bytes from ``offset``: they leave this process's memory and
        are read from the file again if touched. What was written to them, which nobody should, is lost."""
        start = -(-offset // mmap.PAGESIZE) * mmap.PAGESIZE
        end = (offset + count) // mmap.PAGESIZE * mmap.PAGESIZE
        if self._map is not None and end > start:
            self._map.madvise(mmap.MADV_DONTNEED, start, end - start)

    def check_unchanged(self) -> None:
        """CorruptFile if, since it was opened, the file was resized, rewritten (mtime), replaced or removed.

        A rewrite that keeps the size within one tick of the file system's clock (4 ms on Linux) is not noticed.
        """
        assert self._release.alive, f"{self.path} is used after it was closed"
        opened = _identity(os.fstat(self._descriptor))
        if opened[2] != self.size:
            raise CorruptFile(
                self.path, "the file changed its size after it was opened", expected=self.size, found=opened[2]
            )
        if opened != self._identity:
            raise CorruptFile(self.path, "the file was written to after it was opened")
        try:
            named = _identity(self._absolute.stat())
        except OSError as error:
            raise CorruptFile(self.path, "the file was removed after it was opened", found=error.strerror) from error
        if named != self._identity:
            raise CorruptFile(self.path, "the file was replaced by another after it was opened")

    def close(self) -> None:
        """Close the descriptor and drop the map; tensors made from the map keep it alive. May be called twice."""
        self._release()
        self._map = None


def open_regular(path: Path) -> tuple[int, os.stat_result]:
    """A read-only descriptor of the regular file ``path`` and its status; never waits on a pipe or a device.

    ModelNotFound: absent or not permitted. CorruptFile: anything but a regular file, or a failing disk.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise unreadable(path, error) from error
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        os.close(descriptor)
        kind = _KIND.get(stat.S_IFMT(status.st_mode), "something else")
        raise CorruptFile(path, "a regular file is needed here", found=kind)
    return descriptor, status


def unreadable(path: Path, error: OSError) -> LludaError:
    """What to raise where the system refuses ``path``: each cause has its own message."""
    if isinstance(error, FileNotFoundError) and path.is_symlink():
        return ModelNotFound(f"{path}: a link to {path.readlink()}, where there is no file; restore it, or the link")
    if isinstance(error, FileNotFoundError):
        return ModelNotFound(f"{path}: no such file; check the path, or download the model again")
    if isinstance(error, PermissionError):
        return ModelNotFound(f"{path}: no permission to read it; grant it (chmod a+r), or run as its owner")
    if error.errno == errno.ELOOP:
        return CorruptFile(path, "a link that leads back to itself; put the file itself there")
    return CorruptFile(path, "the system cannot read it", found=error.strerror or str(error))


def _map_private(descriptor: int, size: int) -> mmap.mmap:
    if sys.platform == "linux":
        # As ACCESS_COPY, and without reserving swap for pages that nobody will write: else the kernel's default
        # overcommit rule refuses to map a file larger than memory and swap together.
        flags = mmap.MAP_PRIVATE | _NORESERVE
        return mmap.mmap(descriptor, size, flags=flags, prot=mmap.PROT_READ | mmap.PROT_WRITE)
    return mmap.mmap(descriptor, size, access=mmap.ACCESS_COPY)


def _watch(mapped: mmap.mmap, path: Path) -> None:
    """Have a lost page reported, for as long as the map lives."""
    library = _native_library()
    if library is None:
        return
    shown = str(path) if str(path).isprintable() else ascii(str(path))
    line = f"lluda: {shown}: the file was shortened while it was in use, or its disk fails; restore the file"
    begin = ctypes.addressof(ctypes.c_char.from_buffer(mapped))
    watch = library.lluda_watch_mapped_file(begin, len(mapped), f"{line}\n".encode(), CorruptFile.exit_code)
    weakref.finalize(mapped, library.lluda_unwatch_mapped_file, watch).atexit = False


@cache
def _native_library() -> ctypes.CDLL | None:
    """None where it is not built, or is older than this file: what needs its kernels says so."""
    try:
        library = ctypes.CDLL(str(native_file()))
        library.lluda_watch_mapped_file.restype = ctypes.c_void_p
        library.lluda_watch_mapped_file.argtypes = (ctypes.c_void_p, ctypes.c_int64, ctypes.c_char_p, ctypes.c_int)
        library.lluda_unwatch_mapped_file.restype = None
        library.lluda_unwatch_mapped_file.argtypes = (ctypes.c_void_p,)
    except (NativeLibraryError, OSError, AttributeError):
        return None
    return library


def _identity(status: os.stat_result) -> _Identity:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns
