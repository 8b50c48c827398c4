"""Perplexity and divergence as llama.cpp's tool defines them: the formulas, the command, llama.cpp itself."""

from __future__ import annotations

import json
import math
import random
import string
from pathlib import Path

import numpy as np
import pytest
import torch

from lluda.cli.main import main
from lluda.convert.quantize import TypeChoice
from lluda.convert.quantize_model import quantize_model
from lluda.engine.loading.load_options import LoadOptions
from lluda.engine.loading.model_files import ModelFiles
from lluda.errors import InvalidRequest
from lluda.evaluation.perplexity import compare_predictions, text_chunks
from tests.cli.conftest import write_model
from tests.cli.omni import write_speaking_omni


class Table:
    """A model that predicts from the last id alone; it notes what it was run on."""

    name, dtype = "table", "f64"

    def __init__(self, logits: torch.Tensor) -> None:
        self.logits = logits
        self.runs: list[list[int]] = []

    def start(self, _observe=None):
        self.runs.append([])

        def step(ids):
            self.runs[-1] += ids
            return self.logits[torch.tensor(list(ids))]

        return step


def tables(vocabulary: int = 11) -> tuple[Table, Table]:
    generator = torch.Generator().manual_seed(0)
    return tuple(Table(torch.randn(vocabulary, vocabulary, generator=generator).double() * 2) for _ in range(2))


def ids(count: int, vocabulary: int = 11) -> list[int]:
    return random.Random(1).choices(range(vocabulary), k=count)


def test_chunks_are_whole_and_begin_with_the_models_first_token() -> None:
    text = list(range(23))
    assert text_chunks(text, 10, None) == [text[:10], text[10:20]]
    assert text_chunks(text, 10, 99) == [[99, *text[1:10]], [99, *text[11:20]]]
    assert text_chunks(text, 10, 0, limit=1) == [[0, *text[1:10]]]


@pytest.mark.parametrize(("count", "context", "limit"), [(19, 10, None), (100, 3, None), (100, 10, 0)])
def test_texts_and_contexts_too_small(count: int, context: int, limit: int | None) -> None:
    with pytest.raises(InvalidRequest):
        text_chunks(list(range(count)), context, None, limit)


