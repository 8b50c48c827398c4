"""Clients that ask much (aiperf) or anything (schemathesis)."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from lluda.weights.bundled import tiny_omni_folder
from tests.clients.environments import require, run
from tests.serving.oracle import check_well
from tests.serving.running import RunningServer

# Not positive_data_acceptance: what fits the schema may contradict itself, or ask for what this model cannot do.
CHECKS = (
    "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance,"
    "negative_data_rejection,unsupported_method,ignored_auth"
)


@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    "examples", [pytest.param(5, id="some"), pytest.param(500, id="ten minutes", marks=pytest.mark.slow)]
)
def test_schemathesis_finds_nothing(server: RunningServer, tmp_path: Path, examples: int) -> None:
    folder = require("schemathesis")
    command = [folder / "bin/schemathesis", "run", f"{server.url}/openapi.json", "--url", server.url]
    run([*command, "--max-examples", str(examples), "--checks", CHECKS], tmp_path, seconds=1700)
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
    options = ["--endpoint-type", "chat", "--streaming", "--concurrency", "8", "--request-count", "32", "--ui", "none"]
    lengths = ["--synthetic-input-tokens-mean", "64", "--output-tokens-mean", "16"]
    paths = ["--url", server.url, "--tokenizer", tokenizer, "--artifact-dir", tmp_path / "out"]
    run([folder / "bin/aiperf", "profile", "--model", "tiny-omni", *paths, *options, *lengths], tmp_path)
    (found,) = (tmp_path / "out").rglob("profile_export_aiperf.json")
    summary = json.loads(found.read_text())
    assert summary["request_count"]["avg"] == 32
    assert not summary.get("error_summary")
    assert not re.search(r"cached_tokens.*(absent|missing)", found.read_text())
    check_well(server)
