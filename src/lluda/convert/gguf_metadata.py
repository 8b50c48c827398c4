"""The metadata of GGUF files that lluda writes: the standard keys of qwen3 and qwen3moe, those of lluda's Omni layout,
and a GGUF file's own keys for another file of its kind.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from lluda.config.decoder import DecoderConfig
from lluda.config.model import ModelConfig
from lluda.config.rope import YarnConfig
from lluda.convert.gguf_writer import EncodedKey, Metadata
from lluda.errors import UnsupportedModel
from lluda.weights.gguf.checkpoint import GGUFCheckpoint
from lluda.weights.gguf.omni_layout import ARCHITECTURE, CONFIG_KEY, SHAPES_KEY, omni_name, shapes_document

_FILE_TYPES = {"q8_0": 7, "bf16": 32}  # llama_ftype: what most matrices are
_OWN_KEYS = ("general.file_type", "general.quantization_version", "general.alignment")
_QUANTIZATION_VERSION = 2


def text_metadata(config: ModelConfig, name: str, file_type: str) -> dict[str, Any]:
    """The keys of a text model without its tokenizer. UnsupportedModel: llama.cpp has no such model."""
    _require_supported(config)
    text, architecture = config.text, config.model_type.replace("_", "")
    keys = {f"{architecture}.{key}": value for key, value in _decoder_keys(text).items()}
    return {**_general(architecture, name, file_type), **keys}


def omni_metadata(
    config: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]], name: str, file_type: str
) -> dict[str, Any]:
    """The keys of an Omni file without its tokenizer: ``config`` is the config.json, ``shapes`` those of all tensors by
    the checkpoint's names."""
    keys = {**_general(ARCHITECTURE, name, file_type), CONFIG_KEY: json.dumps(config, ensure_ascii=False)}
    wide = shapes_document({omni_name(tensor)[0]: shape for tensor, shape in shapes.items()})
    return keys | ({SHAPES_KEY: wide} if wide else {})


def copied_metadata(checkpoint: GGUFCheckpoint, file_type: str) -> Metadata:
    """The keys of a GGUF file, with their types, for the same model in other types."""
    first = checkpoint.files[0]
    copied = [key for key in first.metadata if key not in _OWN_KEYS and not key.startswith("split.")]
    return {**{key: EncodedKey(first.encoded_key(key)) for key in copied}, **_types(file_type)}


def _general(architecture: str, name: str, file_type: str) -> dict[str, Any]:
    return {
        "general.architecture": architecture,
        "general.type": "model",
        "general.name": name,
        **_types(file_type),
    }


def _types(file_type: str) -> dict[str, Any]:
    known = {"general.file_type": _FILE_TYPES[file_type]} if file_type in _FILE_TYPES else {}
    return {**known, "general.quantization_version": _QUANTIZATION_VERSION}


def _decoder_keys(text: DecoderConfig) -> dict[str, Any]:
    keys: dict[str, Any] = {
        "context_length": text.max_position_embeddings,
        "embedding_length": text.hidden_size,
        "block_count": text.num_hidden_layers,
        "feed_forward_length": text.intermediate_size,
        "attention.head_count": text.num_attention_heads,
        "attention.head_count_kv": text.num_key_value_heads,
        "attention.key_length": text.head_dim,
        "attention.value_length": text.head_dim,
        "attention.layer_norm_rms_epsilon": float(text.rms_norm_eps),
        "rope.freq_base": float(text.rope.theta),
        "vocab_size": text.vocab_size,
        **_yarn_keys(text.rope.yarn),
    }
    if text.moe:
        keys |= {
            "expert_count": text.moe.num_experts,
            "expert_used_count": text.moe.num_experts_per_tok,
            "expert_feed_forward_length": text.moe.moe_intermediate_size,
        }
    return keys


def _yarn_keys(yarn: YarnConfig | None) -> dict[str, Any]:
    """llama.cpp multiplies cosines and sines by what follows from the factor, times attn_factor."""
    if yarn is None:
        return {}
    usual = 0.1 * math.log(yarn.factor) + 1.0
    scaled = {} if yarn.attention_factor == usual else {"rope.scaling.attn_factor": yarn.attention_factor / usual}
    return {
        "rope.scaling.type": "yarn",
        "rope.scaling.factor": yarn.factor,
        "rope.scaling.original_context_length": yarn.original_max_position_embeddings,
        **scaled,
    }


def _require_supported(config: ModelConfig) -> None:
    text = config.text
    sparse = {text.is_sparse(layer) for layer in range(text.num_hidden_layers)}
    reasons = {
        f"model type {config.model_type}": config.model_type not in ("qwen3", "qwen3_moe"),
        "dense and sparse layers mixed": len(sparse) > 1,
        "a qwen3_moe without experts": config.model_type == "qwen3_moe" and sparse == {False},
        "no qk-norm": not text.use_qk_norm,
        "attention biases": text.attention_bias,
        "a sliding window": text.sliding_window is not None,
        "YaRN with other bounds than its own (beta_fast, beta_slow, truncate)": text.rope.yarn is not None
        and (text.rope.yarn.beta_fast, text.rope.yarn.beta_slow, text.rope.yarn.truncate) != (32.0, 1.0, True),
        "expert weights that do not sum to one": text.moe is not None and not text.moe.norm_topk_prob,
    }
    found = [reason for reason, holds in reasons.items() if holds]
    if found:
        raise UnsupportedModel(
            f"llama.cpp cannot run {', '.join(found)}; lluda writes GGUF files of qwen3, qwen3_moe and Qwen3-Omni"
        )
