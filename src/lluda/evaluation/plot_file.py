"""The PNG file that a plot becomes."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from lluda.errors import InvalidRequest, MissingDependency
from lluda.files.atomic_file import atomic_file

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def require_plot(path: Path) -> None:
    """Find out before a long run whether its plot can be drawn.

    Raises:
        InvalidRequest: a name that does not end in .png or is a folder's, or a folder that cannot be written to.
        MissingDependency: matplotlib is not installed.
    """
    if path.suffix.lower() != ".png":
        raise InvalidRequest(f"--plot {path}: must end in .png")
    folder = path.absolute().parent
    if path.is_dir() or not folder.is_dir() or not os.access(folder, os.W_OK):
        raise InvalidRequest(
            f"--plot {path}: cannot be written: it is a folder, or its folder does not exist or cannot be written to"
        )
    try:
        import matplotlib as _  # noqa: F401
    except ImportError:
        raise MissingDependency("--plot needs matplotlib; get it with: pip install 'lluda[validate]'") from None


def write_png(figure: Figure, path: Path) -> None:
    """Draw ``figure`` into ``path``, which is replaced whole. LludaError: it cannot be written."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    with atomic_file(path) as file:
        FigureCanvasAgg(figure).print_png(file)
