"""Small files of a checkpoint that are links (B4): followed, and a broken one is an error, not
taken for a file that is not there (another prompt, without a word)."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from lluda.errors import LludaError
from lluda.inputs.chat.chat_template import ChatTemplate
from lluda.inputs.text.tokenizer import Tokenizer
from lluda.weights.checkpoint import read_config, read_generation_config
from lluda.weights.media_settings import read_media_settings
from tests.inputs.conftest import write_tiny

FILES: dict[str, Callable[[Path], object]] = {
    "config.json": read_config,
    "generation_config.json": read_generation_config,
    "preprocessor_config.json": lambda folder: read_media_settings(folder, "audio"),
    "tokenizer.json": Tokenizer.from_folder,
    "tokenizer_config.json": Tokenizer.from_folder,
    "special_tokens_map.json": Tokenizer.from_folder,
    "added_tokens.json": Tokenizer.from_folder,
    "chat_template.jinja": ChatTemplate.from_folder,
    "chat_template.json": ChatTemplate.from_folder,
}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("target", ["../shared", "gone", "itself"])
def test_b4_a_small_file_that_is_a_link(tmp_path: Path, name: str, target: str) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    write_tiny(folder)
    path = folder / name
    content = path.read_text() if path.exists() else "" if name.endswith(".jinja") else json.dumps({})
    path.unlink(missing_ok=True)
    (tmp_path / "shared").write_text(content)
    path.symlink_to(name if target == "itself" else target)
    if target == "../shared":
        FILES[name](folder)
        return
    rule = "leads back to itself" if target == "itself" else "a link to gone, where there is no file"
    with pytest.raises(LludaError, match=rf"{name}: .*{rule}"):
        FILES[name](folder)
