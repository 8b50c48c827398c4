"""Synthesised checkpoints of small configs, and a way to damage what lluda reads of them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lluda.config.model import ModelConfig
from lluda.convert.synth import synthesize
from lluda.engine.loading.load_options import LoadOptions
from lluda.engine.loading.model_files import ModelFiles
from lluda.evaluation.inputs import ValidationInput, random_ids
from lluda.evaluation.ladder import validate
from lluda.evaluation.validation import ComponentParity, Validation, ValidationRequest
from lluda.models.build import all_parameters
from lluda.models.causal_lm import causal_lm_parameters
from tests.conftest import TINY_LLAMA, TINY_MIXED, TINY_MOE, TINY_QWEN3
from tests.models.test_thinker import MIXES, OMNI

__all__ = ["MIXES"]

TINY = {"qwen3": TINY_QWEN3, "moe": TINY_MOE, "llama": TINY_LLAMA, "mixed": TINY_MIXED}
# Every expert is chosen by every row, so that a BF16 rounding cannot change the choice and hide the arithmetic.
TINY_ALL_EXPERTS = TINY_MIXED | {"num_experts": 4, "num_experts_per_tok": 4}


def write_checkpoint(folder: Path, raw: dict[str, Any], seed: int = 0) -> Path:
    synthesize(causal_lm_parameters(ModelConfig.from_hf(raw).text), folder, config=raw, seed=seed)
    return folder


def run_validation(path: Path, dtype: str = "f32", *, tokens: int = 40, seed: int = 0, **request: Any) -> Validation:
    files = ModelFiles.find(path)
    given = ValidationInput(random_ids(files.config.text.vocab_size, tokens, seed), "random")
    return validate(files, LoadOptions(dtype=dtype), ValidationRequest(given=given, **request))


def text_of(validation: Validation) -> ComponentParity:
    """The one component of a text model."""
    (component,) = validation.components
    assert component.component == "text"
    return component


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[dict[str, Any]], Path]:
    """The folder of a checkpoint of a config, made once."""
    pytest.importorskip("transformers", reason="transformers is the reference here")
    made: dict[str, Path] = {}

    def folder(raw: dict[str, Any]) -> Path:
        key = repr(sorted(raw.items()))
        if key not in made:
            made[key] = write_checkpoint(tmp_path_factory.mktemp("checkpoint") / "model", raw)
        return made[key]

    return folder


@pytest.fixture
def damage(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, Callable[[torch.Tensor], Any]], None]:
    """Change one tensor as lluda reads it, while the reference reads the file as it is."""
    from lluda.engine.loading import model_files
    from lluda.formats.plain import plain_tensor
    from lluda.formats.stored_tensor import StoredTensor
    from lluda.weights.safetensors.folder import FolderCheckpoint

    class Damaged(FolderCheckpoint):
        name: str
        change: Callable[[torch.Tensor], Any]

        def stored(self, name: str) -> StoredTensor:
            if name != self.name:
                return super().stored(name)
            values = super().tensor(name).clone()
            type(self).change(values)
            return plain_tensor(values)

    def install(name: str, change: Callable[[torch.Tensor], Any]) -> None:
        Damaged.name, Damaged.change = name, staticmethod(change)
        monkeypatch.setattr(model_files, "open_checkpoint", lambda source: Damaged(Path(source)))

    return install


def mixed_input(config: ModelConfig, mix: list[Any], seed: int = 0) -> ValidationInput:
    """A mix of tests.models.test_thinker, lengths of text and media, as a prompt of a model's own ids."""
    marks, draw = config.omni.tokens, np.random.default_rng(seed)
    special = set(asdict(marks).values())
    words = [token for token in range(min(config.text.vocab_size, 40_000)) if token not in special]
    opened = {
        "audio": (marks.audio_start, marks.audio_pad, marks.audio_end),
        "image": (marks.vision_start, marks.image_pad, marks.vision_end),
        "video": (marks.vision_start, marks.video_pad, marks.vision_end),
    }
    ids: list[int] = []
    for piece in mix:
        ids += draw.choice(words, piece).tolist() if isinstance(piece, int) else opened[piece.kind]
    return ValidationInput(tuple(ids), "a mix", tuple(piece for piece in mix if not isinstance(piece, int)))


def write_omni(folder: Path, *, speaks: bool = True) -> Path:
    """The small Omni model of tests.engine.speech.test_speech, or its thinker alone."""
    from tests.engine.speech.test_speech import config

    raw = config() if speaks else copy.deepcopy(OMNI)
    synthesize(all_parameters(ModelConfig.from_hf(raw)), folder, config=raw)
    return folder
