"""What an answer cost, in tokens."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from lluda.serving.reading.pieces import AnswerCounts


@dataclass(frozen=True, slots=True)
class PromptCounts:
    """Rows of a prompt that stand for sound and for what is seen."""

    audio: int = 0
    image: int = 0


def usage(choices: Iterable[Sequence[AnswerCounts]], media: PromptCounts | None = None) -> dict[str, Any]:
    """The usage of prompts with the choices of each. A prompt counts once, and what its first choice did not compute
    of it is cached; of speech each frame is a token."""
    media = media or PromptCounts()
    prompts = list(choices)
    first = [counts[0] for counts in prompts]
    everything = [counts for one in prompts for counts in one]
    prompt = sum(counts.prompt for counts in first)
    text, frames = sum(counts.text for counts in everything), sum(counts.frames for counts in everything)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": text + frames,
        "total_tokens": prompt + text + frames,
        "prompt_tokens_details": {
            "cached_tokens": sum(counts.cached for counts in first),
            "audio_tokens": media.audio,
            "image_tokens": media.image,
            "text_tokens": prompt - media.audio - media.image,
        },
        "completion_tokens_details": {
            "reasoning_tokens": sum(counts.reasoning for counts in everything),
            "audio_tokens": frames,
            "text_tokens": text,
        },
    }


def response_usage(counts: AnswerCounts) -> dict[str, Any]:
    """The usage as /v1/responses has it."""
    return {
        "input_tokens": counts.prompt,
        "input_tokens_details": {"cached_tokens": counts.cached, "cache_write_tokens": 0},
        "output_tokens": counts.text,
        "output_tokens_details": {"reasoning_tokens": counts.reasoning},
        "total_tokens": counts.prompt + counts.text,
    }
