from __future__ import annotations

import errno
import json

import pytest
import torch
from safetensors import safe_open

from lluda.convert.packed_folder import write_packed_folder
from lluda.errors import CorruptFile, InvalidRequest, LludaError, UnsupportedModel
from lluda.formats.packed_bf16 import PACKED_BF16
from lluda.weights.checkpoint import open_checkpoint
from lluda.weights.entry import TensorEntry
from lluda.weights.safetensors.declared_formats import metadata_key
from tests.formats.packed_by_hand import pack_by_hand, save_model


def pack(values: torch.Tensor) -> torch.Tensor | None:
    packed = torch.frombuffer(pack_by_hand(values), dtype=torch.uint8)
    return packed if packed.numel() < 0.85 * values.nbytes else None


def tensors() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    made = {name: (torch.randn(24, 256, generator=generator) * 0.02).bfloat16() for name in ("a", "b", "c")}
    random_bits = torch.randint(-(2**15), 2**15, (24, 255), generator=generator, dtype=torch.int16)
    return made | {
        "random": random_bits.view(torch.bfloat16),
        "norm": torch.ones(5).bfloat16(),
        "model.layers.0.mlp.gate.weight": made["a"].clone(),
        "kernel": torch.ones(2, 3, 4).bfloat16(),
        "f32": torch.ones(2, 3),
        "empty": torch.ones(0, 4).bfloat16(),
        "scalar": torch.tensor(2.0).bfloat16(),
    }


def written(tmp_path, stored=None, **options):
    checkpoint = open_checkpoint(save_model(tmp_path / "in", tensors() if stored is None else stored))
    options = {"config": tmp_path / "in" / "config.json"} | options
    return write_packed_folder(checkpoint, tmp_path / "out", pack, **options)


@pytest.mark.parametrize("shard_bytes", [10**9, 13_000])
def test_every_tensor_comes_back_bit_for_bit(tmp_path, shard_bytes):
    stored = tensors()
    report = written(tmp_path, shard_bytes=shard_bytes)
    assert (report.packed, report.incompressible) == (["a", "b", "c"], ["random"])
    assert (tmp_path / "out" / "model.safetensors.index.json").exists() == (shard_bytes == 13_000)
    checkpoint = open_checkpoint(tmp_path / "out")
    assert checkpoint.entries.keys() == stored.keys()
    for name, values in stored.items():
        found = checkpoint.tensor(name)
        assert found.dtype == values.dtype
        assert torch.equal(found.reshape(-1).view(torch.uint8), values.reshape(-1).view(torch.uint8))
        assert (checkpoint.stored(name).format is PACKED_BF16) == (name in "abc")
    assert report.bytes_before == sum(values.nbytes for values in stored.values())
    assert report.bytes_after == sum(entry.nbytes for entry in checkpoint.entries.values())
    assert report.files[-1].name == "config.json"
    assert sorted(report.files) == sorted((tmp_path / "out").iterdir())


def test_packed_tensors_are_aligned_and_other_readers_list_them(tmp_path):
    written(tmp_path)
    checkpoint = open_checkpoint(tmp_path / "out")
    packed = [entry for entry in checkpoint.entries.values() if entry.dtype == PACKED_BF16.name]
    assert len(packed) == 3
    assert all(entry.offset % 64 == 0 for entry in packed)
    with safe_open(tmp_path / "out" / "model.safetensors", "pt") as file:
        assert set(file.keys()) == tensors().keys()
        assert json.loads(file.metadata()[metadata_key(PACKED_BF16)]) == {name: [24, 256] for name in "abc"}
        assert torch.equal(file.get_tensor("a"), checkpoint.stored("a").data)


