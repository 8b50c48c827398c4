"""Audio, images and videos inside a conversation's messages, taken out so that the template sees only their kinds."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from lluda.config.audio import AUDIO_LIMITS
from lluda.config.vision import VISION_LIMITS
from lluda.errors import InvalidRequest
from lluda.inputs.decoding.media_file import MediaFile, check_path
from lluda.inputs.media.audio_array import audio_array
from lluda.inputs.media.image_file import image_array
from lluda.inputs.media.video_file import video_array

if TYPE_CHECKING:
    from numpy.typing import NDArray

Kind = Literal["audio", "image", "video"]
KINDS: tuple[Kind, ...] = ("audio", "image", "video")

_OPTIONS: Mapping[Kind, frozenset[str]] = {
    "audio": frozenset({"sampling_rate"}),
    "image": frozenset(),
    "video": frozenset({"fps", "use_audio"}),
}
_FILES: Mapping[Kind, tuple[str, int]] = {
    "audio": ("recording", AUDIO_LIMITS.max_file_bytes),
    "image": ("image", VISION_LIMITS.max_image_bytes),
    "video": ("video", VISION_LIMITS.max_video_bytes),
}
_HASHED_AT_ONCE = 1 << 22


@dataclass(frozen=True, slots=True)
class MediaPart:
    """One part ``{"type": kind, "path": file}`` or ``{"type": kind, kind: array}`` of a message; in place of an array
    there may be the bytes of a file.

    ``source``: a path, an array, or bytes. ``options``: ``sampling_rate`` (Hz, of an audio array), ``fps`` (frames
    sampled a second of video; of a video array, the rate its frames were taken at) and ``use_audio`` (the video's own
    audio track is used, interleaved in time). ``where`` names it in messages.
    """

    kind: Kind
    source: Any
    options: Mapping[str, Any]
    where: str

    @property
    def is_file(self) -> bool:
        """Whether the source is a path."""
        return isinstance(self.source, str | os.PathLike)

    def digest(self, settings: str) -> bytes:
        """SHA-256 of the content as it is now, a file's bytes or an array's values with their type and shape, and of
        kind, options and the ``settings`` that shape what is made of it. Two media of one digest are the same.

        Errors of a file that cannot be opened, or an array of the wrong kind, as the readers raise them.
        """
        hasher = hashlib.sha256(repr((self.kind, sorted(self.options.items()), settings)).encode())
        if isinstance(self.source, bytes):
            hasher.update(self.source)
            return hasher.digest()
        if self.is_file:
            file = MediaFile(self.source, *_FILES[self.kind])
            found = file.digest(hasher)
            file.close()
            return found
        return _array_digest(_ARRAYS[self.kind](self), hasher)


def check_file(kind: Kind, path: str | os.PathLike[str]) -> None:
    """InvalidRequest: ``path`` is an address; CorruptFile: a folder. Nothing is opened."""
    check_path(path, _FILES[kind][0])


_ARRAYS: Mapping[Kind, Callable[[MediaPart], NDArray[Any]]] = {
    "audio": lambda part: audio_array(part.source, part.options.get("sampling_rate"), part.where),
    "image": lambda part: image_array(part.source, part.where),
    "video": lambda part: video_array(part.source, part.where),
}


def _array_digest(values: NDArray[Any], hasher: Any) -> bytes:
    """Piece by piece: an array may be a view of far fewer bytes than it has values."""
    import numpy as np

    hasher.update(repr((values.dtype.str, values.shape)).encode())
    rows = max(1, _HASHED_AT_ONCE // max(1, values[:1].nbytes))
    for start in range(0, len(values), rows):
        hasher.update(np.ascontiguousarray(values[start : start + rows]).data)
    found: bytes = hasher.digest()
    return found


def take_media(messages: Any) -> tuple[Any, list[MediaPart]]:
    """``messages`` with each media part cut down to ``{"type": kind}``, and the parts in order.

    What is not of the form of messages comes back as it is, for `prompt.check_messages` to refuse. InvalidRequest: a
    media part without a source, with two, or with an option it does not have.
    """
    parts: list[MediaPart] = []
    if not isinstance(messages, Sequence) or isinstance(messages, str | bytes):
        return messages, parts
    return [_stripped(message, f"messages[{index}]", parts) for index, message in enumerate(messages)], parts


def _stripped(message: object, where: str, parts: list[MediaPart]) -> object:
    content = message.get("content") if isinstance(message, Mapping) else None
    if not isinstance(message, Mapping) or not isinstance(content, Sequence) or isinstance(content, str | bytes):
        return message
    stripped: list[object] = []
    for index, part in enumerate(content):
        kind = part.get("type") if isinstance(part, Mapping) else None
        if isinstance(part, Mapping) and kind in KINDS:
            parts.append(_media_part(kind, part, f"{where}.content[{index}]"))
            stripped.append({"type": kind})
        else:
            stripped.append(part)
    return {**message, "content": stripped}


def _media_part(kind: Kind, part: Mapping[str, Any], where: str) -> MediaPart:
    sources = [part[key] for key in ("path", kind) if part.get(key) is not None]
    if len(sources) != 1:
        raise InvalidRequest(f'{where}: give one source of the {kind}: "path": a file, or "{kind}": an array or bytes')
    if part.get("path") is not None and not isinstance(sources[0], str | os.PathLike):
        raise InvalidRequest(f"{where}: path must be a file's path, not {type(sources[0]).__name__}")
    options = {key: value for key, value in part.items() if key not in ("type", "path", kind) and value is not None}
    unknown = sorted(str(key) for key in options.keys() - _OPTIONS[kind])
    if unknown:
        known = ", ".join(sorted(_OPTIONS[kind])) or "none"
        raise InvalidRequest(f"{where}: {unknown[0]:.60} is no option of {kind}; options: {known}")
    (source,) = sources
    return MediaPart(kind, bytes(source) if isinstance(source, bytearray | memoryview) else source, options, where)


def with_sources(messages: Sequence[Any], sources: Sequence[Any]) -> list[Any]:
    """A copy of ``messages`` in which the media, in order, have ``sources`` in place of their files and arrays."""
    waiting = iter(sources)
    changed: list[Any] = []
    for message in messages:
        content = message.get("content") if isinstance(message, Mapping) else None
        if isinstance(content, Sequence) and not isinstance(content, str | bytes):
            parts = [
                {"type": part["type"], part["type"]: next(waiting)}
                if isinstance(part, Mapping) and part.get("type") in KINDS
                else part
                for part in content
            ]
            message = {**message, "content": parts}
        changed.append(message)
    return changed
