"""transformers' Qwen3-Omni modules on the same folder: the reference of an Omni validation, a component at a time.

Tensors are read by the safetensors package, not by lluda, and given to the modules by the names that transformers' own
loader would give them. Each call loads what it needs and lets it go; with ``float64`` each module also runs a second
time with its parameters widened, which is the truth that both are measured against.

Where transformers 5.23 has a known defect the expectation is corrected; ``Corrections`` says where.
"""

from __future__ import annotations

import json
import re
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
from lluda.errors import LludaError, UnsupportedModel
from lluda.evaluation.trace import Observe, Recorder, Step
from lluda.evaluation.transformers_reference import (
    DTYPES,
    first_line,
    require_transformers,
    silence,
    widen_while_running,
)
from lluda.inputs.media.media_positions import VideoSpan
from lluda.models.causal_lm import EMBEDDING, HEAD
from lluda.models.decoder import MultimodalEmbeddings
from lluda.models.thinker import PREFIX as THINKER
from lluda.weights.saved_names import missing_prefix, released_name

Stages = dict[str, Tensor]
Pick = Callable[[Tensor], Tensor]
_EXPERT = re.compile(r"(.*\.experts)\.(\d+)\.(gate|up|down)_proj\.weight")
_LISTED = 300


class TransformersOmni:
    """The reference. ``dtype``: bf16, f32 or f64.

    Raises:
        MissingDependency: transformers is not installed.
        UnsupportedModel: not a folder with safetensors, or a config transformers refuses.
    """

    name = "transformers"

    def __init__(self, path: Path, dtype: str, *, float64: bool) -> None:
        transformers = require_transformers()
        if not path.is_dir():
            raise UnsupportedModel(
                f"{path}: the reference reads a folder of safetensors; validate the one it was made of"
            )
        from transformers.models.qwen3_omni_moe import modeling_qwen3_omni_moe as models

        try:
            with silence(transformers):
                self.config = transformers.AutoConfig.from_pretrained(path, local_files_only=True)
        except (ValueError, KeyError, TypeError, OSError) as error:
            raise UnsupportedModel(f"{path}: transformers cannot read its config: {first_line(error)}") from error
        if not hasattr(self.config, "thinker_config"):  # a thinker saved by itself
            self.config = SimpleNamespace(thinker_config=self.config)
        self.path, self.dtype, self.float64, self.models = path, dtype, float64, models
        self.version = str(transformers.__version__)

    def load(self, kind: Any, config: Any, prefix: str) -> Any:
        """A module of class ``kind`` with all its parameters from the tensors below ``prefix``.

        LludaError: tensors are missing or left over, so that it would not be the same model.
        """
        from transformers.initialization import no_init_weights

        with no_init_weights():
            module = kind._from_config(config, dtype=torch.float32, attn_implementation="sdpa")
        shapes = {name: parameter.shape for name, parameter in module.named_parameters()}
        state: Stages = {}
        for name, values in _tensors(self.path, prefix):
            _place(state, shapes, name, values.to(DTYPES[self.dtype]))
        try:
            module.load_state_dict(state, strict=True, assign=True)
        except RuntimeError as error:
            found = " ".join(str(error).split())
            raise LludaError(
                f"{self.path}: transformers' {kind.__name__} does not take these tensors: {found:.{_LISTED}}"
            ) from error
        if self.dtype == "f64":
            _eager(module)
        return module.eval().requires_grad_(False)

    def each(self, module: Any, run: Callable[[], Stages]) -> Iterator[Stages]:
        """What ``run`` sees of ``module`` as loaded and then, for the truth, with all its parameters widened."""
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

    def hear(self, media: Sequence[PreparedMedia]) -> Iterator[Stages]:
        """The audio encoder over each recording alone."""
        config = self.config.thinker_config.audio_config
        module = self.load(self.models.Qwen3OmniMoeAudioEncoder, config, "thinker.audio_tower.")
        features = [torch.tensor(medium.features) for medium in media if medium.features is not None]

        def run() -> Stages:
            seen = Recorder()
            with ExitStack() as hooks:
                _watch_blocks(hooks, seen, "conv", module.layers)
                for frames in features:
                    out = module(frames.T, feature_lens=torch.tensor([len(frames)]))
                    seen("output", out.last_hidden_state)
            return seen.stages

        yield from self.each(module, run)

    def see(self, media: Sequence[PreparedMedia]) -> Iterator[Stages]:
        """The vision encoder over each picture and video alone."""
        config = self.config.thinker_config.vision_config
        module = self.load(self.models.Qwen3OmniMoeVisionEncoder, config, "thinker.visual.")
        patches = [medium.patches for medium in media if medium.patches is not None]

        def run() -> Stages:
            seen = Recorder()
            with ExitStack() as hooks:
                _watch_blocks(hooks, seen, "patches", module.blocks)
                for each in patches:
                    out = module(each.values, grid_thw=torch.tensor([each.grid]))
                    seen("output", out.pooler_output)
                    for index, rows in enumerate(out.deepstack_features):
                        seen(f"deepstack.{index}", rows)
            return seen.stages

        yield from self.each(module, run)

    def positions(self, ids: Sequence[int], media: Sequence[PreparedMedia]) -> Tensor:
        """The thinker's, float32 ``[rows, 3]``."""
        kind = self.models.Qwen3OmniMoePreTrainedModelForConditionalGeneration
        return rope_index(kind, self.config.thinker_config, ids, media)

    def thinker(self, prompt: PromptRows) -> ReferenceThinker:
        """The decoder on ``prompt``, whose injected rows it is given too."""
        return ReferenceThinker(self.thinker_modules(), prompt, self)

    def thinker_modules(self) -> nn.ModuleDict:
        """The thinker's ``decoder`` and ``head``, without its encoders."""
        config = self.config.thinker_config.text_config
        decoder = self.load(self.models.Qwen3OmniMoeThinkerTextModel, config, "thinker.model.")
        head = nn.Linear(config.hidden_size, config.vocab_size, bias=False, device="meta")
        weight = self.tensor(f"{THINKER}{HEAD}", f"{THINKER}{EMBEDDING}")  # the table's, where they are tied
        head.load_state_dict({"weight": weight}, assign=True)
        return nn.ModuleDict({"decoder": decoder, "head": head.requires_grad_(False)})

    def tensor(self, *names: str) -> Tensor:
        """The first of ``names`` that is stored. LludaError: none is."""
        for name in names:
            for rest, values in _tensors(self.path, name):
                if not rest:
                    return values.to(DTYPES[self.dtype])
        raise LludaError(f"{self.path}: holds no {' or '.join(names)}")

    def code2wav(self, codes: Tensor) -> Iterator[Stages]:
        """Every stage of int64 ``codes [codebooks, frames]`` in one forward (not ``chunked_decode``)."""
        module = self.load(self.models.Qwen3OmniMoeCode2Wav, self.config.code2wav_config, "code2wav.")
        columns = {f"upsample.{index}": blocks[-1] for index, blocks in enumerate(module.upsample)}
        columns |= {f"decoder.{index}": block for index, block in enumerate(list(module.decoder)[:-2])}

        def run() -> Stages:
            seen = Recorder()
            with ExitStack() as hooks:
                _watch_blocks(hooks, seen, "embeddings", module.pre_transformer.layers)
                hooks.enter_context(watch(module.pre_transformer.norm, seen, "pre_transformer"))
                for name, part in columns.items():
                    hooks.enter_context(watch(part, seen, name, of=_columns))
                seen("waveform", module(codes[None])[0])
            return seen.stages

        yield from self.each(module, run)


