"""The trainable twin against lluda's own float32 networks, on the same random tensors, component by component."""

from __future__ import annotations

import torch

from lluda.backends import select_backend
from lluda.config_code2wav import read_code2wav
from lluda.config_reader import ConfigReader
from lluda.models.code2wav import Code2Wav, code2wav_parameters
from tests.models.omni_reference import placed_parameters
from tests.models.test_code2wav import codes_of, speech_like
from tests.test_config_code2wav import SMALL
from training.twin.code2wav import Code2Wav as Code2WavTwin

BAR = 1e-5


def load(module, tensors, prefix):
    """All parameters of the twin, and no others, from the checkpoint's names below ``prefix``."""
    state = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
    module.load_state_dict(state, strict=True)
    return module.eval()


def deviation(found, expected):
    return ((found - expected).norm() / expected.norm()).item()


def test_code2wav_beyond_its_window():
    config = read_code2wav(ConfigReader(SMALL, "config.json: code2wav_config"))
    tensors, backend = speech_like(config), select_backend("reference", "cpu", "f32")
    network = Code2Wav(config, placed_parameters(code2wav_parameters(config), tensors, backend), backend)
    twin = load(Code2WavTwin(config), tensors, "code2wav.")
    codes = codes_of(config, config.window + 9)
    with torch.inference_mode():
        assert deviation(twin(codes[None])[0], network(codes)) < BAR
