"""One validation: run lluda, run the reference, compare.

One model is in memory at a time; what stays of each is its trace.
"""

from __future__ import annotations

import platform
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import psutil
import torch

from lluda import __version__
from lluda.config.model import resolve_dtype
from lluda.engine.loading import LoadOptions, ModelFiles
from lluda.engine.memory_plan import DTYPE_BYTES
from lluda.errors import InvalidRequest, LimitExceeded, OutOfMemory
from lluda.evaluation.distribution import compare_distributions
from lluda.evaluation.llama_cpp_reference import LlamaCppReference, require_llama_cpp
from lluda.evaluation.lluda_network import LludaNetwork
from lluda.evaluation.parity import compare_greedy, compare_traces
from lluda.evaluation.trace import Continuation, Implementation, Trace, continue_greedily, let_go, trace
from lluda.evaluation.transformers_reference import TransformersReference, require_transformers
from lluda.evaluation.validation import LLAMA_CPP_TOLERANCE, TOLERANCES, Validation, ValidationRequest
from lluda.models.causal_lm import causal_lm_parameters

Note = Callable[[str], None]


def random_ids(vocab_size: int, count: int, seed: int) -> tuple[int, ...]:
    """``count`` ids drawn evenly from the vocabulary."""
    if count < 1:
        raise InvalidRequest(f"tokens must be at least 1, not {count}")
    draw = random.Random(seed)
    return tuple(draw.randrange(vocab_size) for _ in range(count))


def validate(
    files: ModelFiles, options: LoadOptions, request: ValidationRequest, note: Note = lambda _: None
) -> Validation:
    """Run and compare. ``options`` say how lluda is loaded (its dtype is the reference's too); ``note`` is told what
    begins. Against llama.cpp lluda runs in float32.

    Raises:
        LimitExceeded, OutOfMemory, InvalidRequest: the request does not fit the model or the machine.
        MissingDependency, UnsupportedModel: the reference cannot be had or cannot read the checkpoint.
        LludaError: one of the runs has NaN or infinity in it.
    """
    dtype = _dtype(files, options, request)
    _require_context(files, options, request)
    # Before lluda's run, which may take minutes.
    if request.reference == "transformers":
        require_transformers()
        _require_memory(files, dtype, request.float64)
    else:
        require_llama_cpp(files.path)
    return _Run(files, options, request, dtype, note).validation()


class _Run:
    """The steps of one validation and the time each took."""

    def __init__(
        self, files: ModelFiles, options: LoadOptions, request: ValidationRequest, dtype: str, note: Note
    ) -> None:
        self.files, self.request, self.dtype, self.note = files, request, dtype, note
        self.options = replace(options, dtype=dtype)
        self.versions = {"lluda": __version__, "torch": torch.__version__, "python": platform.python_version()}
        self.seconds: dict[str, float] = {}

    def validation(self) -> Validation:
        ours, our_tokens, backend = self._lluda()
        let_go()
        whole = self.request.reference == "transformers"
        theirs, their_tokens, truth = self._transformers() if whole else self._llama_cpp()
        let_go()
        if not whole:
            ours = Trace(ours.implementation, ours.dtype, {"logits": ours.stages["logits"]})
        tolerance = TOLERANCES[self.dtype] if whole else LLAMA_CPP_TOLERANCE
        self.note("comparing")
        stages = compare_traces(ours, theirs, truth, tolerance)
        return Validation(
            model=_describe(self.files),
            request=self.request,
            dtype=self.dtype,
            backend=backend,
            tolerance=tolerance,
            stages=stages,
            greedy=compare_greedy(our_tokens, their_tokens) if self.request.greedy else None,
            distribution=None if whole else compare_distributions(ours.stages["logits"], theirs.stages["logits"]),
            versions=self.versions,
            seconds=self.seconds,
        )

    def _lluda(self) -> tuple[Trace, Continuation, str]:
        with self._timed("lluda"):
            network = LludaNetwork(self.files, self.options)
            return (*self._observe(network), network.network.describe())

    def _transformers(self) -> tuple[Trace, Continuation, Trace | None]:
        with self._timed("transformers"):
            reference = TransformersReference(self.files.path, self.dtype)
            self.versions["transformers"] = reference.version
            seen, tokens = self._observe(reference)
        if not self.request.float64:
            return seen, tokens, None
        with self._timed("float64"), reference.in_float64() as exact:
            return seen, tokens, trace(exact, self.request.ids, len(self.request.ids))

    def _llama_cpp(self) -> tuple[Trace, Continuation, None]:
        with self._timed("llama.cpp"):
            length = len(self.request.ids) + self.request.greedy
            reference = LlamaCppReference(self.files.path, length, self.options.threads)
            self.versions["llama-cpp-python"] = reference.version
            return (*self._observe(reference), None)

    def _observe(self, implementation: Implementation) -> tuple[Trace, Continuation]:
        seen = trace(implementation, self.request.ids, self.request.rows_per_step)
        return seen, continue_greedily(implementation, self.request.ids, self.request.greedy)

    @contextmanager
    def _timed(self, what: str) -> Iterator[None]:
        self.note(f"running {what}")
        began = time.perf_counter()
        yield
        self.seconds[what] = round(time.perf_counter() - began, 3)


