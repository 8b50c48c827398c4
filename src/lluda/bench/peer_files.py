"""What each peer opens to run the same weights, prepared before anything is timed; and what a peer cannot run."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from lluda.bench.gguf_copy import checkpoint_key, gguf_copy
from lluda.config.model import ModelConfig
from lluda.errors import UnsupportedModel
from lluda.files.atomic_file import atomic_file
from lluda.weights.checkpoint import is_gguf, open_checkpoint, read_config

Progress = Callable[[int, int], None]

_CHUNK = 16 << 20


def prepare_files(engine: str, path: Path, config: ModelConfig, cache_dir: Path | None, progress: Progress) -> str:
    """The path that ``engine`` opens for the model in ``path``; copies go to ``cache_dir`` (default: ``lluda-bench`` in
    the temporary folder) and stay there for the next run.

    UnsupportedModel: the peer has no such model; its message is what is reported.
    """
    folder = cache_dir or Path(tempfile.gettempdir()) / "lluda-bench"
    if engine == "llama.cpp" and not is_gguf(path):
        return str(gguf_copy(path, config, folder, progress))
    if engine == "mistralrs":
        if is_gguf(path):
            raise UnsupportedModel("mistralrs is measured on safetensors folders, not on .gguf files")
        return str(_linked_folder(path, config, folder))
    if engine == "transformers" and config.model_type != "llama" and not config.text.use_qk_norm:
        raise UnsupportedModel(f"transformers cannot run {config.model_type} without qk-norm")
    return str(path)


def warm_page_cache(path: Path) -> None:
    """Read the weights in ``path`` (a folder or a file) once, so that no engine is the first to fetch them from disk.
    What does not fit the free memory is left there: it would push out what has been read."""
    files = [path] if path.is_file() else sorted(path.glob("*.safetensors"))
    if sum(file.stat().st_size for file in files) > psutil.virtual_memory().available:
        return
    buffer = bytearray(_CHUNK)
    for name in files:
        with name.open("rb", buffering=0) as file:
            while file.readinto(buffer):
                pass


def _linked_folder(path: Path, config: ModelConfig, cache_dir: Path) -> Path:
    """A folder with links to the checkpoint's weights and a tokenizer that spells id 7 as ``t7``, because mistralrs
    takes text alone and must be given the ids that the other engines get."""
    checkpoint = open_checkpoint(path)
    folder = cache_dir / f"{path.name}-{checkpoint_key(checkpoint)}-by-number"
    checkpoint.close()
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
