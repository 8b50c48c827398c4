"""``lluda.load_speech``: an Omni checkpoint's voice alone, for reading text aloud without loading its thinker."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

from lluda.engine.frames import SpeechParams
from lluda.engine.generation import Token
from lluda.engine.loading import LoadOptions, ModelFiles, load_tokenizer, load_voice
from lluda.engine.prompt_rows import PromptRows
from lluda.engine.speech import SpeechEvent, speak
from lluda.errors import InvalidRequest, LimitExceeded
from lluda.weights.loader import Progress

MAX_TEXT_TOKENS = 4096
"""Of one speech: the talker takes a token a frame, and its released limit is 4,096 frames (five and a half minutes)."""


def load_speech(
    name_or_path: str | os.PathLike[str], *, progress: Progress | None = None, **options: Any
) -> SpeechModel:
    """Load talker, code predictor and code2wav of an Omni checkpoint. Options and errors as :func:`lluda.load`;
    UnsupportedModel also for a checkpoint that does not speak."""
    chosen = LoadOptions(**options)
    return SpeechModel(
        ModelFiles.find(name_or_path, allow_unknown_config=chosen.allow_unknown_config), chosen, progress
    )


class SpeechModel:
    """A voice and the tokenizer of its text."""

    def __init__(self, files: ModelFiles, options: LoadOptions, progress: Progress | None = None) -> None:
        self.files = files
        self.tokenizer = load_tokenizer(files.path)
        self.voice = load_voice(files, options, progress=progress)

    @property
    def sample_rate(self) -> int:
        """Samples a second."""
        return self.voice.sample_rate

    def describe(self) -> str:
        """What was chosen."""
        return f"{self.files.path.name}: speech; {self.voice.talker.backend.describe()}"

    def speak(
        self, text: str, params: SpeechParams | None = None, *, speaker: str | None = None
    ) -> Iterator[SpeechEvent]:
        """``text`` spoken word for word: its tokens and SpeechChunks as they are made, last a SpeechCompletion.

        InvalidRequest: an unknown speaker, or no text. LimitExceeded: over MAX_TEXT_TOKENS.
        """
        chosen = (params or SpeechParams()).with_defaults(self.files.generation_config)
        ids = self.tokenizer.encode(text, allow_special=False)
        if not ids:
            raise InvalidRequest("there is no text to speak: give at least one character")
        if len(ids) > MAX_TEXT_TOKENS:
            raise LimitExceeded(
                f"the text has {len(ids)} tokens; at most {MAX_TEXT_TOKENS} are spoken at once: give it in parts"
            )
        self.voice.prompts.speaker_id(speaker)
        tokens = self.voice.prompts.tokens
        header = [tokens.im_start, tokens.assistant, *self.tokenizer.encode("\n", allow_special=False)]
        said = (Token(0, number, self.tokenizer.decode([number])) for number in ids)
        return speak(self.voice, said, frozenset(), chosen, PromptRows(header), speaker=speaker)
