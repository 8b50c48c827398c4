"""Synthesised checkpoints: true files, values fixed by seed and name, and nothing half-written."""

from __future__ import annotations

import errno
import json
import math
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lluda.backends import select_backend
from lluda.config.code2wav import read_code2wav
from lluda.config.reader import ConfigReader
from lluda.convert import synth
from lluda.convert.synth import distribution, synthesize
from lluda.errors import InvalidRequest, LludaError
from lluda.models.code2wav import Code2Wav, code2wav_parameters
from lluda.parameters import ParameterSpec
from tests.config.test_code2wav import SMALL as CODE2WAV
from tests.models.omni_reference import placed_parameters

safetensors = pytest.importorskip("safetensors.torch", reason="safetensors is the reference here")

EMBEDDING = ParameterSpec("model.embed_tokens.weight", (300, 64), "embedding")
SPECS = [
    EMBEDDING,
    ParameterSpec("model.layers.0.mlp.up_proj.weight", (500, 64), "matrix"),
    ParameterSpec("model.layers.0.mlp.down_proj.weight", (64, 500), "matrix"),
    ParameterSpec("model.layers.0.norm.weight", (4096,), "norm"),
    ParameterSpec("model.layers.0.proj.bias", (4096,), "bias"),
    ParameterSpec("decoder.conv.weight", (32, 16, 7), "matrix"),
    ParameterSpec("decoder.alpha", (4096,), "scale"),
    ParameterSpec("lm_head.weight", (300, 64), "matrix", tied_to=EMBEDDING.name),
]
CONFIG = {"model_type": "qwen3", "vocab_size": 300, "name": "räume"}


