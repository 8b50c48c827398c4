"""What runs around a request in Ray's proxies: its key is found, its body arrives whole, Ray's errors are ours."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import httpx2
import pytest
from starlette.types import Receive, Scope, Send

from lluda.serving.replicas.proxy_middleware import ProxyMiddleware


class Proxy:
    """Stands for Ray's; ``answer`` gets what arrived."""

    def __init__(self, answer: Callable[[Send], Any]) -> None:
        self._answer = answer
        self.headers: dict[str, str] = {}
        self.body = b""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.headers = {name.decode(): value.decode() for name, value in scope["headers"]}
        more = True
        while more:
            message = await receive()
            self.body += message.get("body", b"")
            more = message.get("more_body", False)
        await self._answer(send)


async def text(send: Send, status: int, content_type: str = "text/plain; charset=utf-8") -> None:
    headers = [(b"content-type", content_type.encode()), (b"x-request-id", b"a"), (b"x-request-id", b"a")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": b"Ray's words"})


def post(proxy: Proxy, body: bytes, **headers: str) -> httpx2.Response:
    async def ask() -> httpx2.Response:
        transport = httpx2.ASGITransport(ProxyMiddleware(proxy))
        async with httpx2.AsyncClient(transport=transport, base_url="http://test") as client:
            return await client.post("/v1/chat/completions", content=body, headers=headers)

    return asyncio.run(ask())


@pytest.mark.parametrize("padding", [0, 3 << 20])
def test_key_is_found_and_the_body_arrives(padding: int) -> None:
    proxy = Proxy(lambda send: text(send, 200))
    body = json.dumps({"messages": [{"role": "user", "content": "One?" + "x" * padding}]}).encode()
    assert post(proxy, body).text == "Ray's words"
    assert proxy.body == body
    assert proxy.headers["x-session-id"].startswith("body:" if padding else "prompt:")
    assert proxy.headers["x-request-id"].startswith("req_")


def test_a_clients_session_is_not_handed_on_as_it_is() -> None:
    proxy = Proxy(lambda send: text(send, 200))
    post(proxy, b"{}", **{"x-session-id": "replica:abc", "x-request-id": "mine"})
    assert proxy.headers["x-session-id"].startswith("session:")
    assert proxy.headers["x-request-id"] == "mine"


@pytest.mark.parametrize(
    ("status", "told", "code"),
    [(500, 503, "replica_lost"), (503, 503, "loading"), (404, 503, "loading"), (429, 429, "queue_full")],
)
def test_errors_of_ray_get_our_envelope(status: int, told: int, code: str) -> None:
    answer = post(Proxy(lambda send: text(send, status)), b"{}")
    assert (answer.status_code, answer.json()["error"]["code"]) == (told, code)
    assert answer.headers["retry-after"]
    assert answer.headers.get_list("x-request-id") == ["a"]


def test_errors_of_a_replica_stay() -> None:
    answer = post(Proxy(lambda send: text(send, 500, "application/json")), b"{}")
    assert (answer.status_code, answer.text) == (500, "Ray's words")
    assert answer.headers.get_list("x-request-id") == ["a"]


def test_no_answer_is_one_too() -> None:
    async def nothing(_: Send) -> None:
        """As where the replica was killed."""

    answer = post(Proxy(nothing), b"{}", **{"x-request-id": "mine"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "replica_lost")
    assert answer.headers["x-request-id"] == "mine"


def test_a_body_that_stops_is_handed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lluda.serving.replicas.proxy_middleware._MOST_SECONDS", 0.05)
    proxy = Proxy(lambda send: text(send, 200))

    async def ask() -> list[Any]:
        came = iter([{"type": "http.request", "body": b'{"mess', "more_body": True}])
        sent: list[Any] = []
        later = asyncio.Event()

        async def receive() -> Any:
            for message in came:
                return message
            await asyncio.wait_for(later.wait(), 0.2) if not later.is_set() else None
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            sent.append(message)

        asyncio.get_running_loop().call_later(0.1, later.set)
        scope = {"type": "http", "method": "POST", "path": "/v1/chat/completions", "headers": []}
        await ProxyMiddleware(proxy)(scope, receive, send)
        return sent

    assert asyncio.run(ask())[0]["status"] == 200
    assert proxy.body == b'{"mess'
