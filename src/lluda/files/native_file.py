"""Where the native library is that was built with the package."""

from __future__ import annotations

import os
import sysconfig
from pathlib import Path

from lluda.errors import NativeLibraryError

_NAMES = ("liblluda_native.so", "liblluda_native.dylib")


def native_file() -> Path:
    """In the folder ``LLUDA_NATIVE_DIR`` if that is set, else beside the package. NativeLibraryError says where it was
    looked for."""
    places = _places()
    for place in places:
        for name in _NAMES:
            if (place / name).is_file():
                return place / name
    raise NativeLibraryError(
        f"the native library is not built (looked in {', '.join(map(str, places))}); "
        "install lluda with a C++ compiler at hand, or use --backend reference"
    )


def _places() -> list[Path]:
    """An editable install splits the package in two places."""
    forced = os.environ.get("LLUDA_NATIVE_DIR")
    if forced:
        return [Path(forced)]
    return [Path(__file__).parents[1] / "_native", Path(sysconfig.get_path("platlib")) / "lluda" / "_native"]
