"""The seam: what models and engine ask of a backend, at the level of components.

A model's file in models/ turns a config and the checkpoint's tensors into component descriptions
(`backends/components.py`, `backends/blocks.py`); a backend runs them. Rows are the unit: all sequences of a step lie
below each other in one ``[rows, width]`` tensor, without padding, and segments say which rows belong together. A
backend knows tensors and integers, never configs or names.

`executor/` runs every component in torch operations; a backend with kernels of its own starts from it and overrides
what it does better, or implements the calls below by itself. `registry.py` knows which backends there are.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal, overload

import torch
from torch import Tensor

from lluda.backends.batch import DeepStack, KeyValueStore, Segment, VocoderState
from lluda.backends.blocks import MixtureBlock, Norm
from lluda.backends.capabilities import Capabilities
from lluda.backends.capture import CapturedDecode, CapturedStep, Run, StreamRows
from lluda.backends.components import (
    CodePredictorSteps,
    ConvStem,
    DecoderLayers,
    EncoderLayers,
    Merger,
    Observer,
    PatchEmbedding,
    ResizeProjection,
    Vocoder,
)
from lluda.backends.device import runtime_of
from lluda.backends.group import Group
from lluda.backends.weight import Weight
from lluda.formats.stored_tensor import StoredTensor


@dataclass(frozen=True, slots=True)
class Precision:
    """Which dtype holds what. ``compute`` is what matrices and their inputs are in, ``residual`` the residual stream
    and the vectors added to or multiplied with it, ``rotary`` the rotation angles."""

    compute: torch.dtype
    residual: torch.dtype
    rotary: torch.dtype

    @classmethod
    def of(cls, name: str) -> Precision:
        """The policy for a dtype name. In BF16 only matrix inputs are rounded: the residual stream and all that acts on
        it stay float32, which is what puts a BF16 run nearer to the float64 truth (docs/numerics.md)."""
        if name == "bf16":
            return cls(torch.bfloat16, torch.float32, torch.float32)
        exact = {"f32": torch.float32, "f64": torch.float64}[name]
        return cls(exact, exact, exact)

    @property
    def name(self) -> str:
        """``bf16``, ``f32`` or ``f64``."""
        return {torch.bfloat16: "bf16", torch.float32: "f32", torch.float64: "f64"}[self.compute]


@dataclass(frozen=True, slots=True)
class CacheLayout:
    """What one position of a sequence's keys and values takes."""

    layers: int
    kv_heads: int
    head_dim: int
    dtype: torch.dtype


