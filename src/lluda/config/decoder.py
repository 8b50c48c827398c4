"""The decoder's configuration: rotary positions, experts, the block and how often it is stacked.

Read strictly from a released ``config.json`` or one of its sections; see :mod:`lluda.config.model` for the rules.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from lluda.config.reader import ConfigReader
from lluda.config.rope import RopeConfig, read_rope
from lluda.errors import CorruptFile

MAX_EXPERTS = 1 << 15
"""Experts of all layers together; Qwen3-235B-A22B has 12,032. Each is three tensors, which are named one by one."""


@dataclass(frozen=True, slots=True)
class _Kind:
    """What transformers' config class of a model type decides: defaults of numbers that the file leaves out, which
    features the class has. ``head_dim`` 0: an equal share of the hidden size."""

    max_position_embeddings: int = 32768
    head_dim: int = 0
    rope_theta: float = 10000.0
    rms_norm_eps: float = 1e-6
    windows: Literal["none", "all layers", "by layer"] = "none"
    windows_need_switch: bool = True
    sparse: bool = False
    shared_expert: bool = False
    norm_topk_prob: bool = False
    multimodal: bool = False
    qk_norm: bool = True


_KINDS = {
    "llama": _Kind(max_position_embeddings=2048, qk_norm=False),
    "qwen3": _Kind(head_dim=128, windows="by layer"),
    "qwen3_moe": _Kind(windows="all layers", sparse=True),
    "qwen3_omni_moe_text": _Kind(rope_theta=1e6, sparse=True, norm_topk_prob=True, multimodal=True),
    "qwen3_omni_moe_talker_text": _Kind(sparse=True, shared_expert=True, multimodal=True),
    "qwen3_omni_moe_talker_code_predictor": _Kind(head_dim=128, windows="by layer", windows_need_switch=False),
    "qwen3_omni_moe_code2wav": _Kind(
        max_position_embeddings=8000, rms_norm_eps=1e-5, windows="all layers", windows_need_switch=False, qk_norm=False
    ),
}


@dataclass(frozen=True, slots=True)
class MoeConfig:
    """A sparse feed-forward layer: ``num_experts`` SwiGLU experts of width ``moe_intermediate_size``, of which each row
    uses ``num_experts_per_tok``; the chosen weights sum to one if ``norm_topk_prob``. Beside them a gated expert of
    width ``shared_expert_intermediate_size`` that all rows use, if that is not 0 (the talker's)."""

    num_experts: int
    num_experts_per_tok: int
    moe_intermediate_size: int
    norm_topk_prob: bool
    shared_expert_intermediate_size: int = 0
    decoder_sparse_step: int = 1
    mlp_only_layers: frozenset[int] = frozenset()

    def is_sparse(self, layer: int) -> bool:
        """Whether decoder layer ``layer`` (0-based) has experts: every ``decoder_sparse_step``-th one (counted from 1)
        that is not listed in ``mlp_only_layers``."""
        return layer not in self.mlp_only_layers and (layer + 1) % self.decoder_sparse_step == 0


@dataclass(frozen=True, slots=True)
class DecoderConfig:
    """The one decoder block and how often it is stacked (spec section 2). ``layer_scale``: a learned vector multiplies
    what each half of a layer adds (Touvron et al. 2021; code2wav's has it, spec section 8)."""

    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    intermediate_size: int
    vocab_size: int
    max_position_embeddings: int
    rms_norm_eps: float
    rope: RopeConfig
    tie_word_embeddings: bool
    attention_bias: bool = False
    use_qk_norm: bool = True
    sliding_window: int | None = None
    full_attention_layers: frozenset[int] = frozenset()
    moe: MoeConfig | None = None
    layer_scale: bool = False

    def is_sparse(self, layer: int) -> bool:
        """Whether layer ``layer`` (0-based) is a mixture of experts."""
        return self.moe is not None and self.moe.is_sparse(layer)

    def window(self, layer: int) -> int | None:
        """Positions layer ``layer`` attends to, itself included; None means all."""
        return None if layer in self.full_attention_layers else self.sliding_window

    @property
    def max_context(self) -> int:
        """Positions that a sequence may have: those of training, or what YaRN stretches them to."""
        return self.rope.yarn.max_positions if self.rope.yarn else self.max_position_embeddings

    @property
    def kv_elements_per_token(self) -> int:
        """Numbers the KV cache stores for one position, over all layers."""
        return 2 * self.num_hidden_layers * self.num_key_value_heads * self.head_dim

    def of_rank(self, ranks: int) -> DecoderConfig:
        """With the heads that one of ``ranks`` has, a number that divides theirs; of keys and values one at least."""
        kv_heads = max(1, self.num_key_value_heads // ranks)
        return replace(self, num_attention_heads=self.num_attention_heads // ranks, num_key_value_heads=kv_heads)


def read_decoder(reader: ConfigReader, model_type: str) -> DecoderConfig:
    """The decoder of a ``config.json`` or section of type ``model_type``. UnsupportedModel, CorruptFile."""
    kind = _KINDS[model_type]
    heads, kv_heads = _heads(reader, model_type)
    layers = reader.integer("num_hidden_layers", 1, 4096)
    hidden = reader.integer("hidden_size", 1, 1 << 20)
    head_dim = reader.integer("head_dim", 2, 4096, default=kind.head_dim or max(hidden // heads, 2))
    if head_dim % 2:
        raise CorruptFile(reader.path, "head_dim must be even for rotary positions", found=head_dim)
    reader.choice("hidden_act", ("silu",), default="silu", unsupported=True)
    reader.forbid("mlp_bias")
    positions = reader.integer("max_position_embeddings", 1, 1 << 26, default=kind.max_position_embeddings)
    sliding_window, full_layers = _sliding_window(reader, kind, layers)
    return DecoderConfig(
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=head_dim,
        intermediate_size=reader.integer("intermediate_size", 1, 1 << 22),
        vocab_size=reader.integer("vocab_size", 1, 1 << 24),
        max_position_embeddings=positions,
        rms_norm_eps=reader.number("rms_norm_eps", 0.0, 1.0, default=kind.rms_norm_eps),
        rope=read_rope(reader, head_dim, positions, default_theta=kind.rope_theta, multimodal=kind.multimodal),
        tie_word_embeddings=reader.boolean("tie_word_embeddings", default=False),
        attention_bias=reader.boolean("attention_bias", default=False),
        use_qk_norm=reader.boolean("use_qk_norm", default=kind.qk_norm),
        sliding_window=sliding_window,
        full_attention_layers=full_layers,
        moe=_moe(reader, kind, layers) if kind.sparse else None,
    )


def _heads(reader: ConfigReader, model_type: str) -> tuple[int, int]:
    """Heads and key/value heads. Null says as many as heads; only llama's class says so where the key is absent, the
    others fix a number that fits one model alone."""
    heads = reader.integer("num_attention_heads", 1, 4096)
    as_heads = model_type == "llama" or "num_key_value_heads" in reader.raw
    kv_heads = reader.integer("num_key_value_heads", 1, 4096, default=heads if as_heads else None)
    if heads % kv_heads:
        raise CorruptFile(
            reader.path, f"num_attention_heads {heads} is not a multiple of num_key_value_heads {kv_heads}"
        )
    return heads, kv_heads


def _sliding_window(reader: ConfigReader, kind: _Kind, layers: int) -> tuple[int | None, frozenset[int]]:
    """The window and the layers without one. Where a model type has windows by layer, ``layer_types`` (transformers 5)
    wins over ``max_window_layers``, below which layers attend to everything; elsewhere it must say what is so."""
    window: int | None = reader.integer("sliding_window", 1, 1 << 26, default=0) or None
    first_windowed = reader.integer("max_window_layers", 0, 1 << 20, default=28)
    types = reader.strings("layer_types", ("full_attention", "sliding_attention"))
    if types and len(types) != layers:
        raise CorruptFile(reader.path, "layer_types must name every layer", expected=layers, found=len(types))
    if kind.windows == "none":
        reader.forbid("use_sliding_window")
        window = None
    elif kind.windows_need_switch:
        used = reader.boolean("use_sliding_window", default=False)
        window = (window or 4096) if used else None
    else:
        reader.ignore("use_sliding_window")
    if window is None:
        if "sliding_attention" in types:
            raise CorruptFile(reader.path, "layer_types has sliding_attention but sliding_window is not in use")
        return None, frozenset()
    if kind.windows == "all layers":
        if "full_attention" in types:
            raise CorruptFile(reader.path, "layer_types has full_attention but every layer has the sliding_window")
        return window, frozenset()
    if types:
        return window, frozenset(i for i, name in enumerate(types) if name == "full_attention")
    return window, frozenset(range(min(first_windowed, layers)))


def _moe(reader: ConfigReader, kind: _Kind, layers: int) -> MoeConfig:
    reader.one_name("num_experts", "num_local_experts")
    experts = reader.integer("num_experts", 1, 65536)
    if layers * experts > MAX_EXPERTS:
        rule = f"num_hidden_layers times num_experts must be at most {MAX_EXPERTS}"
        raise CorruptFile(reader.path, rule, found=f"{layers} x {experts}")
    chosen = reader.integer("num_experts_per_tok", 1, 65536)
    if chosen > experts:
        raise CorruptFile(reader.path, f"num_experts_per_tok {chosen} exceeds num_experts {experts}")
    if not kind.shared_expert:
        reader.forbid("shared_expert_intermediate_size")
    return MoeConfig(
        num_experts=experts,
        num_experts_per_tok=chosen,
        moe_intermediate_size=reader.integer("moe_intermediate_size", 1, 1 << 22),
        norm_topk_prob=reader.boolean("norm_topk_prob", default=kind.norm_topk_prob),
        shared_expert_intermediate_size=reader.integer("shared_expert_intermediate_size", 0, 1 << 22, default=0),
        decoder_sparse_step=reader.integer("decoder_sparse_step", 1, 4096, default=1),
        mlp_only_layers=frozenset(reader.integers("mlp_only_layers", 0, layers - 1)),
    )
