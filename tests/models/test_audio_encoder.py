"""The audio encoder against transformers' on seeded values, and its equalities: blocks, batches and streams."""

from __future__ import annotations

import gc
import re
from pathlib import Path

import pytest
import torch

from lluda.backends import select_backend
from lluda.config.audio import read_audio_encoder
from lluda.config.reader import ConfigReader
from lluda.convert.synth import distribution
from lluda.models.audio_encoder import PREFIX, AudioEncoder, audio_encoder_parameters, sinusoids, sound_blocks
from tests.models.omni_reference import placed_parameters

RELEASED = {
    "num_mel_bins": 128, "d_model": 1280, "encoder_layers": 32, "encoder_attention_heads": 20, "encoder_ffn_dim": 5120,
    "downsample_hidden_size": 480, "output_dim": 2048, "n_window": 50, "n_window_infer": 800,
}  # fmt: skip
TINY = RELEASED | {
    "num_mel_bins": 32, "d_model": 64, "encoder_layers": 2, "encoder_attention_heads": 4, "encoder_ffn_dim": 128,
    "downsample_hidden_size": 16, "output_dim": 48,
}  # fmt: skip
LENGTHS = [1, 9, 50, 99, 100, 101, 137, 799, 800, 801, 1050, 1700]


def config_of(raw):
    return read_audio_encoder(ConfigReader(raw, "config.json"))


def state(raw, seed=0):
    """Float32 values that BF16 holds exactly, as a checkpoint's are. Layers of deep encoders are alike."""
    generator = torch.Generator().manual_seed(seed)
    alike = raw["encoder_layers"] > 4
    tensors, values = {}, {}
    for spec in audio_encoder_parameters(config_of(raw)):
        key = re.sub(r"layers\.\d+", "layers.0", spec.name) if alike else spec.name
        if key not in values:
            mean, deviation = distribution(spec, is_tied=False)
            values[key] = (torch.randn(spec.shape, generator=generator) * deviation + mean).bfloat16().float()
        tensors[spec.name] = values[key]
    return tensors


def encoder(raw, tensors, dtype="f32", backend="reference"):
    config, chosen = config_of(raw), select_backend(backend, "cpu", dtype)
    return AudioEncoder(config, placed_parameters(audio_encoder_parameters(config), tensors, chosen), chosen)


def reference(raw, tensors, dtype):
    pytest.importorskip("transformers", reason="transformers is the reference here")
    from transformers.models.qwen3_omni_moe.configuration_qwen3_omni_moe import Qwen3OmniMoeAudioEncoderConfig
    from transformers.models.qwen3_omni_moe.modeling_qwen3_omni_moe import Qwen3OmniMoeAudioEncoder

    config = Qwen3OmniMoeAudioEncoderConfig(**raw)
    with torch.device("meta"):
        model = Qwen3OmniMoeAudioEncoder._from_config(config, dtype=dtype)
    weights = {name.removeprefix(PREFIX): values.to(dtype) for name, values in tensors.items()}
    model.load_state_dict(weights, strict=True, assign=True)
    table = model.positional_embedding.compute_default_singular_positional_embedding()
    model.positional_embedding.positional_embedding = table
    model.eval()

    @torch.inference_mode()
    def encode(frames):
        return model(frames.T.to(dtype), feature_lens=torch.tensor([len(frames)])).last_hidden_state

    return encode


def recording(frames, bins=32, seed=0):
    """Features as they are: from -1.5 to 1."""
    return torch.rand(frames, bins, generator=torch.Generator().manual_seed(seed + frames)) * 2.5 - 1.5


def relative_error(found, expected):
    return ((found - expected).abs().max() / expected.abs().max()).item()


@pytest.fixture(scope="module")
def tiny():
    return encoder(TINY, state(TINY), "f64")


@pytest.fixture(autouse=True)
def _inference():
    with torch.inference_mode():
        yield


def test_float32_equals_transformers_at_every_length():
    tensors = state(TINY)
    network, expected = encoder(TINY, tensors), reference(TINY, tensors, torch.float32)
    for frames in LENGTHS:
        found = network([recording(frames)])
        assert found.shape == (network.config.tokens(frames), TINY["output_dim"])
        assert relative_error(found, expected(recording(frames))) <= 1e-4


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_bf16_is_no_further_from_float64_than_transformers(backend):
    raw = TINY | {"d_model": 256, "encoder_layers": 4, "downsample_hidden_size": 32, "encoder_ffn_dim": 512}
    tensors, frames = state(raw), recording(1050)
    try:
        network = encoder(raw, tensors, "bf16", backend)
    except Exception as error:
        if backend == "reference":
            raise
        pytest.skip(f"the cpu backend cannot be used here: {error}")
    truth = reference(raw, tensors, torch.float64)(frames)
    distances = [(part.double() - truth).norm() for part in (
        network([frames]), reference(raw, tensors, torch.bfloat16)(frames)
    )]  # fmt: skip
    assert 0 < distances[0] <= distances[1]


