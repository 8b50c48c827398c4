"""What to do about an error of the operating system."""

from __future__ import annotations

import errno

_REMEDIES = {
    errno.ENOSPC: "free disk space",
    errno.EDQUOT: "free disk space",
    errno.EFBIG: "raise the limit on the size of files (ulimit -f), write to a disk that holds files of this size, or "
    "write smaller ones",
    errno.EACCES: "check its permissions",
    errno.EPERM: "check its permissions",
    errno.EROFS: "its disk is read-only: choose another",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.EMFILE: "allow more open files (ulimit -n)",
    errno.ENFILE: "close other programs: the system has too many open files",
    errno.ENOMEM: "free memory, or raise its limit (ulimit -v)",
    errno.EAGAIN: "end other processes, or raise their limit (ulimit -u)",
    errno.EFAULT: "a file that is copied was shortened meanwhile: restore it and run this again",
    errno.EIO: "its disk may be failing: look into the system's log",
}


def remedy_for(error: OSError) -> str | None:
    """The remedy for the commonest causes; None for others."""
    return _REMEDIES.get(error.errno or 0)
