"""A new file that one living writer has for itself, and what a dead writer left under its name.

A writer creates its file with O_EXCL and holds a lock on it (flock) for as long as it writes. The system drops the lock
with the process, however that ends: so a file that exists and is not locked was left by a writer that was killed, and
is removed by the next one. The same holds between threads of one process.
"""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from lluda.errors import LludaError

_NO_LOCKS = {errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL}
"""What file systems without locks answer."""


@contextmanager
def claim_file(path: Path, *, what: Path, leftover: Callable[[Path], None] | None = None) -> Iterator[int]:
    """A descriptor of the new, empty file ``path``, which is gone, renamed or removed, when the block ends.

    ``what`` names in messages what is being written. A dead writer's file of the same name is removed first;
    ``leftover`` is called before, with its path, to remove what else there is of it.

    Raises:
        LludaError: another writer has the file, or this file system cannot tell whether it lives.
        OSError: the file cannot be created.
    """
    descriptor = _claim(path, what, leftover)
    try:
        yield descriptor
    finally:
        # Before the lock is released, and not if the file was renamed: the name may be another writer's by then. What
        # made the write fail may make this fail too; the first error is the one to report.
        with suppress(OSError):
            if _is_named(descriptor, path):
                path.unlink()
        os.close(descriptor)


def _claim(path: Path, what: Path, leftover: Callable[[Path], None] | None) -> int:
    while True:
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        except FileExistsError:
            _remove_leftover(path, what, leftover)
            continue
        try:
            # Until it was locked, another process could take it for a leftover.
            if _lock(descriptor) is not False and _is_named(descriptor, path):
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _remove_leftover(path: Path, what: Path, leftover: Callable[[Path], None] | None) -> None:
    """Remove the file of a dead writer. LludaError: its writer lives, or nobody can tell."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:  # its writer has just ended
        return
    try:
        locked = _lock(descriptor)
        if locked is None:
            raise LludaError(
                f"{what}: {path.name} beside it is another writer's or was left by one that was killed; this file "
                "system has no locks to tell which: if no other lluda is running, remove it and try again"
            )
        if not locked:
            raise LludaError(f"{what}: another process is writing it; wait until it is done, or choose another name")
        if _is_named(descriptor, path):
            if leftover:
                leftover(path)
            path.unlink()
    finally:
        os.close(descriptor)


def _lock(descriptor: int) -> bool | None:
    """Whether the lock could be had; None where there are no locks."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno in _NO_LOCKS:
            return None
        raise
    return True


def _is_named(descriptor: int, path: Path) -> bool:
    """Whether the open file is still the one of that name."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path, follow_symlinks=False))  # noqa: PTH116
    except FileNotFoundError:
        return False
