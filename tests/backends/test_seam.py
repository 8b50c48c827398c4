"""Models ask a backend for nothing but what the seam declares: one that has nothing else runs them all."""

from __future__ import annotations

import pytest
import torch

from lluda.backends.backend import ComputeBackend, Precision
from lluda.backends.batch import Segment
from lluda.backends.reference.backend import ReferenceBackend
from lluda.config.code2wav import read_code2wav
from lluda.config.model import ModelConfig
from lluda.config.reader import ConfigReader
from lluda.engine.kv_cache import CacheOptions, KVCache
from lluda.models.build import build_text_model, text_parameters
from lluda.models.causal_lm import CausalLM
from lluda.models.code2wav import Code2Wav, code2wav_parameters
from lluda.models.code_predictor import CodePredictor, code_predictor_parameters
from lluda.models.talker import Talker, talker_parameters
from tests.conftest import TINY_MOE, TINY_QWEN3, placed, random_tensors
from tests.models.omni_reference import placed_parameters, random_parameters
from tests.models.test_code2wav import SMALL
from tests.models.test_talker import config as talker_config
from tests.models.test_thinker import OMNI

CPU, F32 = torch.device("cpu"), Precision.of("f32")


def _forward(name: str):
    def call(self, *args, **kwargs):
        return getattr(self.inner, name)(*args, **kwargs)

    return call


class OnlyTheSeam(
    type("Forwarding", (ComputeBackend,), {name: _forward(name) for name in ComputeBackend.__abstractmethods__})
):
    """What the seam declares, and not one operation below it."""

    name = "seam"

    def __init__(self) -> None:
        super().__init__(CPU, F32)
        self.inner = ReferenceBackend(CPU, F32)


def both(run) -> None:
    """``run`` gives the same on either."""
    expected, found = run(ReferenceBackend(CPU, F32)), run(OnlyTheSeam())
    assert len(expected) == len(found) > 0
    assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))


def cache_of(config, length=64):
    return KVCache(config, CacheOptions(length, dtype="f32"), CPU)


def test_the_seam_has_no_operations_of_the_executor():
    assert not {"linear", "rms_norm", "attention_block", "conv1d", "snake_beta"} & set(dir(OnlyTheSeam))


@pytest.mark.parametrize("raw", [TINY_QWEN3, TINY_MOE], ids=["dense", "mixture"])
@torch.inference_mode()
def test_a_text_model(raw):
    config = ModelConfig.from_hf(raw).text

    def run(backend):
        network, cache, seen = (
            CausalLM(config, placed(random_tensors(raw), raw, backend), backend),
            cache_of(config),
            [],
        )
        segments = [Segment(0, 9, cache)]
        logits = network(torch.arange(9), torch.arange(9), segments, None, lambda _, rows: seen.append(rows.clone()))
        return [logits, *seen]

    both(run)


@torch.inference_mode()
def test_the_encoders_and_what_they_make_in_the_thinker():
    config = ModelConfig.from_hf(OMNI)
    specs = list(text_parameters(config))
    tensors = random_parameters(specs)

    def run(backend):
        thinker = build_text_model(config, placed_parameters(specs, tensors, backend), lambda _: backend)
        frames = torch.randn(250, 128, generator=torch.Generator().manual_seed(0))
        values = thinker.omni.vision.patch_values
        patches = torch.randn(24, values, generator=torch.Generator().manual_seed(1))
        vision = thinker.visual(patches, [(1, 4, 6)])
        return [thinker.audio_tower([frames]), vision.embeddings, *vision.deepstack]

    both(run)


@torch.inference_mode()
def test_what_speaks():
    config = talker_config()
    specs = [*talker_parameters(config), *code_predictor_parameters(config)]
    tensors = random_parameters(specs, 2)

    def run(backend):
        parameters = placed_parameters(specs, tensors, backend)
        talker, predictor = Talker(config, parameters, backend), CodePredictor(config, parameters, backend)
        wide = torch.randn(5, config.thinker_hidden_size, generator=torch.Generator().manual_seed(3))
        rows = talker.text_projection(wide) + talker.hidden_projection(wide)
        segments = [Segment(0, 5, cache_of(config.decoder))]
        hidden, logits = talker(rows, torch.arange(5), segments, torch.tensor([4]))
        first = torch.stack((hidden[0], talker.codec_embedding(logits.argmax(-1))[0]))[None]
        total = torch.zeros(1, first.shape[2])
        codes = predictor.frames(first, [cache_of(config.code_predictor)], [lambda row: int(row.argmax())], total)
        return [hidden, logits, torch.tensor(codes), total]

    both(run)


@torch.inference_mode()
def test_the_vocoder():
    config = read_code2wav(ConfigReader(SMALL, "config.json: code2wav_config"))
    specs = list(code2wav_parameters(config))
    tensors = random_parameters(specs, 1)
    shape = config.num_quantizers, 30
    codes = torch.randint(0, config.codebook_size, shape, generator=torch.Generator().manual_seed(0))
    both(lambda backend: [Code2Wav(config, placed_parameters(specs, tensors, backend), backend)(codes)])
