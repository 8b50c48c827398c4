"""Whether a model's head is the embedding's table: what the checkpoint stores outranks what its config says."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from lluda.config.model import ModelConfig
from lluda.errors import LludaError
from lluda.models.build import text_prefix
from lluda.models.causal_lm import EMBEDDING, HEAD
from lluda.weights.checkpoint import Source, open_checkpoint
from lluda.weights.tied_weights import stored_alike


def with_stored_head(source: Source, config: ModelConfig) -> tuple[ModelConfig, tuple[str, ...]]:
    """``config`` with its head untied where ``source`` stores one of other values than the embedding's, and a sentence
    that says so. transformers uses the stored one too (5.23, ``tie_weights``). Reads both where both are stored.

    GGUF has no such switch: there two equal ones are tied."""
    tied = config.text.tie_word_embeddings
    if not tied and (config.omni is not None or Path(source).is_dir()):
        return config, ()
    head, embedding = f"{text_prefix(config)}{HEAD}", f"{text_prefix(config)}{EMBEDDING}"
    try:
        checkpoint = open_checkpoint(source, prefix=(head, embedding))
    except LludaError:  # a config alone can be planned; what is wrong is said when it is loaded
        return config, ()
    try:
        stored = {head, embedding} <= checkpoint.entries.keys()
        alike = stored and stored_alike(checkpoint, embedding, head)
    finally:
        checkpoint.close()
    if not stored or alike == tied:
        return config, ()
    if alike:
        return _tied(config, True), ()
    notice = (
        f"tie_word_embeddings is true, but {head} is stored with other values than {embedding}: the stored one is used"
        ", as transformers does; set tie_word_embeddings to false in the config"
    )
    return _tied(config, False), (notice,)


def _tied(config: ModelConfig, tied: bool) -> ModelConfig:
    return replace(config, text=replace(config.text, tie_word_embeddings=tied))
