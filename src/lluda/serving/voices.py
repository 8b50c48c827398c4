"""Voices by name: the checkpoint's own, and OpenAI's, each of which stands for one of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from lluda.serving.http.errors import ApiError, invalid

OPENAI_VOICES = (
    *("alloy", "ash", "ballad", "coral", "echo", "fable", "marin"),
    *("cedar", "nova", "onyx", "sage", "shimmer", "verse"),
)
"""Clients send one of these where their user chose none."""


class Voices:
    """The speakers of a checkpoint; none, where it does not speak, which ``silence`` says in words."""

    def __init__(self, names: Sequence[str], silence: str = "this model does not speak") -> None:
        self.names, self.silence = tuple(names), silence
        self.openai = (
            {name: self.names[index % len(self.names)] for index, name in enumerate(OPENAI_VOICES)}
            if self.names
            else {}
        )

    def resolve(self, voice: str | Mapping[str, str] | None, param: str = "voice") -> str:
        """The speaker of that name (``{"id": name}`` too), in any case of letters; None: the checkpoint's first.

        ApiError 400: no such voice (the message lists all), or a checkpoint that does not speak.
        """
        if not self.names:
            raise ApiError(400, "unsupported_value", f"{self.silence}; ask for text only", param=param)
        if voice is None:
            return self.names[0]
        if isinstance(voice, Mapping):
            voice = voice["id"]
        lower = voice.lower()
        for speaker in self.names:
            if speaker.lower() == lower:
                return speaker
        if lower in self.openai:
            return self.openai[lower]
        known = ", ".join((*self.names, *self.openai))
        raise invalid(f"{param} {voice[:40]!r} is not a voice of this model; it has {known}", param)

    def describe(self) -> str:
        """Which is which."""
        if not self.names:
            return f"voices: none ({self.silence})"
        mapped = ", ".join(f"{name}={speaker}" for name, speaker in self.openai.items())
        return f"voices: {', '.join(self.names)}; OpenAI's names stand for these: {mapped}"
