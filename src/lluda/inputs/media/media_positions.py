"""Positions in time, height and width of every token of a prompt with audio, images and videos (spec section 5.2).

A prompt is a list of spans; markers (``<|vision_start|>`` and the like) are text. Each span begins at one more than the
largest position of what was placed before it, and its tokens count from there: text and audio on all three rows alike,
an image along its merged rows and columns, a video also along time. Positions are not rounded: a video's steps in time
need not be whole.

After a video with its own audio, positions follow the released code: what follows begins at one
more than the largest position of the *rest of the longer stream*, which was placed last, and not of the whole span. A
video whose audio ends soon after it began may have larger positions in its rows and columns. The model was trained
with these positions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Position = tuple[float, float, float]
"""Time, height, width."""


@dataclass(frozen=True, slots=True)
class TextSpan:
    """``tokens`` of text, markers of media among them."""

    tokens: int


@dataclass(frozen=True, slots=True)
class AudioSpan:
    """``tokens`` rows of the audio encoder."""

    tokens: int


@dataclass(frozen=True, slots=True)
class ImageSpan:
    """An image of ``grid`` ``(1, rows, columns)`` patches."""

    grid: tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class VideoSpan:
    """A video of ``grid`` ``(slices, rows, columns)`` patches, its slices ``seconds_per_grid`` apart. With
    ``audio_tokens`` its own audio is among its tokens, in the order that :func:`order_of_kinds` gives."""

    grid: tuple[int, int, int]
    seconds_per_grid: float
    audio_tokens: int = 0


Span = TextSpan | AudioSpan | ImageSpan | VideoSpan


def media_positions(
    spans: Sequence[Span], *, merge_size: int, positions_per_second: float
) -> tuple[list[float], list[float], list[float]]:
    """The positions of all tokens of ``spans``, in order: time, height and width of each.

    ``merge_size``: patches along each side of a token; ``positions_per_second``: how far a second of video advances.
    """
    placed: list[Position] = []
    begin = 0.0
    for span in spans:
        part, last = _place(span, begin, merge_size, positions_per_second)
        placed += part
        begin = _after(last) if last else begin
    times, heights, widths = ([position[axis] for position in placed] for axis in range(3))
    return times, heights, widths


def order_of_kinds(span: VideoSpan, *, merge_size: int, positions_per_second: float) -> list[Literal["audio", "video"]]:
    """The order of the tokens of a video with audio: merged by time, video first where both begin together."""
    video, audio = _video(span, 0.0, merge_size, positions_per_second), _line(span.audio_tokens, 0.0)
    return ["video" if from_video else "audio" for from_video in _merged(video, audio)]


def _place(
    span: Span, begin: float, merge_size: int, positions_per_second: float
) -> tuple[list[Position], list[Position]]:
    """The positions of a span, and those of them that decide where the next begins."""
    match span:
        case TextSpan() | AudioSpan():
            placed = _line(span.tokens, begin)
        case ImageSpan():
            placed = _video(VideoSpan(span.grid, 0.0), begin, merge_size, positions_per_second)
        case VideoSpan():
            placed = _video(span, begin, merge_size, positions_per_second)
            if span.audio_tokens:
                return _interleaved(placed, _line(span.audio_tokens, begin))
    return placed, placed


def _line(tokens: int, begin: float) -> list[Position]:
    return [(begin + index,) * 3 for index in range(tokens)]


def _video(span: VideoSpan, begin: float, merge_size: int, positions_per_second: float) -> list[Position]:
    slices, rows, columns = span.grid
    return [
        (begin + time * span.seconds_per_grid * positions_per_second, begin + row, begin + column)
        for time in range(slices)
        for row in range(rows // merge_size)
        for column in range(columns // merge_size)
    ]


def _interleaved(video: list[Position], audio: list[Position]) -> tuple[list[Position], list[Position]]:
    """Both streams merged, and what was left of one when the other had ended."""
    order = _merged(video, audio)
    streams = iter(video), iter(audio)
    placed = [next(streams[0] if from_video else streams[1]) for from_video in order]
    rest = order[::-1].index(not order[-1])
    return placed, placed[len(placed) - rest :]


def _merged(video: list[Position], audio: list[Position]) -> list[bool]:
    """By time; true where the next token is the video's."""
    order: list[bool] = []
    taken = 0
    for position in video:
        while taken < len(audio) and audio[taken][0] < position[0]:
            order.append(False)
            taken += 1
        order.append(True)
    return order + [False] * (len(audio) - taken)


def _after(positions: list[Position]) -> float:
    return 1 + max(max(position) for position in positions)
