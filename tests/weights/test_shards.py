"""Folders of safetensors: index against shards, links, and the laziness of a prefix (rows A2, A7, A12)."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from lluda.errors import CorruptFile, LludaError, ModelNotFound, UnsupportedModel
from lluda.weights.checkpoint import open_checkpoint
from lluda.weights.safetensors.folder import FolderCheckpoint, ShardIndex
from tests.conftest import RELEASED_CONFIGS

A, B = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
INDEX = "model.safetensors.index.json"
SHARDS = {A: {"thinker.a": b"aa", "thinker.b": b"bb"}, B: {"talker.c": b"cc"}}


def write_shard(path: Path, tensors: Mapping[str, bytes]) -> None:
    header, at = {}, 0
    for name, data in tensors.items():
        header[name] = {"dtype": "U8", "shape": [len(data)], "data_offsets": [at, at + len(data)]}
        at += len(data)
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + b"".join(tensors.values()))


def write_folder(
    folder: Path, shards: Mapping[str, Mapping[str, bytes]] = SHARDS, *, total_size: Any = 6, **listed: str | None
) -> Path:
    """Shards and their index; ``listed`` changes the index's shard of a tensor (None: not listed)."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, tensors in shards.items():
        write_shard(folder / name, tensors)
    weight_map = {tensor: shard for shard, tensors in shards.items() for tensor in tensors} | listed
    weight_map = {tensor: shard for tensor, shard in weight_map.items() if shard is not None}
    metadata = {} if total_size is None else {"total_size": total_size}
    (folder / INDEX).write_text(json.dumps({"metadata": metadata, "weight_map": weight_map}))
    return folder


def refuses(folder: Path, rule: str, prefix: str = "") -> None:
    with pytest.raises(CorruptFile, match=rule) as caught:
        FolderCheckpoint(folder, prefix=prefix)
    assert str(folder) in str(caught.value)


def test_shards_are_one_checkpoint_in_file_order(tmp_path: Path) -> None:
    with open_checkpoint(write_folder(tmp_path)) as checkpoint:
        assert isinstance(checkpoint, FolderCheckpoint)
        assert list(checkpoint.entries) == ["thinker.a", "thinker.b", "talker.c"]
        assert [entry.file.name for entry in checkpoint.entries.values()] == [A, A, B]
        assert {name: bytes(checkpoint.tensor(name).tolist()) for name in checkpoint.entries} == {
            name: data for tensors in SHARDS.values() for name, data in tensors.items()
        }
        with pytest.raises(KeyError):
            checkpoint.tensor("thinker.z")
        checkpoint.check_unchanged()
        os.truncate(tmp_path / B, 30)
        with pytest.raises(CorruptFile, match=f"{B}: the file changed its size"):
            checkpoint.check_unchanged()


def test_one_file_needs_no_index(tmp_path: Path) -> None:
    write_shard(tmp_path / "model.safetensors", {"a.x": b"12", "b.x": b"3"})
    assert list(FolderCheckpoint(tmp_path).entries) == ["a.x", "b.x"]
    checkpoint = FolderCheckpoint(tmp_path, prefix="b.")
    assert list(checkpoint.entries) == ["b.x"]
    assert checkpoint.tensor("b.x").tolist() == [51]


@pytest.mark.parametrize("other", ["missing", "corrupt", "a pipe", "a link out of the folder"])
def test_a7_a_prefix_touches_only_the_shards_that_hold_it(tmp_path: Path, other: str) -> None:
    write_folder(tmp_path)
    (tmp_path / B).unlink()
    if other == "corrupt":
        (tmp_path / B).write_bytes(b"corrupt")
    elif other == "a pipe":
        os.mkfifo(tmp_path / B)
    elif other == "a link out of the folder":
        (tmp_path / B).symlink_to("/dev/zero")
    checkpoint = FolderCheckpoint(tmp_path, prefix="thinker.")
    assert list(checkpoint.entries) == ["thinker.a", "thinker.b"]
    assert bytes(checkpoint.tensor("thinker.b").tolist()) == b"bb"
    refuses(tmp_path, B)
    refuses(tmp_path, B, prefix="talker.")


def test_a_prefix_may_be_several_and_may_match_nothing(tmp_path: Path) -> None:
    write_folder(tmp_path)
    assert list(open_checkpoint(tmp_path, prefix=("thinker.b", "talker.")).entries) == ["thinker.b", "talker.c"]
    assert FolderCheckpoint(tmp_path, prefix="code2wav.").entries == {}


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_files_are_mapped_only_for_tensors_that_are_asked_for(tmp_path: Path) -> None:
    checkpoint = FolderCheckpoint(write_folder(tmp_path))
    assert str(tmp_path) not in Path("/proc/self/maps").read_text()
    tensor = checkpoint.tensor("talker.c")
    maps = Path("/proc/self/maps").read_text()
    assert (str(tmp_path / B) in maps, str(tmp_path / A) in maps) == (True, False)
    assert tensor.dtype is torch.uint8


