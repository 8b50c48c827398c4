"""Images from files, by Pillow; runs in the process that decodes media (`media_jobs.py`).

Pillow reads an allow-list of formats, whatever a file is named. Of an animation or a file of several pages the first
image counts; transparent pixels are blended with white, as in the released processor; 16-bit grey keeps its upper half.

The stored image is in memory once; it is converted to RGB, and resized, in bands.
"""

from __future__ import annotations

import io
import math
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from lluda.config.vision import VisionLimits
from lluda.errors import CorruptFile, LimitExceeded
from lluda.inputs.decoding.image_limits import check_size
from lluda.inputs.decoding.library_errors import library_errors

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL.Image import Image

FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
"""Formats that are read, by Pillow's names: no vector graphics, no interpreters, nothing that opens a further file."""

_SIXTEEN_BITS = ("I", "I;16", "I;16B", "I;16L", "I;16N")
_EIGHT_BITS = ("1", "CMYK", "HSV", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "YCbCr")

_BAND_PIXELS = 1 << 21
"""Pixels that are converted to RGB at once."""

_WHOLE_PIXELS = 1 << 24
"""Pixels that are converted to RGB as a whole before they are resized; a larger image is resized in bands."""

_SUPPORT = 2
"""Pixels to each side that a bicubic filter reads, at scale 1."""


@contextmanager
def opened(path: Path, file: BinaryIO, limits: VisionLimits) -> Iterator[Image]:
    """The first image of an open file, not decoded yet, after its header was checked against the limits.

    LimitExceeded: too many pixels, or too long for its width. CorruptFile: not an image of a format that is read.
    """
    from PIL import Image

    with warnings.catch_warnings():
        # Pillow warns of large images and of odd metadata; the limits decide, and metadata is not used.
        warnings.simplefilter("ignore")
        # Some formats are decoded as they are opened, and a lack of memory is reported as damage.
        large = ", or too large for its size" if _decoded_at_once(os.pread(file.fileno(), 12, 0)) else ""
        rule = f"not a readable image{large} (one of {', '.join(FORMATS)}); convert it to PNG, JPEG or WebP"
        with library_errors(path, rule):
            try:
                # From memory, not from the file: Pillow allocates as many bytes as a header says before it reads them.
                image = Image.open(io.BytesIO(file.read()), formats=FORMATS)
            except Image.DecompressionBombError:
                rule = f"the header promises more than the {limits.max_pixels} pixels of one image; make it smaller"
                raise LimitExceeded(f"{path}: {rule}") from None
        check_size(str(path), image.height, image.width, limits)
        with image:
            yield image


def _decoded_at_once(head: bytes) -> bool:
    return head[8:12] == b"WEBP" or head[4:12] == b"ftypavif"


def pixels(path: Path, image: Image, size: Sequence[int] | None) -> NDArray[np.uint8]:
    """The image decoded and upright, uint8 ``[height, width, 3]``; resized (bicubic, antialiased) to ``size``, the
    height and width for the image as it is stored, if given.

    CorruptFile: damaged, cut off, or of a kind of pixels that is not read.
    """
    import numpy as np
    from PIL import ImageOps

    rule = "the image cannot be decoded to its end; the file is damaged or cut off"
    with library_errors(path, rule):
        image.load()
    stored = image.size
    with suppress(Exception):  # metadata that cannot be read turns nothing
        ImageOps.exif_transpose(image, in_place=True)
    height, width = (image.height, image.width) if size is None else size if image.size == stored else size[::-1]
    found = np.empty((height, width, 3), np.uint8)
    with library_errors(path, rule):
        for start, end, band in _bands(path, image, height, width):
            found[start:end] = np.asarray(band)
    return found


def _bands(path: Path, image: Image, height: int, width: int) -> Iterator[tuple[int, int, Image]]:
    """First row, end and pixels of each band of the image in RGB and its new size.

    A large image's bands are cut out with what the filter reads around them, so that the same stored pixels weigh the
    same as if the whole were resized at once; the order of Pillow's two passes, and with it a rounding, may differ.
    """
    from PIL import Image

    resized = (height, width) != (image.height, image.width)
    if resized and not _is_plain(image) and image.height * image.width <= _WHOLE_PIXELS:
        whole = Image.new("RGB", image.size)
        for start, _, band in _bands(path, image, image.height, image.width):
            whole.paste(band, (0, start))
        image = whole
    if resized and _is_plain(image):
        yield 0, height, image.resize((width, height), Image.Resampling.BICUBIC)
        return
    scale = image.height / height
    around = math.ceil(_SUPPORT * max(scale, 1.0)) + 1 if resized else 0
    rows = max(1, int(_BAND_PIXELS / image.width / scale))
    for start in range(0, height, rows):
        end = min(start + rows, height)
        top, bottom = start * scale, end * scale
        first, last = max(0, math.floor(top) - around), min(image.height, math.ceil(bottom) + around)
        band = _rgb(path, image.crop((0, first, image.width, last)))
        if resized:
            box = (0, top - first, image.width, min(bottom - first, band.height))
            band = band.resize((width, end - start), Image.Resampling.BICUBIC, box)
        yield start, end, band


def _is_plain(image: Image) -> bool:
    return image.mode == "RGB" and image.info.get("transparency") is None


def _rgb(path: Path, image: Image) -> Image:
    import numpy as np
    from PIL import Image

    if image.mode in _SIXTEEN_BITS:
        return Image.fromarray(_upper_half(path, np.asarray(image)))
    if image.mode not in _EIGHT_BITS:
        raise CorruptFile(path, "pixels of this kind are not read; convert it to 8-bit RGB", found=image.mode)
    if "A" in image.getbands() or image.info.get("transparency") is not None:
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, image.convert("RGBA"))
    return image.convert("RGB")


def _upper_half(path: Path, values: NDArray[Any]) -> NDArray[np.uint8]:
    import numpy as np

    if values.min() < 0 or values.max() > 0xFFFF:
        rule = "grey values must have 8 or 16 bits; convert it to 8-bit RGB"
        raise CorruptFile(path, rule, found=f"{values.min()} to {values.max()}")
    upper = (values.astype(np.uint16) >> 8).astype(np.uint8)
    return np.repeat(upper[..., None], 3, axis=-1)
