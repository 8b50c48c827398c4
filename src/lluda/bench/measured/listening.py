"""How soon an answer begins after the last sample of what a user says: sent at once, and heard while it was spoken."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lluda.api.model import Model
from lluda.bench.formats import load_options
from lluda.bench.measured.voice import voice
from lluda.bench.process.job import Job, Sample
from lluda.bench.random_weights import RandomFiles
from lluda.bench.session import EngineInfo
from lluda.bench.source import random_backend, random_format, read_random_config
from lluda.engine.loading.load_options import LoadOptions
from lluda.engine.loading.model_files import ModelFiles
from lluda.engine.request import SpeechChunk, Token
from lluda.engine.sampling.sampling_params import SamplingParams
from lluda.engine.speech.speech_params import SpeechParams

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray

    from lluda.engine.listening.listener import Listener

SECONDS = (5, 30, 60)
"""Of the user's turns."""

RATE = 16000
_PIECE = RATE // 10
_CONTEXT = 2048
_WARM_UP = 9
_SYSTEM = {"role": "system", "content": "You are a voice assistant. Answer in a few short sentences, as people speak."}
_ANSWER = SamplingParams(temperature=0.0, max_tokens=24, ignore_eos=True)
_SPEECH = SpeechParams(sampling=SamplingParams(seed=7), max_frames=24, guard=None)


@dataclass(frozen=True, slots=True)
class ListeningSession:
    """A whole model, with its tokenizer and template; ``format``: of its weights."""

    model: Model
    format: str

    @property
    def info(self) -> EngineInfo:
        """See ``Session``."""
        return EngineInfo(self.format, 0.0, self.model.network.describe())


def measure_listening(job: Job, opened: Callable[[ListeningSession], None]) -> Iterator[Sample]:
    """For turns of ``SECONDS`` after a system message, with nothing retained from before:

    * ``listenN_at_once_token``, ``…_sound``: seconds from the last sample to the answer's first token and its first
      samples, where the recording is sent then (N: its seconds);
    * ``listenN_token``, ``listenN_sound``: where a `Listener` had heard all but its last tenth of a second;
    * ``listenN_expected_token``, ``…_sound``: where its end was expected as well, as at a pause;
    * ``listenN_work``: seconds of work for each second of sound, until the last tenth of a second.

    First sounds are left out where nothing speaks. All is run once before, for a turn of nine seconds.
    """
    model = _open(job)
    opened(ListeningSession(model, job.format))
    model.warm_up()
    for _ in _turns(model, _WARM_UP):
        pass
    for _ in range(job.rounds):
        for seconds in SECONDS:
            yield from _turns(model, seconds)
    model.close()


def _open(job: Job) -> Model:
    options = LoadOptions(
        device=job.device,
        backend=random_backend(job) if job.random else job.backend,
        threads=job.threads,
        max_context=min(_CONTEXT, job.context),
        **load_options(job.format),
    )
    folder, unknown = Path(job.model), job.allow_unknown_config
    if job.random:
        config = read_random_config(folder, allow_unknown=unknown)
        files: ModelFiles = RandomFiles.of_folder(folder, config, random_format(job))
    else:
        files = ModelFiles.find(folder, allow_unknown_config=unknown, answers=True)
    return Model(files, options)


def _turns(model: Model, seconds: int) -> Iterator[Sample]:
    turn, samples = f"listen{seconds}", voice(seconds, RATE)
    model.engine.release_prefixes()
    yield from _answered(model, f"{turn}_at_once", lambda: {"audio": samples, "sampling_rate": RATE})
    for name, expects in ((turn, False), (f"{turn}_expected", True)):
        model.engine.release_prefixes()
        with model.listen([_SYSTEM], spoken=model.can_speak) as listener:
            begun = time.perf_counter()
            _hear(listener, samples[:-_PIECE])
            if expects:
                listener.push(samples[-_PIECE:])
                listener.expect_end(len(samples))
                listener.settled()
            else:
                yield Sample(f"{turn}_work", (time.perf_counter() - begun) / seconds, "of real time")
            rest = samples[len(samples) if expects else -_PIECE :]
            yield from _answered(model, name, lambda: _ended(listener, rest))  # noqa: B023 (called at once)


def _hear(listener: Listener, samples: NDArray[np.float32]) -> None:
    """As fast as it goes, one block after the other."""
    for start in range(0, len(samples), _PIECE):
        listener.push(samples[start : start + _PIECE])
        listener.settled()
    if listener.error is not None:  # a session would answer all the same, only later
        raise listener.error


def _ended(listener: Listener, rest: NDArray[np.float32]) -> dict[str, Any]:
    listener.push(rest)
    return {"audio": listener.finish()}


def _answered(model: Model, name: str, sound: Callable[[], dict[str, Any]]) -> Iterator[Sample]:
    """Seconds until the answer to ``sound()`` begins."""
    begun = time.perf_counter()
    messages: Sequence[Any] = [_SYSTEM, {"role": "user", "content": [{"type": "audio", **sound()}]}]
    stream: Any
    if model.can_speak:
        stream, wanted = model.speak(messages, _ANSWER, _SPEECH), {Token: "token", SpeechChunk: "sound"}
    else:
        stream, wanted = model.chat_stream(messages, _ANSWER), {Token: "token"}
    with stream:
        for event in stream:
            what = wanted.pop(type(event), None)
            if what is not None:
                yield Sample(f"{name}_{what}", time.perf_counter() - begun, "s")
            if not wanted:
                break
    model.engine.drain()
