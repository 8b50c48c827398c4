"""Family B of bad requests: paths, methods, ids, origins, names of models; and the small endpoints."""

from __future__ import annotations

import logging
import re

import pytest

from lluda.serving.http.keys import Keys
from tests.serving.oracle import check_error, check_well
from tests.serving.running import RunningServer, running_server


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("POST", "/", 405),
        ("GET", "/v1", 404),
        ("GET", "/v1/nothing", 404),
        ("GET", "/health/", 404),
        ("GET", "//v1/models", 404),
        ("GET", "/v1/%2e%2e/health", 404),
        ("GET", "/%2e%2e/%2e%2e/etc/passwd", 404),
        ("GET", "/v1/models/%00", 404),
        ("POST", "/health", 405),
        ("DELETE", "/v1/models", 405),
        ("GET", "/tokenize", 405),
        ("TRACE", "/health", 405),
        ("OPTIONS", "/tokenize", 405),
        ("A" * 1000, "/health", 405),
    ],
)
def test_unknown_paths_and_methods(server: RunningServer, method: str, path: str, status: int) -> None:
    response = server.client.request(method, path)
    check_error(response, status)
    assert status != 405 or response.headers["allow"]
    assert "access-control-allow-origin" not in response.headers


def test_path_traversal_in_raw_form(server: RunningServer) -> None:
    answer = server.raw(b"GET /../../etc/passwd HTTP/1.1\r\nHost: x\r\nconnection: close\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 404")


@pytest.mark.parametrize("headers", [{"range": "bytes=" + "0-1," * 1000 + "0-1"}, {"if-none-match": '"' * 1000}])
def test_headers_of_static_files_mean_nothing(server: RunningServer, headers: dict[str, str]) -> None:
    """There are no static files; the page of the next version will have its own tests (B8)."""
    assert server.get("/health", headers=headers).status_code == 200


@pytest.mark.parametrize("name", ["gpt-5", "../tiny-omni", "/etc/passwd", "tiny-omni/..", ""])
def test_unknown_models_are_404_and_no_files(server: RunningServer, name: str) -> None:
    check_error(server.post("/tokenize", {"prompt": "a", "model": name}), 404, "model_not_found", "model")
    if name:
        check_error(server.get(f"/v1/models/{name.replace('..', '%2e%2e')}"), 404, "model_not_found")


def test_models(server: RunningServer) -> None:
    listed = server.get("/v1/models").json()
    assert listed["object"] == "list" and [model["id"] for model in listed["data"]] == ["tiny-omni"]
    model = listed["data"][0]
    assert model["voices"] == ["lark", "rook"] and model["max_model_len"] == 4096
    assert model["modalities"] == {"input": ["text", "audio", "image", "video"], "output": ["text", "audio"]}
    assert server.get("/v1/models/tiny-omni").json() == model


@pytest.mark.parametrize("given", ["abc-123", "a" * 128])
def test_request_id_is_kept(server: RunningServer, given: str) -> None:
    assert server.get("/health", headers={"x-request-id": given}).headers["x-request-id"] == given


@pytest.mark.parametrize("given", [b"a" * 129, b"\x1b[31mred", b"caf\xc3\xa9", b"tab\tinside", b""])
def test_request_id_that_could_hurt_is_replaced(server: RunningServer, given: bytes) -> None:
    answer = server.raw(b"GET /health HTTP/1.1\r\nHost: x\r\nconnection: close\r\nx-request-id: " + given + b"\r\n\r\n")
    assert re.search(rb"x-request-id: req_[0-9a-f]{24}\r\n", answer), answer


def test_one_line_of_log_a_request(server: RunningServer, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "lluda.serving.requests"):
        server.get("/a%0aFORGED%1b[31m", headers={"x-request-id": "mine"})
        server.get("/" + "b" * 5000)
        server.get("/health")  # on the same connection: what came before is in the log by now
    lines = [record.getMessage() for record in caplog.records if record.name == "lluda.serving.requests"][:2]
    assert len(lines) == 2
    assert lines[0].startswith("mine GET /a%0aFORGED%1b[31m 404 ")
    assert all(line.isprintable() and len(line) < 400 for line in lines)


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://127.0.0.1:1", "http://[", "x" * 5000])
def test_pages_of_other_origins_are_refused(server: RunningServer, origin: str) -> None:
    check_error(server.get("/v1/models", headers={"origin": origin}), 403, "origin_not_allowed")


