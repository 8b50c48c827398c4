"""lluda's talker and code predictor in a validation: the codes they choose greedily, and every stage on the way."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from lluda.backends.batch import Segment
from lluda.config.decoder import DecoderConfig
from lluda.engine.kv_cache import CacheOptions, KVCache
from lluda.engine.prompt_rows import PromptRows
from lluda.engine.speech.frames import FrameGenerator
from lluda.engine.speech.speech_params import SpeechParams
from lluda.engine.speech.talker_prompt import CapturedHiddenStates, TalkerPromptBuilder
from lluda.evaluation.lluda_components import LludaComponents
from lluda.evaluation.trace import Recorder
from lluda.models.causal_lm import EMBEDDING
from lluda.models.code_predictor import CodePredictor, code_predictor_parameters
from lluda.models.linear import Embedding
from lluda.models.talker import Talker, talker_parameters
from lluda.models.thinker import PREFIX
from lluda.parameters import ParameterSpec

EMBEDDINGS = f"{PREFIX}{EMBEDDING}"
"""The thinker's table of tokens, which the talker reads too."""


@dataclass(frozen=True, slots=True, eq=False)
class TalkerInput:
    """What the talker takes of a thinker that ran on ``prompt``: ``answer``, the ids to speak; ``hidden [n, hidden]``,
    the thinker's hidden states at the prompt's media, in order (empty: there are none)."""

    prompt: PromptRows
    answer: tuple[int, ...]
    hidden: Tensor


@dataclass(frozen=True, slots=True, eq=False)
class TalkerTrace:
    """``codes`` int64 ``[frames, codebooks]``; ``hidden``: of each frame the row that the code predictor starts from;
    the stages of both networks."""

    codes: Tensor
    hidden: Tensor
    talker: dict[str, Tensor]
    predictor: dict[str, Tensor]


class LludaTalker:
    """Talker and code predictor on one prompt."""

    def __init__(self, components: LludaComponents, given: TalkerInput, speaker: str | None) -> None:
        config, backend, text = components.speech.talker, components.backend, components.files.config.text
        table = ParameterSpec(EMBEDDINGS, (text.vocab_size, text.hidden_size), "embedding")
        parameters = components.load([*talker_parameters(config), *code_predictor_parameters(config), table])
        self._talker = Talker(config, parameters, backend)
        self._predictor = CodePredictor(config, parameters, backend)
        self._embed = Embedding(backend, parameters.matrix(EMBEDDINGS))
        self._builder = TalkerPromptBuilder(components.omni, self._talker, self._embed)
        self._given, self._device, self._kv_dtype = given, backend.device, components.cache_options.dtype
        captured = CapturedHiddenStates(given.prompt, config.accept_hidden_layer)
        captured.hidden = dict(zip(captured.rows, given.hidden, strict=True))
        with torch.inference_mode():
            self._built = self._builder.build(given.prompt, captured, given.answer[0], speaker)

    def trace(self, params: SpeechParams) -> TalkerTrace:
        """Frames as the engine makes them; then the same codes step by step, observed."""
        codes = self._codes(params)
        hidden, stages = self._talker_stages(codes)
        return TalkerTrace(codes, hidden, stages, self._predictor_stages(codes, hidden))

    @torch.inference_mode()
    def _codes(self, params: SpeechParams) -> Tensor:
        assert params.max_frames is not None
        rows = self._built.rows
        generator = FrameGenerator(
            self._talker, self._predictor, params, max_rows=len(rows) + params.max_frames, kv_dtype=self._kv_dtype
        )
        generator.prefill(rows.clone(), self._built.positions)
        codes: list[list[int]] = []
        while len(codes) < params.max_frames and (found := generator.next_codes()) is not None:
            codes.append(found)
            generator.feed(self._text(len(codes) - 1))
        return torch.tensor(codes, dtype=torch.int64).view(len(codes), self._predictor.passes + 1)

    @torch.inference_mode()
    def _talker_stages(self, codes: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        recorder, rows, positions = Recorder(), self._built.rows, self._built.positions
        words = self._embed(torch.tensor(list(self._given.prompt.ids), device=self._device))
        hidden = self._given.hidden.to(words.device, words.dtype)
        recorder("text_projection", self._talker.text_projection(words))
        recorder("hidden_projection", self._talker.hidden_projection(hidden if len(hidden) else words))
        recorder("rows", rows)
        count = len(rows)
        places = torch.arange(count, device=self._device) if positions is None else positions.to(self._device)
        recorder("positions", places.expand(3, count).T.float())
        offset = 0.0 if positions is None else float(positions.max()) + 1 - count
        cache = self._cache(self._talker.config.decoder, count + len(codes) + 1)

        def run(rows: Tensor, places: Tensor, observe: Callable[[str, Tensor], None] | None = None) -> Tensor:
            last = torch.tensor([len(rows) - 1], device=self._device)
            row, logits = self._talker(rows, places, [Segment(0, len(rows), cache)], last, observe)
            cache.advance(len(rows))
            recorder("logits", logits)
            return row

        def observe_layers(stage: str, x: Tensor) -> None:
            if stage.startswith("layers."):
                recorder(stage, x)

        hidden_rows = [run(rows.clone(), places, observe_layers)]
        for frame in range(len(codes)):
            place = torch.tensor([cache.length + offset], device=self._device)
            hidden_rows.append(run(self._frame_row(codes[frame].to(self._device)) + self._text(frame), place))
        return torch.cat(hidden_rows)[: len(codes)].cpu(), recorder.stages

    @torch.inference_mode()
    def _predictor_stages(self, codes: Tensor, hidden: Tensor) -> dict[str, Tensor]:
        """Logits of every pass for each frame, through the cache."""
        recorder, predictor = Recorder(), self._predictor
        for frame, row in zip(codes.to(self._device), hidden.to(self._device), strict=True):
            first = self._talker.codec_embedding(frame[:1])
            rows = torch.cat((row[None].to(first.dtype), first))
            cache = self._cache(predictor.config, predictor.passes + 1)
            for group in range(1, predictor.passes + 1):
                places = torch.arange(cache.length, cache.length + len(rows), device=self._device)
                recorder(f"pass.{group}", predictor(rows.clone(), places, [Segment(0, len(rows), cache)], group))
                cache.advance(len(rows))
                rows = predictor.embed(group, frame[group : group + 1])
        return recorder.stages

    def _frame_row(self, codes: Tensor) -> Tensor:
        row = self._talker.codec_embedding(codes[:1]).clone()
        for group in range(1, len(codes)):
            row += self._predictor.embed(group, codes[group : group + 1])
        return row

    def _text(self, frame: int) -> Tensor:
        """What a frame's codes are added to: the answer after its first token, its end, padding."""
        tokens, rest = self._builder.tokens, self._given.answer[1:]
        ending = tokens.tts_eos if frame == len(rest) else tokens.tts_pad
        return self._builder.text_row(rest[frame] if frame < len(rest) else ending)

    def _cache(self, config: DecoderConfig, rows: int) -> KVCache:
        return KVCache(config, CacheOptions(rows, dtype=self._kv_dtype), self._device)
