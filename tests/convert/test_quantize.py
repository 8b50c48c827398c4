"""From a checkpoint to a GGUF file: names, types and values of text models, in bounded memory."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch

from lluda.config.model import ModelConfig
from lluda.convert.quantize import TypeChoice, component_names
from lluda.convert.quantize_model import quantize_model
from lluda.convert.synth import synthesize
from lluda.errors import CorruptFile, InvalidRequest, UnsupportedModel
from lluda.models.build import all_parameters
from lluda.models.causal_lm import causal_lm_parameters
from lluda.weights.checkpoint import open_checkpoint, read_config, read_generation_config
from lluda.weights.entry import TensorEntry
from lluda.weights.gguf.omni_layout import omni_entries, omni_name, stored_shape
from tests.conftest import TINY_LLAMA, TINY_MIXED, TINY_MOE, TINY_QWEN3
from tests.weights.test_gguf import keys_of, normal, shapes_of, write

MOE = TINY_MOE | {"moe_intermediate_size": 64}
Q8_0 = gguf.GGMLQuantizationType.Q8_0


def checkpoint(folder: Path, raw: dict[str, Any], **options: Any) -> Path:
    synthesize(causal_lm_parameters(ModelConfig.from_hf(raw).text), folder, config=raw, **options)
    return folder


def change(folder: Path, name: str, edit) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    edit(tensors[name])
    save_file(tensors, folder / "model.safetensors")


def by_the_package(values: torch.Tensor) -> np.ndarray:
    stored = gguf.quants.quantize(values.float().numpy(), Q8_0)
    return gguf.quants.dequantize(stored, Q8_0)


@pytest.mark.parametrize("raw", [TINY_QWEN3, MOE], ids=["dense", "moe"])
@pytest.mark.parametrize("dtype", ["BF16", "F32"])
def test_every_matrix_is_the_packages(tmp_path: Path, raw: dict[str, Any], dtype: str) -> None:
    source = checkpoint(tmp_path / "m", raw, dtype=dtype)
    report = quantize_model(source, tmp_path / "q.gguf", TypeChoice("q8_0"))
    original, written = open_checkpoint(source), open_checkpoint(tmp_path / "q.gguf")
    assert original.entries.keys() == written.entries.keys()
    assert not report.not_quantized
    for name, entry in written.entries.items():
        values = original.tensor(name)
        vector = len(entry.shape) == 1 or name.endswith("mlp.gate.weight")
        assert entry.dtype == ("F32" if vector else "Q8_0"), name
        assert entry.shape == original.entries[name].shape
        expected = values.float() if vector else torch.from_numpy(by_the_package(values))
        assert torch.equal(written.tensor(name), expected), name
    assert read_config(tmp_path / "q.gguf")["torch_dtype"] == "bfloat16"


@pytest.mark.parametrize("raw", [TINY_QWEN3, MOE], ids=["dense", "moe"])
def test_bf16_files_hold_the_same_bits(tmp_path: Path, raw: dict[str, Any]) -> None:
    source = checkpoint(tmp_path / "m", raw)
    quantize_model(source, tmp_path / "q.gguf", TypeChoice("bf16"))
    original, written = open_checkpoint(source), open_checkpoint(tmp_path / "q.gguf")
    for name in original.entries:
        assert torch.equal(original.tensor(name).float(), written.tensor(name).float()), name


def test_the_config_comes_back(tmp_path: Path) -> None:
    source = checkpoint(tmp_path / "m", MOE)
    (source / "generation_config.json").write_text('{"temperature": 0.6, "eos_token_id": [1, 5]}')
    quantize_model(source, tmp_path / "q.gguf", TypeChoice("q8_0"))
    ours, theirs = (ModelConfig.from_hf(read_config(path)) for path in (tmp_path / "q.gguf", source))
    assert ours.text == theirs.text
    assert read_generation_config(tmp_path / "q.gguf") == {"temperature": 0.6, "eos_token_id": [1, 5]}


def test_several_ends_of_text_survive(tmp_path: Path) -> None:
    source = checkpoint(tmp_path / "m", TINY_QWEN3 | {"eos_token_id": [3, 1]})
    quantize_model(source, tmp_path / "q.gguf", TypeChoice("q8_0"))
    assert read_generation_config(tmp_path / "q.gguf")["eos_token_id"] == [3, 1]


def test_the_gguf_package_reads_the_file(tmp_path: Path) -> None:
    source = checkpoint(tmp_path / "m", MOE)
    quantize_model(source, tmp_path / "q.gguf", TypeChoice("q8_0"))
    reader = gguf.GGUFReader(tmp_path / "q.gguf")
    assert reader.fields["general.architecture"].contents() == "qwen3moe"
    assert reader.fields["general.file_type"].contents() == gguf.LlamaFileType.MOSTLY_Q8_0
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    experts = tensors["blk.1.ffn_up_exps.weight"]
    assert (experts.tensor_type, experts.shape.tolist()) == (Q8_0, [64, 64, 8])
    fifth = open_checkpoint(source).tensor("model.layers.1.mlp.experts.5.up_proj.weight")
    assert np.array_equal(gguf.quants.dequantize(experts.data, Q8_0)[5], by_the_package(fifth))


def test_components_and_parts_have_types_of_their_own(tmp_path: Path) -> None:
    source = checkpoint(tmp_path / "m", MOE)
    choice = TypeChoice("bf16", {"text": "q8_0", "text/embed_tokens": "bf16", "text/experts": "bf16"})
    quantize_model(source, tmp_path / "q.gguf", choice)
    types = {name: entry.dtype for name, entry in open_checkpoint(tmp_path / "q.gguf").entries.items()}
    assert types["model.embed_tokens.weight"] == "BF16"
    assert types["lm_head.weight"] == types["model.layers.0.self_attn.q_proj.weight"] == "Q8_0"
    assert types["model.layers.0.mlp.experts.3.up_proj.weight"] == "BF16"


def test_an_unknown_component_is_told_with_the_known(tmp_path: Path) -> None:
    source = checkpoint(tmp_path / "m", TINY_QWEN3)
    with pytest.raises(InvalidRequest, match="'talker' is not in this model; it has text, text/attention"):
        quantize_model(source, tmp_path / "q.gguf", TypeChoice("q8_0", {"talker": "bf16"}))
    with pytest.raises(InvalidRequest, match="'q4' is not one of"):
        TypeChoice("q4")


def test_component_names() -> None:
    assert component_names("talker.code_predictor.lm_head.3.weight") == ("code_predictor", "code_predictor/lm_head")
    assert component_names("thinker.model.layers.0.mlp.experts.7.up_proj.weight") == ("thinker", "thinker/experts")
    assert component_names("thinker.visual.blocks.0.attn.qkv.weight") == ("vision_encoder", "vision_encoder/attention")


def test_split_sets_hold_the_same_values(tmp_path: Path) -> None:
    source = checkpoint(tmp_path / "m", MOE)
    whole = quantize_model(source, tmp_path / "q.gguf", TypeChoice("q8_0")).files
    parts = quantize_model(source, tmp_path / "s.gguf", TypeChoice("q8_0"), split_bytes=100_000).files
    assert len(parts) > 2
    one, set_of_parts = open_checkpoint(whole[0]), open_checkpoint(parts[0])
    assert one.entries.keys() == set_of_parts.entries.keys()
    for name in one.entries:
        assert torch.equal(one.tensor(name), set_of_parts.tensor(name)), name


@pytest.mark.parametrize("architecture", ["llama", "qwen3", "qwen3moe"])
def test_a_gguf_source_keeps_its_names_keys_and_row_order(tmp_path: Path, architecture: str) -> None:
    """llama's query rows lie interleaved in a file; they must lie so again."""
    tensors = {name: normal(*shape) for name, shape in shapes_of(architecture).items()}
    keys = keys_of(architecture) | {"own.flag": True, "own.words": ["a", "b"], "own.scores": [0.5, 2.0]}
    source = write(tmp_path / "m.gguf", architecture, keys, tensors)
    quantize_model(source, tmp_path / "q.gguf", TypeChoice("q8_0"))
    quantize_model(tmp_path / "q.gguf", tmp_path / "b.gguf", TypeChoice("bf16"))
    quantize_model(tmp_path / "q.gguf", tmp_path / "again.gguf", TypeChoice("q8_0"))
    assert (tmp_path / "q.gguf").read_bytes() == (tmp_path / "again.gguf").read_bytes()
    before, after, plain = (gguf.GGUFReader(tmp_path / f"{name}.gguf") for name in "mqb")
    assert [one.name for one in before.tensors] == [one.name for one in after.tensors]
    values = {one.name: one for one in before.tensors}
    for one, other in zip(after.tensors, plain.tensors, strict=True):
        original = values[one.name]
        if len(one.shape) == 1 or "ffn_gate_inp" in one.name:
            assert np.array_equal(one.data, original.data)
        else:
            assert np.array_equal(one.data, gguf.quants.quantize(np.asarray(original.data), Q8_0)), one.name
            decoded = torch.from_numpy(gguf.quants.dequantize(one.data, Q8_0)).bfloat16()
            assert np.array_equal(np.asarray(other.data).view(np.uint16), decoded.view(torch.uint16).numpy())
    expected_keys = {key for key in before.fields if not key.startswith("GGUF.") and key != "general.file_type"}
    assert expected_keys <= set(after.fields)
    for key in expected_keys - {"general.quantization_version"}:
        assert before.fields[key].types == after.fields[key].types
        assert before.fields[key].contents() == after.fields[key].contents()


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (TINY_LLAMA, "model type llama"),
        (TINY_MIXED, "mixed"),
        (TINY_QWEN3 | {"use_qk_norm": False}, "qk-norm"),
        (TINY_MOE | {"norm_topk_prob": False}, "sum to one"),
    ],
)
def test_what_llama_cpp_lacks_is_refused(tmp_path: Path, raw: dict[str, Any], reason: str) -> None:
    source = checkpoint(tmp_path / "m", raw)
    with pytest.raises(UnsupportedModel, match=reason):
        quantize_model(source, tmp_path / "q.gguf", TypeChoice("q8_0"))
    assert not (tmp_path / "q.gguf").exists()


