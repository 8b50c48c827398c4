"""Frames of speech: the talker chooses the first code of each, the code predictor the others (spec sections 6.4, 7)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate

import torch
from torch import Tensor

from lluda.backends.batch import Segment
from lluda.config.talker import TalkerConfig
from lluda.engine.kv_cache import CacheOptions, KVCache
from lluda.engine.sampling.sampler import Sampler
from lluda.engine.sampling.sampling_params import SamplingParams
from lluda.engine.speech.speech_params import SpeechParams, code_predictor_sampling
from lluda.errors import LludaError
from lluda.models.code_predictor import CodePredictor
from lluda.models.talker import Talker


class FrameGenerator:
    """The frames of one answer: ``prefill`` once, then in turn ``next_codes`` and ``feed``.

    ``params`` has no None left (:meth:`SpeechParams.with_defaults`)."""

    def __init__(
        self, talker: Talker, predictor: CodePredictor, params: SpeechParams, *, max_rows: int, kv_dtype: str
    ) -> None:
        self.talker, self.predictor = talker, predictor
        config = talker.config
        device = talker.backend.device
        self.cache = KVCache(config.decoder, CacheOptions(max_rows, dtype=kv_dtype), device)
        # The predictor's rows of one frame: the talker's, and one for each code but the last.
        own = CacheOptions(config.num_code_groups, "preallocated", kv_dtype)
        self.frame_cache = KVCache(config.code_predictor, own, predictor.backend.device)
        self._sampler = _talker_sampler(config, params.sampling)
        choice = code_predictor_sampling(params.sampling)
        self._predictor_sampler = Sampler(choice, [], config.code_predictor.vocab_size)
        self.hidden = self.logits = torch.empty(0)
        """Of the talker's last row: after the final norm ``[1, hidden]``, and of codebook 0 ``[vocab]``."""
        self.next_row = torch.empty(0)
        """Embeddings of the last frame's codes, summed ``[1, hidden]``."""

    @torch.inference_mode()
    def prefill(self, rows: Tensor, positions: Tensor | None = None) -> None:
        """Run the rows of the prompt that the cache does not hold yet: ``[n, hidden]`` in the residual dtype, at
        ``positions [3, n]``, or counted from 0 with those that it holds."""
        start, end = self.cache.length, self.cache.length + len(rows)
        places = torch.arange(start, end) if positions is None else positions
        self.cache.position_offset = 0 if positions is None else float(positions.max()) + 1 - end
        _step([self], rows, places, [len(rows)])

    def next_codes(self) -> list[int] | None:
        """The codes of the next frame, one of each codebook; None when the talker ends the speech."""
        codes = next_codes([self])[0]
        if isinstance(codes, LludaError):
            raise codes
        return codes

    def feed(self, text: Tensor) -> None:
        """Step the talker: the last frame's codes and one row of text ``[1, hidden]`` (a token's, the end's, or
        padding) become its next row."""
        feed([self], text)

    @property
    def position(self) -> float:
        """Of the talker's next row."""
        return self.cache.length + self.cache.position_offset

    def choose_first(self) -> int:
        """A code of codebook 0, or the end of speech."""
        return self._sampler.sample(self.logits).id

    def choose_other(self, logits: Tensor) -> int:
        """A code of the next codebook, of the code predictor's ``logits [vocab]``."""
        return self._predictor_sampler.sample(logits).id


@torch.inference_mode()
def next_codes(answers: Sequence[FrameGenerator]) -> list[list[int] | LludaError | None]:
    """:meth:`FrameGenerator.next_codes` of several answers of one talker, with the code predictors of all as one: each
    gets the codes that it gets alone. An error of one (its logits hold NaN) is in its place, and is no one else's."""
    talker = answers[0].talker
    with talker.backend.single_threaded_torch():
        codes: list[list[int] | LludaError | None] = []
        going: list[int] = []
        for index, answer in enumerate(answers):
            codes.append(_attempt(answer.choose_first))
            found = codes[index]
            if isinstance(found, list) and found[0] == talker.config.codec.eos:
                codes[index] = None
            elif isinstance(found, list):
                going.append(index)
        if going:
            first = [found[0] for index in going if isinstance(found := codes[index], list)]
            others = _other_codes([answers[index] for index in going], first)
            for index, code, rest in zip(going, first, others, strict=True):
                codes[index] = rest if isinstance(rest, LludaError) else [code, *rest]
        return codes


def _attempt(choose: Callable[[], int]) -> list[int] | LludaError:
    try:
        return [choose()]
    except LludaError as error:
        return error


def _other_codes(answers: Sequence[FrameGenerator], first: Sequence[int]) -> list[list[int] | LludaError]:
    """The code predictor's codes after each answer's ``first``; their sums become part of the answers' next rows."""
    talker, predictor = answers[0].talker, answers[0].predictor
    embedded = talker.codec_embedding(torch.tensor(first, device=talker.backend.device))
    hidden = torch.cat([answer.hidden for answer in answers]).to(embedded.dtype)
    rows = torch.stack((hidden, embedded), dim=1).to(predictor.backend.device)
    total = rows[:, 1].clone()
    for answer in answers:
        answer.frame_cache.truncate(0)
    caches = [answer.frame_cache for answer in answers]
    choices = [_Choice(answer) for answer in answers]
    others = predictor.frames(rows, caches, choices, total)
    for answer, row in zip(answers, torch.split(total.to(embedded.device), 1), strict=True):
        answer.next_row = row
    return [choice.error or codes for choice, codes in zip(choices, others, strict=True)]


class _Choice:
    """An answer's choice of a frame's other codes. Where it fails, the frame goes on for those beside it."""

    def __init__(self, answer: FrameGenerator) -> None:
        self._answer = answer
        self.error: LludaError | None = None

    def __call__(self, logits: Tensor) -> int:
        if self.error is None:
            try:
                return self._answer.choose_other(logits)
            except LludaError as error:
                self.error = error
        return 0


@torch.inference_mode()
def feed(answers: Sequence[FrameGenerator], text: Tensor) -> None:
    """:meth:`FrameGenerator.feed` of several answers of one talker, in as few steps as leave each what it gets alone:
    ``text [answers, hidden]``. Those whose speech has ended are left out."""
    rows = torch.cat([answer.next_row for answer in answers]) + text
    positions = torch.tensor([answer.position for answer in answers])
    for part in answers[0].talker.backend.step_parts([1] * len(answers)):
        _step(answers[part], rows[part], positions[part], [1] * len(answers[part]))


def _step(answers: Sequence[FrameGenerator], rows: Tensor, positions: Tensor, counts: Sequence[int]) -> None:
    """The talker over ``counts`` rows of each answer."""
    talker = answers[0].talker
    device, ends = talker.backend.device, list(accumulate(counts))
    segments = [
        Segment(end - count, count, answer.cache) for answer, count, end in zip(answers, counts, ends, strict=True)
    ]
    last = torch.tensor([end - 1 for end in ends], device=device)
    with talker.backend.single_threaded_torch():
        hidden, logits = talker(rows, positions.to(device), segments, last)
    for index, (answer, count) in enumerate(zip(answers, counts, strict=True)):
        answer.hidden, answer.logits = hidden[index : index + 1], logits[index]
        answer.cache.advance(count)


def _talker_sampler(config: TalkerConfig, params: SamplingParams) -> Sampler:
    """Codes and the end of speech are all it may say (spec section 6.4)."""
    vocabulary = config.decoder.vocab_size
    codes = config.code_predictor.vocab_size
    control = frozenset(range(codes, vocabulary)) - {config.codec.eos}
    return Sampler(params, [], vocabulary, suppress=control)
