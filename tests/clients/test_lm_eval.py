"""lm-eval against the server: scores through HTTP are those of the engine in process."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import lluda
from lluda.engine.prompt_rows import PromptRows
from lluda.engine.request import Completion
from lluda.engine.sampling.sampling_params import SamplingParams
from tests.clients.environments import require, run
from tests.serving.running import RunningServer, running_server

OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
CHOICES = [
    {"q": "Two plus three is", "choices": [" five.", " nine.", " one."], "label": 0},
    {"q": "The opposite of hot is", "choices": [" blue.", " cold.", " ten."], "label": 1},
    {"q": "One is larger than", "choices": [" lemon.", " two.", " zero."], "label": 2},
    {"q": "Four plus four is", "choices": [" eight.", " nine.", " three."], "label": 0},
]
QUESTIONS = ["What is two plus three?", "What is four plus four?"]
TASKS = {
    "choices": """
task: choices
output_type: multiple_choice
doc_to_text: "{{q}}"
doc_to_target: label
doc_to_choice: choices
target_delimiter: ""
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
""",
    "answers": """
task: answers
output_type: generate_until
doc_to_text: "{{q}}"
doc_to_target: "{{a}}"
generation_kwargs: {until: ["\\n"], max_gen_toks: 20}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
""",
}


@pytest.fixture(scope="module")
def deterministic() -> Iterator[RunningServer]:
    """A server whose numbers do not depend on what runs beside a request."""
    with running_server(load=lambda: lluda.load("tiny-omni", threads=1, deterministic=True)) as running:
        yield running


def lm_eval(tmp_path: Path, task: str, rows: list[dict[str, Any]], model: str, arguments: str, *more: str) -> Path:
    """The folder with the results of one task over ``rows``."""
    folder = require("lm_eval")
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = f"dataset_path: json\ndataset_kwargs: {{data_files: {{test: {data}}}}}\ntest_split: test\n"
    (tmp_path / f"{task}.yaml").write_text(TASKS[task] + source)
    out = tmp_path / "out"
    options = ["--include_path", tmp_path, "--tasks", task, "--output_path", out, "--log_samples", *more]
    run(
        [folder / "bin/lm_eval", "run", "--model", model, "--model_args", arguments, *options],
        tmp_path,
        **OFFLINE,
        HF_HOME=str(tmp_path / "cache"),
    )
    return out


def results(out: Path, task: str) -> dict[str, float]:
    (found,) = out.rglob("results*.json")
    kept: dict[str, float] = json.loads(found.read_text())["results"][task]
    return kept


def test_scores_are_those_in_process(deterministic: RunningServer, tmp_path: Path) -> None:
    address = f"base_url={deterministic.url}/v1/completions"
    arguments = f"model=tiny-omni,{address},tokenizer_backend=remote,num_concurrent=4"
    out = lm_eval(tmp_path, "choices", CHOICES, "local-completions", arguments)
    (samples,) = out.rglob("samples*.jsonl")
    compared = right = 0
    for line in samples.read_text().splitlines():
        sample = json.loads(line)
        inside = [score_of(deterministic, one["arg_0"], one["arg_1"]) for one in sample["arguments"].values()]
        through_http = [float(score) for ((score, _),) in sample["resps"]]
        assert through_http == pytest.approx(inside, abs=1e-4)
        compared += len(inside)
        right += inside.index(max(inside)) == sample["doc"]["label"]
    assert compared == 12
    assert results(out, "choices")["acc,none"] == right / 4


def score_of(server: RunningServer, context: str, end: str) -> float:
    """The log-probability of ``end`` after ``context``, by the engine itself."""
    model = server.model
    ids, before = model.tokenizer.encode(context + end), len(model.tokenizer.encode(context))
    params = SamplingParams(temperature=0, max_tokens=1, prompt_logprobs=1)
    events = model.engine.submit(model.request(PromptRows(ids), params, turn=False))
    (done,) = (event for event in events if isinstance(event, Completion))
    return sum(token.logprob for token in done.prompt_logprobs[before:] if token.logprob is not None)


def test_answers_of_a_chat(server: RunningServer, tmp_path: Path) -> None:
    rows = [{"q": question, "a": answer_to(server, question)} for question in QUESTIONS]
    arguments = f"model=tiny-omni,base_url={server.url}/v1/chat/completions,num_concurrent=2"
    out = lm_eval(tmp_path, "answers", rows, "local-chat-completions", arguments, "--apply_chat_template")
    assert results(out, "answers")["exact_match,none"] == 1.0


def answer_to(server: RunningServer, question: str) -> str:
    """What the server says without the client."""
    body = {"model": "tiny-omni", "messages": [{"role": "user", "content": question}], "temperature": 0}
    text: str = server.post("/v1/chat/completions", body).json()["choices"][0]["message"]["content"]
    return text
