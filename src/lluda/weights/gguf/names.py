"""Names in GGUF and in the models: tensor names and config keys of llama, qwen3 and qwen3moe.
(Of Omni models: `omni_layout`.)

Source: the key and tensor tables of the GGUF document and of llama.cpp's converter, which stores the experts of a layer
as one three-dimensional tensor and, for llama alone, the query and key rows in interleaved rotary order.
"""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from lluda.errors import CorruptFile, UnsupportedModel
from lluda.files.gguf_keys import GGUFKeys, is_array
from lluda.weights.entry import TensorEntry

ARCHITECTURES = {
    "llama": ("llama", "LlamaForCausalLM"),
    "qwen3": ("qwen3", "Qwen3ForCausalLM"),
    "qwen3moe": ("qwen3_moe", "Qwen3MoeForCausalLM"),
}
"""``general.architecture`` -> ``model_type`` and class of Hugging Face."""

ROPE_FACTORS = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")
"""Tensors that divide the rotary frequencies; they belong to RoPE scaling, not to any module."""

_WHOLE = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_IN_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "ffn_gate_inp": "mlp.gate",
}
_PARTS = {module: part for part, module in _IN_LAYER.items()}
_MODEL_NAME = re.compile(r"(?:model\.layers\.(?P<layer>\d+)\.)?(?P<module>.+)\.(?P<kind>weight|bias)", re.ASCII)
_EXPERT = re.compile(r"mlp\.experts\.(?P<expert>\d+)\.(?P<part>gate|up|down)_proj", re.ASCII)
_NAME = re.compile(r"(?:blk\.(?P<layer>0|[1-9]\d*)\.)?(?P<part>\w+)\.(?P<kind>weight|bias)", re.ASCII)
_EXPERTS = re.compile(r"blk\.(?P<layer>0|[1-9]\d*)\.ffn_(?P<part>gate|up|down)_exps\.weight", re.ASCII)
_ALL_EXPERTS = "_exps."
_INTERLEAVED = re.compile(r"model\.layers\.\d+\.self_attn\.(?P<part>[qk])_proj\.(weight|bias)", re.ASCII)

MAX_ENTRIES = 2**18
"""Limit of tensors with each expert's matrix counted by itself: the largest released models have 70,000. A byte of the
file may be a matrix, and an entry takes 400."""

_LARGEST = 2**31 - 1
# Read below, or without influence on the maths. Any other key of the architecture is passed on under its own name, for
# the config reader to refuse or, if asked to, ignore.
_KNOWN_KEYS = frozenset(
    (
        "vocab_size",
        "context_length",
        "embedding_length",
        "block_count",
        "feed_forward_length",
        "attention.head_count",
        "attention.head_count_kv",
        "attention.key_length",
        "attention.value_length",
        "attention.layer_norm_rms_epsilon",
        "rope.freq_base",
        "rope.dimension_count",
        "rope.scale_linear",
        "rope.scaling.type",
        "rope.scaling.factor",
        "rope.scaling.attn_factor",
        "rope.scaling.original_context_length",
        "rope.scaling.finetuned",
        "rope.scaling.yarn_attn_factor",
        "rope.scaling.yarn_beta_fast",
        "rope.scaling.yarn_beta_slow",
        "rope.scaling.yarn_ext_factor",
        "rope.scaling.yarn_log_multiplier",
        "tensor_data_layout",
        "expert_count",
        "expert_used_count",
        "expert_feed_forward_length",
        "expert_weights_norm",
        "expert_gating_func",
    )
)
_SOFTMAX_GATING = 1


def hugging_face_name(name: str) -> str | None:
    """The name of the module's parameter that the GGUF tensor ``name`` holds; None for a tensor without one.

    The three-dimensional expert tensors have as many names as experts: see `hugging_face_entries`.
    """
    match = _NAME.fullmatch(name)
    if match is None:
        return None
    if match["layer"] is None:
        module = _WHOLE.get(match["part"])
        return module and f"{module}.{match['kind']}"
    module = _IN_LAYER.get(match["part"])
    return module and f"model.layers.{match['layer']}.{module}.{match['kind']}"


def gguf_name(name: str) -> tuple[str, int | None]:
    """GGUF's name of the parameter ``name`` of a text model and, for the matrix of an expert, which slice of the
    tensor of all experts it is. UnsupportedModel: it has no name for it."""
    match = _MODEL_NAME.fullmatch(name)
    module = match["module"] if match else ""
    if match and match["layer"] is not None:
        part, expert = layer_part(module)
        if part:
            return f"blk.{match['layer']}.{part}.{match['kind']}", expert
    for part, whole in _WHOLE.items():
        if match and module == whole:
            return f"{part}.{match['kind']}", None
    raise UnsupportedModel(f"{name}: GGUF has no name for this tensor, so the model cannot be stored in it")


