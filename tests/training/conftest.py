"""A tiny checkpoint with random weights and a set of two spoken questions, for all tests of training."""

import json
import shutil

import numpy as np
import pytest

from lluda.cli.main import main as lluda_command
from training import config, tokenizer


@pytest.fixture(scope="session")
def random_checkpoint(tmp_path_factory):
    """The tiny model with random weights: true names, shapes and tokenizer; speech of six frames."""
    source = tmp_path_factory.mktemp("config")
    shutil.copytree(tokenizer.FOLDER, source, dirs_exist_ok=True)
    shutil.copy(config.PATH, source / "config.json")
    folder = source.with_name("random-checkpoint")
    assert lluda_command(["synth", str(source), str(folder)]) == 0
    generation = config.GENERATION | {"talker_max_new_tokens": 6}
    (folder / "generation_config.json").write_text(json.dumps(generation), encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def spoken_questions(tmp_path_factory):
    """A set of two spoken questions of half a second, the second with a system prompt and a turn before."""
    folder = tmp_path_factory.mktemp("questions")
    sound = (3000 * np.sin(np.arange(16000) / 10)).astype("<i2")
    sound.tofile(folder / "sound.i16")
    (folder / "set.json").write_text('{"rate": 16000}', encoding="utf-8")
    shared = {"answer": "Paris.", "slot": "Paris", "domain": "capital", "samples": 8000, "split": "train"}
    shared |= {"system": None, "instruction": "", "voice": "tone"}
    entries = [
        shared | {"text": "What is the capital of France?", "start": 0, "before": []},
        shared | {"text": "And of France?", "start": 8000, "before": [["Hello.", "Hello."]], "system": "Be brief."},
    ]
    (folder / "index.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in entries), encoding="utf-8")
    return folder
