"""Requests go where the beginning of their prompt is, and where what they refer to is."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2
import numpy as np
import openai
import pytest

from lluda.inputs.media.audio_file import open_audio
from tests.clients.environments import require, run
from tests.clients.test_realtime_clients import check_session
from tests.replicas.conftest import ROOT, Replicas, running_replicas

TURNS, CONVERSATIONS = 5, 24
SYSTEM = "You are a teacher of English who answers in one short sentence, and says no more than was asked for. " * 3
RATE = 24_000


def test_cached_share_is_that_of_one_replica(replicas: Replicas, tmp_path: Path) -> None:
    several = _cached_share(replicas.url)
    with running_replicas(tmp_path, 1) as alone:
        one = _cached_share(alone.url)
    print(json.dumps({"cached share of prompt tokens": {"three replicas": several, "one": one}}))
    assert one > 0.5, "the conversations have something in common with what came before"
    assert several > one - 0.05


def _cached_share(url: str) -> float:
    """Of the prompts of conversations that go on side by side."""

    def converse(number: int) -> tuple[int, int]:
        messages = [{"role": "system", "content": SYSTEM}]
        cached = prompts = 0
        with httpx2.Client(base_url=url, timeout=60.0) as client:
            for turn in range(TURNS):
                messages.append({"role": "user", "content": f"Of conversation {number}: what is {number} plus {turn}?"})
                body = {"model": "tiny-omni", "messages": messages, "max_tokens": 16}
                answer = client.post("/v1/chat/completions", json=body).json()
                messages.append({"role": "assistant", "content": answer["choices"][0]["message"]["content"]})
                cached += answer["usage"]["prompt_tokens_details"]["cached_tokens"]
                prompts += answer["usage"]["prompt_tokens"]
        return cached, prompts

    with ThreadPoolExecutor(6) as threads:
        counts = list(threads.map(converse, range(CONVERSATIONS)))
    return sum(cached for cached, _ in counts) / sum(prompts for _, prompts in counts)


def test_ids_of_one_replica_are_known_behind_the_address(replicas: Replicas) -> None:
    replicas.wait_for_names(3)
    question = [{"role": "user", "content": "What is two plus three?"}]
    body = {
        "model": "tiny-omni",
        "messages": question,
        "modalities": ["text", "audio"],
        "audio": {"voice": "lark", "format": "wav"},
    }
    spoken = [replicas.client.post("/v1/chat/completions", json=body | {"messages": _numbered(question, number)})
              for number in range(8)]  # fmt: skip
    ids = [one.json()["choices"][0]["message"]["audio"]["id"] for one in spoken]
    assert len({one.partition(".")[0] for one in ids}) > 1, "several replicas spoke"
    for number, one in enumerate(ids):
        told = [{"role": "user", "content": "Something else."}, {"role": "assistant", "audio": {"id": one}}]
        again = replicas.client.post(
            "/v1/chat/completions", json={"model": "tiny-omni", "messages": [*told, *_numbered(question, number)]}
        )
        assert again.status_code == 200, again.text
    secrets = [replicas.client.post("/v1/realtime/client_secrets", json={}).json()["value"] for _ in range(8)]
    for secret in secrets:
        with openai.OpenAI(base_url=f"{replicas.url}/v1", api_key=secret).realtime.connect(model="tiny-omni") as one:
            assert one.recv().type == "session.created"


def _numbered(messages: list[dict[str, str]], number: int) -> list[dict[str, str]]:
    return [{"role": "system", "content": f"Question {number}."}, *messages]


def test_sessions_are_spread(replicas: Replicas) -> None:
    replicas.wait_for_names(3)
    client = openai.OpenAI(base_url=f"{replicas.url}/v1", api_key="none")
    managers = [client.realtime.connect(model="tiny-omni") for _ in range(6)]
    for one in managers:
        one.enter()
    try:
        lines = replicas.client.get("/metrics").text.splitlines()
        counts = [float(line.split()[-1]) for line in lines if line.startswith("lluda_realtime_sessions{")]
        assert counts == [2, 2, 2]
    finally:
        for one in managers:
            one.__exit__(None, None, None)


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo's question and 1.2 s of silence, as raw int16 at 24 kHz."""
    question = open_audio(str(ROOT / "examples/question.flac"), None, where="the question")
    samples = np.concatenate([*question.blocks(RATE), np.zeros(int(1.2 * RATE), np.float32)])
    path = tmp_path_factory.mktemp("sound") / "question.s16"
    path.write_bytes((samples * 32767).astype("<i2").tobytes())
    return path


def test_realtime_client_of_others(replicas: Replicas, sound: Path) -> None:
    folder = require("agents")
    script = ROOT / "tests/clients/realtime_agents.py"
    found = json.loads(run([folder / "bin/python", script, replicas.url, sound], folder))
    check_session(found)
    assert found["interrupted"]
    assert found["calls"] == ["get_weather"]


def test_errors_have_the_envelope(replicas: Replicas) -> None:
    answer = replicas.client.post("/v1/chat/completions", json={"model": "other", "messages": []})
    assert answer.status_code in (400, 404)
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
    assert len(answer.headers.get_list("x-request-id")) == 1
