"""lluda's talker and code predictor for an Omni validation: what they say greedily, and every stage of how."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from lluda.backends.blocks import Segment
from lluda.config.decoder import DecoderConfig
from lluda.engine.frames import FrameGenerator, SpeechParams
from lluda.engine.kv_cache import CacheOptions, KVCache
from lluda.engine.prompt_rows import PromptRows
from lluda.engine.talker_prompt import CapturedHiddenStates, TalkerPromptBuilder
from lluda.evaluation.omni_network import OmniNetwork
from lluda.evaluation.trace import Recorder
from lluda.models.code_predictor import CodePredictor, code_predictor_parameters
from lluda.models.linear import Embedding
from lluda.models.talker import Talker, talker_parameters
from lluda.models.thinker import PREFIX
from lluda.parameters import ParameterSpec

EMBEDDINGS = f"{PREFIX}model.embed_tokens.weight"


@dataclass(frozen=True, slots=True, eq=False)
class Heard:
    """What the talker takes of a thinker that ran on ``prompt``: ``answer``, the ids to speak; ``hidden [n, hidden]``,
    the thinker's rows at the prompt's media, in order (the width of its residual stream; empty: there are none)."""

    prompt: PromptRows
    answer: tuple[int, ...]
    hidden: Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Speech:
    """What was said: ``codes`` int64 ``[frames, codebooks]``; ``ended``: the talker would say no more; ``talker_rows``:
    of each frame the row that the code predictor starts from; the stages of both networks."""

    codes: Tensor
    ended: bool
    talker_rows: Tensor
    talker: dict[str, Tensor]
    predictor: dict[str, Tensor]


class OmniVoice:
    """Talker and code predictor on one prompt."""

    def __init__(self, network: OmniNetwork, heard: Heard, speaker: str | None) -> None:
        config, backend, text = network.speech.talker, network.backend, network.files.config.text
        table = ParameterSpec(EMBEDDINGS, (text.vocab_size, text.hidden_size), "embedding")
        parameters = network.load([*talker_parameters(config), *code_predictor_parameters(config), table])
        self._talker = Talker(config, parameters, backend)
        self._predictor = CodePredictor(config, parameters, backend)
        self._embed = Embedding(backend, parameters.matrix(EMBEDDINGS))
        self._builder = TalkerPromptBuilder(network.omni, self._talker, self._embed)
        self._heard, self._device, self._kv_dtype = heard, backend.device, network.cache_options.dtype
        media = CapturedHiddenStates(heard.prompt, config.accept_hidden_layer)
        media.hidden = dict(zip(media.rows, heard.hidden, strict=True))
        with torch.inference_mode():
            self._built = self._builder.build(heard.prompt, media, heard.answer[0], speaker)

    def speak(self, params: SpeechParams) -> Speech:
        """Frames as the engine makes them; then the same codes step by step, watched."""
        codes = self._codes(params)
        talker_rows, talker = self._talker_stages(codes)
        ended = len(codes) < (params.max_frames or 0)
        return Speech(codes, ended, talker_rows, talker, self._predictor_stages(codes, talker_rows))

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
        seen, rows, positions = Recorder(), self._built.rows, self._built.positions
        words = self._embed(torch.tensor(list(self._heard.prompt.ids), device=self._device))
        hidden = self._heard.hidden.to(words.device, words.dtype)
        seen("text_projection", self._talker.text_projection(words))
        seen("hidden_projection", self._talker.hidden_projection(hidden if len(hidden) else words))
        seen("rows", rows)
        count = len(rows)
        places = torch.arange(count, device=self._device) if positions is None else positions.to(self._device)
        seen("positions", places.expand(3, count).T.float())
        offset = 0.0 if positions is None else float(positions.max()) + 1 - count
        cache = self._cache(self._talker.config.decoder, count + len(codes) + 1)

        def run(rows: Tensor, places: Tensor, observe: Callable[[str, Tensor], None] | None = None) -> Tensor:
            last = torch.tensor([len(rows) - 1], device=self._device)
            row, logits = self._talker(rows, places, [Segment(0, len(rows), cache)], last, observe)
            cache.advance(len(rows))
            seen("logits", logits)
            return row

        kept = [run(rows.clone(), places, lambda name, x: seen(name, x) if name.startswith("layers.") else None)]
        for frame in range(len(codes)):
            place = torch.tensor([cache.length + offset], device=self._device)
            kept.append(run(self._frame_row(codes[frame].to(self._device)) + self._text(frame), place))
        return torch.cat(kept)[: len(codes)].cpu(), seen.stages

    @torch.inference_mode()
    def _predictor_stages(self, codes: Tensor, talker_rows: Tensor) -> dict[str, Tensor]:
        """Logits of every pass for each frame, through the cache."""
        seen, predictor = Recorder(), self._predictor
        for frame, row in zip(codes.to(self._device), talker_rows.to(self._device), strict=True):
            first = self._talker.codec_embedding(frame[:1])
            rows = torch.cat((row[None].to(first.dtype), first))
            cache = self._cache(predictor.config, predictor.passes + 1)
            for group in range(1, predictor.passes + 1):
                places = torch.arange(cache.length, cache.length + len(rows), device=self._device)
                seen(f"pass.{group}", predictor(rows.clone(), places, [Segment(0, len(rows), cache)], group))
                cache.advance(len(rows))
                rows = predictor.embed(group, frame[group : group + 1])
        return seen.stages

    def _frame_row(self, codes: Tensor) -> Tensor:
        row = self._talker.codec_embedding(codes[:1]).clone()
        for group in range(1, len(codes)):
            row += self._predictor.embed(group, codes[group : group + 1])
        return row

    def _text(self, frame: int) -> Tensor:
        """What a frame's codes are added to: the answer after its first token, its end, padding."""
        tokens, rest = self._builder.tokens, self._heard.answer[1:]
        ending = tokens.tts_eos if frame == len(rest) else tokens.tts_pad
        return self._builder.text_row(rest[frame] if frame < len(rest) else ending)

    def _cache(self, config: DecoderConfig, rows: int) -> KVCache:
        return KVCache(config, CacheOptions(rows, dtype=self._kv_dtype), self._device)
