from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file

from tests.cli.conftest import CONFIG, write_model

WIDTH = CONFIG["hidden_size"]
LAYERS = CONFIG["num_hidden_layers"]


def test_every_tensor_is_listed_as_the_file_has_it(lluda, model):
    printed = lluda("inspect", model, "--json")
    document = json.loads(printed.out)
    assert (printed.code, printed.err, document["path"]) == (0, "", str(model))
    stored = load_file(model / "model.safetensors")
    data = (model / "model.safetensors").read_bytes()
    assert {row["name"] for row in document["tensors"]} == stored.keys()
    for row in document["tensors"]:
        tensor = stored[row["name"]]
        assert (row["shape"], row["dtype"], row["bytes"]) == (list(tensor.shape), "BF16", tensor.nbytes)
        assert row["file"] == "model.safetensors"
        found = data[row["offset"] : row["offset"] + row["bytes"]]
        assert found == tensor.view(torch.uint8).numpy().tobytes()


def test_totals_by_component_add_up(lluda, model):
    document = json.loads(lluda("inspect", model, "--json", "--totals").out)
    assert document["tensors"] == []
    parts = {row["component"]: row for row in document["components"]}
    total = parts.pop("total")
    for key in ("tensors", "parameters", "bytes"):
        assert sum(part[key] for part in parts.values()) == total[key]
    assert total["bytes"] == 2 * total["parameters"]
    assert parts["text / embed_tokens"] == {
        "component": "text / embed_tokens",
        "tensors": 1,
        "parameters": CONFIG["vocab_size"] * WIDTH,
        "bytes": CONFIG["vocab_size"] * WIDTH * 2,
    }
    assert parts["text / norms"]["tensors"] == 2 * LAYERS + 1  # those of queries and keys are attention's


def test_the_table_has_one_line_a_tensor(lluda, model):
    lines = lluda("inspect", "-m", model, "--filter", "*.1.*norm.weight").out.splitlines()
    assert lines[0].split() == ["model.layers.1.input_layernorm.weight", "64", "BF16", "128", "model.safetensors"]
    names = {line.split()[0].split(".")[-2] for line in lines[:4]}
    assert names == {"input_layernorm", "q_norm", "k_norm", "post_attention_layernorm"}
    assert lines[4].split() == ["component", "tensors", "parameters", "bytes"]
    assert lines[-1].split() == ["total", "4", "192", "384"]


def test_shards_are_named(lluda, tmp_path):
    folder = write_model(tmp_path / "sharded", shard_bytes=100_000)
    rows = json.loads(lluda("inspect", folder, "--json").out)["tensors"]
    files = {path.name for path in folder.glob("model-*.safetensors")}
    assert len(files) > 1
    assert {row["file"] for row in rows} == files


def test_a_filter_that_matches_nothing_is_refused(lluda, model):
    printed = lluda("inspect", model, "--filter", "q_proj")
    assert (printed.code, printed.out) == (2, "")
    count = 11 * LAYERS + 2
    assert printed.err.startswith(f"lluda inspect: --filter 'q_proj' matches none of the {count} tensors; ")


def test_a_gguf_is_listed_under_the_names_the_models_use(lluda, smollm2):
    document = json.loads(lluda("inspect", smollm2, "--json").out)
    rows = {row["name"]: row for row in document["tensors"]}
    assert document["path"] == str(smollm2)
    assert rows["model.embed_tokens.weight"]["shape"] == [49152, 576]
    assert rows["model.layers.29.mlp.down_proj.weight"]["dtype"] == "Q4_1"
    assert {row["file"] for row in document["tensors"]} == {smollm2.name}
    assert document["components"][-1]["parameters"] == 134_515_008


def test_the_gpus_of_a_machine_are_listed(lluda, model):
    pytest.importorskip("wgpu", reason="wgpu-py is not installed")
    printed = lluda("inspect", "--device", "wgpu")
    assert printed.code == 0
    document = json.loads(lluda("inspect", "--device", "wgpu", "--json").out)
    for each in document["adapters"]:
        assert f"{each['device']} {each['name']} ({each['driver']}, {each['interface']}" in printed.out
        assert each["limits"]["max-storage-buffer-binding-size"] > 0
        assert each["read_bytes_per_second"] > 0 and each["recorder"] in ("native", "cffi")
        assert min(each["recording_seconds"], each["answer_seconds"]) > 0 <= each["launch_seconds"]
    assert document["adapters"] or "install a Vulkan driver" in printed.out
    refused = lluda("inspect", model, "--device", "wgpu")
    assert refused.code == 2 and "leave one of them out" in refused.err