@pytest.mark.parametrize(
    "name",
    ["../../x.safetensors", "/etc/x.safetensors", "sub/x.safetensors", "sub\\x.safetensors", "..", ".", "",
     "C:x.safetensors", ".hidden.safetensors", "x.safetensors\0", "x\n.safetensors", "pytorch_model.bin"],
)  # fmt: skip
def test_a7_a_shard_name_with_a_folder_is_refused(tmp_path: Path, name: str) -> None:
    write_folder(tmp_path, **{"thinker.z": name})
    refuses(tmp_path, r"plain \.safetensors file name")
    refuses(tmp_path, r"plain \.safetensors file name", prefix="talker.")


def test_a7_a_missing_shard_is_named(tmp_path: Path) -> None:
    write_folder(tmp_path)
    (tmp_path / B).unlink()
    refuses(tmp_path, f"{B}: this shard is missing, of 2 that {INDEX} lists")


def test_a7_a_tensor_in_two_shards(tmp_path: Path) -> None:
    for size in (2, 3):  # counted once or twice
        write_folder(tmp_path, {A: {"x": b"1", "y": b"2"}, B: {"x": b"1"}}, total_size=size)
        with FolderCheckpoint(tmp_path) as checkpoint:
            assert [bytes(checkpoint.tensor(name).tolist()) for name in ("x", "y")] == [b"1", b"2"]
    write_folder(tmp_path, {A: {"x": b"1", "y": b"2"}, B: {"x": b"3"}}, total_size=2)
    refuses(tmp_path, f"two stored tensors for 'x' have different values; remove one of them .*{A}")


def test_a7_a_tensor_listed_twice_in_the_index(tmp_path: Path) -> None:
    write_folder(tmp_path)
    (tmp_path / INDEX).write_text(f'{{"weight_map": {{"x": "{A}", "x": "{B}"}}}}')
    refuses(tmp_path, f"{INDEX}: the key 'x' appears twice")


def test_a7_a_tensor_listed_but_not_in_its_shard(tmp_path: Path) -> None:
    write_folder(tmp_path, **{"thinker.z": A})
    refuses(tmp_path, f"{A}: tensor 'thinker.z' is not in the shard .*found no such tensor")


def test_a7_a_tensor_in_a_shard_but_not_listed(tmp_path: Path) -> None:
    write_folder(tmp_path, **{"thinker.b": None})
    refuses(tmp_path, f"{A}: tensor 'thinker.b' is not listed")


def test_a7_a_tensor_in_another_shard_than_listed(tmp_path: Path) -> None:
    write_folder(tmp_path, **{"thinker.b": B})
    refuses(tmp_path, f"tensor 'thinker.b' is not in the shard .*expected {B}, found {A}")
    refuses(tmp_path, f"tensor 'thinker.b' lies in a shard other than .*expected {B}, found {A}", prefix="thinker.a")


def test_a7_total_size(tmp_path: Path) -> None:
    write_folder(tmp_path, total_size=7)
    refuses(tmp_path, r"metadata\.total_size is not the sum .*expected 6, found 7")
    assert len(FolderCheckpoint(tmp_path, prefix="talker.").entries) == 1  # not all shards are open: cannot be judged
    for right in (6, 6.0, None):
        assert len(FolderCheckpoint(write_folder(tmp_path, total_size=right)).entries) == 3
    for wrong in ("6", True, -6, 6.5):
        write_folder(tmp_path, total_size=wrong)
        refuses(tmp_path, r"metadata\.total_size must be an integer")


@pytest.mark.parametrize(
    ("content", "rule"),
    [
        ("[]", "must be an object"),
        ("{}", "weight_map must be an object"),
        ('{"weight_map": {}}', "weight_map must be an object"),
        ('{"weight_map": []}', "weight_map must be an object"),
        ('{"weight_map": {"x": 1}}', "the shard of 'x' must be a string"),
        ('{"weight_map": {"x": "a.safetensors"}, "metadata": []}', "metadata must be an object"),
        ('{"weight_map": {"x": "a.safetensors"}', "not JSON"),
    ],
)
def test_a7_a_broken_index(tmp_path: Path, content: str, rule: str) -> None:
    (tmp_path / INDEX).write_text(content)
    refuses(tmp_path, rule)


@pytest.mark.parametrize("name", [A, INDEX, "model.safetensors"])
@pytest.mark.parametrize("relative", [True, False])
def test_b4_links_are_followed_wherever_they_lead(tmp_path: Path, name: str, relative: bool) -> None:
    folder = tmp_path / "model"
    if name == "model.safetensors":
        write_folder(folder, {name: {"thinker.a": b"1", "x": b"2", "y": b"3"}}, total_size=3)
        (folder / INDEX).unlink()
    else:
        write_folder(folder)
    (tmp_path / "shared").mkdir()
    (folder / name).rename(tmp_path / "shared" / "one")
    (tmp_path / "between").symlink_to(tmp_path / "shared" / "one")
    (folder / name).symlink_to(Path("../between") if relative else tmp_path / "between")
    with FolderCheckpoint(folder) as checkpoint:
        assert len(checkpoint.entries) == 3
        checkpoint.tensor("thinker.a")
        checkpoint.check_unchanged()


