"""transformers' modules on the same checkpoint: the reference of a validation, a component at a time.

Each call loads what it needs and frees it; with ``float64`` each module also runs a second time with its parameters
widened, which is the truth that both implementations are measured against.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lluda.config.vision import VisionInputConfig
from lluda.engine.media import PreparedMedia
from lluda.engine.prompt_rows import PromptRows
from lluda.errors import LludaError
from lluda.evaluation.trace import Observe, Recorder, Stages, Step
from lluda.evaluation.transformers_loading import (
    DTYPES,
    folder_tensors,
    load_module,
    load_omni_config,
    load_text_model,
    require_transformers,
)
from lluda.extras import require
from lluda.inputs.media.media_positions import VideoSpan
from lluda.models.causal_lm import EMBEDDING, HEAD
from lluda.models.components import BY_NAME
from lluda.models.decoder import MultimodalEmbeddings
from lluda.models.thinker import PREFIX as THINKER

Pick = Callable[[Tensor], Tensor]


class TransformersDecoder:
    """Implements ``Implementation``: a text model or a thinker. Where a ``prompt`` is given, every sequence begins with
    it, and its injected rows take the place of its placeholders. ``axes`` of a position: 1, or an Omni model's 3."""

    name = "transformers"

    def __init__(self, decoder: Any, head: Any, prompt: PromptRows | None = None, axes: int = 1) -> None:
        self.module = nn.ModuleDict({"decoder": decoder, "head": head})
        self._prompt = prompt or PromptRows([])
        self._position_shape = (1, -1) if axes == 1 else (axes, 1, -1)

    def start(self, observe: Observe | None = None) -> Step:
        """See ``Implementation.start``."""
        from transformers import DynamicCache

        decoder: Any = self.module["decoder"]
        cache = DynamicCache(config=decoder.config)
        report = observe or (lambda _stage, _rows: None)

        @torch.no_grad()
        def step(ids: Sequence[int]) -> Tensor:
            x = decoder.embed_tokens(torch.tensor([list(ids)]))
            positions, deepstack = self._placed(x, ids, cache.get_seq_length())
            report("embeddings", x[0])
            with ExitStack() as hooks:
                if observe:
                    # What goes into the next layer: DeepStack is added after the layer itself.
                    for index, module in enumerate([*decoder.layers[1:], decoder.norm]):
                        hooks.enter_context(watch(module, report, f"layers.{index}", given=True))
                out = decoder(
                    inputs_embeds=x, position_ids=positions, past_key_values=cache, use_cache=True, **deepstack
                )
            hidden = out.last_hidden_state[0]
            report("norm", hidden)
            logits: Tensor = self.module["head"](hidden)
            report("logits", logits)
            return logits

        return step

    def _placed(self, x: Tensor, ids: Sequence[int], start: int) -> tuple[Tensor, dict[str, Any]]:
        """Positions of the rows ``x`` from ``start`` on, and what DeepStack takes; encoders' rows go into ``x``."""
        prompt, end = self._prompt, start + len(ids)
        if end > len(prompt):
            positions = torch.arange(start, end) + prompt.position_offset
            return positions.expand(self._position_shape), {}
        assert list(ids) == list(prompt.ids[start:end]), "a sequence begins with its prompt"
        _, positions, injected = prompt.chunk(start, end, torch.device("cpu"))
        positions = positions[:, None] if positions.dim() > 1 else positions.expand(self._position_shape)
        return positions, _inject(x, injected) if injected else {}


def _inject(x: Tensor, injected: MultimodalEmbeddings) -> dict[str, Any]:
    """Put an encoder's rows where their placeholders stand; what DeepStack takes."""
    x[0, injected.rows] = injected.embeddings.to(x)
    if not injected.deepstack:
        return {}
    mask = torch.zeros(x.shape[:2], dtype=torch.bool)
    mask[0, injected.deepstack_rows] = True
    return {"visual_pos_masks": mask, "deepstack_visual_embeds": list(injected.deepstack)}


def text_decoder(path: Path, dtype: str, prompt: PromptRows | None = None) -> TransformersDecoder:
    """A text model. Errors as `load_text_model`."""
    model = load_text_model(path, dtype)
    return TransformersDecoder(model.model, model.lm_head, prompt)


