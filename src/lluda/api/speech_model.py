"""``lluda.load_speech``: an Omni checkpoint's voice alone, for reading text aloud without loading its thinker."""

from __future__ import annotations

import os
from typing import Any, cast

from lluda.api.spoken_text import spoken_text
from lluda.engine.engine import Engine
from lluda.engine.loading.load_options import LoadOptions
from lluda.engine.loading.loading import load_speech_stack
from lluda.engine.loading.model_files import ModelFiles
from lluda.engine.loading.tokenizer import load_tokenizer
from lluda.engine.request import SpeechChunk, SpeechCompletion, Token
from lluda.engine.speech.speech_params import SpeechParams
from lluda.engine.stream import Stream
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
    ) -> Stream[Token | SpeechChunk | SpeechCompletion]:
        """``text`` spoken word for word: its tokens and SpeechChunks as they are made, last a SpeechCompletion. A long
        text and errors as `spoken_text`."""
        request = spoken_text(
            text,
            params,
            speaker,
            tokenizer=self.tokenizer,
            stack=self.stack,
            generation_config=self.files.generation_config,
        )
        return cast("Stream[Token | SpeechChunk | SpeechCompletion]", self.engine.submit(request))