def read(folder: Path) -> dict[str, torch.Tensor]:
    tensors: dict[str, torch.Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        found = safetensors.load_file(file)
        assert not tensors.keys() & found.keys()
        tensors.update(found)
    return tensors


def same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


@pytest.mark.parametrize(("dtype", "kind"), [("BF16", torch.bfloat16), ("F16", torch.float16), ("F32", torch.float32)])
def test_a_checkpoint_has_the_names_shapes_and_dtype_asked_for(tmp_path, dtype, kind):
    files = synthesize(SPECS, tmp_path / "a" / "b", config=CONFIG, dtype=dtype)
    assert [file.name for file in files] == ["model.safetensors", "config.json"]
    assert sorted(files) == sorted((tmp_path / "a" / "b").iterdir())
    tensors = read(tmp_path / "a" / "b")
    assert {name: (tuple(t.shape), t.dtype) for name, t in tensors.items()} == {
        spec.name: (spec.shape, kind) for spec in SPECS if spec.tied_to is None
    }
    assert all(bool(tensor.isfinite().all()) for tensor in tensors.values())
    assert json.loads(files[1].read_text(encoding="utf-8")) == CONFIG
    with safetensors.safe_open(files[0], "pt") as file:
        assert file.metadata() == {"format": "pt"}


def test_the_same_seed_gives_the_same_bytes_and_another_does_not(tmp_path):
    for name, seed in (("a", 5), ("b", 5), ("c", 6)):
        synthesize(SPECS, tmp_path / name, config=CONFIG, seed=seed)
    first, again, other = ((tmp_path / name / "model.safetensors").read_bytes() for name in "abc")
    assert first == again
    assert first != other


def test_values_depend_on_neither_order_nor_neighbours_nor_shards_nor_pieces(tmp_path, monkeypatch):
    synthesize(SPECS, tmp_path / "a", config=CONFIG)
    expected = read(tmp_path / "a")
    synthesize(SPECS[::-1], tmp_path / "b", config=CONFIG, shard_bytes=50_000)
    assert same(read(tmp_path / "b"), expected)
    synthesize(SPECS[3:5], tmp_path / "c", config=CONFIG)
    assert same(read(tmp_path / "c"), {spec.name: expected[spec.name] for spec in SPECS[3:5]})
    monkeypatch.setattr(synth, "_CHUNK", 777)
    synthesize(SPECS, tmp_path / "d", config=CONFIG)
    assert same(read(tmp_path / "d"), expected)


def test_bf16_is_the_float32_value_rounded_to_nearest_even(tmp_path):
    synthesize(SPECS, tmp_path / "f", config=CONFIG, dtype="F32")
    synthesize(SPECS, tmp_path / "b", config=CONFIG)
    exact = read(tmp_path / "f")
    assert same(read(tmp_path / "b"), {name: values.bfloat16() for name, values in exact.items()})


def test_the_values_are_normal_with_mean_and_deviation_of_their_role(tmp_path):
    synthesize(SPECS, tmp_path / "a", config=CONFIG, dtype="F32")
    tensors = read(tmp_path / "a")
    for spec in SPECS[:-1]:
        mean, deviation = distribution(spec, is_tied=spec is EMBEDDING)
        standard = (tensors[spec.name].double() - mean) / deviation
        n = standard.numel()
        assert abs(standard.mean()) < 5 / math.sqrt(n)
        assert abs(standard.std() - 1) < 5 / math.sqrt(2 * n)
        assert abs((standard**4).mean() - 3) < 5 * math.sqrt(96 / n)
    up, down = tensors[SPECS[1].name], tensors[SPECS[2].name]
    assert abs(torch.corrcoef(torch.stack([up.flatten(), down.flatten()]))[0, 1]) < 5 / math.sqrt(up.numel())


@pytest.mark.parametrize(
    ("spec", "tied", "expected"),
    [
        (EMBEDDING, True, (0.0, 1 / 8)),
        (EMBEDDING, False, (0.0, 4.0)),
        (ParameterSpec("talker.model.codec_embedding.weight", (9, 64), "embedding"), False, (0.0, 1.0)),
        (ParameterSpec("lm_head.weight", (9, 64), "matrix"), False, (0.0, 2 / 8)),
        (ParameterSpec("talker.codec_head.weight", (9, 64), "matrix"), False, (0.0, 2 / 8)),
        (ParameterSpec("model.layers.0.mlp.gate.weight", (9, 64), "matrix"), False, (0.0, 2 / 8)),
        (ParameterSpec("model.layers.0.mlp.gate_proj.weight", (9, 64), "matrix"), False, (0.0, 1 / 8)),
        (ParameterSpec("conv.weight", (9, 16, 4), "matrix"), False, (0.0, 1 / 8)),
        (ParameterSpec("q_norm.weight", (128,), "norm"), False, (1.0, 0.1)),
        (ParameterSpec("layer_scale", (128,), "scale"), False, (1.0, 0.1)),
        (ParameterSpec("proj.bias", (128,), "bias"), False, (0.0, 0.02)),
        (ParameterSpec("code2wav.x.mlp_layer_scale.scale", (128,), "scale"), False, (1 / 8, 0.1 / 8)),
        (ParameterSpec("code2wav.upsample.0.1.gamma", (128,), "scale"), False, (1 / 8, 0.1 / 8)),
        (ParameterSpec("code2wav.decoder.1.block.2.act1.alpha", (128,), "scale"), False, (1.0, 0.1)),
        (ParameterSpec("code2wav.decoder.1.block.2.conv1.conv.weight", (9, 16, 4), "kernel"), False, (0.0, 1 / 8)),
        (ParameterSpec("code2wav.decoder.1.block.2.conv2.conv.weight", (9, 64, 1), "kernel"), False, (0.0, 1 / 32)),
        (ParameterSpec("code2wav.decoder.6.conv.weight", (1, 16, 4), "kernel"), False, (0.0, 1 / 32)),
    ],
)
def test_the_deviation_of_each_role(spec, tied, expected):
    assert distribution(spec, is_tied=tied) == pytest.approx(expected)


def test_tied_tensors_are_stored_only_when_asked_for_and_equal(tmp_path):
    synthesize(SPECS, tmp_path / "a", config=CONFIG)
    synthesize(SPECS, tmp_path / "b", config=CONFIG, store_tied=True)
    without, with_tied = read(tmp_path / "a"), read(tmp_path / "b")
    assert with_tied.keys() - without.keys() == {"lm_head.weight"}
    assert torch.equal(with_tied["lm_head.weight"], without[EMBEDDING.name])


def test_shards_are_bounded_and_the_index_is_true(tmp_path):
    files = synthesize(SPECS, tmp_path / "a", config=CONFIG, shard_bytes=64_100, store_tied=True)
    index = json.loads((tmp_path / "a" / "model.safetensors.index.json").read_text())
    shards = [file for file in files if file.suffix == ".safetensors"]
    assert len(shards) == 5
    assert [file.name for file in shards] == [f"model-{i:05d}-of-00005.safetensors" for i in range(1, 6)]
    found = {file.name: safetensors.load_file(file) for file in shards}
    sizes = {name: sum(t.nbytes for t in tensors.values()) for name, tensors in found.items()}
    assert max(sizes.values()) <= 64_100
    assert index["weight_map"] == {tensor: name for name, tensors in found.items() for tensor in tensors}
    assert list(index["weight_map"]) == sorted(index["weight_map"])
    assert index["metadata"]["total_size"] == sum(sizes.values())
    assert index["metadata"]["total_parameters"] == sum(spec.elements for spec in SPECS[:-1])
    assert files[-2:] == [tmp_path / "a" / "model.safetensors.index.json", tmp_path / "a" / "config.json"]


def test_a_tensor_larger_than_a_shard_has_a_file_of_its_own(tmp_path):
    files = synthesize(SPECS, tmp_path / "a", config=CONFIG, shard_bytes=1)
    assert len([file for file in files if file.suffix == ".safetensors"]) == len(SPECS) - 1
    assert len(read(tmp_path / "a")) == len(SPECS) - 1


def test_extra_files_are_copied(tmp_path):
    source = tmp_path / "vocab.json"
    source.write_bytes(b"\x00{}\xff")
    files = synthesize(SPECS, tmp_path / "a", config=CONFIG, extra_files={"tokenizer.json": source})
    assert files[1] == tmp_path / "a" / "tokenizer.json"
    assert files[1].read_bytes() == b"\x00{}\xff"


def test_progress_ends_at_the_total_and_never_falls(tmp_path, monkeypatch):
    monkeypatch.setattr(synth, "_CHUNK", 10_000)
    calls: list[tuple[int, int]] = []
    synthesize(SPECS, tmp_path / "a", config=CONFIG, progress=lambda done, total: calls.append((done, total)))
    total = 2 * sum(spec.elements for spec in SPECS[:-1])
    assert {one[1] for one in calls} == {total}
    assert [one[0] for one in calls] == sorted({one[0] for one in calls})
    assert calls[-1] == (total, total)


def test_memory_stays_far_below_the_checkpoint(tmp_path):
    """A tensor of 96 MB, in a process whose address space may grow by 64 MB beyond the imports."""
    code = f"""
import resource, numpy
from pathlib import Path
from lluda.models.code2wav import Code2Wav, code2wav_parameters
from lluda.parameters import ParameterSpec
from lluda.convert.synth import synthesize
synthesize([ParameterSpec("a", (10,), "bias")], Path({str(tmp_path / "warm")!r}), config={{}})
pages = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (pages + (64 << 20),) * 2)
synthesize([ParameterSpec("a", (12000, 4000), "matrix")], Path({str(tmp_path / "big")!r}), config={{}})
"""
    if not Path("/proc/self/statm").exists():
        pytest.skip("needs /proc to know the size of the process")
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
    assert (tmp_path / "big" / "model.safetensors").stat().st_size > 96_000_000


def test_it_needs_no_torch():
    code = "import sys, lluda.convert.synth; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0


@pytest.mark.parametrize(
    ("arguments", "found"),
    [
        ({"dtype": "Q8_0"}, "dtype 'Q8_0'"),
        ({"seed": -1}, "seed must be from 0"),
        ({"seed": 1 << 64}, "seed must be from 0"),
        ({"shard_bytes": 0}, "shard_bytes must be at least 1"),
        ({"specs": []}, "no tensor"),
        ({"extra_files": {"../x": Path(__file__)}}, "plain file name"),
        ({"extra_files": {"config.json": Path(__file__)}}, "plain file name"),
        ({"extra_files": {"model.safetensors": Path(__file__)}}, "plain file name"),
        ({"extra_files": {"x": Path("no such file")}}, "no such file"),
    ],
)
def test_bad_arguments_are_refused_before_anything_is_made(tmp_path, arguments, found):
    with pytest.raises(InvalidRequest, match=found):
        synthesize(**{"specs": SPECS, "out_dir": tmp_path / "a", "config": CONFIG, **arguments})
    assert not (tmp_path / "a").exists()


def test_a_folder_that_is_not_empty_is_refused_and_left_as_it_is(tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(InvalidRequest, match="is not empty"):
        synthesize(SPECS, tmp_path, config=CONFIG)
    with pytest.raises(InvalidRequest, match="is a file"):
        synthesize(SPECS, tmp_path / "mine.txt", config=CONFIG)
    assert [file.name for file in tmp_path.iterdir()] == ["mine.txt"]


def test_an_empty_folder_is_used_and_kept_after_a_failure(tmp_path):
    def interrupt(done: int, total: int) -> None:
        if done > total // 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        synthesize(SPECS, tmp_path, config=CONFIG, shard_bytes=1, progress=interrupt)
    assert list(tmp_path.iterdir()) == []
    assert len(synthesize(SPECS, tmp_path, config=CONFIG)) == 2


def test_too_small_a_disk_is_told_before_writing(tmp_path, monkeypatch):
    monkeypatch.setattr("lluda.files.new_folder.shutil.disk_usage", lambda _: type("Usage", (), {"free": 1000}))
    with pytest.raises(LludaError, match=r"needs 198,1\d\d bytes but 1,000 are free"):
        synthesize(SPECS, tmp_path / "a", config=CONFIG)
    assert not (tmp_path / "a").exists()


class _FullDisk:
    """A file that takes some bytes and then says the disk is full."""

    def __init__(self, file, capacity: int) -> None:
        self._file, self._capacity = file, capacity

    def __enter__(self):
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def __getattr__(self, name: str):
        return getattr(self._file, name)

    def write(self, data) -> int:
        self._capacity -= len(data)
        if self._capacity < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        return self._file.write(data)


@pytest.mark.parametrize("target", [".model-00003-of-00007.safetensors.partial", ".config.json.partial"])
def test_a_full_disk_is_one_error_with_a_remedy_and_leaves_nothing(tmp_path, monkeypatch, target):
    def limited(descriptor: int, *args, **kwargs):
        file = open(descriptor, *args, **kwargs)  # noqa: SIM115
        return _FullDisk(file, 50) if Path(f"/proc/self/fd/{descriptor}").readlink().name == target else file

    monkeypatch.setattr("lluda.files.atomic_file.open", limited, raising=False)
    with pytest.raises(LludaError, match=r"cannot be written: No space left on device; free disk space") as caught:
        synthesize(SPECS, tmp_path / "a", config=CONFIG, shard_bytes=1)
    assert target.strip(".").removesuffix(".partial") in str(caught.value)
    assert not (tmp_path / "a").exists()


def test_a_file_size_limit_of_the_system_is_an_error_with_a_remedy(tmp_path):
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, limit[1]))
        with pytest.raises(LludaError, match="cannot be written"):
            synthesize(SPECS, tmp_path / "a", config=CONFIG)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        signal.signal(signal.SIGXFSZ, handler)
    assert not (tmp_path / "a").exists()