class ReferenceThinker:
    """Implements ``Implementation`` for one prompt, which it takes in one step."""

    name = "transformers"

    def __init__(self, module: Any, prompt: PromptRows, reference: TransformersOmni) -> None:
        self.module, self.dtype = module, reference.dtype
        self._prompt = prompt

    def start(self, observe: Observe | None = None) -> Step:
        """See ``Implementation.start``."""
        from transformers import DynamicCache

        decoder, prompt = self.module["decoder"], self._prompt
        cache = DynamicCache(config=decoder.config)

        @torch.no_grad()
        def step(ids: Sequence[int]) -> Tensor:
            start = cache.get_seq_length()
            x = decoder.embed_tokens(torch.tensor([list(ids)]))
            deepstack: dict[str, Any] = {}
            if start:
                places = torch.arange(start, start + len(ids)) + prompt.position_offset
                positions = places.float().expand(3, 1, -1)
            else:
                assert list(ids) == list(prompt.ids), "a sequence begins with its prompt"
                positions = (
                    torch.arange(len(ids)).expand(3, 1, -1) if prompt.positions is None else prompt.positions[:, None]
                )
                if prompt.injected is not None:
                    deepstack = _inject(x, prompt.injected)
            seen = observe or (lambda _stage, _rows: None)
            seen("embeddings", x[0])
            with ExitStack() as hooks:
                if observe:
                    # What goes into the next layer: DeepStack is added after the layer itself.
                    after = [*decoder.layers[1:], decoder.norm]
                    for index, module in enumerate(after):
                        hooks.enter_context(watch(module, seen, f"layers.{index}", given=True))
                out = decoder(
                    inputs_embeds=x, position_ids=positions, past_key_values=cache, use_cache=True, **deepstack
                )
            hidden = out.last_hidden_state[0]
            seen("norm", hidden)
            logits: Tensor = self.module["head"](hidden)
            seen("logits", logits)
            return logits

        return step