def test_a16_rows_that_are_no_whole_blocks_stay_exact(tmp_path: Path) -> None:
    for dtype, raw in (("BF16", TINY_MOE), ("F32", TINY_MOE), ("F16", TINY_MOE)):
        source = checkpoint(tmp_path / dtype, raw, dtype=dtype)
        report = quantize_model(source, tmp_path / f"{dtype}.gguf", TypeChoice("q8_0"))
        name = "model.layers.0.mlp.experts.2.down_proj.weight"  # rows of 48
        written = open_checkpoint(tmp_path / f"{dtype}.gguf")
        assert written.entries[name].dtype == dtype
        assert torch.equal(written.tensor(name), open_checkpoint(source).tensor(name))
        assert report.not_quantized["blk.0.ffn_down_exps.weight"] == "its rows of 48 are no multiple of 32"


@pytest.mark.parametrize("expert", [0, 6])
def test_a16_values_too_large_for_a_scale_stay_exact(tmp_path: Path, expert: int) -> None:
    source = checkpoint(tmp_path / "m", MOE)
    name = f"model.layers.1.mlp.experts.{expert}.up_proj.weight"
    change(source, name, lambda values: values[3].fill_(1e7))
    report = quantize_model(source, tmp_path / "q.gguf", TypeChoice("q8_0"))
    written, original = open_checkpoint(tmp_path / "q.gguf"), open_checkpoint(source)
    assert report.not_quantized == {"blk.1.ffn_up_exps.weight": "its values are too large for the scales of Q8_0"}
    for one in range(8):
        same = f"model.layers.1.mlp.experts.{one}.up_proj.weight"
        assert written.entries[same].dtype == "BF16"
        assert torch.equal(written.tensor(same), original.tensor(same))
    other = "model.layers.2.mlp.experts.0.up_proj.weight"
    assert written.entries[other].dtype == "Q8_0"
    assert torch.equal(written.tensor(other), torch.from_numpy(by_the_package(original.tensor(other))))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a16_what_is_not_finite_is_refused_by_name(tmp_path: Path, value: float) -> None:
    source = checkpoint(tmp_path / "m", TINY_QWEN3)
    name = "model.layers.2.mlp.up_proj.weight"
    change(source, name, lambda values: values[90, 5].fill_(value))
    before = (source / "model.safetensors").read_bytes()
    with pytest.raises(CorruptFile, match=f"{name} holds NaN or infinity"):
        quantize_model(source, tmp_path / "q.gguf", TypeChoice("q8_0"))
    assert [path.name for path in tmp_path.iterdir()] == ["m"]
    assert (source / "model.safetensors").read_bytes() == before