@pytest.mark.parametrize("name", [A, INDEX])
@pytest.mark.parametrize(
    ("target", "rule"),
    [
        ("/dev/zero", "a regular file is needed here .*a character device"),
        ("/tmp", "a regular file is needed here .*a folder"),
        ("loop", "a link that leads back to itself"),
        ("gone", "a link to gone, where there is no file; restore it, or the link"),
        ("pipe", "a regular file is needed here .*a pipe"),
    ],
)
def test_b4_a_link_to_no_regular_file_says_so_and_waits_for_nothing(
    tmp_path: Path, name: str, target: str, rule: str
) -> None:
    folder = write_folder(tmp_path / "model")
    (folder / "loop").symlink_to("loop")
    os.mkfifo(folder / "pipe")
    (folder / name).unlink()
    (folder / name).symlink_to(target)
    with pytest.raises(LludaError, match=f"{name}: {rule}"):
        FolderCheckpoint(folder)


def test_a7_links_into_the_hub_caches_blobs_are_followed(tmp_path: Path) -> None:
    root = tmp_path / "models--org--name"
    snapshot = write_folder(root / "snapshots" / "0123abc")
    (root / "blobs").mkdir()
    for name in (A, B, INDEX):
        (snapshot / name).rename(root / "blobs" / name)
        (snapshot / name).symlink_to(Path("../../blobs") / name)
    assert len(FolderCheckpoint(snapshot).entries) == 3
    (tmp_path / "link").symlink_to(snapshot)
    assert len(FolderCheckpoint(tmp_path / "link").entries) == 3


@pytest.mark.parametrize("where", [B, f".cache/huggingface/download/{B}"])
@pytest.mark.parametrize("suffix", [".incomplete", ".part", ".aria2"])
def test_c8_a_missing_shard_whose_download_was_broken_off(tmp_path: Path, where: str, suffix: str) -> None:
    write_folder(tmp_path)
    (tmp_path / B).unlink()
    unfinished = tmp_path / f"{where}{suffix}"
    unfinished.parent.mkdir(parents=True, exist_ok=True)
    unfinished.write_bytes(b"x")
    refuses(tmp_path, f"{B}: this shard is missing, of 2 .*a download was broken off .{B}{suffix}.: run it again")
    for name in (A, INDEX):
        (tmp_path / name).unlink()
    with pytest.raises(ModelNotFound, match=f"holds no weights; .*a download was broken off .{B}{suffix}"):
        FolderCheckpoint(tmp_path)


def test_a_single_file_beside_an_index_is_ambiguous(tmp_path: Path) -> None:
    write_folder(tmp_path)
    write_shard(tmp_path / "model.safetensors", {"x": b"1"})
    refuses(tmp_path, r"the folder also holds model\.safetensors")
    write_folder(tmp_path / "lone", {"model.safetensors": {"x": b"1"}}, total_size=1)
    assert list(FolderCheckpoint(tmp_path / "lone").entries) == ["x"]


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.PTH", "last.ckpt"])
def test_a12_pickle_weights_are_refused_and_never_opened(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / name).write_bytes(b"\x80\x04.")
    (tmp_path / "config.json").write_text("{}")
    touched: list[str] = []
    watching = True

    def watch(event: str, args: tuple[object, ...]) -> None:
        if watching and event == "open" and name in str(args[0]):
            touched.append(str(args[0]))

    sys.addaudithook(watch)
    with pytest.raises(UnsupportedModel, match=f"{name}.*convert them to safetensors"):
        open_checkpoint(tmp_path)
    assert touched == []
    (tmp_path / name).read_bytes()
    assert len(touched) == 1  # the watch works
    watching = False


@pytest.mark.parametrize(
    ("files", "rule"),
    [
        ([], "holds no weights"),
        (["config.json"], "holds no weights"),
        ([A], f"holds {A} but neither"),
        (["x.gguf"], r"give one itself: .*x\.gguf"),
    ],
)
def test_a1_a_folder_without_weights_says_what_is_there(tmp_path: Path, files: list[str], rule: str) -> None:
    for name in files:
        (tmp_path / name).touch()
    with pytest.raises(ModelNotFound, match=rule):
        open_checkpoint(tmp_path)


def test_a1_neither_a_folder_nor_gguf(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound, match="not a model"):
        open_checkpoint(tmp_path / "weights.txt")
    with pytest.raises(ModelNotFound, match="no such file"):
        FolderCheckpoint(tmp_path / "absent")


def test_the_released_index_of_qwen3_omni_is_read() -> None:
    index = ShardIndex(RELEASED_CONFIGS / "Qwen3-Omni-30B-A3B-Instruct" / INDEX)
    assert (len(index.weight_map), len(index.shards), index.total_size) == (28010, 15, 70519637090)
