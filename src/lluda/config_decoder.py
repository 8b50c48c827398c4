"""The decoder's configuration: rotary positions, experts, the block and how often it is stacked.

Read strictly from a released ``config.json`` or one of its sections; see :mod:`lluda.config` for the rules.
"""

from __future__ import annotations

from dataclasses import dataclass

from lluda.config_reader import ConfigReader
from lluda.errors import CorruptFile, UnsupportedModel

# Present in released or re-saved configs and without influence on the forward pass.
INERT_KEYS = frozenset(
    """
    _name_or_path add_cross_attention architectures attention_dropout attn_implementation bad_words_ids
    begin_suppress_tokens bos_token_id chunk_size_feed_forward cross_attention_hidden_size decoder_start_token_id
    diversity_penalty do_sample dtype early_stopping encoder_no_repeat_ngram_size eos_token_id
    exponential_decay_length_penalty finetuning_task forced_bos_token_id forced_eos_token_id id2label
    initializer_range is_decoder is_encoder_decoder is_llama_config label2id length_penalty max_length min_length
    model_type no_repeat_ngram_size num_beam_groups num_beams num_return_sequences output_attentions
    output_hidden_states output_router_logits output_scores pad_token_id prefix pretraining_tp problem_type
    pruned_heads remove_invalid_values repetition_penalty return_dict return_dict_in_generate rope_interleaved
    router_aux_loss_coef sep_token_id suppress_tokens task_specific_params temperature tf_legacy_loss
    tie_encoder_decoder tokenizer_class top_k top_p torch_dtype torchscript transformers.js_config
    transformers_version typical_p use_bfloat16 use_cache vocab_padding
    """.split()
)


_SPARSE_TYPES = ("qwen3_moe", "qwen3_omni_moe_text", "qwen3_omni_moe_talker_text")


@dataclass(frozen=True, slots=True)
class RopeConfig:
    """Rotary position embedding: base ``theta``; ``mrope_section`` (frequencies per axis T, H, W) where positions have
    three rows, ``interleaved`` in the order THWTHW… (spec section 5.1). Text alone needs only ``theta``."""

    theta: float
    mrope_section: tuple[int, ...] | None = None
    interleaved: bool = False


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
    def kv_elements_per_token(self) -> int:
        """Numbers the KV cache stores for one position, over all layers."""
        return 2 * self.num_hidden_layers * self.num_key_value_heads * self.head_dim