def _inject(x: Tensor, injected: MultimodalEmbeddings) -> dict[str, Any]:
    """Put an encoder's rows where their placeholders stand; what DeepStack takes."""
    x[0, injected.rows.to(x.device)] = injected.embeddings.to(x)
    if not injected.deepstack:
        return {}
    mask = torch.zeros(x.shape[:2], dtype=torch.bool, device=x.device)
    mask[0, injected.deepstack_rows.to(x.device)] = True
    return {"visual_pos_masks": mask, "deepstack_visual_embeds": [rows.to(x.device) for rows in injected.deepstack]}


def rope_index(kind: Any, config: Any, ids: Sequence[int], media: Sequence[PreparedMedia]) -> Tensor:
    """transformers' position ids of ``ids``, float32 ``[rows, 3]``; ``kind`` is the class whose method it is."""
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


@contextmanager
def widened(module: Any) -> Iterator[None]:
    """``module``, which has experts, with every parameter in float64: a leaf at a time while it runs, and experts one
    by one, so that it takes little more memory than before."""
    before = _eager(module)
    owners = [each for each in module.modules() if next(each.parameters(recurse=False), None) is not None]
    hooks = [hook for owner in owners for hook in widen_while_running(owner, recurse=False)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        for part, implementation in before:
            part.config._experts_implementation = implementation


def _eager(module: Any) -> list[tuple[Any, Any]]:
    """Run experts by plain products: grouped ones have no float64 kernel. Returns what to go back to."""
    parts = [part for part in module.modules() if hasattr(getattr(part, "config", None), "_experts_implementation")]
    before = [(part, part.config._experts_implementation) for part in parts]
    for part, _ in before:
        part.config._experts_implementation = "eager"
    return before


def _watch_blocks(hooks: ExitStack, seen: Recorder, first: str, blocks: Any) -> None:
    """What goes into the first of ``blocks``, and what comes out of each."""
    hooks.enter_context(watch(blocks[0], seen, first, given=True))
    for index, block in enumerate(blocks):
        hooks.enter_context(watch(block, seen, f"layers.{index}"))


def _rows(x: Tensor) -> Tensor:
    return x.reshape(-1, x.shape[-1])


def _columns(x: Tensor) -> Tensor:
    return x[0].T


@contextmanager
def watch(module: Any, seen: Observe, stage: str, *, given: bool = False, of: Pick = _rows) -> Iterator[None]:
    """``seen`` is told of ``stage`` what comes out of ``module`` (``given``: what goes into it), as ``of`` picks it."""

    def after(_module: Any, _given: Any, output: Any) -> None:
        seen(stage, of(output[0] if isinstance(output, tuple) else output))

    def before(_module: Any, positional: Any, named: Any) -> None:
        seen(stage, of(positional[0] if positional else named["hidden_states"]))

    handle = (
        module.register_forward_pre_hook(before, with_kwargs=True) if given else module.register_forward_hook(after)
    )
    try:
        yield
    finally:
        handle.remove()


def _tensors(path: Path, prefix: str) -> Iterator[tuple[str, Tensor]]:
    """Every tensor whose released name begins with ``prefix``, by the rest of that; fused experts as they are."""
    from safetensors import safe_open

    index = path / "model.safetensors.index.json"
    weight_map = json.loads(index.read_text())["weight_map"] if index.is_file() else {}
    for file in sorted(set(weight_map.values())) or ["model.safetensors"]:
        with safe_open(path / file, framework="pt") as opened:
            before = missing_prefix(weight_map or opened.keys())
            for name in opened.keys():  # noqa: SIM118  (safe_open is no mapping)
                if (released := released_name(before + name)).startswith(prefix):
                    yield released.removeprefix(prefix), opened.get_tensor(name)


def _place(state: Stages, shapes: dict[str, torch.Size], name: str, values: Tensor) -> None:
    """Into ``state``; an expert's matrix into the stack that transformers keeps of its layer."""
    found = _EXPERT.fullmatch(name)
    if found is None:
        state[name] = values
        return
    stack = f"{found[1]}.{'down_proj' if found[3] == 'down' else 'gate_up_proj'}"
    if stack not in state:
        if stack not in shapes:
            state[name] = values  # load_state_dict names it
            return
        state[stack] = torch.empty(shapes[stack], dtype=values.dtype)
    whole = state[stack][int(found[2])]
    part = {"gate": whole[: len(values)], "up": whole[len(values) :], "down": whole}[found[3]]
    part.copy_(values)
