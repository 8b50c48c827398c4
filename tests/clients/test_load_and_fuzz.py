"""Clients that ask much (aiperf) or anything (schemathesis)."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from lluda.weights.bundled import tiny_omni_folder
from tests.clients.environments import require, run
from tests.serving.oracle import check_well
from tests.serving.running import RunningServer

# What fits the schema may contradict itself, or ask for what this model cannot do: 400 is right for it.
CHECKS = ["--checks", "all", "--exclude-checks", "positive_data_acceptance"]


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("seconds", [60, pytest.param(600, marks=pytest.mark.slow)])
def test_schemathesis_finds_nothing(server: RunningServer, tmp_path: Path, seconds: int) -> None:
    folder = require("schemathesis")
    command = [folder / "bin/schemathesis", "run", f"{server.url}/openapi.json", "--url", server.url]
    command += ["--request-timeout", "120"]  # an answer without an end takes all the context
    limits = ["--max-examples", "50", "--max-time", str(seconds)]
    print(run([*command, *limits, *CHECKS], tmp_path, seconds=seconds + 600))
    check_well(server)


@pytest.fixture
def tokenizer(tmp_path: Path) -> Path:
    """A folder with the tokenizer as aiperf reads it: a tokenizer.json beside the config."""
    folder = tmp_path / "tokenizer"
    AutoTokenizer.from_pretrained(tiny_omni_folder()).save_pretrained(folder)
    shutil.copy(tiny_omni_folder() / "config.json", folder)
    return folder


def test_aiperf_has_no_failed_request(server: RunningServer, tokenizer: Path, tmp_path: Path) -> None:
    folder = require("aiperf")
    options = ["--endpoint-type", "chat", "--streaming", "--concurrency", "8", "--request-count", "64", "--ui", "none"]
    lengths = ["--synthetic-input-tokens-mean", "256", "--output-tokens-mean", "32", "--extra-inputs", "min_tokens:32"]
    prompts = ["--tokenizer", tokenizer, *lengths, "--shared-system-prompt-length", "128"]
    paths = ["--url", server.url, "--artifact-dir", tmp_path / "out"]
    run([folder / "bin/aiperf", "profile", "--model", "tiny-omni", *paths, *options, *prompts], tmp_path)
    summary = json.loads((tmp_path / "out/profile_export_aiperf.json").read_text())
    assert summary["request_count"]["avg"] == 64
    assert not summary["error_summary"]
    requests = (tmp_path / "out/profile_export.jsonl").read_text().splitlines()
    metrics = [json.loads(line)["metrics"] for line in requests]
    assert len(metrics) == 64
    for counted in metrics:
        assert counted["usage_prompt_tokens_diff_pct"]["value"] < 10
        assert counted["usage_completion_tokens_diff_pct"]["value"] < 10
    assert max(counted["usage_prompt_cache_read_tokens"]["value"] for counted in metrics) >= 128
    check_well(server)
