"""Bad models through the command (rows A1, A2, A4, A5, A6, A10, A11, A12): one line that names the file, exit code 2,
and nothing written, opened or fetched that should not be."""

from __future__ import annotations

import json
import os
import pickle
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.cli.conftest import CONFIG, Printed, lluda, model, write_model

__all__ = ["lluda", "model"]  # fixtures

events: list[tuple[str, str]] = []


def _record(event: str, arguments: tuple[object, ...]) -> None:
    if event in ("open", "socket.connect", "socket.getaddrinfo", "pickle.find_class"):
        events.append((event, str(arguments[0])))


sys.addaudithook(_record)


@pytest.fixture(autouse=True)
def _fresh_events() -> None:
    events.clear()


def refused(printed: Printed, *words: object, lines: int = 1) -> None:
    """Bad input, reported in one line, ``words`` in it."""
    assert (printed.code, printed.out) == (2, "")
    assert len(printed.lines) == lines, printed.err
    for word in words:
        assert str(word) in printed.err
    assert "Traceback" not in printed.err
    assert not re.search("0x[0-9a-f]{6,}", printed.err)
    assert len(printed.lines[-1]) < 2000


@contextmanager
def untouched(folder: Path) -> Iterator[None]:
    """Everything below ``folder`` is as before."""

    def state() -> dict[str, tuple[int, int]]:
        return {str(path): (path.stat().st_size, path.stat().st_mtime_ns) for path in sorted(folder.rglob("*"))}

    before = state()
    yield
    assert state() == before


# A1: paths that lead nowhere.


def _folder(path: Path, *names: str) -> Path:
    path.mkdir()
    for name in names:
        (path / name).write_text("{}")
    return path


NOWHERE: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (lambda path: path, "no such folder or .gguf file"),
    "missing .gguf": (lambda path: path.with_name("model.gguf"), "no such folder or .gguf file"),
    "empty folder": (_folder, "an empty folder"),
    "no config.json": (lambda path: _folder(path, "model.safetensors"), "has no config.json"),
    "only a .gguf": (lambda path: _folder(path, "model.gguf"), "to use a GGUF file give it itself"),
    "a lone .safetensors": (lambda path: _folder(path, "x.safetensors") / "x.safetensors", "a lone safetensors file"),
    "another file": (lambda path: _folder(path, "README.md") / "README.md", "not a model file"),
}


@pytest.mark.parametrize(
    "verb", [("inspect",), ("plan",), ("generate", "hi", "-m"), ("chat", "-m")], ids=lambda v: v[0]
)
@pytest.mark.parametrize("case", NOWHERE)
def test_a1_each_wrong_path_has_its_message_and_no_network(lluda, tmp_path, case, verb):
    make, message = NOWHERE[case]
    path = make(tmp_path / "m")
    with untouched(tmp_path):
        refused(lluda(*verb, path), path, message)
    assert [event for event, _ in events if event.startswith("socket")] == []


def test_a1_the_messages_differ():
    assert len({message for _, message in NOWHERE.values()}) == len(NOWHERE) - 1  # a missing file is a missing path


@contextmanager
def unprivileged() -> Iterator[None]:
    """Whoever runs this, root included, as somebody with no rights."""
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)


@pytest.mark.skipif(not hasattr(os, "seteuid"), reason="POSIX permissions")
@pytest.mark.parametrize("verb", [("inspect",), ("generate", "hi", "-m")], ids=lambda v: v[0])
def test_a1_no_permission(lluda, tmp_path, verb):
    folder = _folder(tmp_path / "m", "config.json")
    lluda(*verb, folder)  # imports what it needs, as somebody who may
    folder.chmod(0)
    try:
        with unprivileged():
            printed = lluda(*verb, folder)
    finally:
        folder.chmod(0o700)
    refused(printed, folder, "no permission to read it")


