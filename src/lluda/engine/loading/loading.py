"""From a model's name to its network in memory: what to open, how to load it, and whether it fits."""

from __future__ import annotations

import ctypes
import logging
import os
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lluda.backends import best_device, kept_formats, select_backend
from lluda.backends.backend import ComputeBackend
from lluda.backends.capabilities import KEEPS_STORED
from lluda.backends.group import Group
from lluda.backends.weight import Parameters, Weight
from lluda.config.audio import MelConfig
from lluda.config.model import DTypeName, ModelConfig, resolve_dtype
from lluda.config.reader import ConfigReader
from lluda.config.vision import VisionInputConfig
from lluda.engine.forked import require_own_threads
from lluda.engine.kv_cache import STORAGE_DTYPES, CacheOptions, Strategy
from lluda.engine.loading.media_plan import MediaLoad, plan_media
from lluda.engine.loading.memory_plan import DTYPE_BYTES, MemoryPlan, PlanRow, plan_memory, plan_speech
from lluda.engine.loading.placement import EXPERTS, Backends, read_placement
from lluda.engine.loading.small_files import small_files_check
from lluda.engine.loading.tied_head import with_stored_head
from lluda.engine.parallel.leader import Leader
from lluda.engine.parallel.ranks import rank_device
from lluda.engine.runner import GPU_PREFILL_CHUNK, PREFILL_CHUNK, Runner
from lluda.engine.speech.speech import SpeechStack
from lluda.engine.speech.talker_prefixes import RETAINED_ROWS
from lluda.engine.speech.talker_prompt import TalkerPromptBuilder
from lluda.errors import InvalidRequest, LimitExceeded, LludaError, UnsupportedModel
from lluda.formats.packed_bf16 import PACKED_BF16
from lluda.formats.plain import plain_tensor
from lluda.formats.stored_tensor import StoredTensor
from lluda.inputs.chat.chat_template import ChatTemplate
from lluda.inputs.text.tokenizer import Tokenizer
from lluda.models.build import (
    SPEECH_PREFIXES,
    all_parameters,
    build_text_model,
    decoder_and_head,
    expert_parameters,
    shared_specs,
    speech_parameters,
    text_parameters,
)
from lluda.models.causal_lm import CausalLM
from lluda.models.code2wav import Code2Wav
from lluda.models.code_predictor import CodePredictor
from lluda.models.linear import Embedding
from lluda.models.talker import Talker
from lluda.models.thinker import PREFIX as THINKER_PREFIX
from lluda.parameters import WHOLE, ParameterSpec, Share
from lluda.weights.checkpoint import (
    ModelSource,
    Source,
    open_checkpoint,
    read_config,
    read_generation_config,
    read_gguf_metadata,
)
from lluda.weights.config_override import with_rope_scaling
from lluda.weights.hub.sources import find_source
from lluda.weights.loader import CheckTensors, LoadReport, Progress, Take, load_tensors
from lluda.weights.media_settings import read_media_settings

_log = logging.getLogger(__name__)

DEFAULT_CONTEXT = 8192
"""Positions a sequence may have where ``max_context`` is not given and the model allows more."""

MAX_SEQUENCES = 8
"""Sequences of a whole context in the KV cache where ``max_sequences`` is not given and memory allows."""

_FREE_SHARE = 0.5
"""Of the memory left over by one sequence, what others may take where nobody said how many there are to be."""

