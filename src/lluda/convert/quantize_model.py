"""A model as one GGUF file: from its name to weights of the types asked for, with all that is needed to run it."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from lluda.config.model import ModelConfig
from lluda.config.omni import whole_omni
from lluda.convert.gguf_metadata import copied_metadata, omni_metadata, text_metadata
from lluda.convert.quantize import QuantizeReport, TypeChoice, write_quantized
from lluda.engine.loading.load_options import LoadOptions
from lluda.engine.loading.model_files import ModelFiles
from lluda.engine.loading.tokenizer import load_chat_template
from lluda.errors import InvalidRequest, ModelNotFound
from lluda.inputs.text.gguf_tokenizer import tokenizer_metadata
from lluda.inputs.text.special_tokens import read_special_tokens
from lluda.inputs.text.tokenizer_files import vocabulary_from_folder
from lluda.models.build import all_parameters
from lluda.weights.checkpoint import (
    DOCUMENT_KEYS,
    GENERATION_CONFIG_NAME,
    open_checkpoint,
    read_config,
    read_document,
    read_generation_config,
)
from lluda.weights.gguf.checkpoint import GGUFCheckpoint
from lluda.weights.loader import Progress


def quantize_model(
    name_or_path: str | os.PathLike[str],
    out: Path,
    choice: TypeChoice,
    *,
    tokenizer: Path | None = None,
    split_bytes: int | None = None,
    threads: int | None = None,
    allow_unknown_config: bool = False,
    progress: Progress | None = None,
) -> QuantizeReport:
    """Write a folder, .gguf file or hub model as the GGUF file ``out``, its matrices in the types of ``choice``.

    Qwen3 text models get the standard names and keys, so that llama.cpp runs the file; Omni models lluda's own layout
    (docs/formats.md). Tokenizer, chat template and configs of the model (the tokenizer's of the folder ``tokenizer``
    instead) go inside; a folder without a tokenizer gives a file that takes ids alone. A .gguf source keeps its own.

    Errors as `write_quantized`; UnsupportedModel also for a model that GGUF has no names for.
    """
    threads = LoadOptions(threads=threads).threads
    if threads is not None:
        torch.set_num_threads(threads)
    files = ModelFiles.find(name_or_path, allow_unknown_config=allow_unknown_config)
    checkpoint = open_checkpoint(files.source)
    try:
        is_gguf = isinstance(checkpoint, GGUFCheckpoint)
        if is_gguf and tokenizer is not None:
            raise InvalidRequest(f"{files.path}: a .gguf file keeps its own tokenizer; leave out --tokenizer")
        metadata = (
            copied_metadata(checkpoint, choice.default)
            if isinstance(checkpoint, GGUFCheckpoint)
            else _folder_metadata(files, choice, tokenizer or files.path)
        )
        return write_quantized(
            checkpoint,
            out,
            all_parameters(files.config),
            choice,
            metadata,
            omni=files.config.omni is not None,
            split_bytes=split_bytes,
            progress=progress,
        )
    finally:
        checkpoint.close()


def _folder_metadata(files: ModelFiles, choice: TypeChoice, tokenizer: Path) -> Mapping[str, Any]:
    # A name in the file is UTF-8, whatever that of the folder is.
    name, config = files.name.encode(errors="replace").decode(), files.config
    if config.omni is None:
        keys = text_metadata(config, name, choice.default)
    else:
        shapes = {spec.name: spec.shape for spec in all_parameters(config)}
        keys = omni_metadata(whole_omni(read_config(files.source)), shapes, name, choice.default)
    documents = {name: read_document(files.source, name) for name in DOCUMENT_KEYS}
    own = _tokenizer_keys(config, tokenizer)
    documents[GENERATION_CONFIG_NAME] = _generation_config(files, own.get("tokenizer.ggml.eos_token_id"))
    found = {DOCUMENT_KEYS[file]: json.dumps(value, ensure_ascii=False) for file, value in documents.items() if value}
    return {**keys, **found, **own}


def _generation_config(files: ModelFiles, eos: int | None) -> dict[str, Any]:
    """The generation_config.json, with all ends of text that the configs name: GGUF has a key for one, which is
    ``eos``."""
    found, ends = read_generation_config(files.source), list(files.eos_ids)
    return found if ends in ([], [eos]) else {**found, "eos_token_id": ends}


def _tokenizer_keys(config: ModelConfig, folder: Path) -> dict[str, Any]:
    try:
        vocabulary = vocabulary_from_folder(folder).checked()
    except ModelNotFound:
        return {"tokenizer.ggml.model": "none"}
    template = load_chat_template(folder)
    keys = tokenizer_metadata(vocabulary, config.text.vocab_size, read_special_tokens(folder).named)
    if config.eos_token_ids:
        keys.setdefault("tokenizer.ggml.eos_token_id", config.eos_token_ids[0])
    if template:
        keys["tokenizer.chat_template"] = template.source
        if template.tool_source is not None:
            keys["tokenizer.chat_template.tool_use"] = template.tool_source
    return keys
