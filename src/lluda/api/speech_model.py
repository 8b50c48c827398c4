"""``lluda.load_speech``: an Omni checkpoint's voice alone, for reading text aloud without loading its thinker."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

from lluda.engine.engine import Engine
from lluda.engine.loading.loading import LoadOptions, ModelFiles, load_speech_stack, load_tokenizer
from lluda.engine.prompt_rows import PromptRows
from lluda.engine.request import Request, SpeechEvent, SpokenAnswer
from lluda.engine.sampling.sampling_params import SamplingParams
from lluda.engine.speech.speech import join
from lluda.engine.speech.speech_params import SpeechParams
from lluda.errors import InvalidRequest
from lluda.inputs.text.speaking_parts import speaking_parts
from lluda.weights.loader import Progress


def load_speech(
    name_or_path: str | os.PathLike[str], *, progress: Progress | None = None, **options: Any
) -> SpeechModel:
    """Load talker, code predictor and code2wav of an Omni checkpoint. Options and errors as :func:`lluda.load`;
    UnsupportedModel also for a checkpoint that does not speak."""
    chosen = LoadOptions(**options)
    files = ModelFiles.find(
        name_or_path, allow_unknown_config=chosen.allow_unknown_config, rope_scaling=chosen.rope_scaling
    )
    return SpeechModel(files, chosen, progress)


class SpeechModel:
    """What speaks, and the tokenizer of its text."""

    def __init__(self, files: ModelFiles, options: LoadOptions, progress: Progress | None = None) -> None:
        self.files = files
        self.tokenizer = load_tokenizer(files.source)
        files.release_vocabulary()
        self.stack = load_speech_stack(files, options, progress=progress)
        stack = self.stack
        self.engine = Engine(None, self.tokenizer, lambda: stack)

    @property
    def sample_rate(self) -> int:
        """Samples a second."""
        return self.stack.sample_rate

    def describe(self) -> str:
        """What was chosen."""
        return f"{self.files.name}: speech; {self.stack.talker.backend.describe()}"

    def speak(
        self, text: str, params: SpeechParams | None = None, *, speaker: str | None = None
    ) -> Iterator[SpeechEvent]:
        """``text`` spoken word for word: its tokens and SpeechChunks as they are made, last a SpeechCompletion.

        A long text is spoken in parts (`speaking_parts.py`), each a speech of its own for the talker, so any length
        takes the same memory. ``max_frames``, where given, is of all parts together. InvalidRequest: an unknown
        speaker, or no text.
        """
        chosen = params or SpeechParams()
        defaults = chosen.with_defaults(self.files.generation_config)
        if not text:
            raise InvalidRequest("there is no text to speak: give at least one character")
        self.stack.prompts.speaker_id(speaker)
        parts = [partial(self._speak_part, part, defaults, chosen.max_frames, speaker) for part in speaking_parts(text)]
        return join(parts)

    def _speak_part(
        self, text: str, params: SpeechParams, max_frames: int | None, speaker: str | None, spoken_frames: int
    ) -> Iterator[SpeechEvent]:
        if max_frames is not None:
            params = replace(params, max_frames=max_frames - spoken_frames)
        tokens = self.stack.prompts.tokens
        header = [tokens.im_start, tokens.assistant, *self.tokenizer.encode("\n", allow_special=False)]
        ids = self.tokenizer.encode(text, allow_special=False)
        request = Request(
            prompt=PromptRows(header),
            sampling=SamplingParams(),
            speech=SpokenAnswer(params, speaker),
            text=[(number, self.tokenizer.decode([number])) for number in ids],
        )
        return self.engine.submit(request)
