"""What speech loses in another format: the choices of two models side by side, frame by frame, after the same past.

The base reads a text aloud, and its codes are forced on the other model (teacher forcing), so that every choice of both
is made after the same codes. Then both make a waveform of the base's codes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import chain, islice, repeat
from typing import Any

import torch
from torch import Tensor

from lluda.api.speech_model import SpeechModel
from lluda.engine.prompt_rows import PromptRows
from lluda.engine.sampling.sampler import SampledToken, Sampler
from lluda.engine.speech.frames import FrameGenerator
from lluda.engine.speech.speech import SpeechStack
from lluda.engine.speech.speech_params import SpeechParams
from lluda.errors import InvalidRequest

_WINDOW, _HOP = 1024, 256
_FLOOR = 1e-5  # of a magnitude in the spectra: 100 dB below a full-scale sine


@dataclass(frozen=True, slots=True)
class CodebookAgreement:
    """Of one codebook: the share of frames whose code of highest logit is the same, and the mean KL(base || model) in
    nats."""

    codebook: int
    same_code: float
    mean_kl: float


@dataclass(frozen=True, slots=True)
class SpeechAgreement:
    """Over ``frames``: agreement by codebook; of the waveforms of the same codes the ratio of the base's power to the
    difference's in dB (infinite where there is none), and the log-spectral distance in dB."""

    frames: int
    codebooks: tuple[CodebookAgreement, ...]
    signal_to_difference_db: float
    log_spectral_distance_db: float

    def document(self) -> dict[str, Any]:
        """JSON values."""
        found = asdict(self)
        if math.isinf(self.signal_to_difference_db):
            found["signal_to_difference_db"] = None
        return found


@torch.inference_mode()
def compare_speech(
    model: SpeechModel, base: SpeechModel, text: str, params: SpeechParams, speaker: str | None = None
) -> SpeechAgreement:
    """``base`` speaks ``text`` (as ``params`` say, which must have ``max_frames``), ``model`` follows.

    InvalidRequest: no text, an unknown speaker, networks of different shape, or a speech without a frame.
    """
    chosen = params.with_defaults(base.files.generation_config)
    assert chosen.max_frames is not None
    ids = base.tokenizer.encode(text, allow_special=False)[: chosen.max_frames]
    if not ids:
        raise InvalidRequest("there is no text to speak: give at least one character")
    config = base.stack.talker.config
    if model.stack.talker.config.num_code_groups != config.num_code_groups:
        raise InvalidRequest(f"the two models have different codebooks: {model.files.path}, {base.files.path}")
    header = _header(base)
    theirs = _ObservedFrames(base.stack, chosen, header, ids, speaker)
    ours = _ForcedFrames(model.stack, chosen, header, ids, speaker)
    frames: list[list[int]] = []
    sums = [_CodebookSum(config.code_predictor.vocab_size) for _ in range(config.num_code_groups)]
    tts = base.stack.prompts.tokens
    texts: Iterator[int] = chain(ids[1:], (tts.tts_eos,), repeat(tts.tts_pad))
    for token in islice(texts, chosen.max_frames):
        frame = theirs.next_codes()
        if frame is None:
            break
        frames.append(frame)
        ours.force(frame)
        for total, *logits in zip(sums, ours.observed, theirs.observed, strict=True):
            total.add(*logits)
        theirs.feed(base.stack.prompts.text_row(token))
        ours.feed(model.stack.prompts.text_row(token))
    if not frames:
        raise InvalidRequest("the base ended its speech before the first frame; give another text or seed")
    waveforms = [one.stack.code2wav(torch.tensor(frames).T).float().cpu() for one in (model, base)]
    found = tuple(total.result(codebook, len(frames)) for codebook, total in enumerate(sums))
    return SpeechAgreement(len(frames), found, _signal_to_difference(*waveforms), _spectral_distance(*waveforms))