def layer_part(module: str) -> tuple[str | None, int | None]:
    """GGUF's name of a module of a layer (None: it has none), and which expert of all it is."""
    expert = _EXPERT.fullmatch(module)
    if expert:
        return f"ffn_{expert['part']}_exps", int(expert["expert"])
    return _PARTS.get(module), None


def layer_module(part: str) -> str | None:
    """The module of a layer that GGUF calls ``part``; None if there is none."""
    return _IN_LAYER.get(part)


def interleaved_heads(name: str, config: Mapping[str, Any]) -> int:
    """How many heads the rows of the tensor ``name`` (Hugging Face's) have if they lie in interleaved rotary order; 0
    if they do not. ``config`` as from `config_from_metadata`."""
    match = _INTERLEAVED.fullmatch(name) if config["model_type"] == "llama" else None
    if match is None:
        return 0
    return int(config["num_attention_heads" if match["part"] == "q" else "num_key_value_heads"])


def hugging_face_entries(
    entries: Mapping[str, TensorEntry], config: Mapping[str, Any], path: Path
) -> dict[str, TensorEntry]:
    """``entries`` under Hugging Face's names; a tensor of all experts becomes one entry per expert, a slice of it.

    Names that are not known stay. CorruptFile: two tensors of one name, an expert tensor that does not fit config, or
    over `MAX_ENTRIES` in all.
    """

    def renamed(entry: TensorEntry) -> Iterable[TensorEntry]:
        experts = _EXPERTS.fullmatch(entry.name)
        if experts and config["model_type"] == "qwen3_moe":
            return expert_entries(entry, f"model.layers.{experts['layer']}", experts["part"], config["num_experts"])
        return [replace(entry, name=hugging_face_name(entry.name) or entry.name)]

    return entries_by_name(entries, renamed, path)


def entries_by_name(
    entries: Mapping[str, TensorEntry], renamed: Callable[[TensorEntry], Iterable[TensorEntry]], path: Path
) -> dict[str, TensorEntry]:
    """What ``renamed`` makes of each of ``entries``, by the new names. CorruptFile: two of one name, or over
    `MAX_ENTRIES` in all, checked before any is made."""
    count = sum(entry.shape[0] if _ALL_EXPERTS in name else 1 for name, entry in entries.items())
    if count > MAX_ENTRIES:
        rule = "with each expert counted by itself the file has more matrices than lluda reads"
        raise CorruptFile(path, rule, expected=f"at most {MAX_ENTRIES}", found=count)
    found: dict[str, TensorEntry] = {}
    for name, entry in entries.items():
        for one in renamed(entry):
            if one.name in found:
                raise CorruptFile(path, f"two tensors are named {one.name!r}, one of them as {name!r}")
            found[one.name] = one
    return found


def expert_entries(entry: TensorEntry, layer: str, part: str, experts: int) -> Iterator[TensorEntry]:
    """The slices of a tensor of all experts, under the names of their matrices in ``layer``."""
    if len(entry.shape) != 3 or entry.shape[0] != experts:
        rule = f"tensor {entry.name!r} must have three dimensions, the first of them the {experts} experts"
        raise CorruptFile(entry.file, rule, found=list(entry.shape))
    nbytes = entry.nbytes // experts
    for expert in range(experts):
        yield TensorEntry(
            name=f"{layer}.mlp.experts.{expert}.{part}_proj.weight",
            shape=entry.shape[1:],
            dtype=entry.dtype,
            nbytes=nbytes,
            file=entry.file,
            offset=entry.offset + expert * nbytes,
        )


