"""Encoders of sound and pictures on the software driver, held against float64 as the reference is."""

from __future__ import annotations

import pytest
import torch

from lluda.backends.backend import Precision
from lluda.backends.blocks import EncoderBlock, LayerNorm, Projection
from lluda.backends.components import EncoderLayers
from lluda.backends.reference.backend import ReferenceBackend
from lluda.backends.weight import Parameters
from lluda.formats.packed_bf16 import PACKED_BF16
from lluda.formats.q8_0 import Q8_0
from lluda.formats.stored_tensor import StoredTensor
from lluda.models.audio_encoder import AudioEncoder, audio_encoder_parameters
from lluda.models.talker import Talker, talker_parameters
from lluda.models.vision_encoder import VisionEncoder, vision_encoder_parameters
from tests.conftest import random_values
from tests.models import test_audio_encoder as sound
from tests.models import test_vision_encoder as pictures
from tests.models.omni_reference import placed_parameters, random_parameters
from tests.models.test_talker import config as talker_config

GRIDS = [(1, 2, 2), (1, 8, 8), (2, 4, 6)]


def backend_of(kind, gpu=None, **options):
    if kind != "wgpu":
        return ReferenceBackend(torch.device("cpu"), Precision.of(kind))
    from lluda.backends.wgpu.backend import WgpuBackend

    return WgpuBackend(gpu, Precision.of("bf16"), **options)


@torch.inference_mode()
def heard(backend, recordings, observe=None, encode=None):
    """``encode``: a format that the encoder's matrices are stored in."""
    config = sound.config_of(sound.TINY)
    specs, values = list(audio_encoder_parameters(config)), sound.state(sound.TINY)
    parameters = placed_parameters(specs, values, backend)
    for spec in specs if encode else ():
        coded = encode.encode(values[spec.name].bfloat16()) if spec.role == "matrix" else None
        if coded is not None:
            taken, _ = backend.take(StoredTensor(encode, tuple(spec.shape), coded), "matrix")
            parameters = Parameters({**parameters.values, spec.name: taken})
    return AudioEncoder(config, parameters, backend)(recordings, observe)


@torch.inference_mode()
def seen(backend, grids, observe=None):
    config = pictures.config()
    values = random_parameters(vision_encoder_parameters(config))
    encoder = VisionEncoder(config, placed_parameters(vision_encoder_parameters(config), values, backend), backend)
    return pictures.rows_of(encoder, pictures.patches_of(config, grids), grids, observe)


def distance(found, exact):
    return sum((a.double() - b.double()).square().mean().sqrt() for a, b in zip(found, exact, strict=True))


@pytest.mark.parametrize("packed", [False, True], ids=["bf16", "packed"])
def test_sound_is_as_near_to_float64_as_the_reference(gpu, packed):
    recordings = [sound.recording(frames) for frames in (37, 230, 810)]
    exact, plain = (heard(backend_of(kind), recordings) for kind in ("f64", "bf16"))
    backend = backend_of("wgpu", gpu, packed=packed)
    assert distance([heard(backend, recordings)], [exact]) <= 1.05 * distance([plain], [exact])
    assert "no kernels" not in backend.describe() and not backend.torch_blocks


@pytest.mark.parametrize("encode", [Q8_0, PACKED_BF16], ids=["q8_0", "packed"])
def test_sound_from_other_formats_is_as_near(one_gpu, encode):
    recordings = [sound.recording(frames) for frames in (37, 230, 810)]
    exact, plain = (heard(backend_of(kind), recordings, encode=encode) for kind in ("f64", "bf16"))
    backend = backend_of("wgpu", one_gpu)
    ours = heard(backend, recordings, encode=encode)
    assert distance([ours], [exact]) <= 1.1 * distance([plain], [exact])
    assert "no kernels" not in backend.describe() and not backend.torch_blocks


def test_a_recording_has_the_rows_that_it_has_alone(one_gpu):
    recordings = [sound.recording(frames) for frames in (900, 37, 230)]
    together = heard(backend_of("wgpu", one_gpu), recordings)
    alone = [heard(backend_of("wgpu", one_gpu), [each]) for each in recordings]
    assert torch.equal(together, torch.cat(alone))


def test_pictures_are_as_near_to_float64_as_the_reference(gpu):
    exact, plain = (seen(backend_of(kind), GRIDS) for kind in ("f64", "bf16"))
    backend = backend_of("wgpu", gpu)
    ours = seen(backend, GRIDS)
    assert distance(ours, exact) <= 1.05 * distance(plain, exact)
    assert "no kernels" not in backend.describe() and not backend.torch_blocks