def test_a_batch_equals_its_recordings_alone(tiny):
    recordings = [recording(frames) for frames in LENGTHS]
    alone = torch.cat([tiny([one]) for one in recordings])
    torch.testing.assert_close(tiny(recordings), alone, rtol=1e-10, atol=1e-10)


def test_blocks_equal_the_whole(tiny):
    frames = recording(2250)
    blocks = torch.cat([tiny([frames[start : start + 800]]) for start in (0, 800, 1600)])
    torch.testing.assert_close(tiny([frames]), blocks, rtol=1e-10, atol=1e-10)


def test_more_blocks_than_go_through_at_once(tiny):
    recordings = [recording(frames) for frames in (8 * 800, 30, 17 * 800 + 250)]
    alone = torch.cat([tiny([one]) for one in recordings])
    torch.testing.assert_close(tiny(recordings), alone, rtol=1e-10, atol=1e-10)


def test_frames_of_one_block_do_not_reach_another(tiny):
    frames = recording(1600)
    other = frames.clone()
    other[800:] += 1
    assert torch.equal(tiny([frames])[:104], tiny([other])[:104])
    assert not torch.equal(tiny([frames])[104:], tiny([other])[104:])


@pytest.mark.parametrize("frames", [40, 99, 100, 801, 850, 1600, 8 * 800 + 30])
def test_blocks_encoded_one_by_one_are_those_of_the_whole_to_the_bit(tiny, frames):
    whole = recording(frames)
    blocks = sound_blocks(whole, tiny.config)
    assert torch.equal(torch.cat([tiny.encode_block(block) for block in blocks]), tiny([whole]))


def test_observer_sees_every_stage(tiny):
    observed = {}
    out = tiny([recording(150)], observed.__setitem__)
    assert list(observed) == ["conv", "layers.0", "layers.1", "output"]
    assert torch.equal(observed["output"], out)
    assert {rows.shape[0] for rows in observed.values()} == {20}


def test_no_recordings_are_no_rows(tiny):
    assert tiny([]).shape == (0, TINY["output_dim"])


def test_positions_are_transformers():
    pytest.importorskip("transformers", reason="transformers is the reference here")
    from transformers.models.qwen3_omni_moe.modeling_qwen3_omni_moe import SinusoidsPositionEmbedding

    assert torch.equal(sinusoids(13, 1280), SinusoidsPositionEmbedding(1500, 1280).positional_embedding[:13])


def test_names_and_shapes_are_the_released_ones(released_configs):
    rows = (released_configs / "Qwen3-Omni-30B-A3B-Instruct" / "WEIGHT_NAMES.tsv").read_text().splitlines()
    released = {}
    for row in rows:
        count, pattern, shape = row.split("\t")[:3]
        if pattern.startswith(PREFIX):
            names = [pattern.format(index) for index in range(int(count))] if "{}" in pattern else [pattern]
            released |= dict.fromkeys(names, shape)
    specs = list(audio_encoder_parameters(config_of(RELEASED)))
    assert {spec.name: str(list(spec.shape)) for spec in specs} == released
    assert sum(spec.elements for spec in specs) == 647_927_168


@pytest.mark.slow
def test_all_layers_at_released_size_equal_transformers():
    tensors = state(RELEASED)
    network, expected = encoder(RELEASED, tensors), reference(RELEASED, tensors, torch.float32)
    for frames in (100, 550, 1050, 4000):
        found = network([recording(frames, 128)])
        assert relative_error(found, expected(recording(frames, 128))) <= 1e-4


@pytest.mark.slow
def test_all_layers_in_bf16_are_no_further_from_float64_than_transformers():
    tensors, frames = state(RELEASED), recording(1050, 128)
    distances = []
    truth = reference(RELEASED, tensors, torch.float64)(frames)
    for make in (lambda: encoder(RELEASED, tensors, "bf16"), lambda: reference(RELEASED, tensors, torch.bfloat16)):
        network = make()
        found = network([frames]) if isinstance(network, AudioEncoder) else network(frames)
        distances.append((found.double() - truth).norm())
        del network
        gc.collect()
    assert 0 < distances[0] <= distances[1]


def resident(field="VmRSS"):
    return int(re.search(rf"{field}:\s+(\d+)", Path("/proc/self/status").read_text())[1]) << 10


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peak memory is read from /proc")
def test_an_hour_takes_the_memory_of_its_features_and_output():
    import numpy as np

    from lluda.inputs.media.audio_features import log_mel

    raw = RELEASED | {"encoder_layers": 1, "d_model": 320, "encoder_ffn_dim": 640, "downsample_hidden_size": 48}
    network = encoder(raw, state(raw))
    piece = np.random.default_rng(0).standard_normal(16000).astype(np.float32) * 0.1

    def hear(seconds):
        features = torch.from_numpy(log_mel(piece for _ in range(seconds)))
        out = network([features])
        return features.nbytes + out.nbytes

    hear(200)  # what two groups of blocks take is taken once
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins here
    before = resident()
    size = hear(3600)
    assert size == 360_000 * 128 * 4 + 46_800 * 2048 * 4
    assert resident("VmHWM") - before <= size * 1.05
