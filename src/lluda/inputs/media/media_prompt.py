"""The ids of a prompt with media: each placeholder that the chat template wrote becomes as many as its medium has rows.

Placeholders are bound by position. What a user typed as ``<|image_pad|>`` was encoded as text (see `prompt`), so every
placeholder id is the template's own, and the n-th belongs to the n-th medium of the messages.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from lluda.config.omni import MediaTokens
from lluda.errors import TemplateError
from lluda.inputs.media.media_positions import AudioSpan, ImageSpan, Span, TextSpan, VideoSpan, order_of_kinds


@dataclass(frozen=True, slots=True)
class Layout:
    """What places media in a prompt: ids of markers and placeholders, patches along a token's side, and how many
    positions a second of video takes."""

    tokens: MediaTokens
    merge_size: int
    positions_per_second: int

    def count(self, span: Span) -> int:
        """Tokens of one medium, the markers that a video's own audio adds among them."""
        match span:
            case AudioSpan(count) | TextSpan(count):
                return count
            case ImageSpan(grid):
                return math.prod(grid) // self.merge_size**2
            case VideoSpan(grid, _, audio):
                return math.prod(grid) // self.merge_size**2 + (audio + 2 if audio else 0)


@dataclass(frozen=True, slots=True)
class MediaPrompt:
    """``ids`` and the ``spans`` they fall into, text included, with the number of ids of each span."""

    ids: list[int]
    spans: list[Span]
    counts: list[int]


def expand_placeholders(ids: Sequence[int], media: Sequence[Span], layout: Layout) -> MediaPrompt:
    """The ids that the chat template gave, with each placeholder expanded to the tokens of its one of ``media``.

    TemplateError: placeholders and media differ in number or kind; the template is not one for these media.
    """
    tokens = layout.tokens
    kinds = {tokens.audio_pad: "audio", tokens.image_pad: "image", tokens.video_pad: "video"}
    written = [kinds[token] for token in ids if token in kinds]
    given = [_kind(span) for span in media]
    if written != given:
        raise TemplateError(
            f"the chat template wrote placeholders for {', '.join(written) or 'no media'}, but the messages hold "
            f"{', '.join(given) or 'no media'}; it is not a template for these media"
        )
    prompt = MediaPrompt([], [], [])
    waiting = iter(media)
    for token in ids:
        if token in kinds:
            _add_media(prompt, next(waiting), layout)
        else:
            _add_text(prompt, token)
    return prompt


def _kind(span: Span) -> str:
    return {AudioSpan: "audio", ImageSpan: "image", VideoSpan: "video"}[type(span)]


def _add_text(prompt: MediaPrompt, token: int) -> None:
    prompt.ids.append(token)
    if prompt.spans and isinstance(prompt.spans[-1], TextSpan):
        prompt.counts[-1] += 1
    else:
        prompt.spans.append(TextSpan(0))
        prompt.counts.append(1)
    prompt.spans[-1] = TextSpan(prompt.counts[-1])


def _add_media(prompt: MediaPrompt, span: Span, layout: Layout) -> None:
    tokens = layout.tokens
    has_audio = isinstance(span, VideoSpan) and span.audio_tokens > 0
    if has_audio:  # the audio markers are inside the video's (spec section 5.2)
        _add_text(prompt, tokens.audio_start)
    ids = _placeholders(span, layout)
    prompt.ids.extend(ids)
    prompt.spans.append(span)
    prompt.counts.append(len(ids))
    if has_audio:
        _add_text(prompt, tokens.audio_end)


def _placeholders(span: Span, layout: Layout) -> list[int]:
    match span:
        case AudioSpan(count):
            return [layout.tokens.audio_pad] * count
        case ImageSpan(grid):
            return [layout.tokens.image_pad] * (grid[1] * grid[2] // layout.merge_size**2)
        case VideoSpan():
            pads = {"audio": layout.tokens.audio_pad, "video": layout.tokens.video_pad}
            kinds = order_of_kinds(span, merge_size=layout.merge_size, positions_per_second=layout.positions_per_second)
            return [pads[kind] for kind in kinds]
        case TextSpan():
            raise AssertionError("text is no medium")
