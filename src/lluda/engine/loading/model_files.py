"""A checkpoint before any weight is touched: its configs, what it would take, and where its components would be."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from lluda.backends import kept_formats, select_backend
from lluda.backends.weight import Weight
from lluda.config.audio import MelConfig
from lluda.config.model import DTypeName, ModelConfig, resolve_dtype
from lluda.config.reader import ConfigReader
from lluda.config.vision import VisionInputConfig
from lluda.engine.kv_cache import STORAGE_DTYPES, CacheOptions
from lluda.engine.loading.load_options import LoadOptions
from lluda.engine.loading.media_plan import MediaLoad, plan_media
from lluda.engine.loading.memory_plan import DTYPE_BYTES, MemoryPlan, PlanRow, plan_memory, plan_speech
from lluda.engine.loading.placement import EXPERTS, Backends, read_placement
from lluda.engine.loading.small_files import small_files_check
from lluda.engine.loading.tied_head import with_stored_head
from lluda.engine.loading.tokenizer import return_freed_memory
from lluda.errors import InvalidRequest, LimitExceeded, LludaError
from lluda.formats.packed_bf16 import PACKED_BF16
from lluda.models.build import (
    all_parameters,
    decoder_and_head,
    expert_parameters,
    shared_specs,
    text_parameters,
)
from lluda.parameters import WHOLE, ParameterSpec, Share
from lluda.weights.checkpoint import (
    ModelSource,
    open_checkpoint,
    read_config,
    read_generation_config,
)
from lluda.weights.config_override import with_rope_scaling
from lluda.weights.hub.sources import find_source
from lluda.weights.loader import LoadReport, Progress, Take, load_tensors
from lluda.weights.media_settings import read_media_settings

_log = logging.getLogger(__name__)

DEFAULT_CONTEXT = 8192
"""Positions a sequence may have where ``max_context`` is not given and the model allows more."""

MAX_SEQUENCES = 8
"""Sequences of a whole context in the KV cache where ``max_sequences`` is not given and memory allows."""

_FREE_SHARE = 0.5
"""Of the memory left over by one sequence, what others may take where nobody said how many there are to be."""


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """What a checkpoint says of itself, before any weight is touched."""

    source: ModelSource
    config: ModelConfig
    generation_config: Mapping[str, Any]
    notices: tuple[str, ...] = ()
    """What is done otherwise than a config says, a sentence each; logged when it is found."""

    @classmethod
    def find(
        cls,
        name_or_path: str | os.PathLike[str],
        *,
        allow_unknown_config: bool = False,
        rope_scaling: str | Mapping[str, Any] | None = None,
        answers: bool = False,
    ) -> ModelFiles:
        """Resolve a folder, .gguf file or hub name ``org/name[@revision]`` and read its configs. ``rope_scaling``: see
        `LoadOptions`. ``answers``: it is to answer, so a hub's model that cannot is refused before it is fetched."""
        check = small_files_check(allow_unknown_config=allow_unknown_config, rope_scaling=rope_scaling, answers=answers)
        source = find_source(name_or_path, check=check)
        raw = with_rope_scaling(read_config(source), rope_scaling)
        config = ModelConfig.from_hf(raw, _config_name(source), allow_unknown=allow_unknown_config)
        config, notices = with_stored_head(source, config)
        for notice in notices:
            _log.warning("%s: %s", source.path, notice)
        return cls(source, config, read_generation_config(source), notices)

    @property
    def path(self) -> Path:
        """The folder or .gguf file."""
        return self.source.path

    def release_vocabulary(self) -> None:
        """Let go of the memory of what only the tokenizer was made of."""
        self.source.release_vocabulary()
        return_freed_memory()

    @property
    def name(self) -> str:
        """What the model is called where it is shown."""
        return self.source.name

    @property
    def eos_ids(self) -> tuple[int, ...]:
        """Ids that end a text, of generation_config.json and config.json."""
        reader = ConfigReader(self.generation_config, str(self.path / "generation_config.json"))
        return tuple(dict.fromkeys((*reader.token_ids("eos_token_id"), *self.config.eos_token_ids)))

    def plan(
        self, options: LoadOptions, *, speech: bool = False, media: MediaLoad | None = None, rank: int = 0
    ) -> MemoryPlan:
        """The memory this model will take under ``options``, with what speaks if ``speech``, and for a prompt with
        ``media``; of several ranks what ``rank`` takes. InvalidRequest: media for a model of text."""
        context, dtype = self.context(options), resolve_dtype(options.dtype, self.config.dtype)
        share = Share(rank, options.tensor_parallel)
        whole = decoder_and_head(self.config) if rank > 0 else text_parameters(self.config)
        if speech:
            whole = all_parameters(self.config)
        specs = shared_specs(self.config, whole, share)
        decoder = self.config.text.of_rank(share.ranks)
        sequences, cache = options.max_sequences or 1, self.cache_options(options, dtype)
        device_of = self.backends(options, dtype).device_of_parameter
        spoken = self.config.omni.speech if speech and self.config.omni else None
        return plan_memory(
            specs,
            decoder,
            dtype=dtype,
            kv_bytes=cache.bytes_for(decoder, context),
            context=context,
            sequences=sequences,
            prefill_rows=min(options.prefill_rows, context),
            device=options.thinker_device,
            device_of=device_of,
            stored=self._kept_bytes(options, dtype, whole, specs),
            speech=plan_speech(spoken, sequences, context, STORAGE_DTYPES[cache.dtype].itemsize, device_of)
            if spoken
            else (),
            media=self._media_rows(media, dtype, device_of) if media else (),
        )

    def _media_rows(self, media: MediaLoad, dtype: DTypeName, device_of: Callable[[str], str]) -> Sequence[PlanRow]:
        omni = self.config.omni
        if omni is None:
            raise InvalidRequest(
                f"a {self.config.model_type} model takes text only; plan it without pictures and sound"
            )
        image, audio = (read_media_settings(self.source, medium) for medium in ("image", "audio"))
        settings = (
            VisionInputConfig.from_hf(image.raw, image.where, omni.vision),
            MelConfig.from_hf(audio.raw, audio.where, omni.audio),
        )
        return plan_media(omni, media, settings, DTYPE_BYTES[dtype], device_of)

    def _kept_bytes(
        self, options: LoadOptions, dtype: DTypeName, whole: Sequence[ParameterSpec], specs: Sequence[ParameterSpec]
    ) -> dict[str, int]:
        """Bytes of the matrices that stay in the format they are stored in, or are packed as they are loaded: of
        ``specs``, which are those parts of ``whole`` that one rank has."""
        formats = kept_formats(options.backend, options.thinker_device, dtype, options.weights, options.activations)
        packed = {}
        if options.weights == "packed" and PACKED_BF16.name in formats:
            matrices = (spec for spec in specs if spec.role in ("matrix", "embedding"))
            packed = {spec.name: min(PACKED_BF16.least_bytes(spec.shape), 2 * spec.elements) for spec in matrices}
        elements = {spec.name: spec.elements for spec in whole}
        stored = self._stored_bytes(formats)
        parts = {spec.name: spec.elements / elements[spec.name] for spec in specs if spec.name in stored}
        return packed | {name: round(stored[name] * part) for name, part in parts.items()}

    def _stored_bytes(self, formats: frozenset[str]) -> dict[str, int]:
        try:
            checkpoint = open_checkpoint(self.source)
        except LludaError:  # a config alone can be planned; what is wrong is said when it is loaded
            return {}
        found = {name: entry.nbytes for name, entry in checkpoint.entries.items() if entry.dtype in formats}
        checkpoint.close()
        return found

    def context(self, options: LoadOptions) -> int:
        """Positions a sequence may have. LimitExceeded if more are asked for than the model was made for."""
        text = self.config.text
        if options.max_context is None:
            return min(text.max_context, DEFAULT_CONTEXT)
        if options.max_context > text.max_context:
            raise LimitExceeded(
                f"max_context {options.max_context} exceeds the model's {text.max_context} positions"
                f"{text.rope.describe()}; take fewer, or stretch them by YaRN (docs/numerics.md)"
            )
        return options.max_context

    def sequences(self, options: LoadOptions) -> int:
        """Sequences of a whole context that there is to be KV memory for: what is asked for; else as many as fit into
        the memory that is free now, up to `MAX_SEQUENCES`, but one at least."""
        if options.max_sequences is not None:
            return options.max_sequences
        plan = self.plan(options)
        device = plan.kv_cache.device
        free = plan.available[device] - sum(row.nbytes for row in plan.rows if row.device == device and row.nbytes)
        return 1 + max(0, min(MAX_SEQUENCES - 1, int(free * _FREE_SHARE // max(1, plan.kv_cache.nbytes))))

    def backends(self, options: LoadOptions, dtype: DTypeName) -> Backends:
        """What the components run on. InvalidRequest: components are placed of a model that has none, or experts of a
        dense one."""
        placement, kind = read_placement(options.place), self.config.model_type
        experts = frozenset(spec.name for spec in expert_parameters(self.config)) if EXPERTS in placement else ()
        if EXPERTS in placement and not experts:
            raise InvalidRequest(f"place: this {kind} model has no experts; leave {EXPERTS}= out")
        if placement.keys() - {EXPERTS} and self.config.omni is None:
            raise InvalidRequest(f"place is for the components of an Omni model; for a {kind} model say --device")
        return Backends(
            options.device,
            placement,
            lambda device: select_backend(options.backend, device, dtype, options.weights, options.activations),
            experts,
        )

    def load_tensors(
        self,
        specs: Sequence[ParameterSpec],
        options: LoadOptions,
        take: Take[Weight | Tensor],
        *,
        skip: tuple[str, ...] = (),
        share: Share = WHOLE,
        progress: Progress | None = None,
    ) -> tuple[dict[str, Weight | Tensor], LoadReport]:
        """The checkpoint's tensors, each given to ``take``; see `lluda.weights.loader.load_tensors`."""
        return load_tensors(
            open_checkpoint(self.source),
            specs,
            skip=skip,
            share=share,
            take=take,
            allow_unexpected=options.allow_unexpected,
            check=options.check_tensors,
            progress=progress,
        )

    def cache_options(self, options: LoadOptions, dtype: DTypeName) -> CacheOptions:
        """The KV cache under ``options``."""
        kv_dtype = dtype if options.kv_dtype == "auto" else options.kv_dtype
        return CacheOptions(self.context(options), options.kv_cache, kv_dtype)


def _config_name(source: ModelSource) -> str:
    return str(source.path if source.is_gguf else source.path / "config.json")
