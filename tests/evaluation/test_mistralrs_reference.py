"""mistral.rs as a reference: the real one where it is installed, and a stand-in that answers as it does."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from lluda.engine.kv_cache import CacheOptions
from lluda.engine.loading.load_options import LoadOptions
from lluda.engine.loading.loading import load_network
from lluda.engine.loading.model_files import ModelFiles
from lluda.engine.runner import Runner
from lluda.errors import InvalidRequest, LludaError, UnsupportedModel
from lluda.evaluation import ladder
from lluda.evaluation.mistralrs_reference import TOP, MistralRsReference
from tests.conftest import TINY_QWEN3
from tests.evaluation.conftest import TINY, run_validation, text_of

# What released configs spell out and mistralrs insists on.
EXPLICIT = {"max_window_layers": 3, "sliding_window": None, "use_sliding_window": False, "attention_bias": False}
RAW = TINY_QWEN3 | EXPLICIT


@pytest.mark.parametrize("name", ["qwen3", "moe"])
def test_the_real_one_gives_the_same_tokens_and_log_probabilities(name, checkpoint):
    pytest.importorskip("mistralrs", reason="mistralrs is an optional reference (lluda[bench])")
    validation = run_validation(checkpoint(TINY[name] | EXPLICIT), reference="mistralrs", greedy=24)
    assert validation.passed, [threshold.describe() for threshold in validation.thresholds]
    assert text_of(validation).greedy.agreement == 1.0
    assert text_of(validation).stages[0].max_abs_error < 1e-4


class StandIn:
    """The calls of mistralrs that are used, over lluda's reference with the checkpoint's values; ``wrong`` is added to
    each log-probability it gives."""

    def __init__(self, folder, wrong=0.0, short=0):
        self.wrong, self.short, self.opened = wrong, short, None
        network, _ = load_network(ModelFiles.find(folder), LoadOptions(dtype="f32", backend="reference"))
        self.runner_of = Runner(network, CacheOptions(1024, dtype="f32"), 512)

    def module(self):
        module = ModuleType("mistralrs")
        module.Which = SimpleNamespace(Plain=SimpleNamespace)
        module.Architecture = SimpleNamespace(Qwen3="Qwen3")
        module.ModelDType = SimpleNamespace(F32="F32")
        module.ChatCompletionRequest = SimpleNamespace
        module.Runner = self.runner
        return module

    def runner(self, which, **_options):
        self.opened = which
        return SimpleNamespace(send_chat_completion_request=self.answer)

    def answer(self, request):
        spelled = json.loads((Path(self.opened.model_id) / "tokenizer.json").read_text())["model"]["vocab"]
        ids = [spelled[word] for word in request.messages[0]["content"].split()]
        places = []
        for _ in range(request.max_tokens - self.short):
            logits = self.runner_of.prefill(ids, self.runner_of.new_cache()).flatten()
            values, found = (logits.log_softmax(-1) + self.wrong).topk(request.top_logprobs)
            tops = [SimpleNamespace(token=int(i), logprob=float(v)) for i, v in zip(found, values, strict=True)]
            # Not in the order of their sizes: the largest is looked for.
            places.append(SimpleNamespace(top_logprobs=tops[::-1]))
            ids.append(int(found[0]))
        choice = SimpleNamespace(logprobs=SimpleNamespace(content=places))
        usage = SimpleNamespace(prompt_tokens=len(ids) - len(places))
        return SimpleNamespace(choices=[choice], usage=usage)


@pytest.fixture
def stand_in(checkpoint, monkeypatch):
    def make(**options):
        made = StandIn(checkpoint(RAW), **options)
        monkeypatch.setitem(sys.modules, "mistralrs", made.module())
        # Whose version is told.
        monkeypatch.setitem(ladder._DISTRIBUTIONS, "mistralrs", "pytest")
        return made

    return make


def test_its_tokens_and_likeliest_ids_are_compared(checkpoint, stand_in):
    stand_in()
    validation = run_validation(checkpoint(RAW), reference="mistralrs", greedy=12)
    text = text_of(validation)
    assert validation.passed, [threshold.describe() for threshold in validation.thresholds]
    assert [stage.stage for stage in text.stages] == ["logits of the likeliest"]
    assert text.greedy.agreement == 1.0
    assert json.loads(json.dumps(validation.document()))["passed"] is True


def test_other_log_probabilities_fail(checkpoint, stand_in):
    stand_in(wrong=0.01)
    validation = run_validation(checkpoint(RAW), reference="mistralrs", greedy=4)
    assert validation.passed is False
    assert [threshold.passed for threshold in validation.thresholds] == [False, True]


def test_a_damaged_weight_of_ours_fails(checkpoint, stand_in, damage):
    stand_in()
    damage("model.layers.1.mlp.down_proj.weight", lambda weight: weight.mul_(1.25))
    assert run_validation(checkpoint(RAW), reference="mistralrs", greedy=8).passed is False


def test_fewer_tokens_than_asked_for_are_an_error(checkpoint, stand_in):
    stand_in(short=1)
    files = ModelFiles.find(checkpoint(RAW))
    with pytest.raises(LludaError, match="read 3 tokens for 3 and wrote 4 for 5"):
        MistralRsReference(files.path, files.config).continue_greedily([1, 2, 3], 5)
    stand_in()
    likeliest = MistralRsReference(files.path, files.config).continue_greedily([1, 2, 3], 5)
    assert likeliest.ids.shape == likeliest.log_probabilities.shape == (5, TOP)
    assert likeliest.tokens == tuple(likeliest.ids[:, 0].tolist())
    assert all(margin >= 0 for margin in likeliest.continuation().margins)


def test_what_it_cannot_be_asked_is_refused_before_anything_runs(checkpoint):
    with pytest.raises(InvalidRequest, match="compare at least one"):
        run_validation(checkpoint(RAW), reference="mistralrs", greedy=0)
    with pytest.raises(InvalidRequest, match="against mistralrs lluda runs in f32, not 'bf16'"):
        run_validation(checkpoint(RAW), "bf16", reference="mistralrs")
    files = ModelFiles.find(checkpoint(RAW))
    with pytest.raises(UnsupportedModel, match="safetensors folders of qwen3"):
        MistralRsReference(next(files.path.glob("*.safetensors")), files.config)
