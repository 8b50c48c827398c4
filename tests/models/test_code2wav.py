"""Code2wav against transformers, whole and streamed, on a small config of the released form and at real size."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lluda.backends import select_backend
from lluda.config.code2wav import SAMPLE_RATE, read_code2wav
from lluda.config.reader import ConfigReader
from lluda.errors import InvalidRequest, NativeLibraryError
from lluda.models.code2wav import FRAMES_AT_ONCE, Code2Wav, code2wav_parameters
from tests.config.test_code2wav import SMALL
from tests.models.omni_reference import load_reference, placed_parameters, random_parameters

RAMP = [1, 2, 4, 8, 16, 32, 64, 128]


def speech_like(config):
    """Random values, but residual branches that add little and a last kernel that stays in range, as training leaves
    them: at full gain each block makes differences 2.5 times as large, float32's rounding among them."""
    tensors = random_parameters(code2wav_parameters(config))
    last = f"decoder.{2 + len(config.upsample_rates)}.conv.weight"
    quieter = {"layer_scale.scale": 8, "gamma": 8, "conv2.conv.weight": 4, last: 4}
    for name, values in tensors.items():
        for ending, factor in quieter.items():
            tensors[name] = values / factor if name.endswith(ending) else tensors[name]
    return tensors


def network(config, tensors, dtype="f32", backend="reference"):
    backend = select_backend(backend, "cpu", dtype)
    return Code2Wav(config, placed_parameters(code2wav_parameters(config), tensors, backend), backend)


def transformers_network(raw, tensors):
    pytest.importorskip("transformers", reason="transformers is the reference here")
    from transformers.models.qwen3_omni_moe import configuration_qwen3_omni_moe as configs
    from transformers.models.qwen3_omni_moe import modeling_qwen3_omni_moe as models

    module = models.Qwen3OmniMoeCode2Wav(configs.Qwen3OmniMoeCode2WavConfig(**copy.deepcopy(raw)))
    return load_reference(module, tensors, "code2wav.")


def codes_of(config, frames, seed=0):
    shape = config.num_quantizers, frames
    return torch.randint(0, config.codebook_size, shape, generator=torch.Generator().manual_seed(seed))


def streamed(model, codes, pieces):
    """The samples of ``codes`` pushed in ``pieces``, the last one repeated; checks the length after every push."""
    state, parts, pieces = model.stream(), [], list(pieces)
    while state.frames < codes.shape[1]:
        count = pieces.pop(0) if len(pieces) > 1 else pieces[0]
        parts.append(model.push(codes[:, state.frames : state.frames + count], state))
        assert sum(map(len, parts)) == model.config.samples(state.frames)
    return torch.cat(parts)


@pytest.fixture(scope="module")
def small():
    return read_code2wav(ConfigReader(SMALL, "config.json: code2wav_config"))


@pytest.fixture(scope="module")
def tensors(small):
    return speech_like(small)


@pytest.fixture(scope="module")
def reference(tensors):
    return transformers_network(SMALL, tensors)


@torch.inference_mode()
@pytest.mark.parametrize("frames", [1, 2, 7, FRAMES_AT_ONCE, 50])
def test_the_waveform_is_that_of_transformers(small, tensors, reference, frames):
    codes = codes_of(small, frames)
    ours, theirs = network(small, tensors)(codes), reference(codes[None])[0, 0]
    assert ours.dtype == torch.float32
    assert len(ours) == small.samples(frames)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-5)


@torch.inference_mode()
def test_every_stage_is_that_of_transformers(small, tensors, reference):
    codes, model, stages = codes_of(small, FRAMES_AT_ONCE), network(small, tensors), {}
    model.push(codes, model.stream(), lambda name, rows: stages.update({name: rows.clone()}))
    theirs = {}
    modules = {f"decoder.{i}": reference.decoder[i] for i in range(3)}
    modules |= {f"upsample.{i}": reference.upsample[i][1] for i in range(2)}
    modules |= {f"layers.{i}": layer for i, layer in enumerate(reference.pre_transformer.layers)}
    for name, module in modules.items():
        module.register_forward_hook(lambda _module, _args, out, name=name: theirs.update({name: out[0]}))
    reference(codes[None])
    assert set(theirs) < set(stages)
    for name, rows in theirs.items():
        expected = rows if name.startswith("layers") else rows.T
        assert (stages[name] - expected).abs().max() <= 1e-5 * expected.abs().max(), name


