"""Checkpoints as the installed transformers saves them: each supported type, experts apart and fused, tied and untied.

What lluda computes of the files is compared with the model that wrote them, in float32.
"""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import lluda
from lluda.backends.batch import Segment
from lluda.cli.main import main
from lluda.convert.pack_model import pack_model
from lluda.convert.quantize import TypeChoice
from lluda.convert.quantize_model import quantize_model
from lluda.engine.kv_cache import CacheOptions, KVCache
from lluda.engine.loading.load_options import LoadOptions
from lluda.engine.loading.loading import load_network, load_speech_stack
from lluda.engine.loading.model_files import ModelFiles
from lluda.engine.media import MediaReader
from lluda.errors import CorruptFile, UnsupportedModel
from lluda.evaluation.inputs import omni_input
from lluda.evaluation.ladder import validate
from lluda.evaluation.validation import ValidationRequest
from lluda.weights.checkpoint import open_checkpoint
from lluda.weights.entry import TensorEntry
from lluda.weights.saved_names import released_entries, require_listable
from tests.conftest import TINY_LLAMA, TINY_MOE, TINY_QWEN3
from tests.engine.speech.test_speech import CONVERSATIONS, assert_text_codes_and_waveform, reference, tensors
from tests.inputs.conftest import write_tiny
from tests.models.test_thinker import MIXES, assert_positions_and_logits

__all__ = ["reference", "tensors"]  # fixtures

transformers = pytest.importorskip("transformers", reason="transformers writes the checkpoints here")

FLOAT32 = LoadOptions(dtype="f32", backend="reference")
IDS = list(range(3, 20))
UNTIED, TIED = {"tie_word_embeddings": False}, {"tie_word_embeddings": True}
TEXT = {
    "qwen3 tied": ("Qwen3", TINY_QWEN3 | TIED),
    "qwen3 untied": ("Qwen3", TINY_QWEN3 | UNTIED),
    "llama tied": ("Llama", TINY_LLAMA | TIED),
    "llama untied": ("Llama", TINY_LLAMA | UNTIED),
    "qwen3_moe tied": ("Qwen3Moe", TINY_MOE | TIED),
    "qwen3_moe untied": ("Qwen3Moe", TINY_MOE | UNTIED),
    "qwen3_moe of dense and sparse layers": ("Qwen3Moe", TINY_MOE | {"decoder_sparse_step": 2}),
}
SPARSE = [name for name, (kind, _) in TEXT.items() if kind == "Qwen3Moe"]
LAYOUTS = {"original": True, "fused": False}


def text_model(name: str, dtype: torch.dtype = torch.float32) -> Any:
    """A model of transformers with weights large enough for its choices to have a margin."""
    kind, raw = TEXT[name]
    ours = ("model_type", "architectures", "torch_dtype")
    config = getattr(transformers, f"{kind}Config")(
        **{key: value for key, value in raw.items() if key not in ours}, initializer_range=0.2
    )
    torch.manual_seed(0)
    return getattr(transformers, f"{kind}ForCausalLM")(config).to(dtype).eval()


def save(model: Any, folder: Path, *, original: bool) -> Path:
    """The model and a tokenizer, all written by transformers."""
    model.save_pretrained(folder, save_original_format=original)
    source = folder / "source"
    source.mkdir()
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_file=str(write_tiny(source) / "tokenizer.json"))
    tokenizer.save_pretrained(folder)
    (source / "tokenizer.json").unlink()
    source.rmdir()
    return folder


@torch.inference_mode()
@pytest.mark.parametrize(("name", "layout"), [*((name, "original") for name in TEXT), *((n, "fused") for n in SPARSE)])
def test_logits_and_greedy_tokens_are_those_of_the_model_that_was_saved(tmp_path, name, layout):
    theirs = text_model(name)
    model = lluda.load(save(theirs, tmp_path, original=LAYOUTS[layout]), dtype="f32", backend="reference")
    cache = model.runner.new_cache()
    logits = model.network(torch.tensor(IDS), torch.arange(len(IDS)), [Segment(0, len(IDS), cache)], None)
    expected = theirs(torch.tensor([IDS])).logits[0]
    assert float((logits - expected).abs().max()) <= 1e-5 * float(expected.max() - expected.min())
    tokens = list(model.generate(IDS, temperature=0, max_tokens=24).token_ids)
    # Fed with what was chosen before, the model's own choice at each step is the one it would have made by itself.
    assert tokens == theirs(torch.tensor([[*IDS, *tokens[:-1]]])).logits[0, len(IDS) - 1 :].argmax(-1).tolist()
    assert len(set(tokens)) > 4, "an answer that says nothing of the weights"


