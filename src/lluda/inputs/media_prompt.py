"""The ids of a prompt with media: each placeholder that the chat template wrote becomes as many as its medium has rows.

Placeholders are bound by position. What a user typed as ``<|image_pad|>`` was encoded as text (see `prompt`), so every
placeholder id is the template's own, and the n-th belongs to the n-th medium of the messages.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lluda.config_omni import MediaTokens
from lluda.errors import TemplateError
from lluda.inputs.media_positions import (
    AudioSpan,
    HeardVideoSpan,
    ImageSpan,
    Span,
    TextSpan,
    VideoSpan,
    heard_video_order,
)


@dataclass(frozen=True, slots=True)
class MediaPrompt:
    """``ids`` and the ``spans`` they fall into, text included: spans' tokens add up to the ids."""

    ids: list[int]
    spans: list[Span]


def expand_placeholders(
    ids: Sequence[int], media: Sequence[Span], tokens: MediaTokens, positions_per_second: int
) -> MediaPrompt:
    """The ids that the chat template gave, with each placeholder expanded to the tokens of its one of ``media``.

    TemplateError: placeholders and media differ in number or kind; the template is not one for these media.
    """
    kinds = {tokens.audio_pad: "audio", tokens.image_pad: "image", tokens.video_pad: "video"}
    written = [kinds[token] for token in ids if token in kinds]
    given = [_kind(span) for span in media]
    if written != given:
        raise TemplateError(
            f"the chat template wrote placeholders for {', '.join(written) or 'no media'}, but the messages hold "
            f"{', '.join(given) or 'no media'}; it is not a template for these media"
        )
    prompt = MediaPrompt([], [])
    waiting = iter(media)
    for token in ids:
        if token in kinds:
            _add_media(prompt, next(waiting), tokens, positions_per_second)
        else:
            _add_text(prompt, token)
    return prompt


def _kind(span: Span) -> str:
    match span:
        case AudioSpan():
            return "audio"
        case ImageSpan():
            return "image"
        case VideoSpan() | HeardVideoSpan():
            return "video"
        case TextSpan():
            raise AssertionError("text is no medium")


def _add_text(prompt: MediaPrompt, token: int) -> None:
    prompt.ids.append(token)
    last = prompt.spans.pop() if prompt.spans and isinstance(prompt.spans[-1], TextSpan) else TextSpan(0)
    prompt.spans.append(TextSpan(last.tokens + 1))


def _add_media(prompt: MediaPrompt, span: Span, tokens: MediaTokens, positions_per_second: int) -> None:
    if isinstance(span, HeardVideoSpan):
        # The sound's markers stand inside the video's (spec section 5.2).
        order = heard_video_order(span, positions_per_second).tolist()
        _add_text(prompt, tokens.audio_start)
        prompt.spans.append(span)
        prompt.ids.extend(tokens.video_pad if is_picture else tokens.audio_pad for is_picture in order)
        _add_text(prompt, tokens.audio_end)
        return
    pads = {"audio": tokens.audio_pad, "image": tokens.image_pad, "video": tokens.video_pad}
    prompt.spans.append(span)
    prompt.ids.extend([pads[_kind(span)]] * span.tokens)
