"""Which files of a model folder are opened: by transformers, by lluda, and what docs/checkpoints.md says of them."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from lluda.engine.loading.model_files import ModelFiles
from lluda.engine.loading.tokenizer import load_chat_template, load_tokenizer
from lluda.errors import LludaError
from lluda.weights.media_settings import read_media_settings
from lluda.weights.model_folder import SETTINGS_FILES, TOKENIZER_FILES, TOOL_TEMPLATE
from tests.inputs.conftest import RELEASED, TINY_MERGES, tiny_vocabulary, write_tiny

transformers = pytest.importorskip("transformers", reason="transformers is the reference here")

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "checkpoints.md"
WEIGHTS = {"model.safetensors", "model.safetensors.index.json"}
"""transformers opens these below Python, where they cannot be watched."""

OTHERS = ["README.md", "configuration.json", "params.json", "quantize_config.json", "modules.json", "tokenizer.model"]
OTHERS += ["spiece.model", "tekken.json", "audio_tokenizer_config.json", "adapter_config.json", "modelcard.json"]
OTHERS += ["pytorch_model.bin", "training_args.bin", "trainer_state.json", "model.gguf", "generation.py"]


class _Watch:
    """Files below ``folder`` that anything in this process opens; a hook of the interpreter cannot be taken back."""

    folder: str | None = None
    opened: set[str]

    def __call__(self, event: str, given: tuple[Any, ...]) -> None:
        if event == "open" and self.folder is not None and isinstance(given[0], str | bytes):
            path = given[0].decode() if isinstance(given[0], bytes) else given[0]
            if path.startswith(self.folder):
                self.opened.add(path.removeprefix(self.folder))


_WATCH = _Watch()


@pytest.fixture(scope="module")
def watch() -> Callable[[Path], Any]:
    sys.addaudithook(_WATCH)

    @contextmanager
    def watching(folder: Path) -> Iterator[set[str]]:
        _WATCH.folder, _WATCH.opened = f"{folder}/", set()
        try:
            yield _WATCH.opened
        finally:
            _WATCH.folder = None

    return watching


def table() -> dict[str, str]:
    """What the document's table says of each file."""
    rows = re.findall(r"^\| (`.*?) \|.*\| (.*?) \|$", DOCUMENT.read_text(encoding="utf-8"), re.MULTILINE)
    return {name: said for names, said in rows for name in re.findall(r"`(.+?)`", names)}


@pytest.fixture(scope="module")
def folder(released_configs, tmp_path_factory) -> Path:
    """The released Omni configs, a small tokenizer, and every other file that anyone might look for."""
    source, made = released_configs / RELEASED, tmp_path_factory.mktemp("folder")
    (made / TOOL_TEMPLATE).parent.mkdir()
    for name in (*TOKENIZER_FILES, *SETTINGS_FILES, *OTHERS):
        (made / name).write_text("{}" if name.endswith(".json") else "text")
    for name in ("config.json", "generation_config.json", "tokenizer_config.json"):
        (made / name).write_bytes((source / name).read_bytes())
    write_tiny(made)
    (made / "vocab.json").write_text(json.dumps(tiny_vocabulary()))
    (made / "merges.txt").write_text("\n".join(" ".join(pair) for pair in TINY_MERGES))
    (made / "chat_template.json").write_text(json.dumps({"chat_template": "text"}))
    return made


def read_by_transformers(folder: Path) -> None:
    """All that a processor of the model reads, part by part: the whole of it needs torchvision."""
    from transformers.feature_extraction_utils import FeatureExtractionMixin
    from transformers.image_processing_base import ImageProcessingMixin
    from transformers.processing_utils import ProcessorMixin
    from transformers.video_processing_utils import BaseVideoProcessor

    transformers.AutoConfig.from_pretrained(folder)
    transformers.GenerationConfig.from_pretrained(folder)
    for read in (
        transformers.AutoTokenizer.from_pretrained,
        ProcessorMixin.get_processor_dict,
        ImageProcessingMixin.get_image_processor_dict,
        FeatureExtractionMixin.get_feature_extractor_dict,
        BaseVideoProcessor.get_video_processor_dict,
    ):
        with suppress(ValueError, KeyError, TypeError):  # what else it makes of files that say nothing
            read(folder)


def variants(folder: Path) -> Iterator[None]:
    """The folder as it is, then without what keeps further files from being read, and so on."""
    yield
    (folder / "tokenizer.json").unlink()
    yield
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(
        json.dumps({key: value for key, value in config.items() if key != "added_tokens_decoder"})
    )
    for name in ("tekken.json", TOOL_TEMPLATE, "processor_config.json"):
        (folder / name).unlink()
    yield
    (folder / "chat_template.json").unlink()
    (folder / "video_preprocessor_config.json").unlink()
    yield


@pytest.mark.filterwarnings("ignore")
def test_every_file_that_transformers_opens_is_in_the_table_and_read_as_it_says(folder, watch):
    theirs, ours = set(), set()
    for _ in variants(folder):
        with watch(folder) as opened:
            read_by_transformers(folder)
        theirs |= opened
        with watch(folder) as opened:
            read_by_lluda(folder)
        ours |= opened
    said = table()
    theirs = {re.sub(r"(?<=^additional_chat_templates/).*(?=\.jinja$)", "*", name) for name in theirs}
    assert theirs - said.keys() == set()
    assert {"config.json", "vocab.json", "added_tokens.json", "processor_config.json", "tekken.json"} <= theirs | ours
    read = {name for name, words in said.items() if not words.startswith("not read")} - WEIGHTS
    ours = {"additional_chat_templates/*.jinja" if name == TOOL_TEMPLATE else name for name in ours}
    assert ours == read
    assert said.keys() >= WEIGHTS


def read_by_lluda(folder: Path) -> None:
    ModelFiles.find(folder)
    for load in (load_tokenizer, load_chat_template):
        with suppress(LludaError):  # files that contradict each other
            load(folder)
    for medium in ("audio", "image", "video"):
        read_media_settings(folder, medium)


def test_what_goes_along_is_what_is_read():
    said = table()
    for name in (*TOKENIZER_FILES, *SETTINGS_FILES):
        assert not said["additional_chat_templates/*.jinja" if name == TOOL_TEMPLATE else name].startswith("not read")