def test_a16_a_block_of_zeros(tmp_path: Path) -> None:
    source = checkpoint(tmp_path / "m", TINY_QWEN3)
    name = "model.layers.0.mlp.up_proj.weight"
    change(source, name, lambda values: values[1, 32:].zero_())
    quantize_model(source, tmp_path / "q.gguf", TypeChoice("q8_0"))
    stored = open_checkpoint(tmp_path / "q.gguf").stored(name)
    assert not stored.data.view(stored.shape[0], -1)[1, 34:].any()


@pytest.mark.parametrize("shape", [(0, 64), (95, 64)])
def test_a16_a_tensor_of_another_shape(tmp_path: Path, shape: tuple[int, int]) -> None:
    from safetensors.torch import load_file, save_file

    source = checkpoint(tmp_path / "m", TINY_QWEN3)
    tensors = load_file(source / "model.safetensors")
    tensors["model.layers.0.mlp.up_proj.weight"] = torch.zeros(shape)
    save_file(tensors, source / "model.safetensors")
    with pytest.raises(CorruptFile, match=r"tensor model\.layers\.0\.mlp\.up_proj\.weight"):
        quantize_model(source, tmp_path / "q.gguf", TypeChoice("q8_0"))
    assert not (tmp_path / "q.gguf").exists()


