"""Pictures of any kind as the model sees them: upright RGB bytes ``[height, width, 3]``.

Pillow reads an allow-list of formats, whatever a file is named. A header's promises are held against the limits before
memory is taken. Of an animation or a file of several pages the first picture counts; what is transparent lies on white,
as in the released processor; 16-bit grey keeps its upper half.
"""

from __future__ import annotations

import os
import warnings
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lluda.config_vision import VISION_LIMITS, VisionLimits
from lluda.errors import CorruptFile, InvalidRequest, LimitExceeded, ModelNotFound
from lluda.mapped_file import open_regular

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL.Image import Image

FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
"""Formats that are read, by Pillow's names: no vector graphics, no interpreters, nothing that opens a further file."""

_SIXTEEN_BITS = ("I", "I;16", "I;16B", "I;16L", "I;16N")
_EIGHT_BITS = ("1", "CMYK", "HSV", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "YCbCr")


def read_image(source: Any, *, where: str = "image", limits: VisionLimits = VISION_LIMITS) -> NDArray[np.uint8]:
    """A file (str or path), or an array that already is uint8 ``[height, width, 3]``, as such an array.

    ``where`` names an array in errors.

    Raises:
        InvalidRequest: no such file, no permission, or an array of another kind.
        LimitExceeded: too many bytes or pixels, or too long for its width (:class:`VisionLimits`).
        CorruptFile: not a picture of a format that is read, damaged, or cut off.
    """
    if isinstance(source, str | os.PathLike):
        return _read_file(Path(source), limits)
    pixels = rgb_array(source, 3, where)
    check_size(where, pixels.shape[0], pixels.shape[1], limits)
    return pixels


def open_media(path: Path, max_bytes: int, kind: str) -> int:
    """A descriptor of the regular file ``path`` of at most ``max_bytes``; ``kind`` says what it should be.

    InvalidRequest: absent or not permitted. LimitExceeded: larger. CorruptFile: empty, or not a regular file.
    """
    try:
        descriptor, status = open_regular(path)
    except ModelNotFound:
        raise InvalidRequest(f"{path}: no such {kind}, or no permission to read it") from None
    if 0 < status.st_size <= max_bytes:
        return descriptor
    os.close(descriptor)
    if not status.st_size:
        raise CorruptFile(path, "the file is empty")
    raise LimitExceeded(f"{path}: {status.st_size} bytes exceed the {max_bytes} of one {kind}; make it smaller")


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


def check_size(where: str, height: int, width: int, limits: VisionLimits = VISION_LIMITS) -> None:
    """LimitExceeded if a picture of that many pixels is too large, or one side too many times the other."""
    if width * height > limits.max_pixels:
        raise LimitExceeded(
            f"{where}: {width} x {height} pixels exceed the {limits.max_pixels} of one picture; make it smaller"
        )
    if max(width, height) > limits.max_aspect_ratio * min(width, height):
        raise LimitExceeded(
            f"{where}: of {width} x {height} pixels one side is more than {limits.max_aspect_ratio} times the other; "
            "cut it up"
        )


def _read_file(path: Path, limits: VisionLimits) -> NDArray[np.uint8]:
    with os.fdopen(open_media(path, limits.max_image_bytes, "picture"), "rb") as file, warnings.catch_warnings():
        # Pillow warns of large pictures and of odd metadata; the limits decide, and metadata is of no concern.
        warnings.simplefilter("ignore")
        return _rgb(path, _opened(path, file, limits))


def _opened(path: Path, file: Any, limits: VisionLimits) -> Image:
    """The first picture of an open file, decoded, after its header was held against the limits."""
    from PIL import Image

    try:
        image = Image.open(file, formats=FORMATS)
    except Image.DecompressionBombError:
        rule = f"the header promises more than the {limits.max_pixels} pixels of one picture; make it smaller"
        raise LimitExceeded(f"{path}: {rule}") from None
    except Exception:  # a damaged header can make Pillow raise anything
        rule = "not a picture that can be read; convert it to PNG, JPEG or WebP"
        raise CorruptFile(path, rule, expected=", ".join(FORMATS)) from None
    check_size(str(path), image.height, image.width, limits)
    try:
        image.load()
    except MemoryError:
        raise
    except Exception:
        raise CorruptFile(path, "the picture cannot be decoded to its end; the file is damaged or cut off") from None
    return image


def _rgb(path: Path, image: Image) -> NDArray[np.uint8]:
    import numpy as np
    from PIL import Image, ImageOps

    with suppress(Exception):  # metadata that cannot be read turns nothing
        image = ImageOps.exif_transpose(image)
    if image.mode in _SIXTEEN_BITS:
        return _from_sixteen_bits(path, np.asarray(image))
    if image.mode not in _EIGHT_BITS:
        raise CorruptFile(path, "pixels of this kind are not read; convert it to 8-bit RGB", found=image.mode)
    if "A" in image.getbands() or image.info.get("transparency") is not None:
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, image.convert("RGBA"))
    return np.array(image.convert("RGB"))


def _from_sixteen_bits(path: Path, values: NDArray[Any]) -> NDArray[np.uint8]:
    import numpy as np

    if values.min() < 0 or values.max() > 0xFFFF:
        rule = "grey values must have 8 or 16 bits; convert it to 8-bit RGB"
        raise CorruptFile(path, rule, found=f"{values.min()} to {values.max()}")
    upper = (values.astype(np.uint16) >> 8).astype(np.uint8)
    return np.repeat(upper[..., None], 3, axis=-1)
