"""A start from a .gguf file (C6): its head, which holds the vocabulary, is read once, whatever the verb."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lluda.files import gguf_keys
from lluda.weights.gguf import file as gguf_file
from tests.cli.conftest import Printed


@pytest.fixture(scope="module")
def tiny_file(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small model with its tokenizer and template in one file, named in capitals."""
    from lluda.convert.quantize import TypeChoice
    from lluda.convert.quantize_model import quantize_model

    path = tmp_path_factory.mktemp("start") / "TINY.GGUF"
    quantize_model(model, path, TypeChoice("bf16"))
    return path


@pytest.fixture
def parses(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files whose heads were read."""
    read, seen = gguf_file.read_header, []

    def counted(data: Any, size: int, path: Path) -> Any:
        seen.append(path)
        return read(data, size, path)

    monkeypatch.setattr(gguf_file, "read_header", counted)
    return seen


@pytest.mark.parametrize(
    ("verb", "arguments"),
    [
        ("generate", ["hello", "-n", "1"]),
        ("plan", []),
        ("chat", []),
        ("inspect", []),
        ("pack", ["packed"]),
        ("quantize", ["-o", "q.gguf", "--type", "q8_0"]),
        ("perplexity", ["--text", "words.txt", "--context", "16"]),
    ],
)
def test_c6_the_head_of_a_file_is_read_once(
    lluda: Callable[..., Printed],
    parses: list[Path],
    tiny_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    verb: str,
    arguments: list[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "words.txt").write_text("hello world, hello again and again and again " * 20)
    printed = lluda(verb, "-m", tiny_file, *arguments)
    assert printed.code == 0, printed.err
    assert parses.count(tiny_file) == 1 and len(parses) == len(set(parses))  # one that was written is read once, too


def test_c6_a_model_keeps_no_vocabulary_it_does_not_use(
    parses: list[Path], tiny_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import lluda

    monkeypatch.setattr(gguf_keys, "_LONG", 100)
    model = lluda.load(tiny_file, backend="reference")
    keys = model.files.source.opened().metadata
    assert "tokenizer.ggml.tokens" in keys
    assert not any(len(value) > 100 for value in keys._values.values() if isinstance(value, list))
    # Asked for again, it is read again, without the head.
    assert len(keys.strings("tokenizer.ggml.tokens")) == model.config.text.vocab_size
    assert parses == [tiny_file]