def test_fused_experts_are_views_of_the_stored_tensor(tmp_path):
    """No copy: float32 values lie in the file's map, one stored tensor's experts one behind the other."""
    save(text_model("qwen3_moe untied"), tmp_path, original=False)
    network, report = load_network(ModelFiles.find(tmp_path), FLOAT32)
    assert report.converted == 0
    experts = network.decoder.layers.blocks[0][1].experts
    gate, up = experts[0].gate_proj.values, experts[0].up_proj.values
    assert up.data_ptr() - gate.data_ptr() == gate.nbytes
    assert experts[1].gate_proj.values.data_ptr() - gate.data_ptr() == 2 * gate.nbytes


@pytest.fixture
def omni(reference, tmp_path) -> Callable[..., Path]:
    """Saves the small Omni model of tests/engine/test_speech.py, or a part of it."""

    def write(original: bool, part: Any = reference) -> Path:
        # What the fixture adds to mend transformers' talker is not part of its config.
        added = reference.talker.config.__dict__.pop("audio_config", None)
        try:
            part.save_pretrained(tmp_path, save_original_format=original)
        finally:
            if added is not None:
                reference.talker.config.audio_config = added
        return tmp_path

    return write


def logits_of(path: Path) -> torch.Tensor:
    network = load_network(ModelFiles.find(path), FLOAT32)[0]
    cache = KVCache(network.config, CacheOptions(64, dtype="f32"), torch.device("cpu"))
    with torch.inference_mode():
        return network(torch.tensor(IDS), torch.arange(len(IDS)), [Segment(0, len(IDS), cache)], None)


def test_a_fused_checkpoint_is_inspected_planned_packed_and_quantised(tmp_path, capsys):
    model = text_model("qwen3_moe untied", torch.bfloat16)
    fused = save(model, tmp_path / "fused", original=False)
    apart = save(model, tmp_path / "apart", original=True)
    expected = logits_of(apart)
    with open_checkpoint(fused) as first, open_checkpoint(apart) as second:
        shapes = [{name: (e.shape, e.nbytes) for name, e in each.entries.items()} for each in (first, second)]
    assert shapes[0] == shapes[1]
    plans = [ModelFiles.find(path).plan(FLOAT32) for path in (fused, apart)]
    assert plans[0].weights == plans[1].weights
    assert main(["inspect", str(fused), "--totals"]) == 0
    assert "routed experts" in capsys.readouterr().out
    pack_model(fused, tmp_path / "packed")
    quantize_model(fused, tmp_path / "exact.gguf", TypeChoice("exact"))
    for made in (fused, tmp_path / "packed", tmp_path / "exact.gguf"):
        assert torch.equal(logits_of(made), expected)


def test_a_fused_omni_model_passes_its_validation(omni):
    files = ModelFiles.find(omni(False))
    given = omni_input(files.config.omni, files.config.text.vocab_size, media=[], tokens=8)
    request = ValidationRequest(given=given, frames=3, greedy=4, float64=False, only=("thinker", "talker"))
    validation = validate(files, FLOAT32, request)
    assert validation.passed, [threshold.describe() for threshold in validation.thresholds]


def test_a_base_model_without_its_head_is_completed_where_the_head_is_tied(tmp_path):
    """AutoModel saves names without ``model.``; transformers' AutoModelForCausalLM loads them."""
    theirs = text_model("qwen3 tied")
    theirs.model.save_pretrained(tmp_path / "tied")
    with torch.inference_mode():
        expected = theirs(torch.tensor([IDS])).logits[0]
    torch.testing.assert_close(logits_of(tmp_path / "tied"), expected, rtol=1e-5, atol=1e-5)
    text_model("qwen3 untied").model.save_pretrained(tmp_path / "untied")
    with pytest.raises(CorruptFile, match=r"1 missing tensors: lm_head\.weight"):
        logits_of(tmp_path / "untied")


@pytest.fixture(scope="module")
def both_layouts(tmp_path_factory) -> tuple[Path, dict[str, torch.Tensor]]:
    """A fused checkpoint's folder, and its tensors with those of the first layer's experts apart too."""
    folder = tmp_path_factory.mktemp("both")
    model = text_model("qwen3_moe untied")
    save(model, folder / "apart", original=True)
    save(model, folder / "fused", original=False)
    apart = load_file(folder / "apart" / "model.safetensors")
    first = {name: values for name, values in apart.items() if name.startswith("model.layers.0.mlp.experts.")}
    return folder / "fused", load_file(folder / "fused" / "model.safetensors") | first