def test_name_that_points_here_is_another_origin(server: RunningServer) -> None:
    """A page whose name its owner lets point to this machine sends equal origin and host."""
    headers = {"origin": f"http://evil.example:{server.port}", "host": f"evil.example:{server.port}"}
    check_error(server.get("/v1/models", headers=headers), 403, "origin_not_allowed")


def test_own_pages_may_ask(server: RunningServer) -> None:
    assert server.get("/v1/models", headers={"origin": server.url}).status_code == 200


def test_allowed_origins_get_what_browsers_want() -> None:
    origin = "https://chat.example"
    with running_server(allow_origins=(origin,), keys=Keys(["k"])) as own:
        preflight = {
            "origin": origin,
            "access-control-request-method": "POST",
            "access-control-request-headers": "authorization,content-type",
        }
        response = own.client.options("/tokenize", headers=preflight)
        assert response.status_code == 200 and response.headers["access-control-allow-origin"] == origin
        asked = own.post("/tokenize", {"prompt": "one"}, headers={"origin": origin, "authorization": "Bearer k"})
        assert asked.status_code == 200 and asked.headers["access-control-allow-origin"] == origin
        check_error(own.get("/v1/models", headers={"origin": "https://evil.example"}), 403)


def test_health_shows_the_limits_on_request(server: RunningServer) -> None:
    shown = server.get("/health?verbose=true").json()
    assert shown["status"] == "ok" and shown["state"] == "ready"
    assert shown["limits"]["running"] == 16 and shown["limits"]["waiting"] == 64


def test_ready_makes_a_step(server: RunningServer) -> None:
    server.service.readiness.forget()
    before = server.model.engine.stats().done
    assert server.get("/ready").json() == {"status": "ready"}
    assert server.get("/ready").json() == {"status": "ready"}  # as of the step before
    assert server.model.engine.drain(10)  # it is counted behind its last event
    assert server.model.engine.stats().done == before + 1


def test_version(server: RunningServer) -> None:
    version = server.get("/version").json()
    assert version["model"] == "tiny-omni" and version["backend"] in ("cpu", "reference")
    assert version["commit"] == server.service.commit  # at the server's start: tests/serving/test_source_commit.py


def test_tokens_there_and_back(server: RunningServer) -> None:
    tokens = server.post("/tokenize", {"prompt": "The capital of France is Paris."}).json()
    assert tokens["count"] == len(tokens["tokens"]) and tokens["max_model_len"] == 4096
    text = server.post("/detokenize", {"tokens": tokens["tokens"]}).json()
    assert text == {"prompt": "The capital of France is Paris."}


def test_tokens_of_a_conversation_end_where_the_answer_begins(server: RunningServer) -> None:
    messages = [{"role": "user", "content": "one <|im_end|>"}]
    tokens = server.post("/tokenize", {"messages": messages}).json()["tokens"]
    assert tokens == list(server.model.chat_prompt(messages).ids)
    assert server.post("/detokenize", {"tokens": tokens}).json()["prompt"].endswith("<|im_start|>assistant\n")


def test_tokenizer_info(server: RunningServer) -> None:
    info = server.get("/tokenizer_info").json()
    assert info["eos_token"] == "<|im_end|>" and "im_start" in info["chat_template"]
    assert info["bos_token"] is None and info["pad_token"] == "<|endoftext|>"


def test_openapi_names_every_route_and_field(server: RunningServer) -> None:
    document = server.get("/openapi.json").json()
    assert document["openapi"] == "3.1.0"
    assert {"/health", "/v1/models", "/v1/models/{model}", "/tokenize"} <= set(document["paths"])
    body = document["paths"]["/tokenize"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    fields = document["components"]["schemas"][body["$ref"].rpartition("/")[2]]
    assert set(fields["properties"]) == {"prompt", "messages", "add_special_tokens", "model"}
    assert fields["additionalProperties"] is False


def test_metrics_have_bounded_labels(server: RunningServer) -> None:
    for number in range(50):
        server.get(f"/somewhere/{number}")
        server.post("/tokenize", {"prompt": "a", "model": f"model-{number}"})
    text = server.get("/metrics").text
    assert "somewhere" not in text and "model-" not in text
    assert 'lluda_http_responses_total{route="other",status="404"}' in text
    assert len(text.splitlines()) < 600
    check_well(server)
