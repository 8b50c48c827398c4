"""What is planned is what is taken: the peak of a process of its own, of Qwen3-0.6B's shapes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from lluda.config.model import ModelConfig
from lluda.convert.synth import synthesize
from lluda.models.build import all_parameters

CONTEXT, ANSWER = 512, 200
SCRIPT = """
import gc, json, re, sys
import torch
from lluda.engine.engine import Engine
from lluda.engine.loading.loading import LoadOptions, ModelFiles, load_network
from lluda.engine.prompt_rows import PromptRows
from lluda.engine.request import Request
from lluda.engine.runner import Runner
from lluda.engine.sampling.sampling_params import SamplingParams
from lluda.inputs.text.tokenizer import Tokenizer

def resident(key):
    return int(re.search(key + r":\\s+(\\d+)", open("/proc/self/status").read())[1]) << 10

folder, sequences, weights, context, answer = sys.argv[1], int(sys.argv[2]), sys.argv[3], *map(int, sys.argv[4:])
options = LoadOptions(max_context=context, max_sequences=sequences, weights=weights, prefill_chunk=128)
files = ModelFiles.find(folder)
plan = files.plan(options)
torch.ones(4, 4) @ torch.ones(4, 4)
gc.collect()
before = resident("VmRSS")
open("/proc/self/clear_refs", "w").write("5")  # the peak begins anew
network, _ = load_network(files, options)
runner = Runner(network, files.cache_options(options, "bf16"), options.prefill_rows)
engine = Engine(runner, Tokenizer.empty(), kv_positions=sequences * context)
params = SamplingParams(temperature=0, max_tokens=answer, ignore_eos=True).with_defaults({})
prompts = [[(7 * row + number) % 1000 for row in range(context - answer)] for number in range(sequences)]
streams = [engine.submit(Request(prompt=PromptRows(prompt), sampling=params)) for prompt in prompts]
for stream in streams:
    for event in stream:
        pass
print(json.dumps({"planned": plan.total, "taken": resident("VmHWM") - before}))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory, released_configs):
    raw = json.loads((released_configs / "Qwen3-0.6B" / "config.json").read_text())
    made = tmp_path_factory.mktemp("peak") / "q06"
    synthesize(all_parameters(ModelConfig.from_hf(raw)), made, config=raw)
    return made


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="resident memory is read from /proc")
@pytest.mark.parametrize(("sequences", "weights"), [(1, "auto"), (8, "auto"), (1, "packed"), (8, "packed")])
def test_the_peak_is_the_plan_s_within_5_percent(folder, sequences, weights):
    command = [sys.executable, "-c", SCRIPT, str(folder), str(sequences), weights, str(CONTEXT), str(ANSWER)]
    found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    print(sequences, weights, found)
    assert found["taken"] == pytest.approx(found["planned"], rel=0.05)
