"""transformers' talker and code predictor on the codes that lluda's chose, all frames in one forward.

Fed with lluda's codes, the reference's own greedy choice at each step is what it would have chosen by itself, up to and
including the first that differs; and every logit can be compared, also after that.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from lluda.engine.media import PreparedMedia
from lluda.engine.sampling.sampling_params import SamplingParams
from lluda.evaluation.lluda_talker import EMBEDDINGS, TalkerInput, TalkerTrace
from lluda.evaluation.trace import Recorder, Stages
from lluda.evaluation.transformers_components import TransformersComponents, watch
from lluda.evaluation.transformers_loading import widened
from lluda.models.components import BY_NAME

_SUPPRESSED = 1024
"""transformers' generate lets the talker choose none of the last ids but the one that ends the speech."""


@dataclass(frozen=True, slots=True, eq=False)
class ReferenceTrace:
    """The stages of talker and code predictor, and the greedy ``choices`` int64 ``[frames, codebooks]``."""

    talker: Stages
    predictor: Stages
    choices: Tensor


class TransformersTalker:
    """Both networks of one folder."""

    def __init__(self, reference: TransformersComponents) -> None:
        self._config = reference.config
        kind = reference.models.Qwen3OmniMoeTalkerForConditionalGeneration
        self._talker = reference.load(kind, self._config.talker_config, BY_NAME["talker"].prefix)
        self._whole: Any = reference.models.Qwen3OmniMoeForConditionalGeneration
        self._rows = reference.tensor(EMBEDDINGS)
        self._reference = reference

    @torch.no_grad()
    def runs(
        self,
        given: TalkerInput,
        media: Sequence[PreparedMedia],
        ours: TalkerTrace,
        speaker: str | None,
        params: SamplingParams,
    ) -> Iterator[ReferenceTrace]:
        """What the networks as loaded compute and then, for the truth, with their parameters widened."""
        yield self._run(given, media, ours, speaker, params)
        if self._reference.float64:
            with widened(self._talker):
                yield self._run(given, media, ours, speaker, params)

    def _run(
        self,
        given: TalkerInput,
        media: Sequence[PreparedMedia],
        ours: TalkerTrace,
        speaker: str | None,
        params: SamplingParams,
    ) -> ReferenceTrace:
        recorder, talker = Recorder(), self._talker
        words = self._table(torch.tensor([list(given.prompt.ids)]))
        hidden = given.hidden.to(words.dtype)[None] if len(given.hidden) else words
        recorder("text_projection", talker.text_projection(words)[0])
        recorder("hidden_projection", talker.hidden_projection(hidden)[0])
        rows, ids, trailing, padding = self._prompt(given, words, speaker)
        recorder("rows", rows[0])
        positions = self._positions(ids, media)
        recorder("positions", positions)
        count, frames = rows.shape[1], len(ours.codes)
        offset = float(positions.max()) + 1 - count
        after = torch.arange(count, count + frames).float() + offset
        places = torch.cat((positions, after[:, None].expand(-1, 3))).T[:, None]
        sums = self._frame_rows(ours.codes, trailing, padding)
        with ExitStack() as hooks:
            for index, layer in enumerate(talker.model.layers):
                hooks.enter_context(watch(layer, recorder, f"layers.{index}", of=lambda x: x[0, :count]))
            out = talker.model(inputs_embeds=torch.cat((rows, sums), dim=1), position_ids=places, use_cache=False)
        logits = talker.codec_head(out.last_hidden_state[0, count - 1 :])
        recorder("logits", logits)
        predictor = self._predictor(ours)
        first = self._talker_choices(logits, ours.codes[:, 0], params)
        others = [values.argmax(-1) for values in predictor.values()]
        choices = torch.stack([first[:frames], *others], dim=1)
        return ReferenceTrace(recorder.stages, predictor, choices)

    def _prompt(self, given: TalkerInput, words: Tensor, speaker: str | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Rows ``[1, n, hidden]`` and ids ``[1, n]`` of the prompt, trailing rows, the row of padding."""
        config, ids = self._config, torch.tensor([list(given.prompt.ids)])
        padding, beginning, end = (
            self._talker.text_projection(self._table(torch.tensor([[token]])))
            for token in (config.tts_pad_token_id, config.tts_bos_token_id, config.tts_eos_token_id)
        )
        dtype = padding.dtype
        # Of the whole model its methods ask for these alone; its talker's dtype is that of what is computed.
        talker = SimpleNamespace(
            dtype=dtype,
            hidden_projection=self._talker.hidden_projection,
            text_projection=self._talker.text_projection,
            get_input_embeddings=self._talker.get_input_embeddings,
        )
        whole = SimpleNamespace(config=config, talker=talker)
        thinker = config.thinker_config
        is_media = sum(
            ids == token for token in (thinker.audio_token_id, thinker.image_token_id, thinker.video_token_id)
        )
        is_media = torch.as_tensor(is_media, dtype=torch.bool)
        hidden = torch.zeros(*ids.shape, words.shape[-1], dtype=dtype)
        hidden[is_media] = given.hidden.to(dtype) if len(given.hidden) else torch.empty(0, words.shape[-1], dtype=dtype)
        user = self._whole._get_talker_user_parts(whole, 0, ids.shape[1], is_media, hidden, words)
        starts = torch.where(ids == config.im_start_token_id, torch.arange(ids.shape[1]), -1).cummax(-1).values
        roles = ids.gather(1, (starts.clamp_min(0) + 1).clamp_max(ids.shape[1] - 1))
        is_user = roles == config.user_token_id
        begin = int(
            ((ids[:, :-1] == config.im_start_token_id) & (ids[:, 1:] == config.assistant_token_id)).nonzero()[-1, 1]
        )
        said = torch.tensor([[*given.prompt.ids[begin:], *given.answer]])
        speakers = config.talker_config.speaker_id
        number = speakers[speaker.lower()] if speaker else next(iter(speakers.values()))
        assistant, assistant_ids, trailing = self._whole._get_talker_assistant_parts(
            whole, 0, said.shape[1], number, self._table(said).to(dtype), padding, beginning, end
        )
        rows = torch.cat((user[is_user][None], assistant), dim=1)
        return rows, torch.cat((ids[is_user][None], assistant_ids), dim=1), trailing[0], padding[0]

    def _table(self, ids: Tensor) -> Tensor:
        """The thinker's rows of tokens."""
        return functional.embedding(ids, self._rows)

    def _positions(self, ids: Tensor, media: Sequence[PreparedMedia]) -> Tensor:
        if not media:
            return torch.arange(ids.shape[1], dtype=torch.float32)[:, None].expand(-1, 3)
        config = self._config.talker_config
        # Corrected: transformers 5.23 looks in the talker's config for what only the thinker's has (spec section 6.2).
        config.audio_config = SimpleNamespace(n_window=self._config.thinker_config.audio_config.n_window)
        return self._reference.rope_index(config, ids[0].tolist(), media)

    def _frame_rows(self, codes: Tensor, trailing: Tensor, padding: Tensor) -> Tensor:
        """What each frame's codes and its token of text become, ``[1, frames, hidden]``."""
        tables: Sequence[Callable[[Tensor], Tensor]] = [
            self._talker.get_input_embeddings(),
            *self._talker.code_predictor.get_input_embeddings(),
        ]
        total = torch.stack([table(column) for table, column in zip(tables, codes.T, strict=True)]).sum(0)
        text = torch.cat((trailing, padding.expand(max(0, len(codes) - len(trailing)), -1)))[: len(codes)]
        return (total + text)[None]

    def _predictor(self, ours: TalkerTrace) -> Stages:
        """Logits of each pass, all frames as a batch of 16 rows each."""
        predictor, codes = self._talker.code_predictor, ours.codes
        first = self._talker.get_input_embeddings()(codes[:, 0])
        tables = predictor.get_input_embeddings()
        others = [table(codes[:, group]) for group, table in enumerate(list(tables)[:-1], start=1)]
        rows = torch.stack([ours.hidden.to(first.dtype), first, *others], dim=1)
        hidden = predictor.model(inputs_embeds=rows, use_cache=False).last_hidden_state
        return {f"pass.{group}": head(hidden[:, group]) for group, head in enumerate(predictor.lm_head, start=1)}

    def _talker_choices(self, logits: Tensor, codes: Tensor, params: SamplingParams) -> Tensor:
        """The greedy id at each row, after the codes before it, through transformers' own processors."""
        from transformers import RepetitionPenaltyLogitsProcessor, SuppressTokensLogitsProcessor

        size = logits.shape[-1]
        ids = [
            token for token in range(size - _SUPPRESSED, size) if token != self._config.talker_config.codec_eos_token_id
        ]
        suppress = SuppressTokensLogitsProcessor(ids)
        penalise = RepetitionPenaltyLogitsProcessor(params.repetition_penalty or 1.0)
        found = [
            suppress(codes[None, :row], penalise(codes[None, :row], logits[None, row].float()))
            for row in range(len(logits))
        ]
        return torch.cat(found).argmax(-1)
