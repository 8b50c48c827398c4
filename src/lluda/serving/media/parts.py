"""OpenAI's parts of a message with media in them, as lluda takes them: with bytes in place of base64 and addresses."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lluda.serving.http.errors import invalid
from lluda.serving.limits import Limits
from lluda.serving.media.data_url import from_base64, from_data_url
from lluda.serving.media.fetch import Fetcher

InWorker = Callable[..., Awaitable[Any]]
"""`Service.in_worker`."""

_KINDS = {"image_url": "image", "input_audio": "audio", "audio_url": "audio", "video_url": "video"}
_LIMITS = {"image": "images", "audio": "sounds", "video": "videos"}


@dataclass(slots=True, eq=False)
class _Found:
    """One medium: the part that its content goes into, and where it is written in the request."""

    kind: str
    part: dict[str, Any]
    text: str
    param: str
    bare: bool  # base64 without a data URL around it

    @property
    def is_inline(self) -> bool:
        """Whether the content came with the request."""
        return self.bare or self.text[:5].lower() == "data:"


@dataclass(slots=True)
class _Gathering:
    limits: Limits
    media: list[_Found] = field(default_factory=list)

    def message(self, message: Mapping[str, Any], where: str) -> dict[str, Any]:
        content = message.get("content")
        if not isinstance(content, list):
            return dict(message)
        parts = [self.part(part, f"{where}.content[{index}]") for index, part in enumerate(content)]
        return {**message, "content": parts}

    def part(self, part: Mapping[str, Any], where: str) -> dict[str, Any]:
        kind = _KINDS.get(part["type"])
        if kind is None:
            return dict(part)
        given = part[part["type"]]
        taken: dict[str, Any] = {"type": kind}
        if given.get("fps") is not None:
            taken["fps"] = given["fps"]
        if given.get("use_audio_in_video"):
            taken["use_audio"] = True
        name = "data" if part["type"] == "input_audio" else "url"
        param = f"{where}.{part['type']}.{name}"
        bare = name == "data" and given[name][:5].lower() != "data:"
        self.media.append(_Found(kind, taken, given[name], param, bare))
        self._check_count(kind, param)
        return taken

    def _check_count(self, kind: str, param: str) -> None:
        limit = getattr(self.limits, _LIMITS[kind])
        if sum(found.kind == kind for found in self.media) > limit:
            raise invalid(f"{param}: a request may have {limit} of kind {kind}, not more", param)


async def with_media(
    messages: Sequence[Mapping[str, Any]], limits: Limits, fetcher: Fetcher, in_worker: InWorker
) -> list[dict[str, Any]]:
    """Copies of ``messages`` (checked, as dicts) in which each part ``image_url``, ``input_audio``, ``audio_url`` or
    ``video_url`` is ``{"type": kind, kind: bytes}`` with the options of its kind; all else is as it was.

    Nothing is fetched before all that comes with the request is known to be right. ApiError: as `from_base64`,
    `from_data_url` and `Fetcher.fetch`, and 400 for more media than `Limits` allow; ``param`` is the path of the text.
    """
    gathering = _Gathering(limits)
    changed = [gathering.message(message, f"messages[{index}]") for index, message in enumerate(messages)]
    inline = [found for found in gathering.media if found.is_inline]
    distant = [found for found in gathering.media if not found.is_inline]
    if inline:
        for found, content in zip(inline, await in_worker(_decoded, inline, limits.body_bytes), strict=True):
            found.part[found.kind] = content
    if distant:
        contents = await fetcher.fetch([(found.text, found.param) for found in distant])
        for found, content in zip(distant, contents, strict=True):
            found.part[found.kind] = content
    return changed


def _decoded(media: Sequence[_Found], limit: int) -> list[bytes]:
    return [
        from_base64(found.text, found.param, limit)
        if found.bare
        else from_data_url(found.text, found.kind, found.param, limit)
        for found in media
    ]