def _header(model: SpeechModel) -> PromptRows:
    tokens = model.stack.prompts.tokens
    return PromptRows([tokens.im_start, tokens.assistant, *model.tokenizer.encode("\n", allow_special=False)])


class _RecordingSampler:
    """In a sampler's place: records the logits, and takes the sampler's choice or, without one, the next forced one."""

    def __init__(self, observed: list[Tensor], sampler: Sampler | None, forced: list[int]) -> None:
        self._observed, self._sampler, self._forced = observed, sampler, forced

    def sample(self, logits: Tensor) -> SampledToken:
        """As `Sampler.sample`."""
        self._observed.append(logits.double().cpu())
        return self._sampler.sample(logits) if self._sampler else SampledToken(self._forced.pop(0))


class _ObservedFrames(FrameGenerator):
    """The frames of one answer, and in ``observed`` the logits of the last one by codebook."""

    forces = False

    def __init__(
        self, stack: SpeechStack, params: SpeechParams, header: PromptRows, ids: Sequence[int], speaker: str | None
    ) -> None:
        built = stack.prompts.build(header, None, ids[0], speaker)
        rows = len(built.rows) + (params.max_frames or 0)
        super().__init__(stack.talker, stack.code_predictor, params, max_rows=rows, kv_dtype=stack.kv_dtype)
        self.observed: list[Tensor] = []
        self._choices: list[int] = []
        first, others = (None, None) if self.forces else (self._sampler, self._predictor_sampler)
        self._sampler = _RecordingSampler(self.observed, first, self._choices)  # type: ignore[assignment]
        self._predictor_sampler = _RecordingSampler(self.observed, others, self._choices)  # type: ignore[assignment]
        self.prefill(built.rows, built.positions)

    def next_codes(self) -> list[int] | None:
        """As FrameGenerator's."""
        self.observed.clear()
        return super().next_codes()


class _ForcedFrames(_ObservedFrames):
    """Frames whose codes are given."""

    forces = True

    def force(self, codes: Sequence[int]) -> None:
        """Take ``codes`` for the next frame."""
        self._choices.extend(codes)
        self.next_codes()


class _CodebookSum:
    """One codebook's agreement as it adds up, over the codes alone (the talker's logits also have control ids)."""

    def __init__(self, codes: int) -> None:
        self._codes, self._same, self._kl = codes, 0, 0.0

    def add(self, ours: Tensor, theirs: Tensor) -> None:
        ours, theirs = (logits.flatten()[: self._codes].log_softmax(-1) for logits in (ours, theirs))
        self._same += int(ours.argmax() == theirs.argmax())
        self._kl += float((theirs.exp() * (theirs - ours)).sum())

    def result(self, codebook: int, frames: int) -> CodebookAgreement:
        return CodebookAgreement(codebook, self._same / frames, self._kl / frames)


def _signal_to_difference(ours: Tensor, theirs: Tensor) -> float:
    difference = float((ours.double() - theirs.double()).square().sum())
    power = float(theirs.double().square().sum())
    if difference == 0:
        return math.inf
    return 10 * math.log10(power / difference) if power else -math.inf


def _spectral_distance(ours: Tensor, theirs: Tensor) -> float:
    """Root mean square over frequencies of the difference of log spectra in dB, the mean over windows (Gray and Markel
    1976)."""
    ours, theirs = (20 * _spectrum(samples).clamp(min=_FLOOR).log10() for samples in (ours, theirs))
    return float((ours - theirs).square().mean(0).sqrt().mean())


def _spectrum(samples: Tensor) -> Tensor:
    window = torch.hann_window(_WINDOW, dtype=torch.float64)
    padded = torch.nn.functional.pad(samples.double(), (0, max(0, _WINDOW - len(samples))))
    spectrum = torch.stft(padded, _WINDOW, _HOP, window=window, center=False, return_complex=True)
    return spectrum.abs() * (2 / float(window.sum()))
