"""What a backend is given of a component: stacks of the blocks of `backends/blocks.py`, and what goes before and after.

A component is built once by its file in models/ and compared by identity, so that a backend may keep what it derives
from it. Tensors are on the backend's device; "residual" and "compute" are the dtypes of its `Precision`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from lluda.backends.blocks import (
    AttentionBlock,
    EncoderBlock,
    LayerNorm,
    MixtureBlock,
    Norm,
    Projection,
    ResidualUnit,
    SwiGLUBlock,
)
from lluda.backends.group import Group
from lluda.backends.weight import Weight

Observer = Callable[[str, Tensor], None]
"""Called with a name (``layers.0``, …) and the hidden states there, for validation. They may change after the call:
copy what is kept."""


@dataclass(frozen=True, slots=True)
class StageObserver:
    """An `Observer` of one ``stage`` alone, whose hidden states ``tell`` is called with: a captured step can keep those
    of one stage for it."""

    stage: str
    tell: Callable[[Tensor], None]

    def __call__(self, stage: str, x: Tensor) -> None:
        """See Observer."""
        if stage == self.stage:
            self.tell(x)


RemoteExperts = Callable[[Tensor, MixtureBlock], Tensor]
"""Runs a mixture block on another backend: hidden states ``[rows, hidden]`` (may be changed in place) -> the same, on
the same device."""


@dataclass(frozen=True, slots=True, eq=False)
class Rotary:
    """Angles ``position * frequency``; cosines and sines of them are multiplied by ``scale``.

    ``frequencies [n]`` float32. ``axes`` (int64 ``[n]``): for each frequency the row of the positions it turns with,
    where positions ``[axes, rows]`` have several; positions ``[rows]`` turn all.
    """

    frequencies: Tensor
    axes: Tensor
    scale: float = 1.0

    def chosen(self, positions: Tensor) -> Tensor:
        """The positions each frequency turns with: ``[rows, 1]`` or ``[rows, n]``."""
        return positions[:, None] if positions.dim() == 1 else positions[self.axes].T


@dataclass(frozen=True, slots=True, eq=False)
class DecoderLayers:
    """Layers one after the other, each attention and then its feed-forward; layer i's keys and values are those of
    layer i of the step's caches. ``experts``, where it is not None, runs the mixture blocks in the backend's place.
    Where there is a ``group``, the blocks are one rank's slices of the layers' blocks, and what all slices add to the
    rows is summed."""

    blocks: Sequence[tuple[AttentionBlock, SwiGLUBlock | MixtureBlock]]
    rotary: Rotary
    experts: RemoteExperts | None = None
    group: Group | None = None


@dataclass(frozen=True, slots=True, eq=False)
class CodePredictorSteps:
    """Passes over the same layers, each with a head ``[codes, hidden]`` and a table ``[codes, hidden]`` of its own: a
    code is chosen of pass g's logits, ``head(norm(last row))``, and its row of pass g's table is pass g + 1's row."""

    layers: DecoderLayers
    norm: Norm
    heads: Sequence[Weight]
    embeddings: Sequence[Weight]


@dataclass(frozen=True, slots=True, eq=False)
class ConvStem:
    """``conv_out(gelu(conv2d(…)))``: convolutions of stride 2 and padding 1, each ``(kernel [out, in, 3, 3], bias
    [out])``, then a product with all channels and bins of one time step, then learned positions ``[steps, hidden]``
    (residual) that begin again in every chunk."""

    convolutions: Sequence[tuple[Tensor, Tensor]]
    conv_out: Projection
    positions: Tensor


@dataclass(frozen=True, slots=True, eq=False)
class PatchEmbedding:
    """A product with the patches' values, and a table of learned positions ``[positions, hidden]``."""

    projection: Projection
    positions: Weight


@dataclass(frozen=True, slots=True, eq=False)
class Merger:
    """``outer(gelu(inner(norm(x))))``, exact GELU. ``norm`` is over as many values as it has weights, and as many rows
    as fill ``inner``'s columns are taken together behind it."""

    norm: LayerNorm
    inner: Projection
    outer: Projection


@dataclass(frozen=True, slots=True, eq=False)
class EncoderLayers:
    """Bidirectional layers one after the other; ``rotary`` turns their queries and keys. The hidden states after layer
    i are also given to ``deepstack[i]``."""

    blocks: Sequence[EncoderBlock]
    rotary: Rotary | None = None
    deepstack: Mapping[int, Merger] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, eq=False)
class ResizeProjection:
    """``linear_fc2(silu(linear_fc1(x)))``: one decoder's width to another's."""

    linear_fc1: Projection
    linear_fc2: Projection


@dataclass(frozen=True, slots=True, eq=False)
class CausalConvolution:
    """Output i is ``weight [out, taps * in]`` times inputs i - (taps - 1) * dilation, …, i, one below the other, plus
    the bias ``[out]`` (residual); zeros before the first input."""

    projection: Projection
    taps: int
    dilation: int = 1


@dataclass(frozen=True, slots=True, eq=False)
class TransposedConvolution:
    """``stride`` outputs for each input that has ``taps - 1`` inputs before it: ``weight [stride * out, taps * in]``
    times these, one below the other, plus the bias ``[stride * out]``. The first ``taps - 1`` inputs give none."""

    projection: Projection
    taps: int
    stride: int


@dataclass(frozen=True, slots=True, eq=False)
class DepthwiseConvolution:
    """Causal convolution of each channel by itself: ``weight [taps, channels]``, ``bias [channels]``, both residual. A
    few operations a value, computed in the residual dtype without rounding."""

    weight: Tensor
    bias: Tensor


@dataclass(frozen=True, slots=True, eq=False)
class MonoConvolution:
    """Causal convolution to one channel: ``weight [in, taps]``, ``bias [1]``. It makes the samples themselves, in the
    residual dtype, since 8 bits of mantissa are too few for them."""

    weight: Tensor
    bias: Tensor


@dataclass(frozen=True, slots=True, eq=False)
class ConvNeXtBlock:
    """``x + gamma * pwconv2(gelu(pwconv1(norm(dwconv(x)))))`` (Liu et al. 2022)."""

    dwconv: DepthwiseConvolution
    norm: LayerNorm
    pwconv1: Projection
    pwconv2: Projection
    gamma: Tensor


@dataclass(frozen=True, slots=True, eq=False)
class UpsampleBlock:
    """SnakeBeta (its frequency and amplitude ``[channels]``), a transposed convolution, residual units."""

    act: tuple[Tensor, Tensor]
    upsample: TransposedConvolution
    units: Sequence[ResidualUnit]


@dataclass(frozen=True, slots=True, eq=False)
class Vocoder:
    """Codes to samples: the mean of the codes' rows of ``table [codebooks * codes, hidden]`` (``offsets [codebooks,
    1]`` is where each codebook begins), a windowed decoder and its norm, then convolutions that multiply the rows:
    ``widen``, ``first``, ``blocks``, SnakeBeta ``act`` and ``last``, cut off at ±1."""

    table: Weight
    offsets: Tensor
    layers: DecoderLayers
    norm: Norm
    widen: Sequence[tuple[TransposedConvolution, ConvNeXtBlock]]
    first: CausalConvolution
    blocks: Sequence[UpsampleBlock]
    act: tuple[Tensor, Tensor]
    last: MonoConvolution
