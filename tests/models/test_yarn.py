"""YaRN against transformers: frequencies bit by bit, logits and greedy tokens beyond the trained positions."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
import torch

import lluda
from lluda.backends.backend import Precision
from lluda.backends.reference.backend import ReferenceBackend
from lluda.config.decoder import DecoderConfig
from lluda.config.model import ModelConfig
from lluda.engine.kv_cache import CacheOptions
from lluda.errors import CorruptFile, InvalidRequest, LimitExceeded, NativeLibraryError
from lluda.models.decoder import rotary_of
from lluda.weights.config_override import with_rope_scaling
from tests.cli.conftest import write_model
from tests.conftest import TINY_LLAMA, TINY_MOE, TINY_QWEN3, TinyModel
from tests.models.test_causal_lm import prompt, transformers_model
from tests.models.test_thinker import (
    OMNI,
    assert_32_greedy_tokens,
    assert_positions_and_logits,
    built,
    picture,
    reference_of,
    sound,
    thinker_of,
)

TRAINED = 64
QWEN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}
"""As Qwen3's model card gives it for 131,072 tokens."""

SETTINGS: dict[str, dict[str, Any]] = {
    "Qwen's": {"rope_scaling": QWEN, "max_position_embeddings": 40960},
    "Qwen's, the longer limit written": {"rope_scaling": QWEN, "max_position_embeddings": 131072},
    "older name": {"rope_scaling": {**QWEN, "type": "yarn"} | {"rope_type": None}},
    "no trained length": {"rope_scaling": {"rope_type": "yarn", "factor": 2.5}, "max_position_embeddings": 4096},
    "trained length of the model": {"rope_scaling": QWEN, "original_max_position_embeddings": 2048},
    "factor implied": {
        "rope_scaling": {"rope_type": "yarn", "factor": None, "original_max_position_embeddings": 8192},
        "max_position_embeddings": 65536,
    },
    "factor 1": {"rope_scaling": QWEN | {"factor": 1.0}},
    "attention factor": {"rope_scaling": QWEN | {"attention_factor": 1.75}},
    "betas": {"rope_scaling": QWEN | {"beta_fast": 16, "beta_slow": 2}},
    "betas of 0": {"rope_scaling": QWEN | {"beta_fast": 0, "beta_slow": 0}},
    "mscale": {"rope_scaling": QWEN | {"mscale": 0.707, "mscale_all_dim": 1.0}},
    "one mscale": {"rope_scaling": QWEN | {"mscale": 0.707}},
    "not truncated": {"rope_scaling": QWEN | {"truncate": False}},
    "few trained positions": {"rope_scaling": QWEN | {"original_max_position_embeddings": 4}},
    "transformers 5": {"rope_parameters": QWEN | {"rope_theta": 5e5}},
}