def test_a_picture_has_the_rows_that_it_has_alone(one_gpu):
    config = pictures.config()
    whole = seen(backend_of("wgpu", one_gpu), GRIDS)
    count = sum(t * h * w for t, h, w in GRIDS[:2]) // config.merged_patches
    first = seen(backend_of("wgpu", one_gpu), GRIDS[:2])
    # Patches come from one generator: those of the first pictures are the same only if they are cut from the whole.
    values = random_parameters(vision_encoder_parameters(config))
    backend = backend_of("wgpu", one_gpu)
    encoder = VisionEncoder(config, placed_parameters(vision_encoder_parameters(config), values, backend), backend)
    patches = pictures.patches_of(config, GRIDS)
    part = pictures.rows_of(encoder, patches[: count * config.merged_patches], GRIDS[:2])
    assert all(torch.equal(a[:count], b) for a, b in zip(whole, part, strict=True))
    assert [rows.shape for rows in first] == [rows.shape for rows in part]


@pytest.mark.parametrize("kind", ["sound", "pictures"])
def test_what_is_observed_is_what_runs(one_gpu, kind):
    def stages(backend):
        found = {}
        run, given = (heard, [sound.recording(230)]) if kind == "sound" else (seen, GRIDS)
        rows = run(backend, given, lambda name, x: found.update({name: x.clone()}))
        return found, rows

    ours, rows = stages(backend_of("wgpu", one_gpu))
    theirs, _ = stages(backend_of("f64"))
    assert list(ours) == list(theirs)
    for name, want in theirs.items():
        assert (ours[name].double() - want).abs().max() <= 0.03 * want.abs().max(), name
    again = (
        heard(backend_of("wgpu", one_gpu), [sound.recording(230)])
        if kind == "sound"
        else seen(backend_of("wgpu", one_gpu), GRIDS)
    )
    assert all(torch.equal(a, b) for a, b in zip(rows, again, strict=True))


@torch.inference_mode()
def test_the_talkers_projections_are_as_near_to_float64_as_the_reference(gpu):
    def projected(backend):
        specs = list(talker_parameters(talker_config()))
        talker = Talker(
            talker_config(), placed_parameters(specs, random_values(specs, 0, torch.bfloat16), backend), backend
        )
        x = torch.randn(
            21, talker._text_projection.linear_fc1.weight.in_features, generator=torch.Generator().manual_seed(1)
        )
        return [
            backend.resize(each, x[:rows].to(backend.precision.residual))
            for rows in (1, 21)
            for each in (talker._text_projection, talker._hidden_projection)
        ]

    exact, plain = projected(backend_of("f64")), projected(backend_of("bf16"))
    backend = backend_of("wgpu", gpu)
    ours = projected(backend)
    assert distance(ours, exact) <= 1.05 * distance(plain, exact)
    assert torch.equal(ours[0], ours[2][:1]) and not backend.torch_blocks


def test_layers_without_kernels_run_on_the_host_and_are_told(one_gpu):
    """Heads of ten columns; a matrix in Q8_0 among others in BF16."""
    backend = backend_of("wgpu", one_gpu)
    generator = torch.Generator().manual_seed(1)

    def projection(out, inputs, coded=False):
        values = torch.randn(out, inputs, generator=generator).bfloat16() * inputs**-0.5
        stored = StoredTensor(Q8_0, (out, inputs), Q8_0.encode(values.float())) if coded else None
        weight = backend.take(stored, "matrix")[0] if stored else backend._take_values(values)[0]
        return Projection(weight, torch.zeros(out))

    def block(hidden, heads, coded=False):
        norm = LayerNorm(torch.ones(hidden), torch.zeros(hidden), 1e-5)
        qkv = tuple(projection(hidden, hidden, coded and part == 1) for part in range(3))
        return EncoderBlock(
            norm, qkv, projection(hidden, hidden), norm, projection(64, hidden), projection(hidden, 64), heads, False
        )

    for layers, why in (
        (EncoderLayers([block(80, 8)]), "an encoder's heads of 10 columns"),
        (EncoderLayers([block(64, 4, coded=True)]), "one product of matrices in bf16, q8_0"),
    ):
        x = torch.randn(5, len(layers.blocks[0].norm1.weight), generator=generator)
        rows, _ = backend.encode(layers, x, [5])
        assert torch.isfinite(rows).all() and why in backend.describe()
    assert backend.torch_blocks["encoder_block"] == 2


def test_launches_of_many_rows_are_submitted_some_at_a_time(one_gpu, monkeypatch):
    from lluda.backends.wgpu.runs import row_run

    grids, counts, rows = [(1, 16, 20)], [], []
    submit = one_gpu.submit
    for most in (1000, 5):
        monkeypatch.setattr(row_run, "LAUNCHES_AT_ONCE", most)
        counted = []
        monkeypatch.setattr(
            one_gpu, "submit", lambda commands, counted=counted: counted.append(commands) or submit(commands)
        )
        rows.append(seen(backend_of("wgpu", one_gpu), grids))
        counts.append(len(counted))
    assert all(torch.equal(a, b) for a, b in zip(*rows, strict=True)) and counts[1] > counts[0] + 3