# A2: names on the Hub.

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty Hub cache and no network."""
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "cache"


def test_a2_offline_with_a_cold_cache(lluda, cache):
    printed = lluda("generate", "-m", "org/name", "hi")
    refused(printed, "org/name: not in the cache", "HF_HUB_OFFLINE", "hf download org/name")
    assert [event for event, _ in events if event.startswith("socket")] == []


def test_a2_half_a_download_is_not_loaded(lluda, cache, tmp_path):
    whole = write_model(tmp_path / "whole", shard_bytes=100_000)
    repository = cache / "models--org--name"
    snapshot = repository / "snapshots" / COMMIT
    snapshot.parent.mkdir(parents=True)
    whole.rename(snapshot)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    (repository / "blobs").mkdir()
    (repository / "blobs" / "abc.incomplete").write_text("")
    last = sorted(snapshot.glob("model-*.safetensors"))[-1]
    assert lluda("inspect", "org/name").code == 0
    last.unlink()
    for verb in (("inspect",), ("generate", "hi", "-m")):
        refused(lluda(*verb, "org/name"), "org/name", last.name, "1 unfinished download", "hf download org/name")


# A3, A4, A5, A6: the config.


@pytest.fixture
def configured(model: Path, tmp_path: Path) -> Callable[[dict[str, Any]], Path]:
    """The folder of the model with another config."""

    def make(changes: dict[str, Any]) -> Path:
        folder = tmp_path / "m"
        folder.mkdir()
        for file in model.iterdir():
            (folder / file.name).hardlink_to(file)
        (folder / "config.json").unlink()
        (folder / "config.json").write_text(json.dumps(CONFIG | changes))
        return folder

    return make


CONFIG_VERBS = (("plan",), ("generate", "hi", "-m"), ("chat", "-m"), ("synth",))


def all_verbs_refuse(lluda: Callable[..., Printed], folder: Path, *words: object) -> None:
    """Every verb that reads a config refuses this one, and writes nothing."""
    for verb in CONFIG_VERBS:
        out = [folder.parent / "out"] if verb == ("synth",) else []
        with untouched(folder.parent):
            refused(lluda(*verb, folder, *out), folder / "config.json", *words)


def test_a3_a_config_that_is_no_json(lluda, configured):
    folder = configured({})
    (folder / "config.json").write_text("{")
    all_verbs_refuse(lluda, folder, "not JSON")


FOREIGN = {
    "unknown architecture": ({"model_type": "gpt_neox"}, "model_type 'gpt_neox' is not supported; supported: qwen3,"),
    "no architecture": ({"model_type": None}, "model_type None is not supported; supported: qwen3,"),
    "auto_map": ({"auto_map": {"AutoModel": "modeling_evil.Evil"}}, "auto_map asks for code shipped with the checkpo"),
    "model_file": ({"model_file": "modeling_evil.py"}, "model_file asks for code shipped with the checkpoint"),
}


@pytest.mark.parametrize("case", FOREIGN)
def test_a4_foreign_models_and_their_code_are_refused_unopened(lluda, configured, case):
    changes, message = FOREIGN[case]
    folder = configured(changes)
    _plant_code(folder)
    all_verbs_refuse(lluda, folder, message, "qwen3")
    assert _opened_code(folder) == []
    assert not (folder / "ran").exists()


def test_a4_code_beside_a_good_model_is_not_opened(lluda, configured, monkeypatch):
    """Not even from inside the folder, where Python would look for modules first, nor by the template's process."""
    folder = configured({})
    _plant_code(folder)
    monkeypatch.chdir(folder)
    printed = lluda("generate", "-m", folder, "hi", "-n", 2)
    assert printed.code == 0
    assert lluda("inspect", ".").code == 0
    assert _opened_code(folder) == []
    assert ("open", str(folder / "config.json")) in events  # the hook does see the folder
    assert not (folder / "ran").exists()


def _plant_code(folder: Path) -> None:
    for name in ("modeling_evil", "tokenization_evil", "jinja2", "torch", "json", "__init__", "sitecustomize"):
        (folder / f"{name}.py").write_text(f"open({str(folder / 'ran')!r}, 'w')")
    events.clear()


def _opened_code(folder: Path) -> list[str]:
    return [
        path
        for event, path in events
        if event == "open" and path.endswith((".py", ".pyc")) and Path(path).absolute().is_relative_to(folder)
    ]


