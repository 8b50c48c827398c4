"""A format that lluda does not have: what is in this file is all that it takes to run a model with it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import lluda
from lluda.backends.cpu.native_library import native_library
from lluda.config.model import ModelConfig
from lluda.convert.synth import synthesize
from lluda.engine.loading.load_options import LoadOptions
from lluda.engine.loading.loading import load_network
from lluda.engine.loading.model_files import ModelFiles
from lluda.errors import CorruptFile, InvalidRequest, NativeLibraryError, UnsupportedModel
from lluda.evaluation.lluda_components import load_decoder
from lluda.formats import registry
from lluda.formats.format import Format
from lluda.formats.plain import bytes_of
from lluda.formats.stored_tensor import StoredTensor
from lluda.models.causal_lm import causal_lm_parameters
from lluda.weights.checkpoint import open_checkpoint
from lluda.weights.safetensors.declared_formats import declaration
from tests.conftest import TINY_QWEN3
from tests.inputs.conftest import write_tiny


class RowInt8(Format):
    """A float32 scale for each row, then the rows as int8: value = scale * q."""

    name = "ROW_INT8"
    alignment = 4

    def least_bytes(self, shape: tuple[int, ...]) -> int:
        rows, columns = shape
        return rows * (4 + columns)

    def decode(self, stored: StoredTensor) -> torch.Tensor:
        scales, q = stored.data[: 4 * stored.shape[0]], stored.data[4 * stored.shape[0] :]
        return q.view(torch.int8).view(stored.shape) * scales.view(torch.float32)[:, None]

    def encode(self, values: torch.Tensor) -> torch.Tensor:
        scales = values.float().abs().amax(1) / 127
        q = (values.float() / scales[:, None]).round().to(torch.int8)
        return torch.cat((bytes_of(scales), bytes_of(q)))


ROW_INT8 = RowInt8()
SPECS = causal_lm_parameters(ModelConfig.from_hf(TINY_QWEN3).text)
MATRICES = [spec.name for spec in SPECS if spec.role in ("matrix", "embedding") and spec.tied_to is None]
IDS = [3, 1, 4, 1, 5, 9, 2, 6]


@pytest.fixture(autouse=True)
def _registered() -> Iterator[None]:
    registry.register(ROW_INT8)
    yield
    del registry._FORMATS[ROW_INT8.name]


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """A model in the new format, and the same numbers as plain float32."""
    plain, ours = tmp_path / "plain", tmp_path / "ours"
    synthesize(SPECS, plain, config=TINY_QWEN3, dtype="F32")
    ours.mkdir()
    tensors = load_file(plain / "model.safetensors")
    encoded = {name: ROW_INT8.encode(tensors[name]) for name in MATRICES}
    shapes = {name: tuple(tensors[name].shape) for name in MATRICES}
    save_file(tensors | encoded, ours / "model.safetensors", metadata=declaration(ROW_INT8, shapes))
    decoded = {name: StoredTensor(ROW_INT8, shapes[name], data).decode() for name, data in encoded.items()}
    save_file(tensors | decoded, plain / "model.safetensors")
    (ours / "config.json").write_text(json.dumps(TINY_QWEN3))
    return ours, plain


def logits(folder: Path, **options: str) -> torch.Tensor:
    step = load_decoder(ModelFiles.find(folder), LoadOptions(**options))[0].start()
    return torch.cat([step(IDS[:5]), *(step([one]) for one in IDS[5:])]).float()


@pytest.mark.parametrize(("backend", "dtype"), [("reference", "f32"), ("reference", "bf16"), ("cpu", "bf16")])
def test_a_model_runs_as_the_decoded_numbers_do(folders: tuple[Path, Path], backend: str, dtype: str) -> None:
    if backend == "cpu":
        try:
            native_library()
        except NativeLibraryError as error:
            pytest.skip(f"the native library is not built: {error}")
    ours, plain = (logits(folder, backend=backend, dtype=dtype) for folder in folders)
    assert torch.equal(ours, plain)
    assert float(ours.std()) > 0.1
    write_tiny(folders[0])
    with closing(lluda.load(folders[0], backend=backend, dtype=dtype)) as model:
        answer = model.generate(IDS, max_tokens=1, temperature=0, ignore_eos=True)
    assert answer.token_ids == (int(plain[-1].argmax()),)


def test_what_was_decoded_for_want_of_a_kernel_is_told(folders: tuple[Path, Path]) -> None:
    network, report = load_network(ModelFiles.find(folders[0]), LoadOptions(dtype="bf16", backend="reference"))
    assert report.decoded == {"ROW_INT8": len(MATRICES)}
    assert f"{len(MATRICES)} decoded from ROW_INT8" in report.describe()
    assert f"{len(MATRICES)} ROW_INT8 matrices decoded for want of a kernel" in network.backend.describe()
    entry = open_checkpoint(folders[0]).entries[MATRICES[0]]
    assert (entry.dtype, entry.nbytes) == ("ROW_INT8", ROW_INT8.least_bytes(entry.shape))


def test_its_rules_are_kept_when_a_file_is_opened(folders: tuple[Path, Path]) -> None:
    tensors = load_file(folders[0] / "model.safetensors")
    shape = [2 * tensors[MATRICES[0]].numel(), 1]
    metadata = declaration(ROW_INT8, {MATRICES[0]: shape})
    save_file(tensors, folders[0] / "model.safetensors", metadata=metadata)
    with pytest.raises(CorruptFile, match=r"ROW_INT8 tensor .* is too short for its shape"):
        open_checkpoint(folders[0])


def test_a_name_that_is_taken_is_refused() -> None:
    other = RowInt8()
    with pytest.raises(InvalidRequest, match="'ROW_INT8' is registered already"):
        registry.register(other)
    registry.register(ROW_INT8)


def test_a_file_without_the_format_registered_is_refused(
    folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(registry._FORMATS, ROW_INT8.name)
    with pytest.raises(UnsupportedModel, match=r"lluda\.row_int8 .* a format that this lluda does not have"):
        open_checkpoint(folders[0])
