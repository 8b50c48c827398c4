"""The safetensors reader against the reference package, and its promise to copy nothing."""

from __future__ import annotations

import json
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch

from lluda.errors import CorruptFile, ModelNotFound, UnsupportedModel
from lluda.files.mapped_file import MappedFile
from lluda.formats.plain import PLAIN_FORMATS
from lluda.weights.safetensors.file import SafetensorsFile
from lluda.weights.safetensors.header import DTYPE_BITS

reference = pytest.importorskip("safetensors.torch", reason="the reference package is in the extra 'validate'")

DTYPES = {one.name: one.dtype for one in PLAIN_FORMATS}
linux_only = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


def some_tensor(dtype: torch.dtype, shape: tuple[int, ...]) -> torch.Tensor:
    """Every bit pattern is as likely, so NaN payloads and subnormals are among the values."""
    count = torch.Size(shape).numel()
    high = 2 if dtype is torch.bool else 256
    generator = torch.Generator().manual_seed(count)
    raw = torch.randint(0, high, (count * dtype.itemsize,), dtype=torch.uint8, generator=generator)
    return raw.view(dtype).view(shape)


def bits(tensor: torch.Tensor) -> bytes:
    return bytes(tensor.contiguous().view(-1).view(torch.uint8).tolist())


def write(path: Path, header: dict[str, object], data: bytes = b"", *, padding: int = 0) -> Path:
    text = json.dumps(header, separators=(",", ":")).encode() + b" " * padding
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


def info(dtype: str, shape: list[int], begin: int, end: int) -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


@pytest.mark.parametrize("shape", [(), (0,), (3, 0, 2), (7,), (2, 3, 5)], ids=str)
@pytest.mark.parametrize("name", DTYPES)
def test_reads_what_the_reference_writes(tmp_path: Path, name: str, shape: tuple[int, ...]) -> None:
    stored = some_tensor(DTYPES[name], shape)
    path = tmp_path / "one.safetensors"
    reference.save_file({"odd": torch.ones(3, dtype=torch.uint8), "x.y": stored}, path, metadata={"format": "pt"})
    with SafetensorsFile(path) as file:
        read = file.tensor("x.y")
        assert (read.dtype, read.shape) == (stored.dtype, stored.shape)
        assert bits(read) == bits(stored)
        entry = file.entries["x.y"]
        assert (entry.dtype, entry.shape, entry.nbytes) == (name, shape, stored.numel() * stored.element_size())
        assert file.metadata == {"format": "pt"}


def test_entries_agree_with_the_reference_reader(tmp_path: Path) -> None:
    path = tmp_path / "many.safetensors"
    stored = {f"layer.{index}.{name}": some_tensor(DTYPES[name], (index, 4)) for index, name in enumerate(DTYPES)}
    reference.save_file(stored, path)
    file, read = SafetensorsFile(path), reference.load_file(path)
    assert file.entries.keys() == read.keys()
    raw = path.read_bytes()
    for name, entry in file.entries.items():
        assert raw[entry.offset : entry.offset + entry.nbytes] == bits(read[name]) == bits(file.tensor(name))
    offsets = [entry.offset for entry in file.entries.values()]
    assert offsets == sorted(offsets)


def test_the_reference_reads_files_in_the_form_accepted_here(tmp_path: Path) -> None:
    path = write(
        tmp_path / "x.safetensors", {"a": info("F32", [2], 0, 8), "b": info("U8", [], 8, 9)}, bytes(9), padding=5
    )
    assert SafetensorsFile(path).entries.keys() == reference.load_file(path).keys()


def test_a_file_without_tensors_is_valid(tmp_path: Path) -> None:
    assert SafetensorsFile(write(tmp_path / "none.safetensors", {})).entries == {}
    empty = SafetensorsFile(write(tmp_path / "metadata.safetensors", {"__metadata__": {}}, padding=6))
    assert (empty.entries, empty.metadata) == ({}, {})


def test_names_and_metadata_keep_escapes_and_white_space_between_tokens(tmp_path: Path) -> None:
    metadata, tensor = r'{"a\nb": "}{\"" }', '{ "shape":[ ],"data_offsets":[0,1] , "dtype":"U8"}'
    raw = f'{{"__metadata__" : {metadata} ,\n\t"caf\\u00e9 [0]":{tensor}}}'.encode()
    (tmp_path / "x.safetensors").write_bytes(len(raw).to_bytes(8, "little") + raw + b"\x07")
    file = SafetensorsFile(tmp_path / "x.safetensors")
    assert file.metadata == {"a\nb": '}{"'}
    assert file.tensor("café [0]").item() == 7


def test_misaligned_tensors_are_copied_bit_for_bit(tmp_path: Path) -> None:
    values = some_tensor(torch.float32, (5,))
    header = {"pad": info("U8", [1], 0, 1), "x": info("F32", [5], 1, 21)}
    path = write(tmp_path / "x.safetensors", header, b"\x01" + bits(values))
    read = SafetensorsFile(path).tensor("x")
    assert bits(read) == bits(values)
    assert read.data_ptr() % 4 == 0


