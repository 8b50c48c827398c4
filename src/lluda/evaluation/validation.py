"""One validation: run lluda, run the reference, compare, and hold the result against the bars.

One model is in memory at a time; what stays of each is its trace.
"""

from __future__ import annotations

import gc
import platform
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import torch

from lluda import __version__
from lluda.config import ModelConfig, resolve_dtype
from lluda.engine.memory_plan import DTYPE_BYTES
from lluda.engine.model import LoadOptions, ModelFiles
from lluda.errors import InvalidRequest, LimitExceeded, OutOfMemory
from lluda.evaluation.distribution import DistributionParity, compare_distributions
from lluda.evaluation.llama_cpp_reference import LlamaCppReference
from lluda.evaluation.lluda_network import LludaNetwork
from lluda.evaluation.parity import GreedyParity, StageParity, compare_greedy, compare_traces
from lluda.evaluation.trace import Continuation, Implementation, Trace, continue_greedily, trace
from lluda.evaluation.transformers_reference import TransformersReference
from lluda.models.causal_lm import causal_lm_parameters

Reference = Literal["transformers", "llama.cpp"]
REFERENCES: tuple[Reference, ...] = ("transformers", "llama.cpp")

TOLERANCES = {"f32": 1e-4, "bf16": 0.1, "f64": 1e-6}
"""Error at a position, as a share of the reference's range there, from which on a stage counts as diverged."""

LOGIT_BARS = {"f32": 1e-3, "f64": 1e-5}
"""Largest logit error as a share of the logits' range. BF16 is judged by its distance to float64 instead."""

LLAMA_CPP_BARS = {"correlation": 0.99, "mean_kl": 0.05}

Note = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class ValidationRequest:
    """What to run. ``ids``: the sequence; ``source``: where it comes from, for the report; ``rows_per_step``: ids run
    at once (1: token by token through the cache); ``greedy``: tokens to continue by; ``float64``: whether to measure
    the distance to the float64 truth."""

    ids: tuple[int, ...]
    source: str
    reference: Reference = "transformers"
    rows_per_step: int = 512
    greedy: int = 16
    float64: bool = True

    def __post_init__(self) -> None:
        if self.reference not in REFERENCES:
            raise InvalidRequest(f"reference {self.reference!r:.40} is not one of {', '.join(REFERENCES)}")
        if not self.ids:
            raise InvalidRequest("nothing to run: give at least one token")
        if self.rows_per_step < 1:
            raise InvalidRequest(f"rows_per_step must be at least 1, not {self.rows_per_step}")
        if self.greedy < 0:
            raise InvalidRequest(f"greedy must be 0 (off) or a number of tokens, not {self.greedy}")

    @property
    def mode(self) -> str:
        """How the ids are run, in words."""
        if self.rows_per_step >= len(self.ids):
            return "one prefill"
        return "token by token" if self.rows_per_step == 1 else f"chunks of {self.rows_per_step}"


@dataclass(frozen=True, slots=True)
class Bar:
    """Something that must hold: ``value`` at most ``limit`` (``at_least``: at least)."""

    name: str
    value: float
    limit: float
    at_least: bool = False

    @property
    def passed(self) -> bool:
        """Whether it holds."""
        return self.value >= self.limit if self.at_least else self.value <= self.limit

    def describe(self) -> str:
        """In one line."""
        sign, verdict = (">=" if self.at_least else "<="), ("passed" if self.passed else "FAILED")
        return f"{verdict}: {self.name} {self.value:.4g} {sign} {self.limit:g}"


