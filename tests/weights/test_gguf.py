"""The GGUF reader against the gguf package and transformers: names, values, configs, and that nothing is copied."""

from __future__ import annotations

import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, GGUFReader, GGUFWriter

from lluda.config.model import ModelConfig
from lluda.errors import CorruptFile, UnsupportedModel
from lluda.weights.gguf.checkpoint import GGUFCheckpoint
from lluda.weights.gguf.file import GGUFFile
from lluda.weights.gguf.header import STORAGE_TYPES, block_format
from lluda.weights.gguf.names import ARCHITECTURES, config_from_metadata, hugging_face_name

RANDOM = np.random.default_rng(7)
HIDDEN, FEED_FORWARD, HEADS, KV_HEADS, HEAD_DIM, EXPERTS, VOCABULARY = 64, 96, 4, 2, 32, 3, 10
PLAIN = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
LLAMA_HEAD_DIM = HIDDEN // HEADS

QWEN3_CONFIG: dict[str, Any] = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "hidden_size": HIDDEN,
    "num_hidden_layers": 1,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KV_HEADS,
    "head_dim": HEAD_DIM,
    "intermediate_size": FEED_FORWARD,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 1024,
    "rms_norm_eps": 1e-06,
    "rope_theta": 1000000.0,
    "rope_scaling": None,
    "hidden_act": "silu",
    "attention_bias": False,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "bos_token_id": 0,
    "eos_token_id": 1,
}
MOE_CONFIG = QWEN3_CONFIG | {
    "architectures": ["Qwen3MoeForCausalLM"],
    "model_type": "qwen3_moe",
    "tie_word_embeddings": False,
    "num_experts": EXPERTS,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "norm_topk_prob": True,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
}
LLAMA_CONFIG = QWEN3_CONFIG | {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "head_dim": LLAMA_HEAD_DIM,
}


def normal(*shape: int) -> np.ndarray:
    return RANDOM.standard_normal(shape).astype(np.float32)


def keys_of(architecture: str) -> dict[str, Any]:
    """Metadata as llama.cpp's converter writes it."""
    head_dim = LLAMA_HEAD_DIM if architecture == "llama" else HEAD_DIM
    keys = {
        "vocab_size": VOCABULARY,
        "block_count": 1,
        "context_length": 1024,
        "embedding_length": HIDDEN,
        "feed_forward_length": FEED_FORWARD,
        "attention.head_count": HEADS,
        "attention.head_count_kv": KV_HEADS,
        "attention.key_length": head_dim,
        "attention.value_length": head_dim,
        "attention.layer_norm_rms_epsilon": 1e-6,
        "rope.freq_base": 1e6,
    }
    if architecture == "qwen3moe":
        keys |= {"expert_count": EXPERTS, "expert_used_count": 2, "expert_feed_forward_length": 32}
    return {f"{architecture}.{key}": value for key, value in keys.items()} | {
        "tokenizer.ggml.bos_token_id": 0,
        "tokenizer.ggml.eos_token_id": 1,
    }


def shapes_of(architecture: str) -> dict[str, tuple[int, ...]]:
    head_dim = LLAMA_HEAD_DIM if architecture == "llama" else HEAD_DIM
    shapes: dict[str, tuple[int, ...]] = {
        "token_embd.weight": (VOCABULARY, HIDDEN),
        "blk.0.attn_norm.weight": (HIDDEN,),
        "blk.0.attn_q.weight": (HEADS * head_dim, HIDDEN),
        "blk.0.attn_k.weight": (KV_HEADS * head_dim, HIDDEN),
        "blk.0.attn_v.weight": (KV_HEADS * head_dim, HIDDEN),
        "blk.0.attn_output.weight": (HIDDEN, HEADS * head_dim),
        "blk.0.ffn_norm.weight": (HIDDEN,),
        "output_norm.weight": (HIDDEN,),
    }
    if architecture != "llama":
        shapes |= {"blk.0.attn_q_norm.weight": (HEAD_DIM,), "blk.0.attn_k_norm.weight": (HEAD_DIM,)}
    if architecture == "qwen3moe":
        return shapes | {
            "output.weight": (VOCABULARY, HIDDEN),
            "blk.0.ffn_gate_inp.weight": (EXPERTS, HIDDEN),
            "blk.0.ffn_gate_exps.weight": (EXPERTS, 32, HIDDEN),
            "blk.0.ffn_up_exps.weight": (EXPERTS, 32, HIDDEN),
            "blk.0.ffn_down_exps.weight": (EXPERTS, HIDDEN, 32),
        }
    return shapes | {
        "blk.0.ffn_gate.weight": (FEED_FORWARD, HIDDEN),
        "blk.0.ffn_up.weight": (FEED_FORWARD, HIDDEN),
        "blk.0.ffn_down.weight": (HIDDEN, FEED_FORWARD),
    }


