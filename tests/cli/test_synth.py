from __future__ import annotations

import json

import pytest
from safetensors.torch import load_file

from tests.cli.conftest import CONFIG, END
from tests.inputs.conftest import write_tiny


@pytest.fixture
def source(tmp_path):
    """A folder with a config and no tokenizer."""
    folder = tmp_path / "source"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG))
    return folder


@pytest.fixture
def tokenizer(tmp_path):
    folder = tmp_path / "tokenizer"
    folder.mkdir()
    (folder / "generation_config.json").write_text('{"temperature": 0.5, "do_sample": true}')
    return write_tiny(folder)


def test_files_are_named_on_stdout_and_the_model_runs(lluda, source, tokenizer, tmp_path):
    out = tmp_path / "a" / "out"
    printed = lluda("synth", source, out, "--tokenizer", tokenizer, "--set", "num_hidden_layers=2")
    assert (printed.code, printed.err) == (0, "")
    assert sorted(printed.out.splitlines()) == sorted(str(path) for path in out.iterdir())
    assert json.loads((out / "config.json").read_text())["num_hidden_layers"] == 2
    assert lluda("generate", "-m", out, "--raw", "hello", "-n", 3).code == 0


def test_the_generation_config_belongs_to_the_config_not_to_the_tokenizer(lluda, source, tokenizer, tmp_path):
    lluda("synth", source, tmp_path / "without", "--tokenizer", tokenizer)
    assert not (tmp_path / "without" / "generation_config.json").exists()
    (source / "generation_config.json").write_text(f'{{"eos_token_id": {END}}}')
    lluda("synth", source, tmp_path / "with", "--tokenizer", tokenizer)
    assert json.loads((tmp_path / "with" / "generation_config.json").read_text()) == {"eos_token_id": END}


def test_without_a_tokenizer_a_note_says_so(lluda, source, tmp_path):
    printed = lluda("synth", source, tmp_path / "out")
    assert printed.code == 0
    assert printed.lines == ["lluda: no tokenizer in the config's folder: name one with --tokenizer to generate text"]


def test_the_seed_decides_the_values(lluda, source, tmp_path):
    def weights(name, *options):
        assert lluda("synth", source, tmp_path / name, *options).code == 0
        return (tmp_path / name / "model.safetensors").read_bytes()

    first = weights("a")
    assert weights("b", "--seed", 0) == first
    assert weights("c", "--seed", 1) != first


def test_shards_with_a_true_index(lluda, source, tmp_path):
    out = tmp_path / "out"
    assert lluda("synth", source, out, "--shard-bytes", 60_000).code == 0
    index = json.loads((out / "model.safetensors.index.json").read_text())
    assert len(set(index["weight_map"].values())) > 2
    for name, file in index["weight_map"].items():
        assert name in load_file(out / file)


@pytest.mark.parametrize("store", [False, True])
def test_a_tied_head_is_stored_on_request(lluda, source, tmp_path, store):
    assert lluda("synth", source, tmp_path / "out", *["--store-tied"] * store).code == 0
    assert ("lm_head.weight" in load_file(tmp_path / "out" / "model.safetensors")) is store


@pytest.mark.parametrize("key", ["dtype", "torch_dtype"])
def test_f32_weights_are_released_as_f32_whatever_the_key_is_called(lluda, source, tmp_path, key):
    raw = {name: value for name, value in CONFIG.items() if name != "torch_dtype"} | {key: "bfloat16"}
    (source / "config.json").write_text(json.dumps(raw))
    assert lluda("synth", source, tmp_path / "out", "--dtype", "f32").code == 0
    assert lluda("plan", tmp_path / "out").out.startswith("out: qwen3, f32 on cpu")


def test_unknown_keys_need_permission(lluda, source, tmp_path):
    (source / "config.json").write_text(json.dumps(CONFIG | {"attn_softcap": 30}))
    refused = lluda("synth", source, tmp_path / "out")
    assert refused.code == 2
    assert "attn_softcap" in refused.err
    assert "--allow-unknown-config" in refused.err
    assert lluda("synth", source, tmp_path / "out", "--allow-unknown-config").code == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--set", "layers=4"], "--set layers: the config has no 'layers' there"),
        (["--set", "num_hidden_layers"], "--set num_hidden_layers: must be PATH=VALUE"),
        (["--set", "num_hidden_layers=1000000000"], "config.json: num_hidden_layers must be from 1 to 4096"),
        (["--set", "num_key_value_heads=3"], "config.json: num_attention_heads 4 is not a multiple of num_key_value"),
        (["--seed", "-1"], "seed must be from 0 to 18446744073709551615; got -1"),
        (["--shard-bytes", "0"], "shard_bytes must be at least 1; got 0"),
        (["--tokenizer", "nowhere"], "--tokenizer nowhere: holds neither tokenizer.json nor vocab.json"),
        (["--dtype", "f64"], "argument --dtype: invalid choice: 'f64'"),
    ],
)
def test_a_refusal_writes_nothing(lluda, source, tmp_path, options, message):
    printed = lluda("synth", source, tmp_path / "out", *options)
    assert (printed.code, printed.out) == (2, "")
    assert len(printed.lines) == 1
    assert message in printed.err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda _: None, "no such folder"),
        (lambda path: path.mkdir(), "an empty folder"),
        (lambda path: path.write_text("x"), "not a model file"),
    ],
    ids=["missing", "empty", "file"],
)
def test_a_config_folder_that_is_none(lluda, tmp_path, make, message):
    make(tmp_path / "org-name")
    printed = lluda("synth", tmp_path / "org-name", tmp_path / "out")
    assert (printed.code, printed.out) == (2, "")
    assert f"{tmp_path / 'org-name'}: {message}" in printed.err


def test_a_mistyped_folder_is_never_looked_up_on_the_hub(lluda, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("lluda.weights.hub.sources.fetch", lambda *_, **__: pytest.fail("asked the Hub"))
    assert lluda("synth", "configs/Qwen3-0.6B", "out").code == 2


def test_an_occupied_folder_is_left_alone(lluda, source, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("precious")
    printed = lluda("synth", source, tmp_path / "out")
    assert printed.code == 2
    assert "is not empty" in printed.err
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine"]


@pytest.mark.parametrize(
    ("raised", "code"),
    [(KeyboardInterrupt(), 130), (OSError(28, "No space left on device"), 1), (MemoryError(), 1)],
    ids=["Ctrl-C", "disk full", "no memory"],
)
def test_a_run_that_breaks_off_leaves_nothing(lluda, source, tmp_path, monkeypatch, raised, code):
    from lluda.formats.plain import PlainFormat

    real = PlainFormat.encode
    calls = []

    def encode(self, values):
        calls.append(1)
        if len(calls) == 5:
            raise raised
        return real(self, values)

    monkeypatch.setattr(PlainFormat, "encode", encode)
    printed = lluda("synth", source, tmp_path / "out")
    assert (printed.code, printed.out) == (code, "")
    assert len(printed.lines) == 1
    assert not (tmp_path / "out").exists()


def test_progress_counts_to_the_end(lluda, source, tmp_path, monkeypatch):
    seen = []
    from contextlib import contextmanager

    @contextmanager
    def recorded(label):
        yield lambda done, total: seen.append((done, total))

    monkeypatch.setattr("lluda.cli.verbs.synth.byte_progress", recorded)
    assert lluda("synth", source, tmp_path / "out").code == 0
    size = json.loads(lluda("inspect", tmp_path / "out", "--json").out)["components"][-1]["bytes"]
    assert seen[-1] == (size, size)
    assert seen == sorted(seen)
