"""Images of any kind as the model takes them: upright RGB bytes ``[height, width, 3]``.

Files are decoded in a process of their own (`media_decoder.py`, `image_decoder.py`). The size in the header is
checked against the limits before memory is taken.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from lluda.config.vision import VISION_LIMITS, VisionLimits
from lluda.errors import InvalidRequest
from lluda.extras import require
from lluda.inputs.decoding.image_limits import check_size
from lluda.inputs.decoding.media_decoder import DECODER
from lluda.inputs.decoding.media_file import MediaFile

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Size = tuple[int, int]
"""Height and width in pixels."""


@dataclass(frozen=True, slots=True)
class ImageInput:
    """An image that is not decoded yet, ``height`` by ``width`` as it is stored (before its
    rotation)."""

    height: int
    width: int
    _read: Callable[[Size | None], NDArray[np.uint8]] = field(repr=False)
    _leave: Callable[[], None] = field(repr=False)

    def pixels(self, size: Size | None = None) -> NDArray[np.uint8]:
        """The upright image, once: uint8 ``[height, width, 3]``, resized (bicubic, antialiased) to ``size`` if given,
        a size for the image as it is stored. CorruptFile: damaged or cut off. LimitExceeded: too much memory."""
        return self._read(size)

    def close(self) -> None:
        """Release the file. May be called twice, and after decoding."""
        self._leave()


def open_image(source: Any, *, where: str = "image", limits: VisionLimits = VISION_LIMITS) -> ImageInput:
    """A file (its path or bytes), or an array that already is uint8 ``[height, width, 3]``.

    ``where`` names bytes and arrays in errors.

    Raises:
        InvalidRequest: no such file, no permission, or an array of another kind.
        LimitExceeded: too many bytes or pixels, or too long for its width (:class:`VisionLimits`).
        CorruptFile: not an image of a format that is read.
    """
    if isinstance(source, str | os.PathLike | bytes):
        file = MediaFile(source, "image", limits.max_image_bytes, where)
        job = DECODER.open("image", file, limits=asdict(limits))

        def read(size: Size | None) -> NDArray[np.uint8]:
            (pixels,) = job.arrays(size=size)
            return pixels

        return ImageInput(job.about["height"], job.about["width"], read, job.close)
    array = image_array(source, where, limits)
    return ImageInput(array.shape[0], array.shape[1], lambda size: resized(array, size), lambda: None)


def read_image(source: Any, *, where: str = "image", limits: VisionLimits = VISION_LIMITS) -> NDArray[np.uint8]:
    """The pixels of :func:`open_image`, in their own size; errors as there, and CorruptFile: damaged or cut off."""
    return open_image(source, where=where, limits=limits).pixels()


def resized(pixels: NDArray[np.uint8], size: Size | None) -> NDArray[np.uint8]:
    """Pixels ``[height, width, 3]`` in another size, as Pillow resizes: bicubic with antialiasing.
    MissingDependency: Pillow is not installed (``lluda[media]``)."""
    if size is None or pixels.shape[:2] == tuple(size):
        return pixels
    require("resizing an image", "media")
    import numpy as np
    from PIL import Image

    return np.asarray(Image.fromarray(pixels).resize(size[::-1], Image.Resampling.BICUBIC))


def image_array(source: Any, where: str, limits: VisionLimits = VISION_LIMITS) -> NDArray[np.uint8]:
    """``source`` as uint8 ``[height, width, 3]``. InvalidRequest: it is not. LimitExceeded: too large or too long."""
    pixels = rgb_array(source, 3, where)
    check_size(where, pixels.shape[0], pixels.shape[1], limits)
    return pixels


def rgb_array(source: Any, dimensions: int, where: str) -> NDArray[np.uint8]:
    """``source`` as uint8 ``[…, height, width, 3]`` of that many dimensions, none empty; else InvalidRequest."""
    import numpy as np

    try:
        pixels = np.asarray(source)
    except (TypeError, ValueError, RuntimeError):
        pixels = np.zeros(0, np.object_)
    if pixels.dtype == np.uint8 and pixels.ndim == dimensions and pixels.shape[-1] == 3 and pixels.size:
        return pixels
    wanted = "[height, width, 3]" if dimensions == 3 else "[frames, height, width, 3]"
    raise InvalidRequest(
        f"{where}: an array must be RGB bytes, uint8 {wanted}, none of them 0; found {pixels.dtype} "
        f"{list(pixels.shape)} of {type(source).__name__}"
    )
