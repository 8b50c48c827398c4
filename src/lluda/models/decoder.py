"""The one decoder: embeddings, Qwen3 blocks, final norm. Every text-shaped component of Qwen3-Omni is one of these.

A layer is ``x += attention(RMSNorm(x))``; ``x += feed_forward(RMSNorm(x))``, where the feed-forward is dense or sparse
as the config says layer by layer (spec sections 2 and 5).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lluda.backends.backend import ComputeBackend
from lluda.backends.batch import DeepStack, Segment
from lluda.backends.blocks import AttentionBlock, MixtureBlock, Norm, Projection, SharedExpert, SwiGLU, SwiGLUBlock
from lluda.backends.components import DecoderLayers, Observer, Rotary
from lluda.backends.group import Group
from lluda.backends.weight import Parameters
from lluda.config.decoder import DecoderConfig
from lluda.models.linear import Embedding
from lluda.models.mixture import RemoteMixture
from lluda.models.rotary import rotary, rotary_frequencies, yarn_frequencies
from lluda.parameters import ParameterSpec, Split


@dataclass(frozen=True, slots=True)
class MultimodalEmbeddings:
    """Rows of a step that do not come from the embedding table: the output of an audio or vision encoder.

    ``rows`` (int64 ``[n]``) take ``embeddings [n, hidden]``; after decoder layer i, ``deepstack[i] [m, hidden]`` is
    added to ``deepstack_rows`` (int64 ``[m]``), for as many layers as it has (spec section 5)."""

    rows: Tensor
    embeddings: Tensor
    deepstack_rows: Tensor
    deepstack: Sequence[Tensor] = ()

    def to(self, device: torch.device) -> MultimodalEmbeddings:
        """The same on ``device``."""
        deepstack = [part.to(device) for part in self.deepstack]
        return MultimodalEmbeddings(
            self.rows.to(device), self.embeddings.to(device), self.deepstack_rows.to(device), deepstack
        )


class DecoderStack:
    """``config.num_hidden_layers`` layers and the final norm, over parameters named as in the checkpoint, below
    ``prefix``. Its input is already embedded: the talker's frames, the code predictor's codes. ``experts`` is the
    backend that holds the mixture blocks, where it is not ``backend``; ``group``: of the ranks that have the other
    parts of its tensors."""

    def __init__(
        self,
        config: DecoderConfig,
        parameters: Parameters,
        backend: ComputeBackend,
        prefix: str,
        experts: ComputeBackend | None = None,
        group: Group | None = None,
    ) -> None:
        self.config = config
        self._backend = backend
        remote = RemoteMixture(backend, experts) if experts is not None and experts is not backend else None
        build = LayerBuilder(config, parameters)
        names = (f"{prefix}layers.{index}." for index in range(config.num_hidden_layers))
        blocks = [build.layer(index, name) for index, name in enumerate(names)]
        self.layers = DecoderLayers(blocks, rotary_of(config, backend.device), remote, group)
        self.norm = build.norm(f"{prefix}norm")

    def run(
        self,
        x: Tensor,
        positions: Tensor,
        segments: Sequence[Segment],
        observe: Observer | None = None,
        injected: MultimodalEmbeddings | None = None,
    ) -> Tensor:
        """Residual rows ``[rows, hidden]``, which may be changed in place, at positions ``[rows]`` or ``[3, rows]`` ->
        residual rows before the final norm. The ``deepstack`` of ``injected`` is added."""
        deepstack = DeepStack(injected.deepstack_rows, injected.deepstack) if injected and injected.deepstack else None
        return self._backend.run_layers(self.layers, x, positions, segments, observe, deepstack)


class Decoder(DecoderStack):
    """A stack over a table of token embeddings."""

    def __init__(
        self,
        config: DecoderConfig,
        parameters: Parameters,
        backend: ComputeBackend,
        prefix: str = "model.",
        experts: ComputeBackend | None = None,
        group: Group | None = None,
    ) -> None:
        super().__init__(config, parameters, backend, prefix, experts, group)
        self.embed_tokens = Embedding(backend, parameters.matrix(f"{prefix}embed_tokens.weight"), group)

    def __call__(
        self,
        ids: Tensor,
        positions: Tensor,
        segments: Sequence[Segment],
        observe: Observer | None = None,
        injected: MultimodalEmbeddings | None = None,
    ) -> Tensor:
        """ids int64 ``[rows]``, positions ``[rows]`` or ``[3, rows]`` -> residual rows ``[rows, hidden]`` before the
        final norm. The ids of ``injected`` rows are not looked at, but must be in the vocabulary."""
        x = self.embed_tokens(ids)
        if injected:
            x[injected.rows] = injected.embeddings.to(x.dtype)
        if observe:
            observe("embeddings", x)
        return self.run(x, positions, segments, observe, injected)


def rotary_of(config: DecoderConfig, device: torch.device) -> Rotary:
    """The rotary positions that ``config`` asks for."""
    rope, yarn = config.rope, config.rope.yarn
    if yarn is None:
        return rotary(rotary_frequencies(config.head_dim, rope.theta), device, rope.mrope_section)
    trained = yarn.original_max_position_embeddings
    frequencies = yarn_frequencies(
        config.head_dim, rope.theta, yarn.factor, trained, yarn.beta_fast, yarn.beta_slow, yarn.truncate
    )
    return rotary(frequencies, device, rope.mrope_section, yarn.attention_factor)


class LayerBuilder:
    """Builds the layers of one decoder from named tensors; those of a member of a tensor-parallel group out of its
    parts of them (`ParameterSpec.part`)."""

    def __init__(self, config: DecoderConfig, parameters: Parameters) -> None:
        self._config, self._parameters = config, parameters

    def norm(self, name: str) -> Norm:
        """The RMSNorm ``name``."""
        return Norm(self._parameters.vector(f"{name}.weight"), self._config.rms_norm_eps)

    def layer(self, index: int, prefix: str) -> tuple[AttentionBlock, SwiGLUBlock | MixtureBlock]:
        """Layer ``index``, whose names begin with ``prefix``."""
        norm = self.norm(f"{prefix}post_attention_layernorm")
        sparse = self._config.is_sparse(index)
        feed_forward = self._mixture(norm, f"{prefix}mlp.") if sparse else self._dense(norm, prefix)
        return self._attention(index, prefix), feed_forward

    def _projection(self, name: str) -> Projection:
        bias = self._parameters.vector(f"{name}.bias") if self._config.attention_bias else None
        return Projection(self._parameters.matrix(f"{name}.weight"), bias)

    def _attention(self, index: int, prefix: str) -> AttentionBlock:
        qk_norm = self._config.use_qk_norm
        return AttentionBlock(
            norm=self.norm(f"{prefix}input_layernorm"),
            q_proj=self._projection(f"{prefix}self_attn.q_proj"),
            k_proj=self._projection(f"{prefix}self_attn.k_proj"),
            v_proj=self._projection(f"{prefix}self_attn.v_proj"),
            o_proj=self._projection(f"{prefix}self_attn.o_proj"),
            q_norm=self.norm(f"{prefix}self_attn.q_norm") if qk_norm else None,
            k_norm=self.norm(f"{prefix}self_attn.k_norm") if qk_norm else None,
            head_dim=self._config.head_dim,
            window=self._config.window(index),
            scale=self._scale(f"{prefix}self_attn_layer_scale"),
        )

    def _scale(self, name: str) -> Tensor | None:
        return self._parameters.vector(f"{name}.scale") if self._config.layer_scale else None

    def _dense(self, norm: Norm, prefix: str) -> SwiGLUBlock:
        return SwiGLUBlock(norm, self._swiglu(f"{prefix}mlp."), self._scale(f"{prefix}mlp_layer_scale"))

    def _swiglu(self, prefix: str) -> SwiGLU:
        parts = (f"{prefix}{name}.weight" for name in ("gate_proj", "up_proj", "down_proj"))
        return SwiGLU(*(self._parameters.matrix(name) for name in parts))

    def _mixture(self, norm: Norm, prefix: str) -> MixtureBlock:
        moe = self._config.moe
        assert moe is not None
        shared = (
            SharedExpert(
                self._swiglu(f"{prefix}shared_expert."), self._parameters.vector(f"{prefix}shared_expert_gate.weight")
            )
            if moe.shared_expert_intermediate_size
            else None
        )
        return MixtureBlock(
            norm=norm,
            router=self._parameters.vector(f"{prefix}gate.weight"),
            shared=shared,
            experts=[self._swiglu(f"{prefix}experts.{expert}.") for expert in range(moe.num_experts)],
            top_k=moe.num_experts_per_tok,
            normalise=moe.norm_topk_prob,
        )


def decoder_parameters(config: DecoderConfig, prefix: str = "model.") -> Iterator[ParameterSpec]:
    """Every tensor of a `Decoder`, in checkpoint order."""
    table = (config.vocab_size, config.hidden_size)
    yield ParameterSpec(f"{prefix}embed_tokens.weight", table, "embedding", split="rows")
    yield from stack_parameters(config, prefix)


def stack_parameters(config: DecoderConfig, prefix: str) -> Iterator[ParameterSpec]:
    """Every tensor of a `DecoderStack`, in checkpoint order."""
    for index in range(config.num_hidden_layers):
        yield from _layer_parameters(config, index, f"{prefix}layers.{index}.")
    yield ParameterSpec(f"{prefix}norm.weight", (config.hidden_size,), "norm")


def mixture_parameters(config: DecoderConfig, prefix: str = "model.") -> Iterator[ParameterSpec]:
    """Every tensor of a stack's mixture blocks, norms and routers too: those of the ``experts`` of `DecoderStack`."""
    for index in filter(config.is_sparse, range(config.num_hidden_layers)):
        yield from _feed_forward_parameters(config, index, f"{prefix}layers.{index}.")


