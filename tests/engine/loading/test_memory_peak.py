"""What is planned is what is taken: the peak of a process of its own, at the shapes of released models."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from lluda.config.model import ModelConfig
from lluda.convert.synth import synthesize
from lluda.models.build import all_parameters

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1200),
    pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="resident memory is read from /proc"),
]

FEW_LAYERS = {
    ("thinker_config", "text_config"): {"num_hidden_layers": 1, "num_experts": 8},
    ("thinker_config", "audio_config"): {"encoder_layers": 4, "num_hidden_layers": 4},
    ("thinker_config", "vision_config"): {"depth": 8, "deepstack_visual_indexes": [1, 3, 5]},
    ("talker_config",): {"accept_hidden_layer": 1},
    ("talker_config", "text_config"): {"num_hidden_layers": 4},
}
"""Of the released widths: what a request takes beside weights is the larger a share."""


def synthetic(raw, folder):
    synthesize(all_parameters(ModelConfig.from_hf(raw)), folder, config=raw)
    return folder


@pytest.fixture(scope="module")
def dense(tmp_path_factory, released_configs):
    raw = json.loads((released_configs / "Qwen3-0.6B" / "config.json").read_text())
    return synthetic(raw, tmp_path_factory.mktemp("peak") / "dense")


@pytest.fixture(scope="module")
def omni(tmp_path_factory, released_configs):
    raw = json.loads((released_configs / "Qwen3-Omni-30B-A3B-Instruct" / "config.json").read_text())
    for path, changes in FEW_LAYERS.items():
        section = raw
        for name in path:
            section = section[name]
        section.update(changes)
    return synthetic(raw, tmp_path_factory.mktemp("peak") / "omni")


def assert_planned(kind, folder, **options):
    script = Path(__file__).with_name("measure_peak.py")
    command = [sys.executable, str(script), kind, str(folder), json.dumps(options)]
    found = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
    print(kind, options, found)
    assert found["taken"] == pytest.approx(found["planned"], rel=0.05)


@pytest.mark.parametrize("sequences", [1, 8])
@pytest.mark.parametrize("weights", ["auto", "packed"])
def test_text(dense, sequences, weights):
    assert_planned("text", dense, max_context=384, max_sequences=sequences, weights=weights, prefill_chunk=128)


def test_speech(omni):
    assert_planned("speech", omni, max_context=4096, max_sequences=1, weights="packed")


def test_a_picture_and_a_minute_of_sound(omni):
    assert_planned("media", omni, max_context=4096, max_sequences=1, weights="packed")
