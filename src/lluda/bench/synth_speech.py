"""What speaking costs, with random weights: a frame, its samples, and a whole turn with ten seconds of sound in."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace

import torch

from lluda.backends.blocks import Parameters
from lluda.config.model import ModelConfig
from lluda.engine.frames import FrameGenerator, SpeechParams
from lluda.engine.generation import Generator
from lluda.engine.prompt_rows import PromptRows
from lluda.engine.sampling_params import SamplingParams
from lluda.engine.speech import SpeechCompletion, Voice, speak
from lluda.engine.talker_prompt import CapturedHiddenStates, TalkerPromptBuilder
from lluda.models.code2wav import Code2Wav
from lluda.models.code_predictor import CodePredictor
from lluda.models.decoder import MultimodalEmbeddings
from lluda.models.talker import Talker
from lluda.models.thinker import Thinker

_HEARD_FRAMES = 1000  # ten seconds of log-mel frames
_FRAMES = 100
_ROWS = 512  # of the talker's cache
_WATCHED = 10  # by the profiler
_GREEDY = SamplingParams(temperature=0.0, max_tokens=24)


def speech_samples(
    config: ModelConfig, parameters: Parameters, generator: Generator, repeat: int
) -> dict[str, tuple[str, list[float]]]:
    """By test its unit and its samples, the first a warm-up's:

    * ``speech frame``: talker, code predictor, choice of all codes and the next row, from frame to frame, ms;
    * ``code2wav frame``: codes on the host to samples on the host, one frame of a stream, ms;
    * ``audio encoder 10 s``: log-mel frames to rows, ms;
    * ``first audio``: from log-mel frames of ten seconds of sound to the first samples of the answer, ms;
    * ``turn``: seconds of computing for each second of sound in an answer of up to 100 frames;
    * ``waits in a frame``, where frames are captured: of the host for the device, beside the one for the codes at the
      frame's end.
    """
    thinker = generator.model
    omni = config.omni
    assert isinstance(thinker, Thinker) and omni is not None and omni.speech is not None
    backend = thinker.backend
    talker = Talker(omni.speech.talker, parameters, backend)
    voice = Voice(
        talker=talker,
        code_predictor=CodePredictor(omni.speech.talker, parameters, backend),
        code2wav=Code2Wav(omni.speech.code2wav, parameters, backend),
        prompts=TalkerPromptBuilder(omni, talker, thinker.decoder.embed_tokens),
        kv_dtype="bf16",
    )
    turn = _Turn(config, voice, generator)
    frames, vocoder = list(turn.frames(repeat)), list(turn.vocoder(repeat))
    encoder, first, whole = [], [], []
    for _ in range(repeat + 1):
        spent = turn.run()
        encoder.append(spent[0])
        first.append(spent[1])
        whole.append(spent[2])
    return {
        "speech frame": ("ms", frames),
        "code2wav frame": ("ms", vocoder),
        "audio encoder 10 s": ("ms", encoder),
        "first audio": ("ms", first),
        "turn": ("s/s", whole),
        # Last: what the profiler leaves behind is in no time above.
        **({"waits in a frame": ("waits", [turn.waits() for _ in range(2)])} if talker.backend.captures else {}),
    }


def wait_for(device: torch.device) -> None:
    """Until what was started on ``device`` is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def host_waits(work: Callable[[], object]) -> int:
    """How often ``work`` makes the host wait for the device, by the profiler's record of the driver's calls."""
    return _waits(work) - _waits(lambda: None)


def _waits(work: Callable[[], object]) -> int:
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as record:
        work()
    # A copy between the host's pageable memory and the device waits, too: it is a cudaMemcpyAsync and then a
    # cudaStreamSynchronize where torch does it.
    return sum(call.count for call in record.key_averages() if "Synchronize" in call.key or call.key == "cudaMemcpy")