@pytest.mark.parametrize("name", sorted(DTYPE_BITS.keys() - DTYPES.keys()))
def test_sub_byte_types_are_listed_but_not_read(tmp_path: Path, name: str) -> None:
    count = DTYPE_BITS[name]  # values in DTYPE_BITS bits each fill as many bytes as they have bits, by eights
    file = SafetensorsFile(write(tmp_path / "x.safetensors", {"x": info(name, [8], 0, count)}, bytes(count)))
    assert file.entries["x"].nbytes == count
    with pytest.raises(UnsupportedModel, match=name):
        file.tensor("x")


def test_every_dtype_of_the_reference_is_known() -> None:
    assert set(reference._TYPES) <= DTYPE_BITS.keys()
    for name, dtype in reference._TYPES.items():
        assert DTYPES.get(name, dtype) is dtype
        if name in DTYPES:
            assert DTYPE_BITS[name] == 8 * dtype.itemsize


def big_file(path: Path, megabytes: int) -> Path:
    """A file of that many megabytes of zeros that takes no disk."""
    count = megabytes * 2**20
    write(path, {"x": info("BF16", [count // 2], 0, count)}, padding=3)
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size + count)
    return path


def resident(kind: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(kind + ":"):
            return int(line.split()[1]) * 1024
    raise AssertionError(kind)


@linux_only
def test_tensors_lie_in_the_files_map_and_take_no_memory_of_their_own(tmp_path: Path) -> None:
    path = big_file(tmp_path / "big.safetensors", 64)
    before = resident("VmRSS")
    file = SafetensorsFile(path)
    tensor = file.tensor("x")
    assert resident("VmRSS") - before < 8 * 2**20
    before = resident("RssAnon")
    assert int(tensor.view(torch.int16).max()) == 0  # touches every page
    assert resident("RssAnon") - before < 8 * 2**20
    spans = [
        line.split()[0].split("-") for line in Path("/proc/self/maps").read_text().splitlines() if path.name in line
    ]
    assert any(int(begin, 16) <= tensor.data_ptr() < int(end, 16) for begin, end in spans)


def test_reading_warns_of_nothing_and_writing_never_reaches_the_file(tmp_path: Path) -> None:
    path = write(tmp_path / "x.safetensors", {"x": info("F32", [2], 0, 8)}, bytes(8))
    before = path.read_bytes()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tensor = SafetensorsFile(path).tensor("x")
    tensor += 1
    assert path.read_bytes() == before
    assert SafetensorsFile(path).tensor("x").tolist() == [0.0, 0.0]


def test_tensors_outlive_the_file_object(tmp_path: Path) -> None:
    path = write(tmp_path / "x.safetensors", {"x": info("I32", [2], 0, 8)}, (7).to_bytes(4, "little") * 2)
    file = SafetensorsFile(path)
    tensor = file.tensor("x")
    file.close()
    file.close()
    path.unlink()
    assert tensor.tolist() == [7, 7]
    with pytest.raises(AssertionError, match="closed"):
        file.tensor("x")


def test_an_unknown_name_is_a_key_error(tmp_path: Path) -> None:
    with pytest.raises(KeyError):
        SafetensorsFile(write(tmp_path / "x.safetensors", {})).tensor("x")


def test_listing_does_not_import_torch(tmp_path: Path) -> None:
    path = write(tmp_path / "x.safetensors", {"x": info("F32", [2], 0, 8)}, bytes(8))
    script = (
        "import sys; from pathlib import Path; from lluda.weights.safetensors.file import SafetensorsFile; "
        "import lluda.weights.safetensors.folder, lluda.weights.checkpoint, lluda.weights.hub.sources; "
        "assert SafetensorsFile(Path(sys.argv[1])).entries['x'].shape == (2,); "
        "print([name for name in ('torch', 'numpy', 'huggingface_hub', 'safetensors') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script, str(path)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_header_of_thirty_thousand_tensors(tmp_path: Path) -> None:
    count = 30_000
    header = {f"thinker.model.layers.{i}.mlp.weight": info("BF16", [1, 1], 2 * i, 2 * i + 2) for i in range(count)}
    file = SafetensorsFile(write(tmp_path / "many.safetensors", header, bytes(2 * count)))
    assert len(file.entries) == count


def test_an_absent_file_and_a_refused_one_say_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ModelNotFound, match="no such file"):
        SafetensorsFile(tmp_path / "absent.safetensors")

    def refuse(*_: object) -> int:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("lluda.files.mapped_file.os.open", refuse)
    with pytest.raises(ModelNotFound, match="no permission"):
        SafetensorsFile(tmp_path / "x.safetensors")


def test_a_read_past_the_end_is_told_and_not_padded(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"abcdef")
    file = MappedFile(tmp_path / "x")
    assert bytes(file.read(2, 3)) == b"cde"
    with pytest.raises(CorruptFile, match="ends too early"):
        file.read(2, 5)
