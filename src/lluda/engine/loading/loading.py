"""From a checkpoint to a network in memory."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lluda.backends.backend import ComputeBackend
from lluda.backends.capabilities import KEEPS_STORED
from lluda.backends.group import Group
from lluda.backends.weight import Parameters, Weight
from lluda.config.model import resolve_dtype
from lluda.engine.forked import require_own_threads
from lluda.engine.loading.load_options import LoadOptions
from lluda.engine.loading.model_files import ModelFiles
from lluda.engine.loading.placement import Backends
from lluda.engine.parallel.leader import Leader
from lluda.engine.runner import Runner
from lluda.engine.speech.speech import SpeechStack
from lluda.engine.speech.talker_prefixes import RETAINED_ROWS
from lluda.engine.speech.talker_prompt import TalkerPromptBuilder
from lluda.errors import UnsupportedModel
from lluda.formats.plain import plain_tensor
from lluda.formats.stored_tensor import StoredTensor
from lluda.models.build import (
    SPEECH_PREFIXES,
    build_text_model,
    decoder_and_head,
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
from lluda.weights.loader import LoadReport, Progress

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