def read_decoder(reader: ConfigReader, model_type: str) -> DecoderConfig:
    """The decoder of a ``config.json`` or section of type ``model_type``. UnsupportedModel, CorruptFile."""
    heads = reader.integer("num_attention_heads", 1, 4096)
    kv_heads = reader.integer("num_key_value_heads", 1, 4096, default=heads)
    if heads % kv_heads:
        raise CorruptFile(
            reader.path, f"num_attention_heads {heads} is not a multiple of num_key_value_heads {kv_heads}"
        )
    layers = reader.integer("num_hidden_layers", 1, 4096)
    hidden = reader.integer("hidden_size", 1, 1 << 20)
    # Class defaults of transformers where a config leaves head_dim out: 128 for Qwen3, an equal share for the others.
    head_dim = reader.integer("head_dim", 2, 4096, default=128 if model_type == "qwen3" else max(hidden // heads, 2))
    if head_dim % 2:
        raise CorruptFile(reader.path, "head_dim must be even for rotary positions", found=head_dim)
    reader.choice("hidden_act", ("silu",), default="silu", unsupported=True)
    reader.forbid("mlp_bias")
    sliding_window, full_layers = _sliding_window(reader, layers)
    return DecoderConfig(
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=head_dim,
        intermediate_size=reader.integer("intermediate_size", 1, 1 << 22),
        vocab_size=reader.integer("vocab_size", 1, 1 << 24),
        max_position_embeddings=reader.integer("max_position_embeddings", 1, 1 << 26),
        rms_norm_eps=reader.number("rms_norm_eps", 0.0, 1.0),
        rope=_rope(reader, head_dim),
        tie_word_embeddings=reader.boolean("tie_word_embeddings", default=False),
        attention_bias=reader.boolean("attention_bias", default=False),
        use_qk_norm=reader.boolean("use_qk_norm", default=model_type != "llama"),
        sliding_window=sliding_window,
        full_attention_layers=full_layers,
        moe=_moe(reader, layers) if model_type in _SPARSE_TYPES else None,
    )


def _rope(reader: ConfigReader, head_dim: int) -> RopeConfig:
    """RoPE of the released configs: ``rope_theta`` beside a null or default ``rope_scaling`` (transformers 4), or both
    inside ``rope_parameters`` (transformers 5). Scaling types other than default are refused by name."""
    section = reader.section("rope_parameters") or reader.section("rope_scaling")
    theta_source = section if section is not None and "rope_theta" in section.raw else reader
    theta = theta_source.number("rope_theta", 1.0, 1e12)
    reader.ignore("rope_theta", "rope_parameters", "rope_scaling")
    if section is None:
        return RopeConfig(theta)
    for key in ("rope_type", "type"):
        kind = section.raw.get(key, "default")
        if kind not in ("default", "mrope"):
            raise UnsupportedModel(
                f"{reader.path}: RoPE scaling type {kind!r:.80} is not supported; supported: default (no scaling)"
            )
    interleaved = section.boolean("interleaved", default=False) or section.boolean("mrope_interleaved", default=False)
    section.ignore("rope_type", "type", "mrope_interleaved")
    rope = RopeConfig(theta, _mrope_section(section, head_dim, interleaved=interleaved), interleaved)
    section.refuse_unread()
    return rope


def _mrope_section(section: ConfigReader, head_dim: int, *, interleaved: bool) -> tuple[int, ...] | None:
    counts = section.integers("mrope_section", 0, 4096)
    if not counts and not interleaved:
        return None
    frequencies = head_dim // 2
    if len(counts) != 3 or sum(counts) != frequencies:
        rule = f"mrope_section must be three counts that add up to head_dim / 2 = {frequencies}"
        raise CorruptFile(section.path, rule, found=list(counts))
    if interleaved and 3 * max(counts[1:]) > frequencies:
        rule = f"interleaved mrope_section: height and width can take every third of {frequencies} frequencies"
        raise CorruptFile(section.path, rule, found=list(counts))
    return counts


def _sliding_window(reader: ConfigReader, layers: int) -> tuple[int | None, frozenset[int]]:
    """The window and the layers without one. ``layer_types`` (transformers 5) wins over ``max_window_layers``, below
    which layers attend to everything."""
    window = reader.integer("sliding_window", 1, 1 << 26, default=0)
    used = reader.boolean("use_sliding_window", default=False)
    first_windowed = reader.integer("max_window_layers", 0, 1 << 20, default=0)
    kinds = reader.strings("layer_types", ("full_attention", "sliding_attention"))
    if kinds and len(kinds) != layers:
        raise CorruptFile(reader.path, "layer_types must name every layer", expected=layers, found=len(kinds))
    if not used or not window:
        if "sliding_attention" in kinds:
            raise CorruptFile(reader.path, "layer_types has sliding_attention but sliding_window is not in use")
        return None, frozenset()
    if kinds:
        return window, frozenset(i for i, kind in enumerate(kinds) if kind == "full_attention")
    return window, frozenset(range(min(first_windowed, layers)))


def _moe(reader: ConfigReader, layers: int) -> MoeConfig:
    experts = reader.integer("num_experts", 1, 65536)
    chosen = reader.integer("num_experts_per_tok", 1, 65536)
    if chosen > experts:
        raise CorruptFile(reader.path, f"num_experts_per_tok {chosen} exceeds num_experts {experts}")
    return MoeConfig(
        num_experts=experts,
        num_experts_per_tok=chosen,
        moe_intermediate_size=reader.integer("moe_intermediate_size", 1, 1 << 22),
        norm_topk_prob=reader.boolean("norm_topk_prob", default=False),
        shared_expert_intermediate_size=reader.integer("shared_expert_intermediate_size", 0, 1 << 22, default=0),
        decoder_sparse_step=reader.integer("decoder_sparse_step", 1, 4096, default=1),
        mlp_only_layers=frozenset(reader.integers("mlp_only_layers", 0, layers - 1)),
    )
