"""The speakers "lark" and "rook": hibari's voice "heart" (PyPI hibari-tts, Apache-2.0), 24 kHz, as it is and in another
body; text to phonemes; timing."""

from functools import cache

import numpy as np
import onnx
import onnxruntime
from hibari import Hibari, dsp

from training.voices.accents import accented
from training.voices.body import body_of, in_body
from training.voices.voice import Spoken, Voice

_DURATIONS = "/Clip_output_0"
"""In hibari 0.2.1's graph: how long each phoneme lasts. It is no output of the model, so it is made one."""


@cache
def hibari() -> Hibari:
    """The model, loaded once in a process, on one thread, with durations as its last output."""
    tts = Hibari(threads=1)
    graph = onnx.load(tts.model_path)
    graph.graph.output.append(onnx.helper.make_empty_tensor_value_info(_DURATIONS))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    tts.sess = onnxruntime.InferenceSession(graph.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return tts


def phonemes(text: str) -> str:
    """The text in the alphabet that hibari and Kokoro share, sentences joined by a space."""
    return " ".join(hibari().phonemize(text))


def speaker(name: str, speed: float = 1.0, accent: int | None = None) -> Voice:
    """The voice in the body of a name at a speed: 0.8 is slow, 1.25 fast. The seed fixes its noise part. With an accent
    no time is known of a word."""
    body = body_of(name)

    def speak(text: str, seed: int) -> Spoken:
        tts, rng = hibari(), np.random.default_rng(seed)
        parts, sound, starts, sounds, seconds = tts.phonemize(text), [], [], [], 0.0
        parts = [accented(part, accent) for part in parts]
        for part in parts:
            inputs = {"ids": np.asarray([tts.ids(part)], np.int64), "speed": np.asarray([speed], np.float32)}
            *spectrum, durations = tts.sess.run(None, inputs)
            sound.append(dsp.synth(*in_body(body, [one[0] for one in spectrum]), rng))
            length = len(sound[-1]) / tts.sample_rate
            known = [letter for letter in part if letter in tts.vocab]
            begins = seconds + length * _begins(durations.ravel())[: len(known)]
            starts += [float(begins[place]) for place in _first_of_words(known)]
            sounds += list(zip(known, begins.tolist(), strict=True))
            seconds += length
        heard = np.concatenate(sound)
        if accent is not None:
            return Spoken(heard, tts.sample_rate, " ".join(parts))
        return Spoken(heard, tts.sample_rate, " ".join(parts), tuple(starts), tuple(sounds))

    return speak


def _begins(durations: np.ndarray) -> np.ndarray:
    """Where in the sound, from 0 to 1, each sound begins; an id 0 stands before the first and after the last."""
    return np.cumsum(durations) / durations.sum()


def _first_of_words(known: list[str]) -> list[int]:
    """The places of the words' first sounds."""
    return [place for place, letter in enumerate(known) if letter != " " and (place == 0 or known[place - 1] == " ")]