def rotated(config: DecoderConfig, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Our cosines and sines of positions."""
    backend = ReferenceBackend(torch.device("cpu"), Precision.of("f32"))
    return backend.rotary_table(positions, rotary_of(config, backend.device))


def theirs(module: Any, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and sines of transformers' module, one half of each, as the other repeats it."""
    width = len(module.inv_freq)
    cos, sin = module(torch.zeros(1), positions.unsqueeze(-2 if positions.dim() > 1 else 0))
    return cos[0, :, :width], sin[0, :, :width]


@pytest.mark.parametrize("change", SETTINGS.values(), ids=SETTINGS)
def test_frequencies_and_scale_are_bit_for_bit_those_of_transformers(change: dict[str, Any]) -> None:
    from transformers import Qwen3Config
    from transformers.models.qwen3.modeling_qwen3 import Qwen3RotaryEmbedding

    raw = {key: value for key, value in (TINY_QWEN3 | change).items() if key != "torch_dtype"}
    raw["rope_scaling"] = {k: v for k, v in raw.get("rope_scaling", {}).items() if v is not None or k == "factor"}
    module = Qwen3RotaryEmbedding(Qwen3Config(**copy.deepcopy(raw)))
    config = ModelConfig.from_hf(raw).text
    positions = torch.tensor([0, 1, 100, 4095, 32768, 131071])
    for ours, expected in zip(rotated(config, positions), theirs(module, positions), strict=True):
        assert torch.equal(ours, expected)


def omni_sections() -> dict[str, tuple[dict[str, Any], Any]]:
    """Each decoder of an Omni model: lluda's reading of its section and transformers' rotary module for it."""
    from transformers.models.qwen3_omni_moe import modeling_qwen3_omni_moe as models

    from tests.config.test_saved import tiny_omni

    config = tiny_omni()
    sections = {
        "thinker": config.thinker_config.text_config,
        "talker": config.talker_config.text_config,
        "code_predictor": config.talker_config.code_predictor_config,
        "code2wav": config.code2wav_config,
    }
    for section in sections.values():
        section.rope_parameters |= {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}
    read = ModelConfig.from_hf(json.loads(config.to_json_string()))
    assert read.omni is not None and read.omni.speech is not None
    speech = read.omni.speech
    ours = (read.text, speech.talker.decoder, speech.talker.code_predictor, speech.code2wav.transformer)
    classes = (
        models.Qwen3OmniMoeThinkerTextRotaryEmbedding, models.Qwen3OmniMoeTalkerRotaryEmbedding,
        models.Qwen3OmniMoeRotaryEmbedding, models.Qwen3OmniMoeRotaryEmbedding,
    )  # fmt: skip
    modules = [kind(section) for kind, section in zip(classes, sections.values(), strict=True)]
    return dict(zip(sections, zip(ours, modules, strict=True), strict=True))


@pytest.mark.parametrize("part", ["thinker", "talker", "code_predictor", "code2wav"])
def test_every_decoder_of_an_omni_model_is_scaled_as_in_transformers(part: str) -> None:
    config, module = omni_sections()[part]
    assert config.rope.yarn is not None and config.rope.yarn.factor == 4
    rows = torch.randint(0, 200, (3, 50), generator=torch.Generator().manual_seed(0))
    positions = rows if part in ("thinker", "talker") else rows[0]
    for ours, expected in zip(rotated(config, positions), theirs(module, positions), strict=True):
        assert torch.equal(ours, expected)


def stretched(raw: dict[str, Any], factor: float, **changes: Any) -> dict[str, Any]:
    return raw | {
        "max_position_embeddings": TRAINED,
        "rope_scaling": {"rope_type": "yarn", "factor": factor, **changes},
    }


@torch.inference_mode()
@pytest.mark.parametrize(("raw", "factor"), [(TINY_QWEN3, 2), (TINY_MOE, 4), (TINY_LLAMA, 8)], ids=["2", "4", "8"])
def test_logits_and_32_greedy_tokens_to_the_last_position_are_those_of_transformers(
    raw: dict[str, Any], factor: int
) -> None:
    """A dense, a sparse and a llama-shaped model at 2, 4 and 8 times the trained length."""
    raw = stretched(raw, float(factor))
    tiny = TinyModel(raw)
    assert tiny.config.max_context == factor * TRAINED
    ids = prompt(factor * TRAINED - 32)
    reference = transformers_model(copy.deepcopy(raw), tiny.tensors)
    expected = reference(ids[None]).logits[0]
    span = expected.max() - expected.min()
    cache = tiny.cache()
    found = tiny.logits(ids, cache=cache)
    assert (found - expected).abs().max() <= 1e-3 * span
    unscaled = TinyModel(raw | {"rope_scaling": None}).logits(ids)
    assert (unscaled - expected)[TRAINED:].abs().max() > 0.1 * span
    given = {"attention_mask": torch.ones(1, len(ids), dtype=torch.long), "pad_token_id": 0, "eos_token_id": None}
    answer = reference.generate(ids[None], max_new_tokens=32, do_sample=False, **given)[0, len(ids) :]
    greedy = [int(found[-1].argmax())]
    while len(greedy) < 32:
        greedy.append(int(tiny.logits(torch.tensor(greedy[-1:]), cache=cache)[-1].argmax()))
    assert greedy == answer.tolist()


@torch.inference_mode()
def test_in_chunks_beyond_the_trained_length_equals_one_prefill() -> None:
    tiny = TinyModel(stretched(TINY_QWEN3, 4.0), "f64")
    ids = prompt(3 * TRAINED)
    torch.testing.assert_close(tiny.logits(ids, 37), tiny.logits(ids), rtol=1e-10, atol=1e-10)


@torch.inference_mode()
def test_the_thinker_with_media_beyond_the_trained_length_is_that_of_transformers(tmp_path: Any) -> None:
    raw = copy.deepcopy(OMNI)
    text = raw["thinker_config"]["text_config"]
    text["max_position_embeddings"] = TRAINED
    text["rope_scaling"] |= {"rope_type": "yarn", "factor": 8.0}
    model = built(raw)
    assert model[0].text.rope.yarn is not None
    pieces = [20, picture(64, 96), sound(1.0), TRAINED]
    reference = reference_of(raw, model[1])
    assert_positions_and_logits(*thinker_of(model, tmp_path), reference, pieces)
    assert_32_greedy_tokens(*thinker_of(model, tmp_path), reference, pieces)


@pytest.mark.parametrize("name", ["Qwen3-0.6B", "Qwen3-30B-A3B", "Qwen3-Omni-30B-A3B-Instruct"])
def test_qwens_documented_setting_reaches_131072_positions(released_config: Any, name: str) -> None:
    """Original times factor, as vLLM's limit; without YaRN the model's own."""
    raw = released_config(name)
    assert ModelConfig.from_hf(raw).text.max_context == ModelConfig.from_hf(raw).text.max_position_embeddings
    text = raw["thinker_config"]["text_config"] if "thinker_config" in raw else raw
    text["rope_scaling"] = (text.get("rope_scaling") or {}) | QWEN
    text.get("rope_scaling").pop("type", None)
    assert ModelConfig.from_hf(raw).text.max_context == 131072


@torch.inference_mode()
def test_the_last_of_131072_positions_on_the_cpu_backend() -> None:
    """Over a cache of random keys and values; as near to float64 as the reference backend is, times a little."""
    from lluda.backends.cpu.backend import CpuBackend
    from lluda.backends.cpu.native_library import native_library
    from tests.backends.test_cpu import Runner, truth

    try:
        native_library()
    except NativeLibraryError as error:
        pytest.skip(f"the native library is not built: {error}")
    raw = TINY_QWEN3 | {"num_hidden_layers": 1, "max_position_embeddings": 40960, "rope_scaling": QWEN}
    device, bf16, fresh = torch.device("cpu"), Precision.of("bf16"), 12
    logits = []
    for runner in (
        Runner(raw, CpuBackend(device, bf16)), Runner(raw, ReferenceBackend(device, bf16)), truth(raw)
    ):  # fmt: skip
        runner.options = CacheOptions(131072, "preallocated", runner.options.dtype)
        cache, generator = runner.cache(), torch.Generator().manual_seed(0)
        for stored in cache.reserve(131072):
            stored.copy_(torch.randn(stored.shape, generator=generator))
        cache.advance(131072 - fresh)
        ids = prompt(fresh) % 333
        steps = [ids[:8], *ids[8:].split(1)]
        logits.append(torch.cat([runner.run([step], [cache]) for step in steps]).double())
    native, reference, exact = logits
    assert (native - exact).norm() <= 1.5 * (reference - exact).norm() + 1e-6 * exact.norm()
    assert (native - exact).norm() <= 0.02 * exact.norm()


def test_a_model_takes_the_longer_context_and_says_so(tmp_path: Any) -> None:
    folder = write_model(tmp_path / "tiny", stretched({}, 4.0))
    with pytest.raises(LimitExceeded, match=r"max_context 257 exceeds the model's 256 positions \(YaRN, 4 times 64\)"):
        lluda.load(folder, max_context=257)
    model = lluda.load(folder, max_context=256)
    assert "context 256 (YaRN, 4 times 64)" in model.describe()
    answer = model.generate(list(range(1, 200)), temperature=0, max_tokens=57, ignore_eos=True)
    assert len(answer.token_ids) == 57


def test_an_option_does_what_an_edited_config_does(tmp_path: Any) -> None:
    """For text models in both forms of config.json, and for a file whose own scaling it replaces."""
    scaling = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 100}
    forms = (
        TINY_QWEN3,
        TINY_QWEN3 | {"rope_theta": None, "rope_parameters": {"rope_type": "default", "rope_theta": 1e6}},
        TINY_QWEN3 | {"rope_scaling": {"type": "yarn", "factor": 9.0, "beta_fast": 8}},
        TINY_QWEN3 | {"original_max_position_embeddings": 7},
    )
    expected = ModelConfig.from_hf(TINY_QWEN3 | {"rope_scaling": scaling})
    for raw in forms:
        for given in (scaling, json.dumps(scaling)):
            assert ModelConfig.from_hf(with_rope_scaling(raw, given)) == expected
        assert with_rope_scaling(raw, None) == raw
    omni = copy.deepcopy(OMNI)
    omni["thinker_config"]["text_config"]["rope_scaling"] |= scaling
    assert ModelConfig.from_hf(with_rope_scaling(OMNI, scaling)) == ModelConfig.from_hf(omni)
    folder = write_model(tmp_path / "tiny")
    assert "(YaRN, 4 times 100)" in lluda.load(folder, rope_scaling=scaling, max_context=400).describe()


@pytest.mark.parametrize("given", ["yarn", "[1]", 4, '{"rope_type": "yarn", "factor": 1e999}', "{"])
def test_an_option_that_is_no_object_is_refused(given: Any) -> None:
    with pytest.raises(InvalidRequest, match=r"rope.scaling"):
        with_rope_scaling(TINY_QWEN3, given)


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        ({"factor": 0.5}, "factor of YaRN must be at least 1"),
        ({"factor": "4"}, "factor must be a number"),
        ({"original_max_position_embeddings": 1.5}, "original_max_position_embeddings must be an integer"),
        ({"beta_fast": 1, "beta_slow": 2}, "beta_fast must be at least beta_slow 2"),
        ({"attention_factor": -1.0}, "attention_factor must be a number above 0"),
        ({"truncate": "yes"}, "truncate must be true or false"),
    ],
)
def test_a_setting_outside_its_rule_is_refused(change: dict[str, Any], rule: str) -> None:
    with pytest.raises(CorruptFile, match=rule):
        ModelConfig.from_hf(TINY_QWEN3 | {"rope_scaling": QWEN | change})
