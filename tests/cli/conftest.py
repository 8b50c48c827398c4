"""A small model with a tokenizer and a chat template of its own, and a way to call the command in this process."""

from __future__ import annotations

import io
import json
import signal
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from lluda.cli.main import main
from lluda.config.model import ModelConfig
from lluda.convert.synth import synthesize
from lluda.models.causal_lm import causal_lm_parameters
from tests.conftest import TINY_QWEN3
from tests.inputs.conftest import SPECIAL, tiny_vocabulary, write_tiny


def interrupt() -> None:
    """Ctrl-C, while the engine's thread computes a step: whoever waits for it has read what came before, and is
    interrupted before the step ends."""
    time.sleep(0.1)
    signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
    time.sleep(0.5)


END = len(tiny_vocabulary())
"""The id of `SPECIAL`, which ends an answer."""

CONFIG = TINY_QWEN3 | {"vocab_size": END + 2, "eos_token_id": END}
TEMPLATE = (
    "{% for message in messages %}{{ message.role }}: {{ message.content }}" + SPECIAL + "{% endfor %}"
    "assistant: {% if enable_thinking is defined and not enable_thinking %}<think></think>{% endif %}"
)


def write_model(folder: Path, changes: Mapping[str, Any] | None = None, **options: Any) -> Path:
    """A checkpoint of CONFIG with ``changes`` and the tiny tokenizer; ``options`` are synthesize's."""
    raw = CONFIG | dict(changes or {})
    synthesize(causal_lm_parameters(ModelConfig.from_hf(raw).text), folder, config=raw, **options)
    write_tiny(folder)
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": TEMPLATE}))
    return folder


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of that model; not to be changed."""
    return write_model(tmp_path_factory.mktemp("cli") / "tiny")


@dataclass(frozen=True)
class Printed:
    """What one call of the command left behind."""

    code: int
    out: str
    err: str

    @property
    def lines(self) -> list[str]:
        return self.err.splitlines()


@pytest.fixture
def lluda(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Printed]:
    """The command, called in this process with arguments and what stdin holds."""

    def call(*arguments: object, stdin: bytes = b"") -> Printed:
        capsys.readouterr()
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(stdin), encoding="utf-8"))
        code = main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        return Printed(code, out, err)

    return call
