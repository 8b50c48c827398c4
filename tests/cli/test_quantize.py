"""``lluda quantize``: one file is enough to run, for text, for mixtures, for a model that hears and speaks."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch

from lluda.engine.loading.tokenizer import load_chat_template, load_tokenizer
from lluda.weights.checkpoint import open_checkpoint, read_config
from tests.cli.conftest import CONFIG, write_model
from tests.cli.omni import write_speaking_omni

soundfile = pytest.importorskip("soundfile")
SPEECH = ("--speech-temperature", 0, "--max-frames", 7)


@pytest.fixture(scope="module")
def speaking(tmp_path_factory):
    return write_speaking_omni(tmp_path_factory.mktemp("speaking") / "tiny")


@pytest.fixture
def alone(speaking, lluda, tmp_path):
    """The Omni file, and nothing beside it."""

    def make(*options):
        (tmp_path / "alone").mkdir()
        out = tmp_path / "alone" / "omni.gguf"
        printed = lluda("quantize", "-m", speaking, "-o", out, *options)
        assert printed.code == 0, printed.err
        return [*map(type(out), printed.out.splitlines())]

    return make


def test_the_file_is_named_and_what_it_came_to_is_said(lluda, model, tmp_path):
    printed = lluda("quantize", "-m", model, "-o", tmp_path / "q.gguf", "--type", "q8_0")
    assert (printed.code, printed.out) == (0, f"{tmp_path / 'q.gguf'}\n")
    assert len(printed.lines) == 1 and "13 F32, 22 Q8_0 tensors: " in printed.lines[0]


def test_chat_runs_from_the_file_alone(lluda, model, tmp_path):
    assert lluda("quantize", "-m", model, "-o", tmp_path / "q.gguf", "--type", "bf16").code == 0
    arguments = ("hello <|im_end|>", "-n", 12, "-t", 0, "--ignore-eos", "--json", "--no-thinking")
    ours, theirs = (json.loads(lluda("generate", "-m", one, *arguments).out) for one in (tmp_path / "q.gguf", model))
    assert (ours["text"], ours["prompt_tokens"]) == (theirs["text"], theirs["prompt_tokens"])


def test_the_tokenizer_is_the_folders(lluda, model, tmp_path):
    assert lluda("quantize", "-m", model, "-o", tmp_path / "q.gguf", "--type", "q8_0").code == 0
    ours, theirs = load_tokenizer(tmp_path / "q.gguf"), load_tokenizer(model)
    text = "hello wörld é 😀 <|end|> e\u0301" + "".join(theirs.added_tokens.by_text)
    for special in (True, False):
        assert ours.encode(text, allow_special=special) == theirs.encode(text, allow_special=special)
    assert ours.special_ids == theirs.special_ids
    assert load_chat_template(tmp_path / "q.gguf").source == load_chat_template(model).source


def test_llama_cpp_loads_the_file_and_says_the_same(lluda, model, tmp_path):
    llama_cpp = pytest.importorskip("llama_cpp", reason="llama-cpp-python is an optional peer (lluda[bench])")
    assert lluda("quantize", "-m", model, "-o", tmp_path / "q.gguf", "--type", "q8_0").code == 0
    loaded = llama_cpp.Llama(str(tmp_path / "q.gguf"), n_ctx=64, n_threads=1, logits_all=True, verbose=False)
    ids = load_tokenizer(tmp_path / "q.gguf").encode("hello world", allow_special=False)
    assert loaded.tokenize(b"hello world", add_bos=True) == ids
    assert loaded.n_vocab() == CONFIG["vocab_size"]
    assert loaded.metadata["tokenizer.chat_template"] == load_chat_template(model).source
    assert loaded.token_eos() == CONFIG["eos_token_id"]


@pytest.mark.parametrize("options", [("--type", "bf16"), ("--type", "bf16", "--split-bytes", 500_000)], ids=str)
def test_an_omni_file_hears_and_speaks_as_its_folder(lluda, speaking, alone, tmp_path, options):
    first = alone(*options)[0]
    soundfile.write(tmp_path / "q.wav", np.random.default_rng(0).normal(0, 0.1, 16000), 16000)
    arguments = ("-t", 0, "-n", 5, *SPEECH, "--audio", tmp_path / "q.wav", "what?", "--speak")
    ours = lluda("ask", "-m", first, *arguments, tmp_path / "ours.wav")
    theirs = lluda("ask", "-m", speaking, *arguments, tmp_path / "theirs.wav")
    assert (ours.code, ours.out) == (theirs.code, theirs.out) == (0, theirs.out)
    assert theirs.out.strip()
    assert (tmp_path / "ours.wav").read_bytes() == (tmp_path / "theirs.wav").read_bytes()
    assert len(soundfile.read(tmp_path / "ours.wav")[0])


def test_a_quantised_omni_file_speaks(lluda, alone, tmp_path):
    file = alone("--type", "q8_0", "--component", "code_predictor=bf16", "--component", "thinker/experts=bf16")[0]
    types = {name: entry.dtype for name, entry in open_checkpoint(file).entries.items()}
    assert types["thinker.model.layers.0.self_attn.q_proj.weight"] == "Q8_0"
    assert types["talker.model.layers.0.self_attn.q_proj.weight"] == "Q8_0"
    assert types["talker.code_predictor.model.layers.0.self_attn.q_proj.weight"] == "BF16"
    assert types["thinker.model.layers.0.mlp.experts.3.up_proj.weight"] == "BF16"
    assert types["code2wav.decoder.0.conv.weight"] == "BF16"
    printed = lluda("ask", "-m", file, "hello", "-t", 0, "-n", 5, *SPEECH, "--speak", tmp_path / "a.wav")
    assert printed.code == 0, printed.err
    assert "Q8_0" in printed.err
    assert len(soundfile.read(tmp_path / "a.wav")[0])
    packed = lluda("ask", "-m", file, "hello", "-t", 0, "-n", 5, "--weights", "packed")
    assert packed.code == 0 and packed.out == printed.out and "Q8_0" in packed.err


def test_every_tensor_and_config_of_an_omni_folder_is_in_its_file(speaking, alone):
    file = alone("--type", "bf16")[0]
    original, written = open_checkpoint(speaking), open_checkpoint(file)
    assert original.entries.keys() == written.entries.keys()
    for name, entry in original.entries.items():
        assert written.entries[name].shape == entry.shape, name
        assert torch.equal(written.tensor(name).float(), original.tensor(name).float()), name
    assert read_config(file) == read_config(speaking)


def test_an_omni_file_becomes_another(lluda, speaking, alone, tmp_path):
    file = alone("--type", "bf16")[0]
    assert lluda("quantize", "-m", file, "-o", tmp_path / "q.gguf", "--type", "q8_0").code == 0
    assert lluda("quantize", "-m", speaking, "-o", tmp_path / "direct.gguf", "--type", "q8_0").code == 0
    ours, theirs = open_checkpoint(tmp_path / "q.gguf"), open_checkpoint(tmp_path / "direct.gguf")
    assert ours.entries.keys() == theirs.entries.keys()
    for name in ours.entries:
        assert ours.entries[name].dtype == theirs.entries[name].dtype
        assert torch.equal(ours.tensor(name), theirs.tensor(name)), name


def test_the_preprocessor_config_goes_along(lluda, speaking, tmp_path):
    from lluda.weights.checkpoint import PREPROCESSOR_CONFIG_NAME, read_document

    folder = shutil.copytree(speaking, tmp_path / "m")
    (folder / "preprocessor_config.json").write_text('{"hop_length": 160}')
    assert lluda("quantize", "-m", folder, "-o", tmp_path / "q.gguf", "--type", "bf16").code == 0
    assert read_document(tmp_path / "q.gguf", PREPROCESSOR_CONFIG_NAME) == {"hop_length": 160}


def test_a_folder_without_a_tokenizer_takes_one_from_elsewhere(lluda, model, tmp_path):
    bare = shutil.copytree(model, tmp_path / "bare", ignore=shutil.ignore_patterns("tokenizer*"))
    with_one = ("--tokenizer", model)
    without = lluda("quantize", "-m", bare, "-o", tmp_path / "ids.gguf", "--type", "q8_0")
    assert without.code == 0 and "has no tokenizer" in without.err
    assert lluda("quantize", "-m", bare, "-o", tmp_path / "q.gguf", "--type", "q8_0", *with_one).code == 0
    assert "no tokenizer" in lluda("generate", "-m", tmp_path / "ids.gguf", "--raw", "hello").err
    assert lluda("generate", "-m", tmp_path / "q.gguf", "--raw", "hello", "-n", 2).code == 0
    refused = lluda("quantize", "-m", tmp_path / "q.gguf", "-o", tmp_path / "r.gguf", "--type", "bf16", *with_one)
    assert refused.code == 2 and "keeps its own tokenizer" in refused.err


def test_a_packed_folder_is_a_source_too(lluda, tmp_path):
    from tests.cli.test_pack import WIDE

    folder = write_model(tmp_path / "wide", WIDE)
    if lluda("pack", "-m", folder, tmp_path / "packed").code != 0:
        pytest.skip("the native library is not built")
    for source in ("wide", "packed"):
        printed = lluda("quantize", "-m", tmp_path / source, "-o", tmp_path / f"{source}.gguf", "--type", "q8_0")
        assert printed.code == 0, printed.err
    ours, theirs = open_checkpoint(tmp_path / "packed.gguf"), open_checkpoint(tmp_path / "wide.gguf")
    assert ours.entries.keys() == theirs.entries.keys()
    assert all(torch.equal(ours.tensor(name), theirs.tensor(name)) for name in theirs.entries)


@pytest.mark.parametrize(
    ("options", "rule"),
    [
        (("--type", "q4_0"), "invalid choice"),
        ((), "--type"),
        (("--type", "q8_0", "--component", "text"), "give NAME=TYPE"),
        (("--type", "q8_0", "--component", "text=q4_0"), "give NAME=TYPE"),
        (("--type", "q8_0", "--component", "text=bf16", "--component", "text=bf16"), "given twice"),
        (("--type", "q8_0", "--component", "talker=bf16"), "is not in this model"),
        (("--type", "q8_0", "--split-bytes", "0"), "split_bytes must be at least 1"),
        (("--type", "q8_0", "--threads", "0"), "threads must be a positive integer"),
    ],
)
def test_bad_requests_in_one_line(lluda, model, tmp_path, options, rule):
    printed = lluda("quantize", "-m", model, "-o", tmp_path / "q.gguf", *options)
    assert printed.code == 2
    assert len(printed.lines) == 1 and rule in printed.lines[0]
    assert not list(tmp_path.iterdir())