def _layer_parameters(config: DecoderConfig, index: int, prefix: str) -> Iterator[ParameterSpec]:
    yield ParameterSpec(f"{prefix}input_layernorm.weight", (config.hidden_size,), "norm")
    yield from _attention_parameters(config, f"{prefix}self_attn.")
    yield from _feed_forward_parameters(config, index, prefix)


def _feed_forward_parameters(config: DecoderConfig, index: int, prefix: str) -> Iterator[ParameterSpec]:
    yield ParameterSpec(f"{prefix}post_attention_layernorm.weight", (config.hidden_size,), "norm")
    if not config.is_sparse(index):
        yield from _swiglu_parameters(f"{prefix}mlp.", config.hidden_size, config.intermediate_size)
        if config.layer_scale:
            for branch in ("self_attn", "mlp"):
                yield ParameterSpec(f"{prefix}{branch}_layer_scale.scale", (config.hidden_size,), "scale")
        return
    moe = config.moe
    assert moe is not None
    yield ParameterSpec(f"{prefix}mlp.gate.weight", (moe.num_experts, config.hidden_size), "router")
    for expert in range(moe.num_experts):
        yield from _swiglu_parameters(f"{prefix}mlp.experts.{expert}.", config.hidden_size, moe.moe_intermediate_size)
    if moe.shared_expert_intermediate_size:
        width = moe.shared_expert_intermediate_size
        yield from _swiglu_parameters(f"{prefix}mlp.shared_expert.", config.hidden_size, width)
        yield ParameterSpec(f"{prefix}mlp.shared_expert_gate.weight", (1, config.hidden_size), "router")