@given(pieces=st.lists(st.integers(0, 20), min_size=1, max_size=12).map(lambda pieces: [*pieces, 3]))
@settings(max_examples=25, deadline=None)
@torch.inference_mode()
def test_streamed_in_any_pieces_is_whole(small, tensors, pieces):
    model, codes = network(small, tensors), codes_of(small, 40)
    torch.testing.assert_close(streamed(model, codes, pieces), model(codes), rtol=0, atol=1e-5)


@torch.inference_mode()
def test_streamed_is_whole_to_the_last_bits_in_float64(small, tensors):
    model, codes = network(small, tensors, "f64"), codes_of(small, 40)
    torch.testing.assert_close(streamed(model, codes, RAMP), model(codes), rtol=0, atol=1e-12)


@torch.inference_mode()
def test_rates_without_upsampling_wait_for_their_first_rows(tensors):
    raw = SMALL | {"upsampling_ratios": []}
    config = read_code2wav(ConfigReader(raw, "config.json"))
    values = speech_like(config)
    model, codes = network(config, values), codes_of(config, 9)
    theirs = transformers_network(raw, values)(codes[None])[0, 0]
    torch.testing.assert_close(streamed(model, codes, [1]), theirs, rtol=0, atol=2e-5)


@torch.inference_mode()
def test_two_streams_of_one_network_do_not_meet(small, tensors):
    model = network(small, tensors)
    codes = [codes_of(small, 12, seed) for seed in (1, 2)]
    states, parts = [model.stream(), model.stream()], [[], []]
    for frame in range(12):
        for samples, state, one in zip(parts, states, codes, strict=True):
            samples.append(model.push(one[:, frame : frame + 1], state))
    for samples, one in zip(parts, codes, strict=True):
        torch.testing.assert_close(torch.cat(samples), model(one), rtol=0, atol=1e-5)


@pytest.mark.parametrize(("backend", "dtype"), [("reference", "f32"), ("cpu", "bf16")])
@torch.inference_mode()
def test_streams_pushed_together_have_the_samples_that_each_has_alone(small, tensors, backend, dtype):
    """To the bit, whatever the others push: few rows and many, passes that others do not have, nothing at all."""
    model = network(small, tensors, dtype, backend)
    pushes = [[1, 2, 1], [1, 1, 26], [3, 0, 2], [17, 1, 1], [1, 8, 5], [2, 30, 1], [0, 1, 1], [5, 5, 5]]
    codes = [codes_of(small, sum(counts), seed) for seed, counts in enumerate(pushes)]
    pieces = [own.split(counts, dim=1) for own, counts in zip(codes, pushes, strict=True)]
    alone, together = [[model.stream() for _ in pushes] for _ in range(2)]
    for number in range(3):
        parts = [own[number] for own in pieces]
        expected = [model.push(part, state) for part, state in zip(parts, alone, strict=True)]
        for found, wanted in zip(model.push_all(parts, together), expected, strict=True):
            assert torch.equal(found, wanted)
    assert [state.frames for state in together] == [sum(counts) for counts in pushes]


@torch.inference_mode()
def test_codes_that_one_stream_cannot_take_change_none(small, tensors):
    model = network(small, tensors)
    states = [model.stream(), model.stream()]
    good, bad = codes_of(small, 2), codes_of(small, 2) + small.codebook_size
    with pytest.raises(InvalidRequest, match="is not in a codebook"):
        model.push_all([good, bad], states)
    assert [state.frames for state in states] == [0, 0]
    assert torch.equal(model.push(good, states[0]), model(good))


@torch.inference_mode()
def test_memory_of_a_stream_is_constant(small, tensors):
    model = network(small, tensors)
    state = model.stream()
    sizes = []
    for _ in range(60):
        model.push(codes_of(small, 2), state)
        sizes.append(state.nbytes)
    # By then every convolution has seen as many rows as it keeps.
    assert sizes[10:] == [sizes[10]] * 50


@torch.inference_mode()
@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_bf16_is_no_further_from_float64_than_transformers(small, tensors, backend):
    try:
        model = network(small, tensors, "bf16", backend)
    except NativeLibraryError as error:
        pytest.skip(str(error))
    codes = codes_of(small, 40)
    truth = network(small, tensors, "f64")(codes)
    theirs = released_rounding(transformers_network(SMALL, tensors))(codes[None])[0, 0]
    assert (model(codes) - truth).square().mean() <= (theirs - truth).square().mean()
    pieces = streamed(model, codes, [1])
    assert (pieces - truth).square().mean() <= (theirs - truth).square().mean()


