"""Clients that ask much (aiperf) or anything (schemathesis)."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

import lluda
from lluda.weights.bundled import tiny_omni_folder
from tests.clients.environments import require, run
from tests.serving.oracle import check_well
from tests.serving.running import RunningServer, running_server

# What fits the schema may contradict itself, or ask for what this model cannot do: 400 is right for it.
CHECKS = ["--checks", "all", "--exclude-checks", "positive_data_acceptance"]


@pytest.fixture
def brief() -> Iterator[RunningServer]:
    """A server whose answers are short whatever is asked: no limit of theirs is above its context."""
    with running_server(load=lambda: lluda.load("tiny-omni", threads=1, max_context=512)) as running:
        yield running


def document_of(server: RunningServer, tmp_path: Path) -> Path:
    """The server's own document without the endpoint that only tests have, and with the names that it knows: others
    are 404 before anything else is read."""
    document = server.get("/openapi.json").json()
    document["paths"] = {path: item for path, item in document["paths"].items() if path != "/example"}
    names = {"model": [one["id"] for one in server.get("/v1/models").json()["data"]], "voice": ["alloy", "ash"]}
    for schema in document["components"]["schemas"].values():
        for name, values in names.items():
            if name in schema.get("properties", {}):
                schema["properties"][name] = narrowed(schema["properties"][name], values)
    # Of a session anything is taken: clients send null, and names of OpenAI's models, whatever they are told.
    session = document["components"]["schemas"]["ClientSecretBody"]["properties"]["session"]
    session["anyOf"].append({"type": "object"})
    file = tmp_path / "openapi.json"
    file.write_text(json.dumps(document))
    return file


def narrowed(schema: dict[str, Any], values: list[str]) -> dict[str, Any]:
    """``schema`` with ``values`` alone where it takes any text."""
    if schema.get("type") == "string":
        return {"enum": values}
    return schema | {key: [narrowed(one, values) for one in schema[key]] for key in ("anyOf", "oneOf") if key in schema}


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("seconds", [60, pytest.param(600, marks=pytest.mark.slow)])
def test_schemathesis_finds_nothing(brief: RunningServer, tmp_path: Path, seconds: int) -> None:
    folder = require("schemathesis")
    command = [folder / "bin/schemathesis", "run", document_of(brief, tmp_path), "--url", brief.url]
    limits = ["--max-examples", "50", "--max-time", str(seconds), "--request-timeout", "120"]
    print(run([*command, *limits, *CHECKS], tmp_path, seconds=seconds + 600))
    check_well(brief)


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
