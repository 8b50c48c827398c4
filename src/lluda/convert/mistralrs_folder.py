"""A folder in which mistral.rs opens the weights of a checkpoint, and is given ids: it takes text alone."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from lluda.config.model import ModelConfig
from lluda.errors import UnsupportedModel
from lluda.files.atomic_file import atomic_file
from lluda.weights.checkpoint import is_gguf, read_config

ARCHITECTURES: Mapping[str, str] = {"qwen3": "Qwen3", "qwen3_moe": "Qwen3Moe", "llama": "Llama"}
"""What mistral.rs calls the architecture of each model type that both know."""


def mistralrs_folder(path: Path, config: ModelConfig, folder: Path) -> Path:
    """``folder`` with links to the safetensors files of ``path`` and a tokenizer that spells id 7 as ``t7``.

    UnsupportedModel: a .gguf file, or a model type that mistral.rs is not asked for.
    """
    if is_gguf(path):
        raise UnsupportedModel(f"{path}: mistralrs is given safetensors folders, not .gguf files")
    if config.model_type not in ARCHITECTURES:
        raise UnsupportedModel(f"mistralrs is given {', '.join(ARCHITECTURES)} models, not {config.model_type}")
    folder.mkdir(parents=True, exist_ok=True)
    for file in path.iterdir():
        if ".safetensors" in file.name:
            _link(folder / file.name, file.resolve())
    _write(folder / "config.json", _explicit_config(path, config))
    _write(folder / "tokenizer.json", _numbered_tokenizer(config.text.vocab_size))
    template = "{{ messages[0]['content'] }}"
    special = {"chat_template": template, "bos_token": None, "eos_token": "t0", "unk_token": "t0"}
    _write(folder / "tokenizer_config.json", special)
    return folder


def _link(link: Path, target: Path) -> None:
    """Another run of the same checkpoint may have made it, or be reading it."""
    if not link.is_symlink():
        with suppress(FileExistsError):
            link.symlink_to(target)


def _write(path: Path, value: dict[str, Any]) -> None:
    with atomic_file(path) as file:
        file.write(json.dumps(value).encode())


def _explicit_config(path: Path, config: ModelConfig) -> dict[str, Any]:
    """The model's config with what mistralrs insists on and other readers take from defaults."""
    defaults = {
        "max_window_layers": config.text.num_hidden_layers,
        "use_sliding_window": False,
        "sliding_window": None,
        "head_dim": config.text.head_dim,
        "num_key_value_heads": config.text.num_key_value_heads,
        "tie_word_embeddings": config.text.tie_word_embeddings,
        "rope_theta": config.text.rope.theta,
        "attention_bias": False,
    }
    return defaults | read_config(path)


def _numbered_tokenizer(vocab_size: int) -> dict[str, Any]:
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [],
        "normalizer": None,
        "pre_tokenizer": {"type": "WhitespaceSplit"},
        "post_processor": None,
        "decoder": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False},
        "model": {"type": "WordLevel", "vocab": {f"t{i}": i for i in range(vocab_size)}, "unk_token": "t0"},
    }