def write(
    path: Path, architecture: str, keys: dict[str, Any], tensors: dict[str, np.ndarray], dtype: str = "F32"
) -> Path:
    """A file as gguf's writer makes it; matrices in ``dtype``, the rest in F32."""
    writer = GGUFWriter(path, architecture)
    for key, value in keys.items():
        add = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}
        add.get(type(value), writer.add_array)(key, value)
    for name, values in tensors.items():
        kind = GGMLQuantizationType[dtype] if values.ndim > 1 else GGMLQuantizationType.F32
        stored = values if kind.name == "F32" else gguf.quants.quantize(values, kind)
        writer.add_tensor(name, stored, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture
def model(tmp_path: Path) -> Callable[..., tuple[Path, dict[str, np.ndarray]]]:
    """Writes a one-layer model; ``keys`` change the metadata (None removes), ``tensors`` add to the tensors."""

    def make(
        architecture: str, dtype: str = "F32", keys: dict[str, Any] | None = None, **tensors: np.ndarray
    ) -> tuple[Path, dict[str, np.ndarray]]:
        chosen = {key: value for key, value in (keys_of(architecture) | (keys or {})).items() if value is not None}
        values = {name: normal(*shape) for name, shape in shapes_of(architecture).items()} | tensors
        return write(tmp_path / f"{architecture}.gguf", architecture, chosen, values, dtype), values

    return make


def same_bits(one: torch.Tensor, other: np.ndarray) -> bool:
    """Equal in shape and bits, any NaN standing for any other."""
    mine = one.numpy()
    return mine.shape == other.shape and bool(
        np.all((mine.view(np.uint32) == other.view(np.uint32)) | (np.isnan(mine) & np.isnan(other)))
    )


# --- one file ---


def test_metadata_equals_the_writers(tmp_path: Path) -> None:
    strings = ["", "a", "é", "<|im_end|>", "\n"]
    writer = GGUFWriter(tmp_path / "keys.gguf", "qwen3")
    scalars = {"uint8": 255, "int8": -128, "uint16": 65535, "int16": -5, "uint32": 2**32 - 1, "int32": -(2**31)}
    scalars |= {"uint64": 2**64 - 1, "int64": -(2**63), "float64": 0.1, "bool": True, "string": "two\nlines"}
    for kind, value in scalars.items():
        getattr(writer, f"add_{kind}")(f"k.{kind}", value)
    writer.add_float32("k.float32", 1e-6)
    writer.add_array("k.strings", strings)
    writer.add_array("k.ints", [1, -2, 3])
    writer.add_array("k.floats", [0.5, float("inf")])
    writer.add_array("k.bools", [True, False])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    with GGUFFile(tmp_path / "keys.gguf") as opened:
        found = dict(opened.metadata)
    assert found.pop("general.architecture") == "qwen3"
    assert found.pop("k.strings") == strings
    for key, values, dtype in (
        ("k.ints", [1, -2, 3], np.int32),
        ("k.floats", [0.5, float("inf")], np.float32),
        ("k.bools", [True, False], np.bool_),
    ):
        array = found.pop(key)
        assert array.dtype == dtype
        assert array.tolist() == values
    assert found.pop("k.float32") == struct.unpack("<f", struct.pack("<f", 1e-6))[0]
    assert found == {f"k.{kind}": value for kind, value in scalars.items()}
    assert {type(value) for value in found.values()} == {int, float, bool, str}


def test_storage_types_equal_the_packages() -> None:
    theirs = {kind.value: (kind.name, *sizes) for kind, sizes in gguf.GGML_QUANT_SIZES.items()}
    formats = {number: block_format(name) for number, name in STORAGE_TYPES.items()}
    ours = {number: (one.name, one.block, one.block_bytes) for number, one in formats.items()}
    assert {number: theirs[number] for number in STORAGE_TYPES} == ours
    assert {theirs[number][0] for number in theirs.keys() - STORAGE_TYPES.keys()} == {"Q8_1", "Q8_K"}


@pytest.mark.parametrize("dtype", [name for name in STORAGE_TYPES.values() if not block_format(name).is_plain])
def test_block_formats_equal_the_packages(tmp_path: Path, dtype: str) -> None:
    """Random bytes in every block format: the same bits as gguf's own decoding, or refused by name."""
    kind = GGMLQuantizationType[dtype]
    block, block_bytes = gguf.GGML_QUANT_SIZES[kind]
    stored = RANDOM.integers(0, 256, (3, 2, 2 * block_bytes), dtype=np.uint8)
    writer = GGUFWriter(tmp_path / "blocks.gguf", "any")
    writer.add_tensor("t", stored, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with GGUFFile(tmp_path / "blocks.gguf") as opened:
        entry = opened.entries["t"]
        assert (entry.dtype, entry.shape, entry.nbytes) == (dtype, (3, 2, 2 * block), stored.nbytes)
        assert np.array_equal(opened.stored("t").data.numpy(), stored.reshape(-1))
        assert opened.stored("t").is_read_by(opened.stored("t").data)  # both views of the map
        try:
            with np.errstate(all="ignore"):
                expected = gguf.quants.dequantize(stored, kind)
        except NotImplementedError:
            with pytest.raises(UnsupportedModel, match=f"'t' is stored as {dtype}, which neither"):
                opened.tensor("t")
            return
        values = opened.tensor("t")
    assert values.dtype == torch.float32
    assert same_bits(values, expected)


@pytest.mark.parametrize("dtype", PLAIN)
def test_plain_types_are_views(tmp_path: Path, dtype: str) -> None:
    values = normal(3, 5)
    path = write(tmp_path / "plain.gguf", "any", {}, {"a": normal(2, 4), "t": values}, dtype)
    opened = GGUFFile(path)
    first, second = opened.tensor("t"), opened.tensor("t")
    assert first.dtype == PLAIN[dtype]
    assert torch.equal(first, torch.from_numpy(values).to(PLAIN[dtype]))
    assert first.data_ptr() == second.data_ptr() == opened.stored("t").data.data_ptr()
    opened.close()
    opened.close()
    del opened
    assert torch.equal(first, second)  # the map outlives the file
    before = path.read_bytes()
    first.zero_()
    assert path.read_bytes() == before


@pytest.mark.parametrize("dtype", PLAIN)
def test_unaligned_tensors_are_copied(tmp_path: Path, dtype: str) -> None:
    """With general.alignment 1 a tensor may begin at any byte."""
    values = normal(2, 3)
    source = write(tmp_path / "aligned.gguf", "any", {}, {"t": values}, dtype).read_bytes()
    key = struct.pack("<Q", 17) + b"general.alignment" + struct.pack("<II", 4, 1)
    entry = GGUFFile(tmp_path / "aligned.gguf").entries["t"]
    head = source[:16] + struct.pack("<Q", 2) + key + source[24 : entry.offset].rstrip(b"\0")
    info = struct.pack("<IQQIQ", 2, 3, 2, GGMLQuantizationType[dtype].value, 0)
    head = head[: head.index(struct.pack("<Q", 1) + b"t")] + struct.pack("<Q", 1) + b"t" + info
    data = source[entry.offset : entry.offset + entry.nbytes]
    for pad in range(4):
        name = struct.pack("<Q", 1 + pad) + b"t" * (1 + pad)
        shifted = head.replace(struct.pack("<Q", 1) + b"t" + info, name + info)
        path = tmp_path / f"shifted{pad}.gguf"
        path.write_bytes(shifted + data)
        with GGUFFile(path) as opened:
            assert torch.equal(opened.tensor("t" * (1 + pad)), torch.from_numpy(values).to(PLAIN[dtype]))


def test_large_string_arrays(tmp_path: Path) -> None:
    words = [f"token {index}" for index in range(150_000)]
    body = b"".join(struct.pack("<Q", len(word)) + word.encode() for word in words)
    head = b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 1) + b"k" + struct.pack("<IIQ", 9, 8, len(words))
    (tmp_path / "words.gguf").write_bytes(head + body)
    assert GGUFFile(tmp_path / "words.gguf").metadata["k"] == words


# --- a checkpoint ---


@pytest.mark.parametrize(
    ("architecture", "config"), [("llama", LLAMA_CONFIG), ("qwen3", QWEN3_CONFIG), ("qwen3moe", MOE_CONFIG)]
)
def test_config(model: Callable[..., Any], architecture: str, config: dict[str, Any]) -> None:
    path, _ = model(architecture, "BF16")
    with GGUFCheckpoint(path) as checkpoint:
        assert checkpoint.config == config
        read = ModelConfig.from_hf(checkpoint.config, str(path))
    assert read.text.head_dim == config["head_dim"]
    assert read.eos_token_ids == (1,)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_loader_finds_every_parameter(model: Callable[..., Any], architecture: str) -> None:
    from lluda.models.causal_lm import causal_lm_parameters
    from lluda.weights.loader import load_tensors

    path, _ = model(architecture, "Q8_0")
    with GGUFCheckpoint(path) as checkpoint:
        specs = causal_lm_parameters(ModelConfig.from_hf(checkpoint.config, str(path)).text)
        _, report = load_tensors(checkpoint, specs, take=lambda _, stored: (stored, True), check="fail")
    assert report.loaded + len(report.tied) == len(specs)
    assert report.unexpected == ()
    assert report.tied == (() if architecture == "qwen3moe" else ("lm_head.weight",))


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16", "Q8_0", "Q4_1"])
def test_experts_are_slices(model: Callable[..., Any], dtype: str) -> None:
    path, values = model("qwen3moe", dtype)
    with GGUFCheckpoint(path) as checkpoint, GGUFFile(path) as whole:
        for part in ("gate", "up", "down"):
            stored = f"blk.0.ffn_{part}_exps.weight"
            names = [f"model.layers.0.mlp.experts.{expert}.{part}_proj.weight" for expert in range(EXPERTS)]
            experts = [checkpoint.tensor(name) for name in names]
            assert torch.equal(torch.stack(experts), whole.tensor(stored))
            assert np.allclose(torch.stack(experts).float(), values[stored], atol=0.6 if dtype == "Q4_1" else 0.05)
            assert torch.equal(torch.cat([checkpoint.stored(name).data for name in names]), whole.stored(stored).data)
            entries = [checkpoint.entries[name] for name in names]
            assert {entry.dtype for entry in entries} == {dtype}
            assert sum(entry.nbytes for entry in entries) == whole.entries[stored].nbytes
            if dtype in PLAIN:
                step = experts[1].data_ptr() - experts[0].data_ptr()
                assert step == entries[1].offset - entries[0].offset == entries[0].nbytes
        assert stored not in checkpoint.entries


def interleave(weight: np.ndarray, heads: int) -> np.ndarray:
    """What the converter does to llama: in every head, row j of the first half goes to 2j, of the second to 2j+1."""
    stored = np.empty_like(weight)
    head_dim = len(weight) // heads
    for head in range(heads):
        for row in range(head_dim):
            target = 2 * row if row < head_dim // 2 else 2 * (row - head_dim // 2) + 1
            stored[head * head_dim + target] = weight[head * head_dim + row]
    return stored


@pytest.mark.parametrize("dtype", ["F32", "BF16", "Q8_0", "Q4_1"])
def test_llama_rotary_rows_are_put_back(model: Callable[..., Any], dtype: str) -> None:
    parts = {"q": HEADS, "k": KV_HEADS}
    weights = {part: normal(heads * LLAMA_HEAD_DIM, HIDDEN) for part, heads in parts.items()}
    biases = {part: normal(heads * LLAMA_HEAD_DIM) for part, heads in parts.items()}
    stored = {f"blk.0.attn_{part}.weight": interleave(weights[part], heads) for part, heads in parts.items()}
    stored |= {f"blk.0.attn_{part}.bias": interleave(biases[part], heads) for part, heads in parts.items()}
    path, _ = model("llama", dtype, **stored)
    kind = GGMLQuantizationType[dtype]
    with GGUFCheckpoint(path) as checkpoint:
        assert checkpoint.config["attention_bias"] is True
        for part in parts:
            name = f"model.layers.0.self_attn.{part}_proj"
            raw = gguf.quants.quantize(weights[part], kind)
            expected = torch.from_numpy(gguf.quants.dequantize(raw, kind))
            assert torch.equal(checkpoint.tensor(f"{name}.weight").float(), expected)
            assert checkpoint.stored(f"{name}.weight").data.numpy().tobytes() == raw.tobytes()
            assert torch.equal(checkpoint.tensor(f"{name}.bias"), torch.from_numpy(biases[part]))


def test_qwen3_rows_stay(model: Callable[..., Any]) -> None:
    path, values = model("qwen3")
    with GGUFCheckpoint(path) as checkpoint:
        stored = torch.from_numpy(values["blk.0.attn_q.weight"])
        assert torch.equal(checkpoint.tensor("model.layers.0.self_attn.q_proj.weight"), stored)


def test_tied_or_not(model: Callable[..., Any]) -> None:
    with GGUFCheckpoint(model("qwen3")[0]) as tied:
        assert tied.config["tie_word_embeddings"] is True
        assert "lm_head.weight" not in tied.entries
    head = normal(VOCABULARY, HIDDEN)
    with GGUFCheckpoint(model("qwen3", **{"output.weight": head})[0]) as untied:
        assert untied.config["tie_word_embeddings"] is False
        assert torch.equal(untied.tensor("lm_head.weight"), torch.from_numpy(head))


@pytest.mark.parametrize(
    ("dtype", "expected"), [("BF16", "bfloat16"), ("F16", "float16"), ("F32", "float32"), ("Q8_0", "bfloat16")]
)
def test_torch_dtype(model: Callable[..., Any], dtype: str, expected: str) -> None:
    with GGUFCheckpoint(model("qwen3", dtype)[0]) as checkpoint:
        assert checkpoint.config["torch_dtype"] == expected


@pytest.mark.parametrize(
    ("key", "value", "field", "expected"),
    [
        ("attention.layer_norm_rms_epsilon", 1e-5, "rms_norm_eps", 1e-05),
        ("attention.layer_norm_rms_epsilon", 9.5367431640625e-07, "rms_norm_eps", 9.536743e-07),
        ("rope.freq_base", 5e6, "rope_theta", 5000000.0),
        ("rope.freq_base", 12345.678, "rope_theta", 12345.678),
        ("rope.freq_base", None, "rope_theta", 10000.0),
        ("attention.head_count_kv", None, "num_key_value_heads", HEADS),
        ("attention.key_length", None, "head_dim", LLAMA_HEAD_DIM),
        ("rope.scaling.type", "none", "rope_scaling", None),
        ("rope.scaling.factor", 1.0, "rope_scaling", None),
    ],
)
def test_config_values(model: Callable[..., Any], key: str, value: Any, field: str, expected: Any) -> None:
    with GGUFCheckpoint(model("llama", keys={f"llama.{key}": value})[0]) as checkpoint:
        assert checkpoint.config[field] == expected


def test_config_vocabulary_and_ends(model: Callable[..., Any]) -> None:
    keys = {
        "qwen3.vocab_size": None,
        "tokenizer.ggml.tokens": ["a", "b", "c"],
        "tokenizer.ggml.eot_token_id": 2,
        "tokenizer.ggml.eom_token_id": 1,
        "tokenizer.ggml.bos_token_id": None,
    }
    with GGUFCheckpoint(model("qwen3", keys=keys)[0]) as checkpoint:
        assert checkpoint.config["vocab_size"] == 3
        assert checkpoint.config["eos_token_id"] == [1, 2]
        assert "bos_token_id" not in checkpoint.config


@pytest.mark.parametrize(
    "key",
    [
        "block_count",
        "context_length",
        "embedding_length",
        "feed_forward_length",
        "attention.head_count",
        "attention.layer_norm_rms_epsilon",
        "rope.freq_base",
        "vocab_size",
        "expert_count",
        "expert_used_count",
        "expert_feed_forward_length",
    ],
)
def test_missing_keys_are_named(model: Callable[..., Any], key: str) -> None:
    path, _ = model("qwen3moe", keys={f"qwen3moe.{key}": None})
    with pytest.raises(CorruptFile, match=rf"^{path}: qwen3moe\.{key} is missing"):
        GGUFCheckpoint(path)


@pytest.mark.parametrize(
    ("keys", "rule"),
    [
        ({"llama.rope.scaling.type": "longrope"}, "RoPE scaling type 'longrope' is not supported"),
        ({"llama.rope.scaling.type": "yarn", "llama.rope.scaling.yarn_ext_factor": 0.5}, "yarn_ext_factor 0.5"),
        ({"llama.rope.scaling.type": "yarn", "llama.rope.scaling.yarn_log_multiplier": 0.1}, "yarn_log_multiplier 0.1"),
        ({"llama.rope.scaling.factor": 4.0}, "RoPE scaling type 'linear' is not supported"),
        ({"llama.rope.scale_linear": 2.0}, "RoPE scaling type 'linear' is not supported"),
        ({"llama.rope.dimension_count": 8}, "rope.dimension_count 8 is not supported"),
        ({"llama.attention.value_length": 8}, "attention.value_length 8 is not supported"),
        ({"llama.attention.head_count": [4, 4]}, "attention.head_count is an array"),
        ({"llama.expert_count": 8}, "llama with 8 experts is not supported"),
        ({"general.type": "adapter"}, "GGUF file of type 'adapter' is not supported"),
    ],
)
def test_unsupported_features_are_named(model: Callable[..., Any], keys: dict[str, Any], rule: str) -> None:
    path, _ = model("llama", keys=keys)
    with pytest.raises(UnsupportedModel) as caught:
        GGUFCheckpoint(path)
    assert rule in str(caught.value)


def test_expert_gating_other_than_softmax(model: Callable[..., Any]) -> None:
    with pytest.raises(UnsupportedModel, match="expert_gating_func 2 is not supported"):
        GGUFCheckpoint(model("qwen3moe", keys={"qwen3moe.expert_gating_func": 2})[0])


def test_unknown_keys_reach_the_config_reader(model: Callable[..., Any]) -> None:
    path, _ = model("llama", keys={"llama.attention.scale": 0.5})
    with GGUFCheckpoint(path) as checkpoint:
        with pytest.raises(UnsupportedModel, match=r"unknown keys that may change the maths: llama\.attention\.scale"):
            ModelConfig.from_hf(checkpoint.config, str(path))
        ModelConfig.from_hf(checkpoint.config, str(path), allow_unknown=True)


def test_architectures() -> None:
    with pytest.raises(UnsupportedModel, match="'gpt2' is not supported; supported: llama, qwen3, qwen3moe"):
        config_from_metadata({"general.architecture": "gpt2"}, Path("x.gguf"), tensors={})
    with pytest.raises(CorruptFile, match=r"general\.architecture is missing"):
        config_from_metadata({}, Path("x.gguf"), tensors={})


@pytest.mark.parametrize(
    "name",
    [
        "blk.0.attn_q.scale",
        "blk.00.attn_q.weight",
        "blk.x.attn_q.weight",
        "rope_freqs",
        "x.weight",
        "blk.0.output.weight",
    ],
)
def test_names_without_a_module(name: str) -> None:
    assert hugging_face_name(name) is None


def test_unknown_tensors_keep_their_names(model: Callable[..., Any]) -> None:
    with GGUFCheckpoint(model("qwen3", **{"blk.0.attn_sinks.weight": normal(4)})[0]) as checkpoint:
        assert "blk.0.attn_sinks.weight" in checkpoint.entries


def test_two_tensors_of_one_name(model: Callable[..., Any]) -> None:
    path, _ = model("qwen3", **{"model.norm.weight": normal(HIDDEN)})
    with pytest.raises(CorruptFile, match=r"two tensors are named 'model\.norm\.weight'"):
        GGUFCheckpoint(path)


@pytest.mark.parametrize("shape", [(EXPERTS + 1, 32, HIDDEN), (EXPERTS * 32, HIDDEN)])
def test_expert_tensors_must_fit_the_config(model: Callable[..., Any], shape: tuple[int, ...]) -> None:
    path, _ = model("qwen3moe", **{"blk.0.ffn_up_exps.weight": normal(*shape)})
    with pytest.raises(CorruptFile, match="the first of them the 3 experts"):
        GGUFCheckpoint(path)


def test_rows_that_do_not_fit_the_heads(model: Callable[..., Any]) -> None:
    path, _ = model("llama", **{"blk.0.attn_q.weight": normal(HEADS * 3, HIDDEN)})
    with GGUFCheckpoint(path) as checkpoint, pytest.raises(CorruptFile, match="multiple of twice the heads, 4"):
        checkpoint.tensor("model.layers.0.self_attn.q_proj.weight")


def test_rope_frequencies(model: Callable[..., Any]) -> None:
    with GGUFCheckpoint(model("llama", **{"rope_freqs.weight": np.ones(8, dtype=np.float32)})[0]) as checkpoint:
        assert "rope_freqs.weight" not in checkpoint.entries
    factors = np.array([1.0, 1.0, 8.0, 8.0], dtype=np.float32)
    with pytest.raises(UnsupportedModel, match=r"rope_freqs\.weight scales the rotary frequencies"):
        GGUFCheckpoint(model("llama", **{"rope_freqs.weight": factors})[0])


def test_unknown_name_is_a_key_error(model: Callable[..., Any]) -> None:
    with GGUFCheckpoint(model("qwen3")[0]) as checkpoint:
        for read in (checkpoint.tensor, checkpoint.stored):
            with pytest.raises(KeyError, match="nothing"):
                read("nothing")


# --- a real model ---


def test_smollm2_equals_the_gguf_package(smollm2: Path) -> None:
    theirs = GGUFReader(smollm2)
    with GGUFFile(smollm2) as opened:
        fields = {key: field.contents() for key, field in theirs.fields.items() if not key.startswith("GGUF.")}
        assert opened.metadata.keys() == fields.keys()
        for key, value in opened.metadata.items():
            assert (value.tolist() if isinstance(value, np.ndarray) else value) == fields[key], key
        assert list(opened.entries) == [tensor.name for tensor in theirs.tensors]
        for tensor in theirs.tensors:
            entry = opened.entries[tensor.name]
            assert (entry.dtype, entry.offset, entry.nbytes) == (
                tensor.tensor_type.name,
                tensor.data_offset,
                tensor.n_bytes,
            )
            assert same_bits(opened.tensor(tensor.name), gguf.quants.dequantize(tensor.data, tensor.tensor_type))


def test_smollm2_opens_without_torch(smollm2: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from lluda.weights.gguf.checkpoint import GGUFCheckpoint;"
        f"checkpoint = GGUFCheckpoint(Path({str(smollm2)!r})); print(len(checkpoint.entries), 'torch' in sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert run.stdout.split() == ["272", "False"]


@pytest.mark.slow
def test_smollm2_equals_transformers(smollm2: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="it is in the extra 'validate'")
    reference = transformers.AutoModelForCausalLM.from_pretrained(
        smollm2.parent, gguf_file=smollm2.name, dtype=torch.float32
    )
    expected = reference.state_dict()
    assert torch.equal(expected.pop("lm_head.weight"), expected["model.embed_tokens.weight"])
    with GGUFCheckpoint(smollm2) as checkpoint:
        assert checkpoint.entries.keys() == expected.keys()
        for name, values in expected.items():
            assert checkpoint.entries[name].shape == tuple(values.shape)
            assert torch.equal(checkpoint.tensor(name), values), name
        for key, value in checkpoint.config.items():
            if key in (
                "hidden_size",
                "num_hidden_layers",
                "num_attention_heads",
                "num_key_value_heads",
                "head_dim",
                "intermediate_size",
                "vocab_size",
                "max_position_embeddings",
                "tie_word_embeddings",
                "bos_token_id",
                "eos_token_id",
                "attention_bias",
                "hidden_act",
                "model_type",
            ):
                assert value == getattr(reference.config, key), key
        assert checkpoint.config["rope_theta"] == reference.config.rope_parameters["rope_theta"]
        assert checkpoint.config["rms_norm_eps"] == pytest.approx(reference.config.rms_norm_eps, rel=1e-7)


def test_blocks_that_no_kernel_reads_are_decoded_counted_and_told(model: Callable[..., Any]) -> None:
    from lluda.engine.loading.load_options import LoadOptions
    from lluda.engine.loading.loading import load_network
    from lluda.engine.loading.model_files import ModelFiles

    path, _ = model("qwen3", "Q4_1")
    network, report = load_network(ModelFiles.find(path), LoadOptions(backend="reference", dtype="bf16"))
    with GGUFCheckpoint(path) as checkpoint:
        count = sum(entry.dtype == "Q4_1" for entry in checkpoint.entries.values())
    assert report.decoded == network.backend.decoded == {"Q4_1": count} and count
    assert f"{count} decoded from Q4_1" in report.describe()
    assert f"{count} Q4_1 matrices decoded for want of a kernel" in network.backend.describe()