IMPOSSIBLE: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "heads not divisible by kv heads": ({"num_key_value_heads": 3}, ("num_attention_heads 4", "num_key_value_heads 3")),
    "head_dim 0": ({"head_dim": 0}, ("head_dim must be from 2 to", "found 0")),
    "head_dim -1": ({"head_dim": -1}, ("head_dim must be from 2 to", "found -1")),
    "head_dim odd": ({"head_dim": 31}, ("head_dim must be even", "found 31")),
    "a billion layers": ({"num_hidden_layers": 10**9}, ("num_hidden_layers must be from 1 to", "found 1000000000")),
    "hidden_size 2^40": ({"hidden_size": 2**40}, ("hidden_size must be from 1 to", f"found {2**40}")),
    "vocab_size 10^12": ({"vocab_size": 10**12}, ("vocab_size must be from 1 to", f"found {10**12}")),
    "vocab_size a string": ({"vocab_size": "265"}, ("vocab_size must be an integer", "found 265")),
    "rope_theta 0": ({"rope_theta": 0}, ("rope_theta must be a number above 1", "found 0")),
    "rope_theta a string": ({"rope_theta": "1e6"}, ("rope_theta must be a number", "found 1e6")),
    "eps NaN": ({"rms_norm_eps": float("nan")}, ("NaN is not a JSON number",)),
    "eps 0": ({"rms_norm_eps": 0}, ("rms_norm_eps must be a number above 0", "found 0")),
    "unknown rope_scaling": (
        {"rope_scaling": {"type": "dynamic", "factor": 4.0}},
        ("RoPE scaling type 'dynamic'", "default"),
    ),
    "experts of none": (
        {"model_type": "qwen3_moe", "num_experts": 2, "num_experts_per_tok": 3, "moe_intermediate_size": 8},
        ("num_experts_per_tok 3 exceeds num_experts 2",),
    ),
}


@pytest.mark.parametrize("case", IMPOSSIBLE)
def test_a5_impossible_numbers_are_refused_by_field_value_and_rule(lluda, configured, case):
    changes, words = IMPOSSIBLE[case]
    all_verbs_refuse(lluda, configured(changes), *words)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="measures memory as Linux tells it")
def test_a5_before_anything_is_allocated(configured):
    """All cases in one process, without torch, which alone takes 200 MB."""
    folder = configured({})
    code = (
        "import json, pathlib, sys\n"
        "from lluda.cli.main import main\n"
        "configs, folder = json.loads(sys.stdin.read()), sys.argv[1]\n"
        "for config in configs:\n"
        "    pathlib.Path(folder, 'config.json').write_text(json.dumps(config))\n"
        "    assert main(['plan', folder]) == main(['generate', 'hi', '-m', folder]) == 2\n"
        "assert 'torch' not in sys.modules\n"
        "print(pathlib.Path('/proc/self/status').read_text())\n"
    )
    configs = json.dumps([CONFIG | changes for changes, _ in IMPOSSIBLE.values()])
    ended = subprocess.run(
        [sys.executable, "-c", code, str(folder)], input=configs, capture_output=True, text=True, check=True
    )
    peak = re.search(r"VmHWM:\s+(\d+) kB", ended.stdout)  # not ru_maxrss, which a child inherits from its parent
    assert peak is not None
    assert int(peak[1]) * 1024 < 200_000_000
    assert len(ended.stderr.splitlines()) == 2 * len(IMPOSSIBLE)


@pytest.mark.parametrize(
    ("size", "message"),
    [(400, "model.embed_tokens.weight (expected [400, 64], found [265, 64])"), (200, "265")],
    ids=["too large", "too small"],
)
def test_a5_a_vocabulary_that_is_not_the_embeddings(lluda, configured, size, message):
    folder = configured({"vocab_size": size})
    refused(lluda("generate", "-m", folder, "hi"), folder, message)


def test_a6_an_unknown_key_is_refused_and_may_be_allowed(lluda, configured):
    folder = configured({"attn_softcap": 30.0})
    all_verbs_refuse(lluda, folder, "unknown keys that may change the maths: attn_softcap", "--allow-unknown-config")
    assert lluda("generate", "--raw", "-m", folder, "hi", "-n", 1, "--allow-unknown-config").code == 0
    assert lluda("plan", folder, "--allow-unknown-config").code == 0


# A10, A11, A12: the weights.


@pytest.fixture
def rewritten(tmp_path: Path) -> Callable[..., Path]:
    """A model whose tensors went through ``change``."""

    def make(change: Callable[[dict[str, torch.Tensor]], object], config: dict[str, Any] | None = None) -> Path:
        folder = write_model(tmp_path / "m", config)
        tensors = load_file(folder / "model.safetensors")
        change(tensors)
        save_file(tensors, folder / "model.safetensors")
        return folder

    return make


EMBEDDING, NORM = "model.embed_tokens.weight", "model.layers.1.input_layernorm.weight"
UP = "model.layers.1.mlp.up_proj.weight"
SUSPICIOUS = {
    # In the row of a token that is not used: the model still answers.
    "NaN": (lambda tensors: tensors[EMBEDDING][-1, 5].fill_(float("nan")), f"{EMBEDDING} holds NaN or infinity"),
    "infinity": (lambda tensors: tensors[EMBEDDING][-1, 5].fill_(float("-inf")), f"{EMBEDDING} holds NaN or infinity"),
    "zero norm": (lambda tensors: tensors[NORM].zero_(), f"{NORM} is a norm of zeros"),
}