def test_extra_files_are_copied_and_a_config_may_be_given_as_values(tmp_path):
    (tmp_path / "t.json").write_text("[1]")
    extra = {"t.json": tmp_path / "t.json", "folder/u.json": {"y": 2}}
    report = written(tmp_path, extra_files=extra, config={"x": 1})
    assert json.loads((tmp_path / "out" / "folder" / "u.json").read_text()) == {"y": 2}
    assert (tmp_path / "out" / "t.json").read_text() == "[1]"
    assert json.loads((tmp_path / "out" / "config.json").read_text()) == {"x": 1}
    assert [file.name for file in report.files] == ["model.safetensors", "t.json", "u.json", "config.json"]


def test_progress_ends_at_the_total(tmp_path):
    calls = []
    written(tmp_path, progress=lambda done, total: calls.append((done, total)))
    total = sum(values.nbytes for values in tensors().values())
    assert calls[-1] == (total, total)
    assert [done for done, _ in calls] == sorted(done for done, _ in calls)


def test_values_that_are_not_finite_are_reported(tmp_path):
    stored = tensors()
    stored["b"][3, 7] = float("nan")
    assert written(tmp_path, stored).suspicious == ["b holds NaN or infinity"]


def test_a_target_that_holds_something_is_refused(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("x")
    with pytest.raises(InvalidRequest, match="is not empty"):
        written(tmp_path)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine"]


def test_a_packed_model_is_not_packed_again(tmp_path):
    written(tmp_path)
    with pytest.raises(InvalidRequest, match="packed already"):
        write_packed_folder(open_checkpoint(tmp_path / "out"), tmp_path / "again", pack, config={})


def test_without_a_bf16_matrix_there_is_nothing_to_pack(tmp_path):
    with pytest.raises(InvalidRequest, match=r"no BF16 matrix to pack \(stored: BF16, F32\)"):
        written(tmp_path, {"w": torch.ones(4, 4), "norm": torch.ones(4).bfloat16()})
    assert not (tmp_path / "out").exists()


def test_block_formats_are_refused(tmp_path):
    class Quantised:
        path = tmp_path
        entries = {"w": TensorEntry("w", (32, 32), "Q8_0", 1088, tmp_path, 0)}  # noqa: RUF012

    with pytest.raises(UnsupportedModel, match="holds Q8_0 tensors"):
        write_packed_folder(Quantised(), tmp_path / "out", pack, config={})


def test_a_matrix_that_does_not_unpack_to_its_bits_stops_the_work(tmp_path):
    def forgetful(values):
        packed = pack(values)
        if packed is not None:
            packed[70] ^= 1
        return packed

    checkpoint = open_checkpoint(save_model(tmp_path / "in", tensors()))
    with pytest.raises(LludaError, match="a does not unpack to the same bits"):
        write_packed_folder(checkpoint, tmp_path / "out", forgetful, config={})
    assert not (tmp_path / "out").exists()


def test_too_small_a_disk_is_told_before_writing(tmp_path, monkeypatch):
    monkeypatch.setattr("lluda.files.new_folder.shutil.disk_usage", lambda _: type("Usage", (), {"free": 1000}))
    with pytest.raises(LludaError, match=r"needs [\d,]+ bytes but 1,000 are free"):
        written(tmp_path)
    assert not (tmp_path / "out").exists()


def test_a_disk_that_fills_up_leaves_nothing_behind(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("lluda.files.atomic_file.os.fsync", full)
    with pytest.raises(LludaError, match="free disk space"):
        written(tmp_path)
    assert not (tmp_path / "out").exists()


def test_a_source_that_changes_meanwhile_is_refused(tmp_path):
    def touching(done, total):
        if done == total:
            save_model(tmp_path / "in", {"a": torch.ones(1)})

    with pytest.raises(CorruptFile):
        written(tmp_path, progress=touching)
    assert not (tmp_path / "out").exists()


def test_few_tensors_are_in_memory_at_a_time(tmp_path):
    released = []
    checkpoint = open_checkpoint(save_model(tmp_path / "in", tensors()))
    release = checkpoint.release
    checkpoint.release = lambda name: (released.append(name), release(name))
    write_packed_folder(checkpoint, tmp_path / "out", pack, config={})
    assert sorted(released) == sorted(tensors())
