"""Sound, pictures and videos inside a conversation's messages, taken out so that the template sees only their kinds."""

from __future__ import annotations

import os
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from lluda.errors import InvalidRequest

Kind = Literal["audio", "image", "video"]
KINDS: tuple[Kind, ...] = ("audio", "image", "video")

_OPTIONS: Mapping[Kind, frozenset[str]] = {
    "audio": frozenset({"sampling_rate"}),
    "image": frozenset(),
    "video": frozenset({"fps", "use_audio"}),
}


@dataclass(frozen=True, slots=True)
class MediaPart:
    """One part ``{"type": kind, "path": file}`` or ``{"type": kind, kind: array}`` of a message.

    ``source``: a path or an array. ``options``: ``sampling_rate`` (Hz, of an audio array), ``fps`` (frames sampled a
    second of video; of a video array, the rate its frames were taken at) and ``use_audio`` (the video's own sound
    track is heard, interleaved in time). ``where`` names it in messages.
    """

    kind: Kind
    source: Any
    options: Mapping[str, Any]
    where: str

    @property
    def key(self) -> tuple[Hashable, ...]:
        """Equal for parts of one conversation that name the same source with the same options."""
        source = str(self.source) if isinstance(self.source, str | os.PathLike) else id(self.source)
        return self.kind, source, tuple(sorted(self.options.items()))


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
        raise InvalidRequest(f'{where}: give one source of the {kind}: "path": a file, or "{kind}": an array')
    if part.get("path") is not None and not isinstance(sources[0], str | os.PathLike):
        raise InvalidRequest(f"{where}: path must be a file's path, not {type(sources[0]).__name__}")
    options = {key: value for key, value in part.items() if key not in ("type", "path", kind) and value is not None}
    unknown = sorted(str(key) for key in options.keys() - _OPTIONS[kind])
    if unknown:
        known = ", ".join(sorted(_OPTIONS[kind])) or "none"
        raise InvalidRequest(f"{where}: {unknown[0]:.60} is no option of {kind}; options: {known}")
    return MediaPart(kind, sources[0], options, where)
