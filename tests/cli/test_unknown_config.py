"""The way past an unknown config key that the message advises, in every verb that can print the message."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lluda.bench.process.job import Job
from lluda.errors import InvalidRequest
from tests.cli.conftest import write_model

TEXT = "Once upon a time"
ADVICE = "config.json: unknown keys that may change the maths: attn_softcap; pass --allow-unknown-config"


@pytest.fixture(scope="module")
def strange(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint whose config.json has a key that nobody knows."""
    folder = write_model(tmp_path_factory.mktemp("strange") / "tiny")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"attn_softcap": 30.0}))
    return folder


def arguments(verb: str, model: Path, folder: Path) -> list[object]:
    text = folder / "text.txt"
    text.write_text(TEXT)
    return {
        "generate": ["generate", "-m", model, "--raw", "--max-tokens", 1, TEXT],
        "chat": ["chat", "-m", model, "--max-tokens", 1],
        "plan": ["plan", model],
        "pack": ["pack", "-m", model, folder / "packed"],
        "quantize": ["quantize", "-m", model, "-o", folder / "q.gguf", "--type", "bf16"],
        "perplexity": ["perplexity", "-m", model, "--text", text, "--context", 8],
        "perplexity --against": ["perplexity", "-m", model, "--against", model, "--text", text, "--context", 8],
        "validate": ["validate", "-m", model, "--reference", "transformers", "--tokens", 8, "--greedy", 1],
        "synth": ["synth", model, folder / "synth"],
        "bench": ["bench", "-m", model, "--tests", "ttft", "--prompt", 4, "--gen", 2, "--repeat", 1],
    }[verb]


VERBS = [
    *("generate", "chat", "plan", "pack", "quantize", "perplexity", "perplexity --against", "validate", "synth"),
    "bench",
]


@pytest.mark.parametrize("verb", VERBS)
def test_the_advised_option_works(lluda, strange: Path, tmp_path: Path, verb: str) -> None:
    given = arguments(verb, strange, tmp_path)
    refused = lluda(*given)
    assert refused.code == 2
    assert ADVICE in refused.err
    taken = lluda(*given, "--allow-unknown-config")
    assert "attn_softcap" not in taken.err
    assert taken.code == 0, taken.err


def test_bench_synth_hands_it_on(lluda, strange: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lluda.bench import runner
    from lluda.bench.source import open_source

    given = ("bench", "--synth", strange, "--device", "cpu", "--backend", "reference")
    assert ADVICE in lluda(*given).err

    def only_open(job: Job, *_: object) -> None:
        assert open_source(job).config.model_type == "qwen3"
        raise InvalidRequest("opened")

    monkeypatch.setattr(runner, "run_worker", only_open)
    assert lluda(*given, "--allow-unknown-config").err.strip().endswith("opened")