def _attention_parameters(config: DecoderConfig, prefix: str) -> Iterator[ParameterSpec]:
    query = config.num_attention_heads * config.head_dim
    key = config.num_key_value_heads * config.head_dim
    hidden, unit = config.hidden_size, config.head_dim
    shapes = {"q_proj": (query, hidden), "k_proj": (key, hidden), "v_proj": (key, hidden), "o_proj": (hidden, query)}
    for name, shape in shapes.items():
        split: Split = "columns" if name == "o_proj" else "rows"
        repeated = name in ("k_proj", "v_proj")
        yield ParameterSpec(f"{prefix}{name}.weight", shape, "matrix", split=split, unit=unit, repeated=repeated)
        if config.attention_bias:
            yield ParameterSpec(f"{prefix}{name}.bias", shape[:1], "bias", split=split, unit=unit, repeated=repeated)
    if config.use_qk_norm:
        for name in ("q_norm", "k_norm"):
            yield ParameterSpec(f"{prefix}{name}.weight", (config.head_dim,), "norm")


def _swiglu_parameters(prefix: str, hidden: int, width: int) -> Iterator[ParameterSpec]:
    yield ParameterSpec(f"{prefix}gate_proj.weight", (width, hidden), "matrix", split="rows")
    yield ParameterSpec(f"{prefix}up_proj.weight", (width, hidden), "matrix", split="rows")
    yield ParameterSpec(f"{prefix}down_proj.weight", (hidden, width), "matrix", split="columns")