@pytest.mark.parametrize("case", SUSPICIOUS)
def test_a10_suspicious_weights_warn_and_check_tensors_refuses_them(lluda, rewritten, case):
    change, message = SUSPICIOUS[case]
    folder = rewritten(change, {"tie_word_embeddings": False})
    warned = lluda("generate", "--raw", "-m", folder, "hi", "-n", 1)
    assert warned.code == 0
    assert f"lluda: warning: {message}" in warned.lines
    with untouched(folder):
        refused(lluda("generate", "--raw", "-m", folder, "hi", "--check-tensors"), folder, message)
        refused(lluda("chat", "-m", folder, "--check-tensors"), folder, message)


def _transposed(tensors: dict[str, torch.Tensor]) -> None:
    tensors[UP] = tensors[UP].T.contiguous()


def _most_missing(tensors: dict[str, torch.Tensor]) -> None:
    for name in [name for name in tensors if ".layers.1." in name or ".layers.2." in name]:
        del tensors[name]


MISMATCHES: dict[str, tuple[Callable[[dict[str, torch.Tensor]], object], dict[str, Any], tuple[str, ...]]] = {
    "missing": (lambda tensors: tensors.pop(UP), {}, (f"1 missing tensors: {UP}",)),
    "many missing": (_most_missing, {}, ("22 missing tensors: model.layers.1.", "and 12 more")),
    "extra": (
        lambda tensors: tensors.update({"model.layers.9.gate": torch.ones(1)}),
        {},
        ("1 unexpected tensors: model.layers.9.gate", "--allow-unexpected"),
    ),
    "wrong shape": (_transposed, {}, (f"wrong shape: {UP} (expected [96, 64], found [64, 96])",)),
    "an untied head that is missing": (
        lambda tensors: tensors.pop("lm_head.weight"),
        {"tie_word_embeddings": False},
        ("1 missing tensors: lm_head.weight",),
    ),
    "fp8": (
        lambda tensors: tensors.update({UP: tensors[UP].to(torch.float8_e4m3fn)}),
        {},
        (f"{UP} is stored as F8_E4M3; lluda reads BF16, F16 and F32",),
    ),
    "integers": (lambda tensors: tensors.update({UP: tensors[UP].to(torch.int8)}), {}, (f"{UP} is stored as I8",)),
}


@pytest.mark.parametrize("case", MISMATCHES)
def test_a11_tensors_that_do_not_match_are_listed(lluda, rewritten, case):
    change, config, words = MISMATCHES[case]
    folder = rewritten(change, config)
    with untouched(folder):
        refused(lluda("generate", "--raw", "-m", folder, "hi"), folder, *words)


def test_a11_extra_tensors_are_skipped_on_request_only(lluda, rewritten):
    folder = rewritten(lambda tensors: tensors.update({"model.layers.9.gate": torch.ones(1)}))
    printed = lluda("generate", "--raw", "-m", folder, "hi", "-n", 1, "--allow-unexpected")
    assert printed.code == 0
    assert "1 unexpected skipped" in printed.lines[0]


@pytest.mark.parametrize("stored", [False, True], ids=["absent", "both present"])
def test_a11_a_tied_head_may_be_stored_or_not(lluda, tmp_path, stored):
    folder = write_model(tmp_path / "m", store_tied=stored)
    printed = lluda("generate", "--raw", "-m", folder, "hi", "-n", 1)
    assert printed.code == 0
    assert "tied: lm_head.weight" in printed.lines[0]
    assert ("stored twice: lm_head.weight" in printed.lines[0]) is stored


class _Bomb:
    def __reduce__(self) -> tuple[Callable[[str], object], tuple[str]]:
        return os.mkdir, ("exploded",)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "consolidated.00.pth", "model.pt"])
def test_a12_pickles_are_refused_unopened(lluda, configured, name, monkeypatch):
    folder = configured({})
    (folder / "model.safetensors").unlink()
    (folder / name).write_bytes(pickle.dumps(_Bomb()))
    monkeypatch.chdir(folder)
    for verb in (("inspect",), ("generate", "hi", "-m"), ("chat", "-m")):
        events.clear()
        with untouched(folder):
            refused(lluda(*verb, folder), folder, name, "safetensors")
        assert [path for event, path in events if event == "open" and path.endswith(name)] == []
        assert [path for event, path in events if event == "pickle.find_class" and "posix" in path] == []