def released_rounding(module):
    """``module`` in BF16 as ``from_pretrained`` leaves it: the rotary frequencies stay float32."""
    frequencies = module.pre_transformer.rotary_emb.inv_freq
    module = module.bfloat16()
    module.pre_transformer.rotary_emb.inv_freq = frequencies
    return module


@torch.inference_mode()
@pytest.mark.parametrize(
    ("codes", "rule"),
    [
        (torch.zeros(3, 5, dtype=torch.int64), r"codes \[4, frames\], not int64 \[3, 5\]"),
        (torch.zeros(5, dtype=torch.int64), "frames"),
        (torch.zeros(4, 5), "int64 codes"),
        (torch.full((4, 5), 32), "code 32 is not in a codebook of 32"),
        (torch.full((4, 5), -1), "code -1"),
    ],
)
def test_codes_that_are_none_are_refused_and_change_nothing(small, tensors, codes, rule):
    model = network(small, tensors)
    state = model.stream()
    with pytest.raises(InvalidRequest, match=rule):
        model.push(codes, state)
    good = codes_of(small, 5)
    torch.testing.assert_close(model.push(good, state), model(good), rtol=0, atol=0)


@torch.inference_mode()
def test_no_frames_are_no_samples(small, tensors):
    model = network(small, tensors)
    assert len(model(codes_of(small, 0))) == 0


def test_every_released_name_is_consumed(released_config, released_configs):
    folder = "Qwen3-Omni-30B-A3B-Instruct"
    config = read_code2wav(ConfigReader(released_config(folder)["code2wav_config"], "config.json"))
    index = json.loads((released_configs / folder / "model.safetensors.index.json").read_text())
    specs = list(code2wav_parameters(config))
    assert {spec.name for spec in specs} == {name for name in index["weight_map"] if name.startswith("code2wav.")}
    rows = (line.split("\t") for line in (released_configs / folder / "WEIGHT_NAMES.tsv").read_text().splitlines())
    shapes = {row[4]: tuple(json.loads(row[2])) for row in rows if len(row) > 4 and row[4].startswith("code2wav.")}
    assert shapes
    assert shapes.items() <= {spec.name: spec.shape for spec in specs}.items()


@pytest.mark.slow
@pytest.mark.timeout(3600)
@torch.inference_mode()
def test_real_size_is_that_of_transformers_whole_and_streamed(released_config):
    raw = released_config("Qwen3-Omni-30B-A3B-Instruct")["code2wav_config"]
    config = read_code2wav(ConfigReader(raw, "config.json"))
    values = speech_like(config)
    codes = codes_of(config, 300)
    model = network(config, values)
    whole = model(codes)
    assert len(whole) == 1920 * 300 - 555
    for pieces in ([1], [3], [25], RAMP):
        assert (streamed(model, codes, pieces) - whole).abs().max() <= 1e-5
    theirs = transformers_network(raw, values)
    assert (theirs(codes[None])[0, 0] - whole).abs().max() <= 1e-4
    # A waveform, not silence, noise at the rails or a constant: every tenth of a second has some power.
    tenths = whole[: len(whole) // (SAMPLE_RATE // 10) * (SAMPLE_RATE // 10)].view(-1, SAMPLE_RATE // 10)
    assert whole.isfinite().all()
    assert tenths.std(1).min() > 1e-3
    assert (whole.abs() == 1).float().mean() < 0.05


@pytest.mark.slow
@pytest.mark.timeout(3600)
@torch.inference_mode()
def test_real_size_bf16_is_no_further_from_float64_than_transformers(released_config):
    raw = released_config("Qwen3-Omni-30B-A3B-Instruct")["code2wav_config"]
    config = read_code2wav(ConfigReader(raw, "config.json"))
    values = speech_like(config)
    codes = codes_of(config, 25)
    truth = network(config, values, "f64")(codes)
    ours = streamed(network(config, values, "bf16", "auto"), codes, [1])
    theirs = released_rounding(transformers_network(raw, values))(codes[None])[0, 0]
    assert (ours - truth).square().mean() <= (theirs - truth).square().mean()
