"""Decoding wakes no second thread pool: torch's threads would spin for milliseconds beside the kernels' own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from lluda.config.model import ModelConfig
from lluda.convert.synth import synthesize
from lluda.models.build import all_parameters
from tests.conftest import TINY_QWEN3

PROGRAM = """
import os, sys, time
import torch

def processor_seconds(threads):
    return sum(int(open(f"/proc/self/task/{thread}/schedstat").read().split()[0]) for thread in threads) / 1e9

def tasks():
    return set(os.listdir("/proc/self/task"))

torch.set_num_threads(2)
before = tasks()
torch.ones(1 << 20).sum()
torch_threads = tasks() - before
assert len(torch_threads) == 1, "torch made other threads than expected"

from lluda.bench.engines.lluda import LludaSession
from lluda.bench.process.job import Job
session = LludaSession(Job(engine="lluda", model=sys.argv[1], backend="cpu", threads=2, context=64, vocab_size=512))
tokens = session.start([[1, 2, 3], [4, 5], [6, 7, 8], [9]])
time.sleep(0.1)
begun = processor_seconds(torch_threads)
for _ in range(20):
    tokens = session.step(tokens)
spent = processor_seconds(torch_threads) - begun
begun = processor_seconds(torch_threads)
for _ in range(400):  # its time is not told at once
    torch.ones(1 << 20).sum()
print(spent, processor_seconds(torch_threads) - begun)
"""


@pytest.mark.skipif(not Path("/proc/self/schedstat").exists(), reason="this system does not tell threads' times")
def test_decode_steps_leave_torch_threads_asleep(tmp_path: Path) -> None:
    raw = TINY_QWEN3 | {"head_dim": 128, "hidden_size": 512}
    synthesize(all_parameters(ModelConfig.from_hf(raw)), tmp_path / "model", config=raw)
    run = subprocess.run(
        [sys.executable, "-c", PROGRAM, tmp_path / "model"], capture_output=True, text=True, check=True
    )
    decoding, parallel_operations = map(float, run.stdout.split())
    assert parallel_operations > 0, "the measurement sees nothing"
    assert decoding == 0
