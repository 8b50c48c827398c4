"""What reads files of strangers, each as a function of bytes: it returns, or raises a LludaError that a person can
read. `python -m tests.fuzz` hunts for bytes with which it does not; those that were found are in ``found``."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import numpy as np
import torch

from lluda.backends.cpu.native_library import NativeContext
from lluda.config.model import ModelConfig
from lluda.errors import LludaError, NativeLibraryError
from lluda.files.json_file import read_json_object
from lluda.formats.packed_bf16 import PACKED_BF16
from lluda.inputs.chat.chat_template import ChatTemplate
from lluda.inputs.text.tokenizer import Tokenizer
from lluda.models.build import all_parameters
from lluda.weights.gguf.checkpoint import GGUFCheckpoint
from lluda.weights.gguf.file import GGUFFile
from lluda.weights.safetensors.file import SafetensorsFile
from tests.conftest import TINY_LLAMA, TINY_MOE, TINY_QWEN3
from tests.faults.test_gguf_faults import TINY as TINY_GGUF
from tests.faults.test_gguf_faults import file as gguf_file
from tests.faults.test_gguf_faults import key, text
from tests.faults.test_gguf_keys_faults import keys_of, stored
from tests.faults.test_packed_faults import COLUMNS, GOOD, ROWS
from tests.faults.test_safetensors_faults import X, raw
from tests.faults.test_template_faults import FAILING
from tests.formats.packed_by_hand import write_packed
from tests.inputs.conftest import tiny_gguf, tiny_tokenizer_json
from tests.inputs.media.recordings import read_audio, sound, write

SPOKEN = "hello wörld 😀"
MESSAGES = [{"role": "system", "content": "a"}, {"role": "user", "content": "hi"}, {"role": "assistant", "content": ""}]


@dataclass(frozen=True, slots=True)
class Reader:
    """``read`` is given a file with the bytes. ``seeds`` are files that it reads, or refuses for some reason."""

    file_name: str
    read: Callable[[Path], None]
    seeds: Callable[[], list[bytes]]

    def feed(self, content: bytes, folder: Path) -> None:
        """Read ``content`` as a file of ``folder``. Any error of ours that is not readable, and any other, passes."""
        path = folder / self.file_name
        path.write_bytes(content)
        try:
            self.read(path)
        except LludaError as error:
            message = str(error)
            assert "\n" not in message, f"more than a line: {message!r}"
            assert len(message) < 1000, f"{len(message)} characters: {message[:1000]!r}"
            assert not re.search(r"Traceback|panicked|0x[0-9a-f]{6,}", message), f"a library's words: {message!r}"
            message.encode()


def _safetensors(path: Path) -> None:
    with SafetensorsFile(path) as file:
        for name, entry in file.entries.items():
            assert file.stored(name).nbytes == entry.nbytes
            if entry.dtype != "F4":
                assert tuple(file.tensor(name).shape) == tuple(entry.shape)


def _gguf(path: Path) -> None:
    with GGUFFile(path) as file:
        for name, entry in file.entries.items():
            assert entry.offset + entry.nbytes <= path.stat().st_size
            assert file.stored(name).nbytes == entry.nbytes
    GGUFCheckpoint(path).close()


def _gguf_tokenizer(path: Path) -> None:
    with GGUFFile(path) as file:
        _speaks(Tokenizer.from_gguf(file.metadata, path))


def _config(path: Path) -> None:
    sum(1 for _ in all_parameters(ModelConfig.from_hf(read_json_object(path))))


def _tokenizer(path: Path) -> None:
    _speaks(Tokenizer.from_folder(path.parent))


def _speaks(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode(SPOKEN)
    assert all(isinstance(number, int) and number >= 0 for number in ids)
    tokenizer.decode(ids)


def _template(path: Path) -> None:
    template = ChatTemplate.from_folder(path.parent)
    if template is not None:
        try:
            assert isinstance(template.render(MESSAGES), str)
        finally:
            template.close()


def _audio(path: Path) -> None:
    assert np.isfinite(read_audio(path)).all()


def _packed(path: Path) -> None:
    """What the reader lets pass the kernels must compute with, and to the same bits as the format's definition."""
    with SafetensorsFile(path) as file:
        stored_tensor = file.stored("w")
        unpacked = stored_tensor.decode()
        if stored_tensor.format is PACKED_BF16 and (native := _native()):
            struct = native.library.packed_view(stored_tensor.data)
            rows = torch.empty(unpacked.shape)
            ids = torch.arange(len(rows))
            native.check(native.embedding(struct, len(ids), ids.data_ptr(), rows.data_ptr(), rows.stride(0)))
            bits = rows.bfloat16().view(torch.int16)
            assert torch.equal(bits, unpacked.view(torch.int16)) or rows.isnan().any()


@cache
def _native() -> NativeContext | None:
    try:
        return NativeContext(threads=1)
    except NativeLibraryError:
        return None


def _made(write_to: Callable[[Path], object], name: str) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        write_to(Path(folder) / name)
        return (Path(folder) / name).read_bytes()


def _recording(name: str) -> Callable[[], list[bytes]]:
    return lambda: [_made(partial(write, samples=sound(seconds)), name) for seconds in (0.02, 0.2)]


def _tiny_gguf_file() -> bytes:
    tokenizer = {f"tokenizer.ggml.{name}": value for name, value in tiny_gguf().items()}
    return gguf_file([text(name) + stored(value) for name, value in tokenizer.items()])


READERS: Mapping[str, Reader] = {
    "safetensors": Reader(
        "model.safetensors",
        _safetensors,
        lambda: [raw({"x": X}), raw({"__metadata__": {"format": "pt"}, "a": X | {"dtype": "BF16", "shape": [2]}})],
    ),
    "gguf": Reader(
        "model.gguf",
        _gguf,
        lambda: [TINY_GGUF, gguf_file([text(name) + stored(value) for name, value in keys_of("qwen3moe").items()])],
    ),
    "gguf_tokenizer": Reader(
        "model.gguf",
        _gguf_tokenizer,
        lambda: [_tiny_gguf_file(), gguf_file([key("tokenizer.ggml.model", 8, text("gpt2"))])],
    ),
    "config": Reader(
        "config.json", _config, lambda: [json.dumps(raw).encode() for raw in (TINY_QWEN3, TINY_MOE, TINY_LLAMA)]
    ),
    "tokenizer": Reader("tokenizer.json", _tokenizer, lambda: [json.dumps(tiny_tokenizer_json()).encode()]),
    "template": Reader(
        "chat_template.jinja",
        _template,
        lambda: [b"{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content | trim }}{% endfor %}",
                 *(source[:200].encode() for source, _ in FAILING.values())],
    ),
    "wav": Reader("a.wav", _audio, _recording("a.wav")),
    "flac": Reader("a.flac", _audio, _recording("a.flac")),
    "packed": Reader(
        "model.safetensors",
        _packed,
        lambda: [_made(lambda path: write_packed(path, {"w": GOOD}, {"w": [ROWS, COLUMNS]}), "model.safetensors")],
    ),
}  # fmt: skip
