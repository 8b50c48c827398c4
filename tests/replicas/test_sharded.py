"""A replica whose model is cut in two."""

from __future__ import annotations

from pathlib import Path

from tests.replicas.conftest import running_replicas


def test_a_replica_of_two_ranks_answers(tmp_path: Path) -> None:
    body = {"model": "tiny-omni", "messages": [{"role": "user", "content": "What is two plus three?"}]}
    with running_replicas(tmp_path, 1, "--tp", "2", "--threads", "1") as sharded:
        answer = sharded.client.post("/v1/chat/completions", json=body).json()
        assert answer["choices"][0]["message"]["content"] == "Two plus three is five."
        assert "rank 0 of 2" in sharded.client.get("/version").json()["describe"]