@dataclass(frozen=True, slots=True)
class Validation:
    """The outcome. ``stages`` end with the logits; ``passed`` is None where no bar could be judged."""

    model: dict[str, Any]
    request: ValidationRequest
    dtype: str
    backend: str
    tolerance: float
    stages: tuple[StageParity, ...]
    greedy: GreedyParity | None
    distribution: DistributionParity | None
    versions: dict[str, str]
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def logits(self) -> StageParity:
        """The last stage."""
        return self.stages[-1]

    @property
    def first_divergence(self) -> StageParity | None:
        """The first stage that leaves the tolerance."""
        return next((stage for stage in self.stages if stage.first_divergence is not None), None)

    @property
    def bars(self) -> tuple[Bar, ...]:
        """What this run is held to, as its reference and dtype have it."""
        if self.distribution:
            correlation, mean_kl = self.distribution.correlation, self.distribution.mean_kl
            return (
                Bar("correlation of the logits", correlation, LLAMA_CPP_BARS["correlation"], at_least=True),
                Bar("mean KL in nats", mean_kl, LLAMA_CPP_BARS["mean_kl"]),
            )
        if self.dtype == "bf16":
            distance = self.logits.error_to_float64
            if distance is None:
                return ()
            ratio = distance.ratio if distance.ratio is not None else (float("inf") if distance.lluda else 0.0)
            return (Bar("distance to float64, lluda / reference,", ratio, 1.0),)
        bars = [Bar("largest logit error / logit range", self.logits.relative_error, LOGIT_BARS[self.dtype])]
        if self.greedy:
            bars.append(Bar("share of equal greedy tokens", self.greedy.agreement, 1.0, at_least=True))
        return tuple(bars)

    @property
    def passed(self) -> bool | None:
        """Whether every bar holds."""
        return all(bar.passed for bar in self.bars) if self.bars else None

    def document(self) -> dict[str, Any]:
        """For JSON: the logits' figures at the top, the same for every stage under ``layers``."""
        divergence = self.first_divergence
        return {
            "kind": "validation",
            "model": self.model,
            "reference": self.request.reference,
            "dtype": self.dtype,
            "backend": self.backend,
            "tokens": len(self.request.ids),
            "input": self.request.source,
            "mode": self.request.mode,
            **_figures(self.logits),
            "tolerance": self.tolerance,
            "first_divergence": divergence and {"stage": divergence.stage, "position": divergence.first_divergence},
            "layers": [{"stage": stage.stage, **_figures(stage)} for stage in self.stages],
            "greedy": self.greedy and {**asdict(self.greedy), "agreement": self.greedy.agreement},
            "distribution": self.distribution and asdict(self.distribution),
            "bars": [{**asdict(bar), "passed": bar.passed} for bar in self.bars],
            "passed": self.passed,
            "versions": self.versions,
            "seconds": self.seconds,
        }


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
    return _Run(files, options, request, dtype, note).validation()


class _Run:
    """The steps of one validation and the time each took."""

    def __init__(
        self, files: ModelFiles, options: LoadOptions, request: ValidationRequest, dtype: str, note: Note
    ) -> None:
        from dataclasses import replace

        self.files, self.request, self.dtype, self.note = files, request, dtype, note
        self.options = replace(options, dtype=dtype)
        self.versions = {"lluda": __version__, "torch": torch.__version__, "python": platform.python_version()}
        self.seconds: dict[str, float] = {}

    def validation(self) -> Validation:
        ours, our_tokens, backend = self._lluda()
        gc.collect()
        whole = self.request.reference == "transformers"
        theirs, their_tokens, truth = self._transformers() if whole else self._llama_cpp()
        gc.collect()
        if not whole:
            ours = Trace(ours.implementation, ours.dtype, {"logits": ours.stages["logits"]})
        tolerance = TOLERANCES[self.dtype]
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
            return (*self._observe(network), network.backend.describe())

    def _transformers(self) -> tuple[Trace, Continuation, Trace | None]:
        _require_memory(self.files, self.dtype, self.request.float64)
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
    """OutOfMemory if the reference does not fit: its weights, and the largest unit once more (in float64 for the truth,
    or while transformers joins the experts of a layer)."""
    import psutil

    units: dict[str, int] = {}
    for spec in causal_lm_parameters(files.config.text):
        unit = ".".join(spec.name.split(".")[:3])
        units[unit] = units.get(unit, 0) + (spec.elements if not spec.tied_to else 0)
    largest = max(units.values()) * (8 if float64 else DTYPE_BYTES[dtype])
    needed, available = sum(units.values()) * DTYPE_BYTES[dtype] + largest, psutil.virtual_memory().available
    if needed > available:
        raise OutOfMemory(
            f"transformers needs about {needed / 1e9:.2f} GB for this model in {dtype} but {available / 1e9:.2f} GB are "
            "available; validate a reduced checkpoint (lluda synth --set text.num_hidden_layers=4)"
        )


def _describe(files: ModelFiles) -> dict[str, Any]:
    config: ModelConfig = files.config
    text = config.text
    return {
        "name": files.path.name,
        "model_type": config.model_type,
        "parameters": sum(spec.elements for spec in causal_lm_parameters(text) if not spec.tied_to),
        "layers": text.num_hidden_layers,
        "hidden_size": text.hidden_size,
        "vocab_size": text.vocab_size,
        "experts": text.moe.num_experts if text.moe else 0,
    }


def _figures(stage: StageParity) -> dict[str, Any]:
    distance = stage.error_to_float64
    return {
        "argmax_agreement": stage.argmax_agreement,
        "max_abs_error": stage.max_abs_error,
        "mean_abs_error": stage.mean_abs_error,
        "range": stage.value_range,
        "relative_error": stage.relative_error,
        "error_to_float64": distance and {**asdict(distance), "ratio": distance.ratio},
        "first_divergence": stage.first_divergence,
    }