def test_a_folder_that_cannot_be_made_is_an_error_with_a_remedy(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(LludaError, match="cannot be written"):
        synthesize(SPECS, tmp_path / "file" / "a", config=CONFIG)


def test_killed_midway_no_half_file_stands_under_a_final_name(tmp_path):
    code = f"""
import os, signal
from pathlib import Path
from lluda.models.code2wav import Code2Wav, code2wav_parameters
from lluda.parameters import ParameterSpec
from lluda.convert import synth
synth._CHUNK = 1000
specs = [ParameterSpec(f"t{{i}}", (5000,), "scale") for i in range(4)]
def kill(done, total):
    if done > total * 0.6:
        os.kill(os.getpid(), signal.SIGKILL)
synth.synthesize(specs, Path({str(tmp_path / "a")!r}), config={{}}, shard_bytes=10_000, progress=kill)
"""
    killed = subprocess.run([sys.executable, "-c", code], check=False, timeout=60)
    assert killed.returncode == -signal.SIGKILL
    names = sorted(file.name for file in (tmp_path / "a").iterdir())
    finished = [f"model-0000{i}-of-00004.safetensors" for i in (1, 2)]
    assert names == [".lluda-partial", ".model-00003-of-00004.safetensors.partial", *finished]
    for name in finished:
        assert [tensor.shape for tensor in safetensors.load_file(tmp_path / "a" / name).values()] == [(5000,)]
    # What it left is known and removed, and nothing else.
    (tmp_path / "a" / "mine.txt").write_text("mine")
    with pytest.raises(InvalidRequest, match="is not empty"):
        synthesize(SPECS, tmp_path / "a", config=CONFIG)
    assert [file.name for file in (tmp_path / "a").iterdir()] == ["mine.txt"]
    (tmp_path / "a" / "mine.txt").unlink()
    written = synthesize(SPECS, tmp_path / "a", config=CONFIG)
    assert sorted((tmp_path / "a").iterdir()) == sorted(written)


@pytest.mark.parametrize("tied", [True, False])
def test_a_small_model_has_spread_logits_and_lively_greedy_answers(tmp_path, tied):
    transformers = pytest.importorskip("transformers", reason="transformers runs the model here")
    from lluda.config.model import ModelConfig
    from lluda.models.causal_lm import causal_lm_parameters

    raw = {
        "model_type": "qwen3", "hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 32, "intermediate_size": 192, "vocab_size": 512, "rms_norm_eps": 1e-6,
        "rope_theta": 1e6, "max_position_embeddings": 256, "tie_word_embeddings": tied,
    }  # fmt: skip
    synthesize(causal_lm_parameters(ModelConfig.from_hf(raw).text), tmp_path / "m", config=raw)
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "m", dtype=torch.float32)
    prompt = torch.arange(8)[None] * 7
    with torch.no_grad():
        logits = model(prompt).logits[0]
        answer = model.generate(prompt, do_sample=False, max_new_tokens=40, eos_token_id=None, pad_token_id=0)[0, 8:]
    assert 0.7 < float(logits.std(-1).mean()) < 3.0
    assert len(set(logits.argmax(-1).tolist())) >= 5
    assert len(set(answer.tolist())) >= 12


@torch.inference_mode()
def test_a_synthetic_voice_makes_a_waveform_that_is_hardly_clipped(tmp_path):
    specs = list(code2wav_parameters(config := read_code2wav(ConfigReader(CODE2WAV, "config.json"))))
    synthesize(specs, tmp_path / "voice", config=CODE2WAV, dtype="F32")
    backend = select_backend("reference", "cpu", "f32")
    network = Code2Wav(config, placed_parameters(specs, read(tmp_path / "voice"), backend), backend)
    codes = torch.randint(0, config.codebook_size, (config.num_quantizers, 60))
    waveform = network(codes)
    assert (waveform.abs() >= 1).float().mean() < 0.01
    assert waveform.std() > 0.01
