"""Small checkpoints on disk for the bench: no tokenizer, for it needs none."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lluda.bench.prediction import bandwidth
from lluda.bench.process import worker
from lluda.bench.process.job import Job
from lluda.bench.process.supervisor import WORKER, WorkerResult
from lluda.bench.session import EngineInfo
from lluda.config.model import ModelConfig
from lluda.convert.synth import synthesize
from lluda.models.causal_lm import causal_lm_parameters

# What released configs spell out and mistralrs insists on.
RELEASED_KEYS = {"max_window_layers": 3, "sliding_window": None, "use_sliding_window": False, "attention_bias": False}


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Makes a checkpoint of a config."""

    def make(raw: dict[str, Any], dtype: str = "BF16") -> Path:
        folder = tmp_path_factory.mktemp("checkpoint") / str(raw["model_type"])
        config = RELEASED_KEYS | raw
        synthesize(causal_lm_parameters(ModelConfig.from_hf(config).text), folder, config=config, dtype=dtype)
        return folder

    return make


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers run here: quickly, and with what a test has put in the place of a module's. Little memory is streamed."""
    monkeypatch.setattr(bandwidth, "BUFFER_BYTES", 1 << 20)

    def run_worker(job: Job, _timeout: float, module: str = WORKER) -> WorkerResult:
        result = WorkerResult()
        if module != WORKER:
            reading = bandwidth.measure(job)
            result.info = EngineInfo("", 0.0, reading.method)
            result.samples.append(bandwidth.sample(reading))
            return result
        try:
            for sample in worker.samples(job, lambda session: setattr(result, "info", session.info)):
                result.samples.append(sample)
        except Exception as error:  # as a process of its own would end
            result.error = f"exit code 1; {type(error).__name__}: {error}"
        return result

    monkeypatch.setattr("lluda.bench.runner.run_worker", run_worker)
