"""What a model's small files tell before its weights are fetched: whether lluda runs it at all. Needs no torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lluda.config.model import ModelConfig
from lluda.engine.sampling.sampling_params import SamplingParams
from lluda.errors import ModelNotFound
from lluda.weights.checkpoint import CONFIG_NAME, read_config, read_generation_config
from lluda.weights.config_override import with_rope_scaling
from lluda.weights.hub.repository import Check


def small_files_check(
    *, allow_unknown_config: bool = False, rope_scaling: str | Mapping[str, Any] | None = None, answers: bool = False
) -> Check:
    """A check of config, generation config and tokenizer, and of what only an answer needs if it ``answers``; it raises
    what loading the model with these options would."""

    def check(folder: Path) -> None:
        # A tenth of a second, and seldom needed.
        from lluda.inputs.chat.chat_template import ChatTemplate
        from lluda.inputs.text.tokenizer_files import vocabulary_from_folder

        raw = with_rope_scaling(read_config(folder), rope_scaling)
        ModelConfig.from_hf(raw, str(folder / CONFIG_NAME), allow_unknown=allow_unknown_config)
        generation_config = read_generation_config(folder)
        if answers:
            SamplingParams().with_defaults(generation_config)
            ChatTemplate.from_folder(folder)
        try:
            vocabulary_from_folder(folder).checked()
        except ModelNotFound:  # it takes ids, or --tokenizer names another's
            return

    return check