@pytest.mark.parametrize("context", [8, 9])
def test_perplexity_is_of_the_second_halves(context: int) -> None:
    model, _ = tables()
    chunks = text_chunks(ids(40), context, None)
    found = compare_predictions(model, chunks).model
    losses = np.array(
        [
            -float(model.logits[chunk[at]].log_softmax(-1)[chunk[at + 1]])
            for chunk in chunks
            for at in range(context // 2, context - 1)
        ]
    )
    assert found.perplexity.tokens == len(losses) == len(chunks) * (context - context // 2 - 1)
    assert found.perplexity.value == pytest.approx(math.exp(losses.mean()), rel=1e-12)
    error = math.sqrt((np.square(losses).mean() - losses.mean() ** 2) / (len(losses) - 1)) * found.perplexity.value
    assert found.perplexity.error == pytest.approx(error, rel=1e-9)
    assert found.running[-1] == pytest.approx(found.perplexity.value, rel=1e-12)
    assert model.runs == [chunk[:-1] for chunk in chunks]


def test_divergence_of_a_model_from_another() -> None:
    model, base = tables()
    chunks = text_chunks(ids(66), 16, None)
    found = compare_predictions(model, chunks, base)
    ours, theirs = (one.logits.log_softmax(-1) for one in (model, base))
    at = [chunk[index] for chunk in chunks for index in range(8, 15)]
    every = np.array([float((theirs[one].exp() * (theirs[one] - ours[one])).sum()) for one in at])
    same = np.array([float(ours[one].argmax() == theirs[one].argmax()) for one in at])
    assert found.divergence.mean == pytest.approx(every.mean(), rel=1e-12)
    assert found.divergence.mean_error == pytest.approx(every.std() / math.sqrt(len(every) - 1), rel=1e-9)
    assert found.divergence.median == pytest.approx(np.median(every), rel=1e-12)
    assert found.divergence.percentile_99 == pytest.approx(np.quantile(every, 0.99), rel=1e-12)
    assert found.divergence.largest == pytest.approx(every.max(), rel=1e-12)
    assert found.divergence.same_top == pytest.approx(same.mean(), rel=1e-12)
    assert found.document()["ratio"] == pytest.approx(found.model.perplexity.value / found.base.perplexity.value)


def test_a_model_does_not_diverge_from_itself() -> None:
    model, _ = tables()
    found = compare_predictions(model, text_chunks(ids(64), 16, None), model).divergence
    assert (found.mean, found.largest, found.same_top) == (0, 0, 1)


def test_few_logits_at_a_time_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    from lluda.evaluation import perplexity

    model, base = tables()
    chunks = text_chunks(ids(64), 16, None)
    whole = compare_predictions(model, chunks, base)
    monkeypatch.setattr(perplexity, "_LOGITS_AT_ONCE", 30)
    pieces = compare_predictions(model, chunks, base)
    assert torch.equal(pieces.model.losses, whole.model.losses)
    assert torch.equal(pieces.divergences, whole.divergences)
    assert pieces.divergence == whole.divergence


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "words.txt"
    chosen = random.Random(0)
    path.write_text(" ".join("".join(chosen.choices(string.ascii_letters, k=6)) for _ in range(120)))
    return path


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("models")
    source = write_model(folder / "m")
    quantize_model(source, folder / "q.gguf", TypeChoice("q8_0"))
    return folder / "q.gguf", source


def document(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict:
    capsys.readouterr()
    code = main(["perplexity", *map(str, arguments), "--json"])
    out, err = capsys.readouterr()
    assert code == 0, err
    return json.loads(out)


def test_the_command_compares_a_quantised_model_with_its_source(models, text, tmp_path, capsys) -> None:
    plot = ("--plot", tmp_path / "p.png")
    found = document(capsys, "-m", models[0], "--against", models[1], "--text", text, "--context", 64, *plot)
    assert found["model"]["tokens"] == found["model"]["chunks"] * 31
    assert 0.97 < found["ratio"] < 1.03
    assert 0 < found["divergence"]["mean"] < 0.01
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("options", [(), ("--dtype", "f32"), ("--activations", "q8_0", "--dtype", "f32")], ids=str)
def test_llama_cpp_on_the_same_file(models, text, capsys, options) -> None:
    pytest.importorskip("llama_cpp", reason="llama-cpp-python is an optional peer (lluda[bench])")
    found = document(capsys, "-m", models[0], "--against", "llama.cpp", "--text", text, "--context", 64, *options)
    assert abs(found["ratio"] - 1) < 0.002
    assert found["divergence"]["mean"] < 1e-3


def test_the_table(models, text, capsys) -> None:
    arguments = ["-m", models[0], "--against", models[1], "--text", text, "--context", 64, "--chunks", 2]
    assert main(["perplexity", *map(str, arguments)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines] == ["q.gguf", "m", "KL divergence", "same top token"]
    assert "(62 predictions)" in lines[0]


def test_bad_requests(models, text, tmp_path, capsys) -> None:
    short = tmp_path / "short.txt"
    short.write_text("hello")
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    other = write_model(tmp_path / "other", {"vocab_size": 400})
    for arguments, rule in (
        (("--text", short), "at least 1024 are needed"),
        (("--text", tmp_path / "latin.txt"), "not UTF-8"),
        (("--text", tmp_path / "none.txt"), "no such file"),
        (("--text", text, "--context", 64, "--against", other), "another vocabulary"),
        (("--text", text, "--speech"), "name the base with --against"),
        (("--text", text, "--plot", tmp_path / "p.jpg"), "must end in .png"),
    ):
        assert main(["perplexity", "-m", str(models[0]), *map(str, arguments)]) == 2
        lines = [line for line in capsys.readouterr().err.splitlines() if rule in line]
        assert len(lines) == 1, rule


@pytest.fixture(scope="module")
def voices(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("voices")
    source = write_speaking_omni(folder / "m")
    quantize_model(source, folder / "q.gguf", TypeChoice("q8_0"))
    return folder / "q.gguf", source


def test_voices_by_codebook(voices, text, tmp_path, capsys) -> None:
    options = ("--text", text, "--speech", "--max-frames", 9, "--seed", 1, "--plot", tmp_path / "s.png")
    found = document(capsys, "-m", voices[0], "--against", voices[1], *options)
    assert found["frames"] == 9
    assert [one["codebook"] for one in found["codebooks"]] == [0, 1, 2, 3]
    for one in found["codebooks"]:
        assert one["same_code"] > 0.7 and 0 < one["mean_kl"] < 0.01
    assert found["signal_to_difference_db"] > 3 and found["log_spectral_distance_db"] > 0
    assert (tmp_path / "s.png").read_bytes().startswith(b"\x89PNG")


def test_a_voice_agrees_with_itself(voices, text, capsys) -> None:
    options = ("--text", text, "--speech", "--max-frames", 5, "--seed", 1)
    found = document(capsys, "-m", voices[1], "--against", voices[1], *options)
    assert all((one["same_code"], one["mean_kl"]) == (1, 0) for one in found["codebooks"])
    assert (found["signal_to_difference_db"], found["log_spectral_distance_db"]) == (None, 0)


def test_the_forced_voice_follows_the_base(voices, text) -> None:
    """A voice of other weights, forced, has the base's past: its first codebook is judged after equal codes."""
    from lluda.api.speech_model import load_speech
    from lluda.engine.sampling.sampling_params import SamplingParams
    from lluda.engine.speech.speech_params import SpeechParams
    from lluda.evaluation.speech_agreement import _ForcedFrames, _header, _ObservedFrames

    base = load_speech(voices[1], dtype="f32")
    params = SpeechParams(sampling=SamplingParams(seed=1), max_frames=6).with_defaults({})
    words = base.tokenizer.encode("hello world", allow_special=False)
    header = _header(base)
    speaking, following = (kind(base.stack, params, header, words, None) for kind in (_ObservedFrames, _ForcedFrames))
    for _ in range(5):
        codes = speaking.next_codes()
        assert codes is not None
        following.force(codes)
        assert all(torch.equal(*pair) for pair in zip(speaking.observed, following.observed, strict=True))
        for one in (speaking, following):
            one.feed(base.stack.prompts.text_row(words[0]))


def test_long_contexts_are_refused_by_the_model(models, text) -> None:
    with pytest.raises(Exception, match="positions"):
        ModelFiles.find(models[1]).plan(LoadOptions(max_context=4096))