def _dtype(files: ModelFiles, options: LoadOptions, request: ValidationRequest) -> str:
    if request.reference == "transformers":
        return resolve_dtype(options.dtype, files.config.dtype)
    if options.dtype not in ("auto", "f32"):
        raise InvalidRequest(f"against llama.cpp lluda runs in f32, not {options.dtype!r:.20}; leave --dtype out")
    return "f32"


def _require_context(files: ModelFiles, options: LoadOptions, request: ValidationRequest) -> None:
    context, needed = files.context(options), len(request.ids) + request.greedy
    if needed > context:
        raise LimitExceeded(
            f"{len(request.ids)} tokens and {request.greedy} greedy ones exceed the context of {context}; "
            "take fewer, or a larger --max-context"
        )
    vocabulary = files.config.text.vocab_size
    outside = [token for token in request.ids if not 0 <= token < vocabulary]
    if outside:
        raise InvalidRequest(f"token id {outside[0]} is outside the vocabulary; ids go from 0 to {vocabulary - 1}")


def _require_memory(files: ModelFiles, dtype: str, float64: bool) -> None:
    """OutOfMemory if the reference does not fit: its weights, and beside them the largest layer's experts once more
    while transformers joins them, or the largest dense unit in float64 for the truth."""
    dense: dict[str, int] = {}
    experts: dict[str, int] = {}
    for spec in causal_lm_parameters(files.config.text):
        units = experts if ".experts." in spec.name else dense
        unit = ".".join(spec.name.split(".")[:3])
        units[unit] = units.get(unit, 0) + (spec.elements if not spec.tied_to else 0)
    item = DTYPE_BYTES[dtype]
    weights = item * (sum(dense.values()) + sum(experts.values()))
    needed = weights + max(item * max(experts.values(), default=0), 8 * max(dense.values()) if float64 else 0)
    available = psutil.virtual_memory().available
    if needed > available:
        raise OutOfMemory(
            f"transformers needs about {needed / 1e9:.2f} GB for this model in {dtype} but {available / 1e9:.2f} GB "
            "are available; validate a reduced checkpoint (lluda synth --set text.num_hidden_layers=4)"
        )


def _describe(files: ModelFiles) -> dict[str, Any]:
    text = files.config.text
    return {
        "name": files.name,
        "model_type": files.config.model_type,
        "parameters": sum(spec.elements for spec in causal_lm_parameters(text) if not spec.tied_to),
        "layers": text.num_hidden_layers,
        "hidden_size": text.hidden_size,
        "vocab_size": text.vocab_size,
        "experts": text.moe.num_experts if text.moe else 0,
    }