class ComputeBackend(ABC):
    """Components on one ``device`` in one ``precision``. Chosen once at load and printed."""

    name: str
    CAPABILITIES: Capabilities
    few_rows: int | None = None
    """Rows of a step up to which sums are in another order than of more, where the rows beside it change nothing else
    about a row's numbers; None: they may."""
    flat_rows = 1
    """Rows of a prompt up to which fewer take about as long, so that a prompt is not split into less."""
    prompt_rows: Sequence[int] = ()
    """Rows of a prompt's steps that are captured; fewer are filled up to the next of these."""
    captures = False
    """Whether steps can be captured and launched as one (:meth:`decode_graph`, :meth:`new_graph`)."""

    def __init__(self, device: torch.device, precision: Precision) -> None:
        self.device = device
        self.precision = precision
        self.runtime = runtime_of(device)
        self.decoded: Counter[str] = Counter()
        """Matrices that were decoded for want of a kernel, by the name of their format."""

    def describe(self) -> str:
        """One line for people: what computes, where, in which format."""
        compute = str(self.precision.compute).removeprefix("torch.")
        threads = torch.get_num_threads()
        return f"{self.name} backend on {self.device}, {compute}, {threads} threads"

    def capabilities(self) -> Capabilities:
        """What this kind of backend supports."""
        return self.CAPABILITIES

    # Parameters

    @overload
    def take(self, stored: StoredTensor, role: Literal["matrix", "embedding"]) -> tuple[Weight, bool]: ...
    @overload
    def take(
        self, stored: StoredTensor, role: Literal["router", "norm", "bias", "scale", "kernel"]
    ) -> tuple[Tensor, bool]: ...
    @overload
    def take(self, stored: StoredTensor, role: str) -> tuple[Weight | Tensor, bool]: ...
    def take(self, stored: StoredTensor, role: str) -> tuple[Weight | Tensor, bool]:
        """Take a parameter, in whatever format, to this backend's device, for its ``role`` (`lluda.parameters.Role`):
        a matrix or an embedding table ``[out, in]`` as a weight, in the stored format where there is a kernel for it;
        the kernel of a convolution in the compute dtype; all others in the residual dtype.

        Also says whether the result still reads the stored bytes (if not, the caller may let go of them). Matrices that
        are decoded for want of a kernel are counted in ``decoded``. UnsupportedModel: nothing decodes the format.
        """
        if role not in ("matrix", "embedding"):
            dtype = self.precision.compute if role == "kernel" else self.precision.residual
            taken = stored.decode().to(self.device, dtype)
            return taken, stored.is_read_by(taken)
        as_stored = self._take_as_stored(stored)
        if as_stored is not None:
            return as_stored
        if not stored.format.is_plain:
            self.decoded[stored.format.name] += 1
        values = stored.decode()
        weight, reads_values = self._take_values(values)
        return weight, reads_values and stored.is_read_by(values)

    def _take_as_stored(self, stored: StoredTensor) -> tuple[Weight, bool] | None:  # noqa: ARG002
        """A matrix in the format it is stored in, and whether it reads the stored bytes. None: there is no kernel."""
        return None

    @abstractmethod
    def _take_values(self, values: Tensor) -> tuple[Weight, bool]:
        """A matrix of plain numbers ``[out, in]``, and whether the weight reads their memory."""

    def _describe_decoded(self) -> str:
        """What `describe` says of ``decoded``."""
        counts = ", ".join(f"{count} {name}" for name, count in self.decoded.items())
        return f", {counts} matrices decoded for want of a kernel" if counts else ""

    def connect(self, group: Group) -> Group:
        """``group``, of which this is one rank's backend, by the fastest means that it has. All ranks call it."""
        return group

    # The device

    def memory_available(self) -> int:
        """Bytes free now on the device."""
        return self.runtime.memory_available()

    def synchronize(self) -> None:
        """Wait until the device has done what it was asked."""
        self.runtime.synchronize()

    def release_memory(self) -> None:
        """Give memory that is taken and not in use back to the system."""
        self.runtime.release_memory()

    def is_out_of_memory(self, error: BaseException) -> bool:
        """Whether ``error`` says that the device's memory did not suffice."""
        return self.runtime.is_out_of_memory(error)

    def is_lost(self) -> bool:
        """Whether the device computes nothing any more; asked after an error."""
        return self.runtime.is_lost()

    def pinned(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """Zeros on the host that the device can copy by itself."""
        return self.runtime.pinned(shape, dtype)

    def new_cache(self, layout: CacheLayout, capacity: int) -> tuple[Tensor, Tensor]:
        """Buffers of keys and of values with space for ``capacity`` positions, of unknown content: each ``[layers,
        kv_heads, capacity, head_dim]``."""
        shape = (layout.layers, layout.kv_heads, capacity, layout.head_dim)
        keys, values = torch.empty((2, *shape), dtype=layout.dtype, device=self.device)
        return keys, values

    # Steps

    def single_threaded_torch(self) -> AbstractContextManager[None]:
        """Around work of many small operations: a backend with threads of its own sees to it that no others are awake
        beside them meanwhile. Of the calling thread; other threads may be inside at the same time."""
        return nullcontext()

    def step_parts(self, lengths: Sequence[int]) -> list[slice]:
        """Which consecutive sequences, of ``lengths`` rows, to make one step of where each must get the numbers that it
        gets alone: one by one, unless a backend's products do not depend on other rows (docs/numerics.md)."""
        return [slice(index, index + 1) for index in range(len(lengths))]

    def host_callback(self, work: Callable[[], object]) -> None:
        """Run ``work`` on the host, between what this backend was asked before and what it is asked next; again each
        time that a captured step is launched."""
        self.synchronize()
        work()

    def decode_graph(
        self,
        run: Run,  # noqa: ARG002
        rows: int,  # noqa: ARG002
        kv_dtype: torch.dtype,  # noqa: ARG002
        *,
        sampled: bool = False,  # noqa: ARG002
        capture: bool = True,  # noqa: ARG002
    ) -> CapturedDecode | None:
        """Steps of ``rows`` sequences, one row each, as one launch of the whole of ``run``, over stores that hold
        ``kv_dtype``; each row's id is that of the largest logit or, ``sampled``, chosen by the row's `RowSampling`.
        None: this backend runs them operation by operation. Without ``capture`` (to compare, to compile) launches go
        out one by one."""
        return None

    def product_run(self, rows: Tensor, weights: Sequence[Weight]) -> Callable[[], None]:
        """Products of ``rows [n, in]`` with each of ``weights``, of one shape, to be measured: in one launch where a
        model's steps are."""

        def multiply() -> None:
            for weight in weights:
                self.logits(rows, weight)

        return self.new_graph(multiply).launch if self.captures else multiply

    def compile(self, works: Sequence[Callable[[], object]]) -> None:  # noqa: B027
        """Compile what ``works`` launch, side by side, where that takes long; what they compute is of no interest."""

    def new_graph(
        self,
        body: Callable[[], None],  # noqa: ARG002
        *,
        capture: bool = True,  # noqa: ARG002
        state: Sequence[Tensor] = (),  # noqa: ARG002
    ) -> CapturedStep:
        """``body``, which reads and writes tensors of fixed places, as one launch; without ``capture`` (to compare)
        call by call. It is run once to warm up; ``state``, which it changes, is put back after that. Only where
        ``captures``."""
        raise AssertionError(f"the {self.name} backend captures no steps")

    def sample(self, logits: Tensor, uniform: Tensor, out: Tensor, peak: Tensor, **settings: Any) -> None:  # noqa: ARG002
        """Inside a captured step, choose an id of each row of ``logits [rows, vocab]`` by its number of ``uniform
        [rows]`` (float64 in [0, 1)): the ids to ``out [rows]``, the largest logits to ``peak [rows]``. ``settings`` as
        of the engine's sampler: temperature, top_k, top_p, min_p, repetition; what is ``suppressed`` (uint8
        ``[vocab]``) and ``seen`` (`SaidCodes`), and where the ids' rows of a table go, ``embedded`` (`CodeRows`), each
        of the three or None. Only where ``captures``."""
        raise AssertionError(f"the {self.name} backend does not choose tokens on its device")

    def vocode_together(self, vocoder: Vocoder, codes: Tensor, rows: StreamRows) -> Tensor:  # noqa: ARG002
        """Inside a captured step, the next frame of several streams at once: int64 ``codes [codebooks, rows]`` -> what
        :meth:`vocode` makes of each, float32 ``[rows, samples of a frame]``; where a stream has no samples yet, what
        stands there means nothing. Only where ``captures``."""
        raise AssertionError(f"the {self.name} backend captures no frames")

    # Decoders

    @abstractmethod
    def embedding(self, table: Weight, ids: Tensor) -> Tensor:
        """Rows ``ids`` (int64 ``[rows]``) of the table, in the residual dtype: ``[rows, in_features]``."""

    @abstractmethod
    def run_layers(
        self,
        layers: DecoderLayers,
        x: Tensor,
        positions: Tensor,
        segments: Sequence[Segment],
        observe: Observer | None = None,
        deepstack: DeepStack | None = None,
    ) -> Tensor:
        """All layers of a decoder stack: hidden states ``[rows, hidden]`` in the residual dtype (may be changed in
        place) at positions ``[rows]`` or ``[3, rows]`` -> the same, before the final norm. The rows' keys and values
        are stored in their segments' caches. ``observe`` is called after each layer (``layers.0``, …)."""

    @abstractmethod
    def mixture_block(self, x: Tensor, block: MixtureBlock) -> Tensor:
        """One mixture block by itself, for a decoder whose experts are on another backend than its attention: hidden
        states ``[rows, hidden]`` in the residual dtype (may be changed in place) -> the same."""

    @abstractmethod
    def final_norm(self, x: Tensor, norm: Norm) -> Tensor:
        """RMSNorm of hidden states ``[rows, hidden]``, in the compute dtype."""

    @abstractmethod
    def head(self, x: Tensor, norm: Norm, weight: Weight) -> Tensor:
        """Logits ``norm(x) @ weight.T`` of hidden states: ``[rows, out]`` in the compute dtype or float32."""

    @abstractmethod
    def logits(self, hidden: Tensor, weight: Weight) -> Tensor:
        """Logits ``hidden @ weight.T`` of what :meth:`final_norm` returned: ``[rows, out]`` in the compute dtype."""

    @abstractmethod
    def predict_codes(
        self,
        x: Tensor,
        passes: CodePredictorSteps,
        stores: Sequence[KeyValueStore],
        choose: Sequence[Callable[[Tensor], int]],
        total: Tensor,
    ) -> list[list[int]]:
        """See CodePredictorSteps: of each sequence, as it would be alone, the codes that its own of ``choose`` takes of
        each pass's logits ``[codes]``, in turn.

        ``x [sequences, 2, hidden]``: the rows of the first pass, positions 0 and 1; ``stores`` are empty. ``total
        [sequences, hidden]``: the codes' rows of their tables are added to it, one by one. All in the residual dtype;
        ``choose`` asks nothing of the backend."""

    # Encoders

    @abstractmethod
    def conv_stem(self, stem: ConvStem, chunks: Tensor) -> Tensor:
        """``chunks [chunks, 1, bins, frames]`` -> hidden states ``[chunks * steps of a chunk, hidden]`` in the residual
        dtype."""

    @abstractmethod
    def embed_patches(
        self, embedding: PatchEmbedding, patches: Tensor, corners: Sequence[tuple[Tensor, Tensor]]
    ) -> Tensor:
        """``patches [patches, values]`` -> hidden states ``[patches, hidden]`` in the residual dtype. ``corners``: rows
        of the table of positions (int64 ``[patches]``) and the weights ``[patches]`` with which they are added."""

    @abstractmethod
    def encode(
        self,
        layers: EncoderLayers,
        x: Tensor,
        lengths: Sequence[int],
        positions: Tensor | None = None,
        observe: Observer | None = None,
    ) -> tuple[Tensor, list[Tensor]]:
        """All layers of an encoder stack: hidden states ``[rows, hidden]`` in the residual dtype (may be changed in
        place), each attending to its own run of ``lengths`` rows -> the same, and what each of ``layers.deepstack``
        made of those after its layer, in the compute dtype. ``positions [axes, rows]`` where the layers are rotary."""

    @abstractmethod
    def merge(self, merger: Merger, x: Tensor) -> Tensor:
        """Hidden states ``[rows, hidden]`` in the residual dtype -> ``[tokens, width]`` in the compute dtype."""

    @abstractmethod
    def resize(self, projection: ResizeProjection, x: Tensor) -> Tensor:
        """Hidden states ``[rows, in]`` -> ``[rows, out]``, in the residual dtype."""

    # Vocoder

    @abstractmethod
    def vocode(
        self,
        vocoder: Vocoder,
        codes: Sequence[Tensor],
        states: Sequence[VocoderState],
        observe: Observer | None = None,
    ) -> list[Tensor]:
        """The next frames of each stream, int64 codes ``[codebooks, frames]`` on the device -> the samples in [-1, 1]
        that they complete, in the residual dtype, which are those that the stream gets alone. Counts the frames in the
        streams' ``states``. ``observe`` is called after each stage (``embeddings``, ``layers.0``, …,
        ``pre_transformer``, ``upsample.0``, …, ``decoder.0``, …)."""
