"""Frames of speech: the talker chooses the first code of each, the code predictor the others (spec sections 6.4, 7)."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from lluda.backends.blocks import Segment
from lluda.config.talker import TalkerConfig
from lluda.engine.kv_cache import CacheOptions, KVCache
from lluda.engine.sampler import Sampler
from lluda.engine.sampling_params import SamplingParams
from lluda.engine.sampling_values import checked_number
from lluda.engine.speech_guard import SpeechGuard
from lluda.errors import InvalidRequest
from lluda.models.code_predictor import CodePredictor
from lluda.models.talker import Talker

_MAX_FRAMES = 4096
_RELEASED = {"temperature": 0.9, "top_k": 50, "top_p": 1.0, "repetition_penalty": 1.05}

# The code predictor's own sampling: transformers passes top_k and top_p in code, and no file names them.
_PREDICTOR_SAMPLING = SamplingParams(temperature=1.0, top_k=50, top_p=0.8)


def code_predictor_sampling(talker: SamplingParams) -> SamplingParams:
    """How the code predictor chooses codes 1 and up of each frame: greedy when the talker is, else at temperature
    1 with top_k 50 and top_p 0.8 (spec section 7). The talker's seed is its seed."""
    temperature = _PREDICTOR_SAMPLING.temperature if talker.temperature else 0.0
    return replace(_PREDICTOR_SAMPLING, temperature=temperature, seed=talker.seed)


@dataclass(frozen=True, slots=True, kw_only=True)
class SpeechParams:
    """How speech is sampled. ``sampling`` chooses codebook 0 (its seed, drawn if None, also seeds the code predictor,
    which is greedy when the talker is); ``max_frames`` of 80 ms at most are spoken; ``guard`` bounds them by the text
    (None: not at all)."""

    sampling: SamplingParams = field(default_factory=SamplingParams)
    max_frames: int | None = None
    guard: SpeechGuard | None = field(default_factory=SpeechGuard)

    def __post_init__(self) -> None:
        frames = self.max_frames
        if frames is not None and (isinstance(frames, bool) or not isinstance(frames, int) or frames < 1):
            raise InvalidRequest(f"max_frames must be at least 1, not {frames!r:.60}")
        if self.guard is not None and not isinstance(self.guard, SpeechGuard):
            raise InvalidRequest(f"guard must be a SpeechGuard, or None for none; not {self.guard!r:.60}")

    def with_defaults(self, generation_config: Mapping[str, Any]) -> SpeechParams:
        """These values with each None replaced by ``talker_*`` of the generation_config.json, else by the released
        model's (temperature 0.9, top_k 50, repetition_penalty 1.05, 4096 frames). InvalidRequest: a value there out of
        its range."""
        own = {name: getattr(self.sampling, name) for name in _RELEASED}
        chosen: dict[str, Any] = {
            name: _of_file(generation_config, name, f"talker_{name}", value) if own[name] is None else own[name]
            for name, value in _RELEASED.items()
        }
        seed = secrets.randbits(63) if self.sampling.seed is None else self.sampling.seed
        limit = _of_file(generation_config, "max_tokens", "talker_max_new_tokens", _MAX_FRAMES)
        frames = self.max_frames if self.max_frames is not None else int(limit)
        return replace(self, sampling=replace(self.sampling, **chosen, seed=seed), max_frames=frames)


def _of_file(generation_config: Mapping[str, Any], field_name: str, key: str, default: float) -> float:
    """A value of generation_config.json; ``default`` where it is absent or null."""
    value = generation_config.get(key)
    return default if value is None else checked_number(field_name, value, f"generation_config.json: {key}")


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
        """Run the prompt: rows ``[n, hidden]`` in the residual dtype, at ``positions [3, n]`` or 0, 1, 2, …"""
        places = torch.arange(len(rows)) if positions is None else positions
        self.cache.position_offset = 0 if positions is None else float(positions.max()) + 1 - len(rows)
        _step([self], rows, places, [len(rows)])

    def next_codes(self) -> list[int] | None:
        """The codes of the next frame, one of each codebook; None when the talker ends the speech."""
        return next_codes([self])[0]

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
def next_codes(answers: Sequence[FrameGenerator]) -> list[list[int] | None]:
    """:meth:`FrameGenerator.next_codes` of several answers of one talker, with the code predictors of all as one: each
    gets the codes that it gets alone."""
    talker = answers[0].talker
    with talker.backend.single_threaded_torch():
        first = [answer.choose_first() for answer in answers]
        going = [index for index, code in enumerate(first) if code != talker.config.codec.eos]
        codes: list[list[int] | None] = [None] * len(answers)
        if going:
            others = _other_codes([answers[index] for index in going], [first[index] for index in going])
            for index, rest in zip(going, others, strict=True):
                codes[index] = [first[index], *rest]
        return codes


def _other_codes(answers: Sequence[FrameGenerator], first: Sequence[int]) -> list[list[int]]:
    """The code predictor's codes after each answer's ``first``; their sums become part of the answers' next rows."""
    talker, predictor = answers[0].talker, answers[0].predictor
    embedded = talker.codec_embedding(torch.tensor(first, device=talker.backend.device))
    hidden = torch.cat([answer.hidden for answer in answers]).to(embedded.dtype)
    rows = torch.stack((hidden, embedded), dim=1).to(predictor.backend.device)
    total = rows[:, 1].clone()
    for answer in answers:
        answer.frame_cache.truncate(0)
    caches = [answer.frame_cache for answer in answers]
    others = predictor.frames(rows, caches, [answer.choose_other for answer in answers], total)
    for answer, row in zip(answers, torch.split(total.to(embedded.device), 1), strict=True):
        answer.next_row = row
    return others


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