def test_every_name_of_the_released_omni_model_fits_and_comes_back(released_config, tmp_path: Path) -> None:
    config = ModelConfig.from_hf(released_config("Qwen3-Omni-30B-A3B-Instruct"))
    stored: dict[str, list[TensorEntry]] = {}
    names = []
    for spec in all_parameters(config):
        names.append(spec.name)
        name, expert = omni_name(spec.name)
        assert expert in (None, len(stored.setdefault(name, [])))
        stored[name].append(TensorEntry(name, stored_shape(spec.shape), "BF16", 2 * spec.elements, tmp_path, 0))
    assert max(len(name) for name in stored) <= 63
    entries = {}
    for name, parts in stored.items():
        shape = parts[0].shape if "_exps" not in name else (len(parts), *parts[0].shape)
        entries[name] = replace(parts[0], shape=shape, nbytes=sum(part.nbytes for part in parts))
    assert sorted(omni_entries(entries, {}, tmp_path)) == sorted(names)
    assert len(names) == 28_010 and len(stored) == 2_102


MEASURE = """
import resource, sys
from pathlib import Path
from lluda.convert.quantize_model import quantize_model
from lluda.convert.quantize import TypeChoice
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
before = peak()
quantize_model(sys.argv[1], Path(sys.argv[2]), TypeChoice("q8_0"), threads=1)
print(peak() - before)
"""


def test_memory_is_bounded_by_one_tensor(tmp_path: Path) -> None:
    """120 MB of weights, 10 MB of them in the largest tensor; what is mapped counts too."""
    raw = MOE | {"hidden_size": 512, "vocab_size": 10_000, "moe_intermediate_size": 512, "num_experts": 16}
    source = checkpoint(tmp_path / "m", raw | {"num_hidden_layers": 4})
    size = (source / "model.safetensors").stat().st_size
    assert size > 110e6
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, source, tmp_path / "q.gguf"], capture_output=True, text=True, check=True
    )
    assert int(done.stdout) < 60e6, f"{int(done.stdout) / 1e6:.0f} MB for a model of {size / 1e6:.0f} MB"