def config_from_metadata(
    metadata: Mapping[str, Any], path: Path, *, tensors: Mapping[str, TensorEntry]
) -> dict[str, Any]:
    """The config.json that Hugging Face would have for this model, from the metadata and the tensor list (the file's
    own names), which alone tells of tied embeddings and biases.

    ``torch_dtype`` is bfloat16 if all matrices are BF16 or Q8_0 (which is kept as it is and multiplies BF16 rows),
    float16 if all are stored so, else float32, which holds every block format.
    Float32 numbers become the shortest decimal that reads back the same (1e-05, not 9.999999747378752e-06). What GGUF
    leaves to its readers is filled in as llama.cpp does: key/value heads as many as heads, heads sharing the embedding
    equally, RoPE base 10000 (llama only), every layer of qwen3moe sparse with expert weights summing to one.

    Raises:
        CorruptFile: a key missing or out of range.
        UnsupportedModel: an architecture or feature that lluda does not have.
    """
    reader = _MetadataReader(metadata, path)
    heads = reader.integer("attention.head_count")
    hidden = reader.integer("embedding_length")
    head_dim = _head_dim(reader, hidden, heads)
    config: dict[str, Any] = {
        "architectures": [reader.hf_class],
        "model_type": reader.model_type,
        "hidden_size": hidden,
        "num_hidden_layers": reader.integer("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": reader.integer("attention.head_count_kv", default=heads),
        "head_dim": head_dim,
        "intermediate_size": reader.integer("feed_forward_length"),
        "vocab_size": _vocab_size(reader),
        "max_position_embeddings": reader.integer("context_length"),
        "rms_norm_eps": reader.number("attention.layer_norm_rms_epsilon"),
        "rope_theta": reader.number("rope.freq_base", default=10000.0 if reader.model_type == "llama" else None),
        "rope_scaling": _rope_scaling(reader),
        "hidden_act": "silu",
        "attention_bias": any(name.endswith(".attn_q.bias") for name in tensors),
        "tie_word_embeddings": "output.weight" not in tensors,
        "torch_dtype": _stored_dtype(tensors),
        **_token_ids(reader),
        **(_experts(reader) if reader.model_type == "qwen3_moe" else {}),
    }
    experts = 0 if reader.model_type == "qwen3_moe" else reader.integer("expert_count", minimum=0, default=0)
    if experts:
        raise UnsupportedModel(
            f"{path}: {reader.architecture} with {experts} experts is not supported; "
            "supported mixtures of experts: qwen3moe"
        )
    return config | reader.unknown()


class _MetadataReader:
    """Keys of one architecture, by their names behind its own."""

    def __init__(self, metadata: Mapping[str, Any], path: Path) -> None:
        self.keys = GGUFKeys.of(metadata, path)
        self.path = path
        self.architecture = self.keys.text("general.architecture")
        if self.architecture not in ARCHITECTURES:
            raise UnsupportedModel(
                f"{path}: GGUF architecture {self.architecture!r:.80} is not supported; "
                f"supported: {', '.join(ARCHITECTURES)}"
            )
        kind = self.keys.text("general.type", default="model")
        if kind != "model":
            raise UnsupportedModel(f"{path}: a GGUF file of type {kind!r:.80} is not supported; supported: model")
        self.model_type, self.hf_class = ARCHITECTURES[self.architecture]

    def __contains__(self, key: str) -> bool:
        return f"{self.architecture}.{key}" in self.keys

    def integer(self, key: str, *, minimum: int = 1, default: int | None = None) -> int:
        self._refuse_per_layer(key)
        return self.keys.integer(f"{self.architecture}.{key}", minimum, _LARGEST, default=default)

    def number(self, key: str, *, default: float | None = None) -> float:
        """A number above 0."""
        self._refuse_per_layer(key)
        return _shortest(self.keys.number(f"{self.architecture}.{key}", 0.0, 1e30, default=default))

    def factor(self, key: str) -> float:
        """A number of at least 0, which is also what an absent one counts as."""
        return _shortest(self.keys.number(f"{self.architecture}.{key}", -math.ulp(0.0), 1e30, default=0.0))

    def text(self, key: str, *, default: str | None = None) -> str:
        return self.keys.text(f"{self.architecture}.{key}", default=default)

    def boolean(self, key: str, *, default: bool) -> bool:
        return self.keys.boolean(f"{self.architecture}.{key}", default=default)

    def unknown(self) -> dict[str, Any]:
        prefix = f"{self.architecture}."
        return {
            key: value
            for key, value in self.keys.items()
            if key.startswith(prefix) and key.removeprefix(prefix) not in _KNOWN_KEYS
        }

    def _refuse_per_layer(self, key: str) -> None:
        if key in self and is_array(self.keys[f"{self.architecture}.{key}"]):
            raise UnsupportedModel(
                f"{self.path}: {self.architecture}.{key} is an array; lluda supports one value for all layers"
            )


def _head_dim(reader: _MetadataReader, hidden: int, heads: int) -> int:
    head_dim = reader.integer("attention.key_length", default=max(hidden // heads, 1))
    for key in ("attention.value_length", "rope.dimension_count"):
        other = reader.integer(key, default=head_dim)
        if other != head_dim:
            raise UnsupportedModel(
                f"{reader.path}: {reader.architecture}.{key} {other} is not supported; "
                f"supported: the size of a head, {head_dim}"
            )
    return head_dim


def _vocab_size(reader: _MetadataReader) -> int:
    if "vocab_size" in reader or "tokenizer.ggml.tokens" not in reader.keys:
        return reader.integer("vocab_size")
    tokens = reader.keys.strings("tokenizer.ggml.tokens")
    return len(tokens) or reader.integer("vocab_size")


def _rope_scaling(reader: _MetadataReader) -> dict[str, Any] | None:
    """RoPE scaling has a type, or (in older files) only a factor, which then is linear; 0 and 1 mean none.

    Of YaRN's keys the converters write yarn_attn_factor, yarn_beta_fast and yarn_beta_slow with transformers' meaning;
    attn_factor multiplies what follows from the factor, as in llama.cpp.
    """
    factors = {reader.factor(key) for key in ("rope.scaling.factor", "rope.scale_linear")}
    kind = reader.text("rope.scaling.type", default="none" if factors <= {0.0, 1.0} else "linear")
    if kind not in ("none", "yarn"):
        raise UnsupportedModel(f"{reader.path}: RoPE scaling type {kind!r:.80} is not supported; supported: none, yarn")
    if kind == "none":
        return None
    for key, usual in (("yarn_ext_factor", 1.0), ("yarn_log_multiplier", 0.0)):
        if f"rope.scaling.{key}" in reader and (value := reader.factor(f"rope.scaling.{key}")) != usual:
            raise UnsupportedModel(
                f"{reader.path}: {reader.architecture}.rope.scaling.{key} {value:g} is not supported; "
                f"supported: {usual:g}"
            )
    factor = reader.number("rope.scaling.factor")
    attention = reader.number("rope.scaling.yarn_attn_factor", default=0.1 * math.log(max(factor, 1.0)) + 1.0)
    return {
        "rope_type": "yarn",
        "factor": factor,
        "original_max_position_embeddings": reader.integer(
            "rope.scaling.original_context_length", default=reader.integer("context_length")
        ),
        "attention_factor": attention * reader.number("rope.scaling.attn_factor", default=1.0),
        "beta_fast": reader.number("rope.scaling.yarn_beta_fast", default=32.0),
        "beta_slow": reader.number("rope.scaling.yarn_beta_slow", default=1.0),
    }


def _token_ids(reader: _MetadataReader) -> dict[str, Any]:
    """``bos_token_id``, and ``eos_token_id``: one id, or all that end a text or a turn."""
    names = ("bos_token_id", "eos_token_id", "eot_token_id", "eom_token_id")
    start, *found = (reader.keys.token_id(f"tokenizer.ggml.{name}", below=2**32) for name in names)
    ends = list(dict.fromkeys(end for end in found if end is not None))
    ids: dict[str, Any] = {} if start is None else {"bos_token_id": start}
    return ids | ({"eos_token_id": ends if len(ends) > 1 else ends[0]} if ends else {})


def _experts(reader: _MetadataReader) -> dict[str, Any]:
    gating = reader.integer("expert_gating_func", default=_SOFTMAX_GATING)
    if gating != _SOFTMAX_GATING:
        raise UnsupportedModel(
            f"{reader.path}: qwen3moe.expert_gating_func {gating} is not supported; supported: 1 (softmax)"
        )
    return {
        "num_experts": reader.integer("expert_count"),
        "num_experts_per_tok": reader.integer("expert_used_count"),
        "moe_intermediate_size": reader.integer("expert_feed_forward_length"),
        "norm_topk_prob": reader.boolean("expert_weights_norm", default=True),
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
    }


def _stored_dtype(tensors: Mapping[str, TensorEntry]) -> str:
    routers = ".ffn_gate_inp.weight"  # stored as F32 whatever the rest is
    stored = {entry.dtype for name, entry in tensors.items() if len(entry.shape) > 1 and not name.endswith(routers)}
    if stored <= {"BF16", "Q8_0"}:
        return "bfloat16"
    return "float16" if stored == {"F16"} else "float32"


def _shortest(number: float) -> float:
    """The number of fewest decimal digits that is the same float32; a number that is no float32 stays."""
    try:
        same = struct.pack("<f", number)
    except OverflowError:
        return number
    if struct.unpack("<f", same)[0] != number:
        return number
    candidates = (float(f"{number:.{digits}g}") for digits in range(1, 10))
    return next((short for short in candidates if struct.pack("<f", short) == same), number)