MAX_THREADS = 1024
"""More than the cores of any machine this is for; told to start too many, OpenMP crashes the process."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadOptions:
    """How to load. ``dtype``: auto (as released), bf16, f32, f64. ``device``: any torch device, wgpu, or auto: the GPU
    that is there, else the CPU (it then holds that one's name). ``place``: devices of single components of an Omni
    model (`placement.py`), as a mapping or as ``thinker=cuda:0,code2wav=cpu``; the others are on ``device``;
    ``experts=cpu`` puts the mixture blocks of any mixture-of-experts model apart. ``backend``: auto or a name.
    ``weights``: auto (as stored, which for Q8_0 holds in BF16 runs), bf16 (packed and Q8_0 ones are decoded), packed to
    12 bits without loss (cpu, cuda; Q8_0 ones stay), or blocked, a copy in oneDNN's order (reference backend in BF16;
    its auto). ``activations``: what Q8_0 weights multiply, exact rows or rows rounded to q8_0 as in llama.cpp.
    ``max_context``: positions a sequence may have (default: the model's limit, at most 8192). ``kv_cache``: growing or
    preallocated; ``kv_dtype``: auto (as dtype), bf16, f32. ``prefill_chunk``: prompt rows computed at once (default:
    8192 on a GPU, 512 elsewhere). ``max_sequences``: sequences of a whole context that the KV cache holds at once
    (default: 8, or as many as fit); shorter ones run in greater numbers. ``deterministic``: each answer is to the bit
    what it is alone, whoever runs beside it and whatever ran before (the reference backend always is). ``threads``: CPU
    threads. ``check_tensors``: auto (warn of strange values where they are read in any case), or read every value, and
    warn or fail; off. ``rope_scaling``: in place of the checkpoint's own, an object as in config.json, or that as JSON
    (docs/numerics.md, YaRN). ``tensor_parallel``: processes that share the model, each with a slice of it and, of GPUs,
    one of its own (docs/scaling.md). ``allow_*`` accept what is refused by default."""

    dtype: str = "auto"
    device: str = "cpu"
    place: str | Mapping[str, str] = ""
    backend: str = "auto"
    weights: str = "auto"
    activations: str = "exact"
    max_context: int | None = None
    kv_cache: Strategy = "growing"
    kv_dtype: str = "auto"
    prefill_chunk: int | None = None
    max_sequences: int | None = None
    deterministic: bool = False
    threads: int | None = None
    check_tensors: CheckTensors = "auto"
    rope_scaling: str | Mapping[str, Any] | None = None
    tensor_parallel: int = 1
    allow_unexpected: bool = False
    allow_unknown_config: bool = False

    def __post_init__(self) -> None:
        for name in ("max_context", "threads", "prefill_chunk", "max_sequences", "tensor_parallel"):
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                raise InvalidRequest(f"{name} must be a positive integer, not {value!r:.80}")
        if self.threads is not None and self.threads > MAX_THREADS:
            raise InvalidRequest(f"threads must be at most {MAX_THREADS}, not {self.threads}; take one for each core")
        read_placement(self.place)
        if self.device == "auto":
            object.__setattr__(self, "device", best_device())

    def on_rank(self) -> LoadOptions:
        """For one of several processes: on the GPU that is its own, or with its part of the CPU's threads."""
        if self.tensor_parallel == 1:
            return self
        threads = self.threads or max(1, torch.get_num_threads() // self.tensor_parallel)
        return replace(self, device=str(rank_device(self.device)), threads=threads)

    @property
    def thinker_device(self) -> str:
        """Where a text model, or the thinker of an Omni one, is."""
        return read_placement(self.place).get("thinker", self.device)

    @property
    def prefill_rows(self) -> int:
        """Prompt rows computed at once. A GPU is kept busy by more of them, and reads the experts less often."""
        if self.prefill_chunk is not None:
            return self.prefill_chunk
        return GPU_PREFILL_CHUNK if self.thinker_device.startswith("cuda") else PREFILL_CHUNK


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


Join = Callable[[ComputeBackend, int], Group]
"""Given the backend of this rank's share, and the bytes of that, the group of all ranks."""


def make_runner(files: ModelFiles, options: LoadOptions, network: CausalLM, leader: Leader | None = None) -> Runner:
    """What steps ``network``; ``leader`` of the other ranks, on the first of several."""
    dtype = resolve_dtype(options.dtype, files.config.dtype)
    cache, rows = files.cache_options(options, dtype), options.prefill_rows
    return Runner(network, cache, rows, deterministic=options.deterministic, leader=leader)


@dataclass(frozen=True, slots=True)
class _Loaded:
    backends: Backends
    parameters: Parameters
    report: LoadReport


def load_network(
    files: ModelFiles,
    options: LoadOptions,
    progress: Progress | None = None,
    share: Share = WHOLE,
    join: Join | None = None,
) -> tuple[CausalLM, LoadReport]:
    """Plan, choose the backend, load. Nothing is allocated for a model that does not fit.

    Of several ranks each loads its ``share``, and ``join`` gives the group that they compute in.

    Errors as :func:`lluda.api.model.load`.
    """
    require_own_threads()
    files.plan(options, rank=share.rank).require_fit()
    specs, skip = text_parameters(files.config), SPEECH_PREFIXES if files.config.omni else ()
    if share.rank > 0:
        specs, skip = decoder_and_head(files.config), ("",)
    loaded = _load(files, options, specs, skip, progress, share)
    backend_of = loaded.backends.of
    group = join(backend_of("thinker"), sum(loaded.report.sizes.values())) if join else None
    return build_text_model(files.config, loaded.parameters, backend_of, group), loaded.report


def load_speech_stack(
    files: ModelFiles, options: LoadOptions, table_of_tokens: Embedding | None = None, progress: Progress | None = None
) -> SpeechStack:
    """What speaks, in the precision and place of ``options``; ``table_of_tokens`` is the thinker's where that is
    loaded, else it alone is read. UnsupportedModel: a checkpoint that does not speak. Errors as `load_network`."""
    require_own_threads()
    omni = files.config.omni
    if omni is None or omni.speech is None:
        raise UnsupportedModel(
            f"{files.path}: this checkpoint has no talker, so it cannot speak; take Qwen3-Omni-30B-A3B-Instruct"
        )
    words = text_parameters(files.config)
    table = next(spec for spec in words if spec.role == "embedding")
    # The table may be stored under the name of the head that shares it.
    shared = [table, *(spec for spec in words if spec.tied_to == table.name)]
    specs = [*speech_parameters(omni.speech), *([] if table_of_tokens else shared)]
    loaded = _load(files, options, specs, (THINKER_PREFIX,), progress)
    backend_of, parameters = loaded.backends.of, loaded.parameters
    talker = Talker(omni.speech.talker, parameters, backend_of("talker"))
    embed = table_of_tokens or Embedding(backend_of("thinker"), parameters.matrix(table.name))
    cache = files.cache_options(options, resolve_dtype(options.dtype, files.config.dtype))
    return SpeechStack(
        talker=talker,
        code_predictor=CodePredictor(omni.speech.talker, parameters, backend_of("code_predictor")),
        code2wav=Code2Wav(omni.speech.code2wav, parameters, backend_of("code2wav")),
        prompts=TalkerPromptBuilder(omni, talker, embed),
        kv_dtype=cache.dtype,
        deterministic=options.deterministic,
        prefill_rows=options.prefill_rows,
        retained_rows=min(RETAINED_ROWS, cache.max_length),
    )


def load_parameters(
    files: ModelFiles, options: LoadOptions, specs: Sequence[ParameterSpec]
) -> tuple[Parameters, ComputeBackend]:
    """The tensors of ``specs`` alone, for one component by itself; nothing else of the checkpoint is read. Errors as
    `load_network`, but for OutOfMemory."""
    loaded = _load(files, options, specs, ("",), None)
    return loaded.parameters, loaded.backends.of_parameter(specs[0].name if specs else "")


def _load(
    files: ModelFiles,
    options: LoadOptions,
    specs: Sequence[ParameterSpec],
    skip: tuple[str, ...],
    progress: Progress | None,
    share: Share = WHOLE,
) -> _Loaded:
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    dtype = resolve_dtype(options.dtype, files.config.dtype)
    backends = files.backends(options, dtype)
    taker = _Taker(backends, as_stored=options.weights in KEEPS_STORED)
    placed, report = files.load_tensors(specs, options, taker, skip=skip, share=share, progress=progress)
    sizes = {name: value.nbytes for name, value in placed.items()}
    report = replace(
        report,
        incompressible=_incompressible(placed),
        sizes=sizes,
        formats=_formats(placed),
        decoded=dict(taker.decoded),
        notices=files.notices,
    )
    return _Loaded(backends, Parameters(placed), report)


class _Taker:
    """Hands each tensor to the backend of its component: ``as_stored``, or as plain numbers. ``decoded`` counts, by
    their format in the file, those that are held as decoded numbers."""

    def __init__(self, backends: Backends, *, as_stored: bool) -> None:
        self._backends, self._as_stored = backends, as_stored
        self.decoded: Counter[str] = Counter()

    def __call__(self, spec: ParameterSpec, stored: StoredTensor) -> tuple[Weight | Tensor, bool]:
        given = stored if self._as_stored or stored.format.is_plain else plain_tensor(stored.decode())
        taken, reads = self._backends.of_parameter(spec.name).take(given, spec.role)
        is_kept = not isinstance(taken, Tensor) and taken.format == stored.format.name
        if not (stored.format.is_plain or is_kept):
            self.decoded[stored.format.name] += 1
        return taken, reads and given is stored


def _formats(placed: Mapping[str, Weight | Tensor]) -> dict[str, int]:
    """How many matrices are held in each format."""
    return dict(Counter(value.format for value in placed.values() if not isinstance(value, Tensor)))


def _incompressible(placed: Mapping[str, Weight | Tensor]) -> tuple[str, ...]:
    """Matrices that stayed BF16 among packed ones, because they do not compress."""
    formats = {name: value.format for name, value in placed.items() if not isinstance(value, Tensor)}
    return tuple(n for n, form in formats.items() if form == "BF16") if "PACKED_BF16" in formats.values() else ()


def _config_name(source: ModelSource) -> str:
    return str(source.path if source.is_gguf else source.path / "config.json")


def load_tokenizer(source: Source) -> Tokenizer:
    """The tokenizer of a model folder or .gguf file."""
    path = Path(source)
    is_folder = path.is_dir()
    tokenizer = Tokenizer.from_folder(path) if is_folder else Tokenizer.from_gguf(read_gguf_metadata(source), path)
    return_freed_memory()
    return tokenizer


def return_freed_memory() -> None:
    """Give what reading a vocabulary left free back to the system: glibc keeps some 25 MB of it, for good."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)


def load_chat_template(source: Source) -> ChatTemplate | None:
    """The chat template of a model folder or .gguf file; None if it has none."""
    path = Path(source)
    if path.is_dir():
        return ChatTemplate.from_folder(path)
    return ChatTemplate.from_gguf(read_gguf_metadata(source), path)
