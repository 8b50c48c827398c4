"""The reference itself: what it shows, that its float64 is transformers' own, and that it is never quietly another
model."""

from __future__ import annotations

import json
import shutil
import sys

import pytest
import torch

from lluda.errors import LludaError, MissingDependency, UnsupportedModel
from lluda.evaluation.trace import continue_greedily, trace
from lluda.evaluation.transformers_components import text_decoder
from lluda.evaluation.transformers_loading import load_text_model, widened
from tests.evaluation.conftest import TINY, write_checkpoint

IDS = tuple(range(7, 37))


@pytest.mark.parametrize("raw", TINY.values(), ids=TINY)
def test_every_stage_is_seen_in_order_and_is_what_transformers_returns(raw, checkpoint):
    path = checkpoint(raw)
    seen = trace(text_decoder(path, "f32"), IDS, len(IDS))
    layers = [f"layers.{index}" for index in range(raw["num_hidden_layers"])]
    assert list(seen.stages) == ["embeddings", *layers, "norm", "logits"]
    with torch.no_grad():
        output = load_text_model(path, "f32")(torch.tensor([IDS]), output_hidden_states=True)
    assert torch.equal(seen.stages["logits"], output.logits[0])
    # transformers lists the embeddings, each layer's output but the last, and the final norm.
    for stage, hidden in zip(["embeddings", *layers[:-1], "norm"], output.hidden_states, strict=True):
        assert torch.equal(seen.stages[stage], hidden[0]), stage


@pytest.mark.parametrize("raw", TINY.values(), ids=TINY)
@pytest.mark.parametrize("rows", [1, 7])
def test_token_by_token_and_chunks_equal_one_prefill(raw, rows, checkpoint):
    reference = text_decoder(checkpoint(raw), "f64")
    whole, stepped = (trace(reference, IDS, n).stages for n in (len(IDS), rows))
    for stage in whole:
        torch.testing.assert_close(stepped[stage], whole[stage], rtol=1e-5, atol=1e-5, msg=stage)


@pytest.mark.parametrize("raw", TINY.values(), ids=TINY)
def test_widened_in_place_equals_loaded_in_float64(raw, checkpoint):
    loaded = trace(text_decoder(checkpoint(raw), "f64"), IDS, len(IDS))
    reference = text_decoder(checkpoint(raw), "bf16")
    before = trace(reference, IDS, len(IDS))
    with widened(reference.module):
        exact = trace(reference, IDS, len(IDS))
    for stage, rows in loaded.stages.items():
        assert exact.stages[stage].dtype == torch.float64
        assert torch.equal(exact.stages[stage], rows), stage
    after = trace(reference, IDS, len(IDS))
    assert all(torch.equal(rows, after.stages[stage]) for stage, rows in before.stages.items())
    assert {p.dtype for p in reference.module.parameters()} == {torch.bfloat16}


def test_frequencies_stay_float32_in_bf16(checkpoint):
    for dtype in ("bf16", "f64"):
        rotary = load_text_model(checkpoint(TINY["qwen3"]), dtype).model.rotary_emb
        assert rotary.inv_freq.dtype == torch.float32


def test_without_qk_norm_the_reference_has_none_and_misses_nothing(checkpoint):
    model = load_text_model(checkpoint(TINY["mixed"]), "f32")
    names = [name for name, _ in model.named_parameters()]
    assert not [name for name in names if "q_norm" in name or "k_norm" in name]
    kinds = [type(layer.mlp).__name__ for layer in model.model.layers]
    assert kinds == ["Qwen3MoeMLP", "Qwen3MoeSparseMoeBlock"] * 2


def test_greedy_tokens_are_those_of_generate(checkpoint):
    path = checkpoint(TINY["moe"])
    ours = continue_greedily(text_decoder(path, "f32"), IDS, 20)
    theirs = load_text_model(path, "f32").generate(
        torch.tensor([IDS]), do_sample=False, max_new_tokens=20, min_new_tokens=20, pad_token_id=0, eos_token_id=-1
    )
    assert list(ours.tokens) == theirs[0, len(IDS) :].tolist()
    assert all(margin > 0 for margin in ours.margins)


def test_a_tensor_transformers_would_invent_is_an_error(checkpoint, tmp_path):
    # The checkpoint has no q_norm; a config that hides this from the reference makes it draw random ones.
    folder = tmp_path / "model"
    shutil.copytree(checkpoint(TINY["mixed"]), folder)
    config = json.loads((folder / "config.json").read_text())
    del config["use_qk_norm"]
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(LludaError, match=r"missing keys: .*q_norm.* nothing to compare"):
        load_text_model(folder, "f32")


def test_left_over_tensors_are_an_error(tmp_path):
    pytest.importorskip("transformers")
    folder = write_checkpoint(tmp_path / "model", TINY["qwen3"] | {"num_hidden_layers": 4})
    config = json.loads((folder / "config.json").read_text()) | {"num_hidden_layers": 3}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(LludaError, match=r"unexpected keys: .*layers\.3"):
        load_text_model(folder, "f32")


def test_a_checkpoint_transformers_cannot_read_is_named(tmp_path):
    pytest.importorskip("transformers")
    (tmp_path / "config.json").write_text('{"model_type": "no-such-model"}')
    with pytest.raises(UnsupportedModel, match="transformers cannot load it"):
        load_text_model(tmp_path, "f32")


def test_without_transformers_the_message_says_how_to_get_it(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(MissingDependency, match=r"pip install 'lluda\[validate\]'"):
        load_text_model(tmp_path, "f32")


def test_loading_prints_nothing_and_leaves_the_settings(checkpoint, capfd):
    import transformers

    logging = transformers.utils.logging
    before = logging.get_verbosity(), logging.is_progress_bar_enabled()
    path = checkpoint(TINY["qwen3"])
    capfd.readouterr()
    load_text_model(path, "bf16")
    assert capfd.readouterr() == ("", "")
    assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == before
