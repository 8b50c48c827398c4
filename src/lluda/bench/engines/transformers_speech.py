"""transformers' talker, code predictor, code2wav and audio encoder in BF16, each driven through its forward pass."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import (
    DynamicCache,
    LogitsProcessorList,
    RepetitionPenaltyLogitsProcessor,
    SuppressTokensLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from lluda.bench.measured.speech import SpeechSession, SpeechTraffic, prompt_rows
from lluda.bench.prediction.weight_traffic import code_predictor_bytes, talker_bytes
from lluda.bench.process.job import Job
from lluda.bench.session import EngineInfo
from lluda.engine.loading.model_files import ModelFiles
from lluda.evaluation.transformers_components import TransformersComponents
from lluda.models.build import speech_parameters
from lluda.models.components import BY_NAME


def open_session(job: Job) -> TransformersSpeech:
    """The components of the job's folder."""
    return TransformersSpeech(job)


class TransformersSpeech(SpeechSession):
    """Loops over ``forward`` with transformers' own processors and caches: no ``generate``, whose bookkeeping would be
    measured too."""

    def __init__(self, job: Job) -> None:
        torch.set_num_threads(job.threads)
        torch.manual_seed(7)
        self._job = job
        self._omni = TransformersComponents(Path(job.model), "bf16", float64=False)

    @property
    def info(self) -> EngineInfo:
        """See ``SpeechSession``."""
        return EngineInfo("BF16", 0.0, "BF16, sdpa, components by themselves, dynamic cache, on cpu")

    @property
    def traffic(self) -> SpeechTraffic:
        """See ``SpeechSession``."""
        job = self._job
        omni = ModelFiles.find(job.model, allow_unknown_config=job.allow_unknown_config).config.omni
        assert omni is not None and omni.speech is not None, "the run has looked at the config"
        sizes = {spec.name: 2 * spec.elements for spec in speech_parameters(omni.speech)}
        config = omni.speech.talker
        return SpeechTraffic(code_predictor_bytes(config, sizes), talker_bytes(config, sizes))

    @cached_property
    def _talker(self) -> Any:
        kind = self._omni.models.Qwen3OmniMoeTalkerForConditionalGeneration
        return self._omni.load(kind, self._omni.config.talker_config, BY_NAME["talker"].prefix)

    @cached_property
    def _code2wav(self) -> Any:
        kind = self._omni.models.Qwen3OmniMoeCode2Wav
        return self._omni.load(kind, self._omni.config.code2wav_config, BY_NAME["code2wav"].prefix)

    @cached_property
    def _encoder(self) -> Any:
        kind = self._omni.models.Qwen3OmniMoeAudioEncoder
        return self._omni.load(kind, self._omni.config.thinker_config.audio_config, BY_NAME["audio_encoder"].prefix)

    @cached_property
    def _vision(self) -> Any:
        kind = self._omni.models.Qwen3OmniMoeVisionEncoder
        return self._omni.load(kind, self._omni.config.thinker_config.vision_config, BY_NAME["vision_encoder"].prefix)

    @torch.inference_mode()
    def start(self, rows: int) -> None:
        """See ``SpeechSession``."""
        config = self._omni.config.talker_config
        vocabulary, codes = config.text_config.vocab_size, config.code_predictor_config.vocab_size
        self._of_talker = LogitsProcessorList(
            [
                RepetitionPenaltyLogitsProcessor(1.05),
                SuppressTokensLogitsProcessor(list(range(codes, vocabulary))),
                TemperatureLogitsWarper(0.9),
                TopKLogitsWarper(50),
            ]
        )
        self._of_predictor = LogitsProcessorList([TopKLogitsWarper(50), TopPLogitsWarper(0.8)])
        self._cache = DynamicCache(config=self._talker.model.config)
        self._said = torch.empty(1, 0, dtype=torch.int64)
        prompt = prompt_rows(rows + 1, config.text_config.hidden_size).bfloat16()[None]
        self._text = prompt[:, -1:]
        self._run(prompt[:, :-1])

    @torch.inference_mode()
    def frame(self) -> None:
        """See ``SpeechSession``."""
        predictor = self._talker.code_predictor
        first = _sample(self._of_talker, self._said, self._logits)
        self._said = torch.cat((self._said, first), dim=1)
        total = self._talker.get_input_embeddings()(first)
        rows = torch.cat((self._hidden, total), dim=1)
        cache = DynamicCache(config=predictor.config)
        for head, table in zip(predictor.lm_head, predictor.get_input_embeddings(), strict=True):
            out = predictor.model(inputs_embeds=rows, past_key_values=cache, use_cache=True)
            rows = table(_sample(self._of_predictor, first, head(out.last_hidden_state[:, -1])))
            total = total + rows
        self._next = total

    @torch.inference_mode()
    def step(self) -> None:
        """See ``SpeechSession``."""
        self._run(self._next + self._text)

    @torch.inference_mode()
    def vocode(self, frames: int) -> None:
        """See ``SpeechSession``."""
        quantizers = self._omni.config.code2wav_config.num_quantizers
        self._code2wav(torch.ones(1, quantizers, frames, dtype=torch.int64))

    @torch.inference_mode()
    def encode_audio(self, frames: int) -> None:
        """See ``SpeechSession``."""
        mels = self._omni.config.thinker_config.audio_config.num_mel_bins
        self._encoder(torch.zeros(mels, frames), feature_lens=torch.tensor([frames]))

    @torch.inference_mode()
    def encode_picture(self, side: int) -> None:
        """See ``SpeechSession``."""
        config = self._omni.config.thinker_config.vision_config
        patches = side // config.patch_size
        values = config.in_channels * config.temporal_patch_size * config.patch_size**2
        grid = torch.tensor([[1, patches, patches]])
        self._vision(torch.zeros(patches * patches, values, dtype=torch.bfloat16), grid_thw=grid)

    def _run(self, rows: Tensor) -> None:
        begin = self._cache.get_seq_length()
        positions = torch.arange(begin, begin + rows.shape[1]).expand(3, 1, -1)
        out = self._talker.model(
            inputs_embeds=rows, position_ids=positions, past_key_values=self._cache, use_cache=True
        )
        self._hidden = out.last_hidden_state[:, -1:]
        self._logits = self._talker.codec_head(self._hidden[:, -1])


def _sample(processors: Any, before: Tensor, logits: Tensor) -> Tensor:
    """An id ``[1, 1]`` from logits ``[1, vocabulary]``."""
    return torch.multinomial(processors(before, logits.float()).softmax(-1), 1)