EXPERT = "model.layers.0.mlp.experts.3.up_proj.weight"


def test_a_parameter_stored_twice_must_have_one_value(both_layouts, tmp_path):
    """Fused and apart: one of them is not what its writer meant."""
    folder, stored = both_layouts
    shutil.copy(folder / "config.json", tmp_path)
    save_file(stored, tmp_path / "model.safetensors", {"format": "pt"})
    assert torch.equal(logits_of(tmp_path), logits_of(folder))
    stored = stored | {EXPERT: stored[EXPERT] + 1}
    save_file(stored, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(CorruptFile, match=f"two stored tensors for '{re.escape(EXPERT)}' have different values"):
        logits_of(tmp_path)


def test_the_two_may_lie_in_two_shards(both_layouts, tmp_path):
    folder, stored = both_layouts
    shutil.copy(folder / "config.json", tmp_path)
    for change, refused in ((0, False), (1, True)):
        shards = {"a.safetensors": {EXPERT: stored[EXPERT] + change}, "b.safetensors": load_fused(folder)}
        for shard, own in shards.items():
            save_file(own, tmp_path / shard, {"format": "pt"})
        weight_map = {name: shard for shard, own in shards.items() for name in own}
        (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
        if refused:
            with pytest.raises(CorruptFile, match="two stored tensors for"):
                open_checkpoint(tmp_path)
        else:
            assert torch.equal(logits_of(tmp_path), logits_of(folder))


def load_fused(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


@pytest.mark.parametrize("shape", [(8, 96), (8, 95, 64), (8, 96, 64, 1), (8, 96, 0), (0, 96, 64)], ids=str)
def test_a_fused_tensor_of_another_shape_is_refused(tmp_path, shape):
    name = "model.layers.0.mlp.experts.gate_up_proj"
    entry = TensorEntry(name, shape, "BF16", 2 * math.prod(shape), tmp_path / "x", 0)
    with pytest.raises(CorruptFile, match="must have three dimensions above 0, the second a multiple of 2"):
        list(released_entries([entry]))


def test_more_fused_experts_than_any_model_has_are_refused_before_they_are_listed(tmp_path):
    """A file of some megabytes may claim any number of layers of 65,536 tiny experts."""
    names = [f"model.layers.{layer}.mlp.experts.down_proj" for layer in range(4)]
    entries = [TensorEntry(name, (65_536, 1, 1), "BF16", 131_072, tmp_path / "x", 0) for name in names]
    with pytest.raises(UnsupportedModel, match="more than 200,000 matrices"):
        require_listable(entries)
    require_listable(entries[:3])


@torch.inference_mode()
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_thinker_saved_by_itself_answers_and_passes_its_validation(omni, reference, tmp_path, layout):
    """What training the thinker alone leaves: model_type qwen3_omni_moe_thinker, names without ``thinker.``"""
    files = ModelFiles.find(omni(LAYOUTS[layout], part=reference.thinker))
    assert files.config.omni.speech is None
    thinker = load_network(files, FLOAT32)[0]
    reader = MediaReader(thinker, files.source)
    assert_positions_and_logits(thinker, reader, reference.thinker, MIXES["picture then sound"])
    given = omni_input(files.config.omni, files.config.text.vocab_size, media=[], tokens=8)
    request = ValidationRequest(given=given, frames=1, greedy=4, float64=False, only=("thinker",))
    validation = validate(files, FLOAT32, request)
    assert validation.passed, [threshold.describe() for threshold in validation.thresholds]
    quantize_model(files.path, tmp_path / "thinker.gguf", TypeChoice("exact"))
    written = load_network(ModelFiles.find(tmp_path / "thinker.gguf"), FLOAT32)[0]
    assert torch.equal(written.lm_head.values, thinker.lm_head.values)


@torch.inference_mode()
@pytest.mark.parametrize("layout", LAYOUTS)
def test_text_codes_and_speech_are_those_of_the_omni_model_that_was_saved(omni, reference, layout):
    files = ModelFiles.find(omni(LAYOUTS[layout]))
    thinker = load_network(files, FLOAT32)[0]
    stack = load_speech_stack(files, FLOAT32, thinker.decoder.embed_tokens)
    model = (thinker, stack, MediaReader(thinker, files.source))
    assert_text_codes_and_waveform(model, reference, CONVERSATIONS["picture, then sound"])