class TransformersComponents:
    """The components of an Omni folder. ``dtype``: bf16, f32 or f64. Errors as `load_omni_config`."""

    def __init__(self, path: Path, dtype: str, *, float64: bool) -> None:
        require_transformers()
        from transformers.models.qwen3_omni_moe import modeling_qwen3_omni_moe as models

        self.config, self.models = load_omni_config(path), models
        self.path, self.dtype, self.float64 = path, dtype, float64

    def load(self, kind: Any, config: Any, prefix: str) -> Any:
        """As `load_module`, of this folder in this dtype."""
        return load_module(self.path, self.dtype, kind, config, prefix)

    def each(self, module: Any, run: Callable[[], Stages]) -> Iterator[Stages]:
        """What ``run`` observes of ``module`` as loaded and then, for the truth, with all its parameters widened."""
        with torch.no_grad():
            yield run()
            if self.float64:
                for parameter in module.parameters():
                    parameter.data = parameter.data.double()
                yield run()

    def features(self, samples: Sequence[np.ndarray[Any, Any]]) -> Tensor:
        """Log-mel frames ``[frames, mels]`` of recordings, each extracted alone, below each other."""
        import transformers

        extractor = transformers.WhisperFeatureExtractor(
            feature_size=self.config.thinker_config.audio_config.num_mel_bins, return_attention_mask=True
        )
        options = {"padding": "longest", "truncation": False, "sampling_rate": extractor.sampling_rate}
        found = [extractor(each, return_tensors="pt", **options)["input_features"][0].T for each in samples]
        return torch.cat(found)

    def pixels(self, pictures: Sequence[Any], config: VisionInputConfig) -> Tensor:
        """Patches of pictures, uint8 ``[height, width, 3]``, below each other."""
        require("the reference's vision", "media")
        from PIL import Image
        from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

        processor = Qwen2VLImageProcessorPil(
            patch_size=config.patch_size,
            merge_size=config.merge_size,
            temporal_patch_size=config.temporal_patch_size,
            size={"shortest_edge": config.min_pixels, "longest_edge": config.max_pixels},
            image_mean=list(config.image_mean),
            image_std=list(config.image_std),
        )
        found = [processor([Image.fromarray(each)], return_tensors="pt")["pixel_values"] for each in pictures]
        return torch.cat(found)

    def audio_encoder(self, media: Sequence[PreparedMedia]) -> Iterator[Stages]:
        """The audio encoder over each recording alone."""
        config = self.config.thinker_config.audio_config
        module = self.load(self.models.Qwen3OmniMoeAudioEncoder, config, BY_NAME["audio_encoder"].prefix)
        features = [torch.tensor(medium.features) for medium in media if medium.features is not None]

        def run() -> Stages:
            recorder = Recorder()
            with ExitStack() as hooks:
                _watch_blocks(hooks, recorder, "conv", module.layers)
                for frames in features:
                    out = module(frames.T, feature_lens=torch.tensor([len(frames)]))
                    recorder("output", out.last_hidden_state)
            return recorder.stages

        yield from self.each(module, run)

    def vision_encoder(self, media: Sequence[PreparedMedia]) -> Iterator[Stages]:
        """The vision encoder over each picture and video alone."""
        config = self.config.thinker_config.vision_config
        module = self.load(self.models.Qwen3OmniMoeVisionEncoder, config, BY_NAME["vision_encoder"].prefix)
        patches = [medium.patches for medium in media if medium.patches is not None]

        def run() -> Stages:
            recorder = Recorder()
            with ExitStack() as hooks:
                _watch_blocks(hooks, recorder, "patches", module.blocks)
                for each in patches:
                    out = module(each.values, grid_thw=torch.tensor([each.grid]))
                    recorder("output", out.pooler_output)
                    for index, rows in enumerate(out.deepstack_features):
                        recorder(f"deepstack.{index}", rows)
            return recorder.stages

        yield from self.each(module, run)

    def positions(self, ids: Sequence[int], media: Sequence[PreparedMedia]) -> Tensor:
        """The thinker's, float32 ``[rows, 3]``."""
        return self.rope_index(self.config.thinker_config, ids, media)

    def rope_index(self, config: Any, ids: Sequence[int], media: Sequence[PreparedMedia]) -> Tensor:
        """transformers' position ids of ``ids``, float32 ``[rows, 3]``, by a thinker's or talker's ``config``."""
        kind = self.models.Qwen3OmniMoePreTrainedModelForConditionalGeneration
        holder = SimpleNamespace(
            config=config,
            spatial_merge_size=getattr(config, "vision_config", config).spatial_merge_size,
            get_llm_pos_ids_for_vision=lambda *given: kind.get_llm_pos_ids_for_vision(None, *given),
        )
        sounds = [len(medium.features) for medium in media if medium.features is not None]
        images = [medium.patches.grid for medium in media if medium.patches and not isinstance(medium.span, VideoSpan)]
        videos = [medium for medium in media if isinstance(medium.span, VideoSpan)]
        found, _ = kind.get_rope_index(
            holder,
            torch.tensor([list(ids)]),
            torch.tensor(images) if images else None,
            torch.tensor([medium.patches.grid for medium in videos if medium.patches]) if videos else None,
            torch.ones(1, len(ids), dtype=torch.long),
            any(medium.features is not None for medium in videos),
            torch.tensor(sounds) if sounds else None,
            torch.tensor([medium.span.seconds_per_grid for medium in videos if isinstance(medium.span, VideoSpan)]),
        )
        rows: Tensor = found[:, 0].float().T.contiguous()
        return rows

    def decoder(self, prompt: PromptRows | None = None) -> TransformersDecoder:
        """The thinker without its encoders."""
        config = self.config.thinker_config.text_config
        decoder = self.load(self.models.Qwen3OmniMoeThinkerTextModel, config, f"{THINKER}model.")
        head = nn.Linear(config.hidden_size, config.vocab_size, bias=False, device="meta")
        weight = self.tensor(f"{THINKER}{HEAD}", f"{THINKER}{EMBEDDING}")  # the table's, where they are tied
        head.load_state_dict({"weight": weight}, assign=True)
        return TransformersDecoder(decoder, head.requires_grad_(False), prompt, axes=3)

    def tensor(self, *names: str) -> Tensor:
        """The first of ``names`` that is stored. LludaError: none is."""
        for name in names:
            for rest, values in folder_tensors(self.path, name):
                if not rest:
                    return values.to(DTYPES[self.dtype])
        raise LludaError(f"{self.path}: holds no {' or '.join(names)}")

    def code2wav(self, codes: Tensor) -> Iterator[Stages]:
        """Every stage of int64 ``codes [codebooks, frames]`` in one forward (not ``chunked_decode``)."""
        module = self.load(self.models.Qwen3OmniMoeCode2Wav, self.config.code2wav_config, BY_NAME["code2wav"].prefix)
        columns = {f"upsample.{index}": blocks[-1] for index, blocks in enumerate(module.upsample)}
        columns |= {f"decoder.{index}": block for index, block in enumerate(list(module.decoder)[:-2])}

        def run() -> Stages:
            recorder = Recorder()
            with ExitStack() as hooks:
                _watch_blocks(hooks, recorder, "embeddings", module.pre_transformer.layers)
                hooks.enter_context(watch(module.pre_transformer.norm, recorder, "pre_transformer"))
                for name, part in columns.items():
                    hooks.enter_context(watch(part, recorder, name, of=lambda x: x[0].T))
                recorder("waveform", module(codes[None])[0])
            return recorder.stages

        yield from self.each(module, run)


def _watch_blocks(hooks: ExitStack, observe: Observe, first: str, blocks: Any) -> None:
    """What goes into the first of ``blocks``, and what comes out of each."""
    hooks.enter_context(watch(blocks[0], observe, first, given=True))
    for index, block in enumerate(blocks):
        hooks.enter_context(watch(block, observe, f"layers.{index}"))


def _rows(x: Tensor) -> Tensor:
    return x.reshape(-1, x.shape[-1])


@contextmanager
def watch(module: Any, observe: Observe, stage: str, *, given: bool = False, of: Pick = _rows) -> Iterator[None]:
    """``observe`` gets, as ``stage``, ``of`` what comes out of ``module`` (``given``: of what goes into it)."""

    def after(_module: Any, _given: Any, output: Any) -> None:
        observe(stage, of(output[0] if isinstance(output, tuple) else output))

    def before(_module: Any, positional: Any, named: Any) -> None:
        observe(stage, of(positional[0] if positional else named["hidden_states"]))

    handle = (
        module.register_forward_pre_hook(before, with_kwargs=True) if given else module.register_forward_hook(after)
    )
    try:
        yield
    finally:
        handle.remove()
