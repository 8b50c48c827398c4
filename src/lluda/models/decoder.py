"""The one decoder: embeddings, Qwen3 blocks, final norm. Every text-shaped component of Qwen3-Omni is one of these.

Block: ``x += attention(RMSNorm(x))``; ``x += feed_forward(RMSNorm(x))``, where the feed-forward is dense or sparse as
the config says layer by layer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from torch import Tensor

from lluda.backends.base import ComputeBackend, Segment, SwiGLU
from lluda.config import DecoderConfig
from lluda.layers.attention import Attention
from lluda.layers.feed_forward import MLP, MixtureOfExperts
from lluda.layers.linear import Embedding, Linear
from lluda.layers.norm import RMSNorm
from lluda.layers.rotary import Rotary, RotaryTable
from lluda.parameters import ParameterSpec, Role

Observer = Callable[[str, Tensor], None]
"""Called with a name (``embeddings``, ``layers.0``, …, ``norm``, ``logits``) and the rows there, for validation."""


class DecoderLayer:
    """One block."""

    def __init__(
        self, input_layernorm: RMSNorm, attention: Attention, post_attention_layernorm: RMSNorm,
        feed_forward: MLP | MixtureOfExperts,
    ) -> None:
        self.input_layernorm = input_layernorm
        self.self_attn = attention
        self.post_attention_layernorm = post_attention_layernorm
        self.mlp = feed_forward

    def __call__(self, x: Tensor, layer: int, table: RotaryTable, segments: Sequence[Segment]) -> Tensor:
        """Residual rows ``[rows, hidden]`` in, the same out; both in the residual dtype."""
        x = x + self.self_attn(self.input_layernorm(x), layer, table, segments)
        return x + self.mlp(self.post_attention_layernorm(x))


class Decoder:
    """``config.num_hidden_layers`` blocks over tensors named as in the checkpoint, below ``prefix``."""

    def __init__(
        self, config: DecoderConfig, tensors: Mapping[str, Tensor], backend: ComputeBackend, prefix: str = "model."
    ) -> None:
        self.config = config
        self.embed_tokens = Embedding(backend, backend.matrix(tensors[f"{prefix}embed_tokens.weight"]))
        build = _LayerBuilder(config, tensors, backend)
        self.layers = [build.layer(index, f"{prefix}layers.{index}.") for index in range(config.num_hidden_layers)]
        self.norm = build.norm(f"{prefix}norm.weight")
        self.rotary = Rotary(backend, config.head_dim, config.rope.theta)

    def __call__(
        self, ids: Tensor, positions: Tensor, segments: Sequence[Segment], observe: Observer | None = None
    ) -> Tensor:
        """ids and positions int64 ``[rows]`` -> residual rows ``[rows, hidden]`` before the final norm."""
        x = self.embed_tokens(ids)
        if observe:
            observe("embeddings", x)
        table = self.rotary(positions)
        for index, layer in enumerate(self.layers):
            x = layer(x, index, table, segments)
            if observe:
                observe(f"layers.{index}", x)
        return x


class _LayerBuilder:
    """Makes the layers of one decoder out of named tensors."""

    def __init__(self, config: DecoderConfig, tensors: Mapping[str, Tensor], backend: ComputeBackend) -> None:
        self._config, self._tensors, self._backend = config, tensors, backend

    def norm(self, name: str) -> RMSNorm:
        return RMSNorm(self._backend, self._tensors[name], self._config.rms_norm_eps)

    def layer(self, index: int, prefix: str) -> DecoderLayer:
        sparse = self._config.is_sparse(index)
        return DecoderLayer(
            self.norm(f"{prefix}input_layernorm.weight"),
            self._attention(index, f"{prefix}self_attn."),
            self.norm(f"{prefix}post_attention_layernorm.weight"),
            self._mixture(f"{prefix}mlp.") if sparse else MLP(self._backend, self._swiglu(f"{prefix}mlp.")),
        )

    def _linear(self, name: str) -> Linear:
        weight = self._backend.matrix(self._tensors[f"{name}.weight"])
        return Linear(self._backend, weight, self._tensors.get(f"{name}.bias"))

    def _attention(self, index: int, prefix: str) -> Attention:
        qk_norm = self._config.use_qk_norm
        return Attention(
            self._backend,
            q_proj=self._linear(f"{prefix}q_proj"),
            k_proj=self._linear(f"{prefix}k_proj"),
            v_proj=self._linear(f"{prefix}v_proj"),
            o_proj=self._linear(f"{prefix}o_proj"),
            q_norm=self.norm(f"{prefix}q_norm.weight") if qk_norm else None,
            k_norm=self.norm(f"{prefix}k_norm.weight") if qk_norm else None,
            head_dim=self._config.head_dim,
            window=self._config.window(index),
        )

    def _swiglu(self, prefix: str) -> SwiGLU:
        parts = (f"{prefix}{name}.weight" for name in ("gate_proj", "up_proj", "down_proj"))
        return SwiGLU(*(self._backend.matrix(self._tensors[name]) for name in parts))

    def _mixture(self, prefix: str) -> MixtureOfExperts:
        moe = self._config.moe
        assert moe is not None
        return MixtureOfExperts(
            self._backend,
            self._tensors[f"{prefix}gate.weight"],
            [self._swiglu(f"{prefix}experts.{expert}.") for expert in range(moe.num_experts)],
            top_k=moe.num_experts_per_tok,
            normalise=moe.norm_topk_prob,
        )


def decoder_parameters(config: DecoderConfig, prefix: str = "model.") -> Iterator[ParameterSpec]:
    """Every tensor of a decoder, in checkpoint order."""
    yield ParameterSpec(f"{prefix}embed_tokens.weight", (config.vocab_size, config.hidden_size), "embedding")
    for index in range(config.num_hidden_layers):
        yield from _layer_parameters(config, index, f"{prefix}layers.{index}.")
    yield ParameterSpec(f"{prefix}norm.weight", (config.hidden_size,), "norm")


def _layer_parameters(config: DecoderConfig, index: int, prefix: str) -> Iterator[ParameterSpec]:
    yield ParameterSpec(f"{prefix}input_layernorm.weight", (config.hidden_size,), "norm")
    yield from _attention_parameters(config, f"{prefix}self_attn.")
    yield ParameterSpec(f"{prefix}post_attention_layernorm.weight", (config.hidden_size,), "norm")
    if not config.is_sparse(index):
        yield from _swiglu_parameters(f"{prefix}mlp.", config.hidden_size, config.intermediate_size)
        return
    moe = config.moe
    assert moe is not None
    yield ParameterSpec(f"{prefix}mlp.gate.weight", (moe.num_experts, config.hidden_size), "matrix")
    for expert in range(moe.num_experts):
        yield from _swiglu_parameters(
            f"{prefix}mlp.experts.{expert}.", config.hidden_size, moe.moe_intermediate_size
        )


def _attention_parameters(config: DecoderConfig, prefix: str) -> Iterator[ParameterSpec]:
    query = config.num_attention_heads * config.head_dim
    key = config.num_key_value_heads * config.head_dim
    hidden = config.hidden_size
    shapes = {"q_proj": (query, hidden), "k_proj": (key, hidden), "v_proj": (key, hidden), "o_proj": (hidden, query)}
    for name, shape in shapes.items():
        yield ParameterSpec(f"{prefix}{name}.weight", shape, "matrix")
        if config.attention_bias:
            yield ParameterSpec(f"{prefix}{name}.bias", shape[:1], "bias")
    if config.use_qk_norm:
        for name in ("q_norm", "k_norm"):
            yield ParameterSpec(f"{prefix}{name}.weight", (config.head_dim,), "norm")


def _swiglu_parameters(prefix: str, hidden: int, width: int) -> Iterator[ParameterSpec]:
    role: Role = "matrix"
    yield ParameterSpec(f"{prefix}gate_proj.weight", (width, hidden), role)
    yield ParameterSpec(f"{prefix}up_proj.weight", (width, hidden), role)
    yield ParameterSpec(f"{prefix}down_proj.weight", (hidden, width), role)