class _Turn:
    """A conversation's turn, and its parts."""

    def __init__(self, config: ModelConfig, voice: Voice, generator: Generator) -> None:
        self._config, self._voice, self._generator = config, voice, generator
        self._params = SpeechParams(sampling=SamplingParams(seed=7), max_frames=_FRAMES).with_defaults({})
        self._heard = torch.randn(_HEARD_FRAMES, config.omni.audio.num_mel_bins) if config.omni else torch.empty(0)

    def frames(self, repeat: int) -> Iterator[float]:
        """Milliseconds a frame, from one frame's codes to the next's."""
        for _ in range(repeat + 1):
            frame = self._frame()
            started = time.perf_counter()
            for _ in range(_FRAMES):
                frame()
            yield (time.perf_counter() - started) / _FRAMES * 1e3

    def waits(self) -> float:
        """Of the host in a frame."""
        frame = self._frame()
        return host_waits(lambda: [frame() for _ in range(_WATCHED)]) / _WATCHED - 1

    def _frame(self) -> Callable[[], object]:
        """A speech that has begun, frame by frame."""
        voice = self._voice
        width, device = voice.talker.config.decoder.hidden_size, voice.talker.backend.device
        text = torch.randn(1, width, device=device)
        frames = voice.graphs.frames(self._params, _ROWS) or FrameGenerator(
            voice.talker, voice.code_predictor, self._params, max_rows=_ROWS, kv_dtype=voice.kv_dtype
        )
        frames.prefill(torch.randn(24, width, device=device))
        frames.next_codes()
        frames.feed(text)
        frames.next_codes()

        def frame() -> None:
            frames.feed(text)
            frames.next_codes()

        return frame

    def vocoder(self, repeat: int) -> Iterator[float]:
        """Milliseconds a frame, one at a time."""
        codes = [[5] * self._voice.code2wav.config.num_quantizers]
        for _ in range(repeat + 1):
            stream = self._voice.graphs.vocoder()
            stream.push(codes)
            stream.push(codes)
            started = time.perf_counter()
            for _ in range(_FRAMES):
                stream.push(codes)
            yield (time.perf_counter() - started) / _FRAMES * 1e3

    @torch.inference_mode()
    def run(self) -> tuple[float, float, float]:
        """Milliseconds of the encoder and to the first samples, and seconds computed for a second of sound."""
        thinker, omni = self._generator.model, self._config.omni
        assert isinstance(thinker, Thinker) and omni is not None and omni.speech is not None
        started = time.perf_counter()
        rows = thinker.audio_tower([self._heard])
        wait_for(rows.device)
        encoded = time.perf_counter() - started
        prompt = self._prompt(rows)
        media = CapturedHiddenStates(prompt, omni.speech.talker.accept_hidden_layer)
        sampling = replace(_GREEDY, seed=0).with_defaults({})
        answer = self._generator.stream([prompt], sampling, observe=media.observer)
        done = next(
            event
            for event in speak(self._voice, answer, frozenset(), self._params, prompt, media)
            if isinstance(event, SpeechCompletion)
        )
        assert done.first_audio_seconds is not None, "a frame was spoken"
        total = time.perf_counter() - started
        sound = done.samples / self._voice.sample_rate
        return encoded * 1e3, (encoded + done.first_audio_seconds) * 1e3, total / sound

    def _prompt(self, rows: torch.Tensor) -> PromptRows:
        """A user's turn that is nothing but the recording, and the header of the answer."""
        assert self._config.omni is not None and self._config.omni.speech is not None
        media, speech = self._config.omni.tokens, self._config.omni.speech.tokens
        newline = 198 % self._config.text.vocab_size
        before = [speech.im_start, speech.user, newline, media.audio_start]
        after = [media.audio_end, speech.im_start, speech.assistant, newline]
        ids = [*before, *[media.audio_pad] * len(rows), *after]
        places = torch.arange(len(before), len(before) + len(rows))
        return PromptRows(ids, None, MultimodalEmbeddings(places, rows, torch.empty(0, dtype=torch.int64)))
