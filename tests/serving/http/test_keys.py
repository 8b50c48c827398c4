"""Family B of bad requests: API keys."""

from __future__ import annotations

import hmac
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
from starlette.datastructures import Headers

from lluda.errors import InvalidRequest
from lluda.serving.app import routes
from lluda.serving.http.keys import Keys
from tests.serving.oracle import check_error
from tests.serving.running import RunningServer, running_server

KEY, OTHER = "sk-right-0123456789abcdef", "sk-other"


@pytest.fixture(scope="module")
def guarded() -> Iterator[RunningServer]:
    with running_server(keys=Keys([KEY, OTHER])) as running:
        yield running


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


@pytest.mark.parametrize(
    "headers",
    [bearer(KEY), bearer(OTHER), {"authorization": f"bearer  {KEY}"}, {"api-key": KEY}, {"x-api-key": KEY}],
)
def test_right_keys(guarded: RunningServer, headers: dict[str, str]) -> None:
    assert guarded.get("/v1/models", headers=headers).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        pytest.param([], id="none"),
        pytest.param([("authorization", "Bearer wrong")], id="wrong"),
        pytest.param([("authorization", f"Bearer {KEY[:-1]}")], id="prefix"),
        pytest.param([("authorization", f"Bearer {KEY}x")], id="longer"),
        pytest.param([("authorization", f"Basic {KEY}")], id="basic"),
        pytest.param([("authorization", KEY)], id="no scheme"),
        pytest.param([("authorization", "Bearer")], id="no key"),
        pytest.param([("authorization", "Bearer " + "k" * 8000)], id="8 kB"),
        pytest.param([("authorization", b"Bearer \xff\xfe")], id="no ASCII"),
        pytest.param([("authorization", f"Bearer {KEY}"), ("authorization", "Bearer x")], id="two"),
        pytest.param([("authorization", f"Bearer {KEY}"), ("authorization", f"Bearer {KEY}")], id="twice"),
        pytest.param([("authorization", f"Bearer {KEY}"), ("api-key", "x")], id="two kinds"),
    ],
)
def test_wrong_keys(guarded: RunningServer, headers: list[tuple[str, str | bytes]]) -> None:
    error = check_error(guarded.get("/v1/models", headers=headers), 401, "invalid_api_key")
    assert error["type"] == "authentication_error"


def test_key_in_the_query_is_none(guarded: RunningServer) -> None:
    check_error(guarded.get(f"/v1/models?api_key={KEY}&key={KEY}"), 401)


def test_megabyte_of_key_is_refused(guarded: RunningServer) -> None:
    answer = guarded.raw(
        b"GET /v1/models HTTP/1.1\r\nHost: x\r\nauthorization: Bearer " + b"k" * (1 << 20) + b"\r\n\r\n"
    )
    assert answer.startswith(b"HTTP/1.1 431")


@pytest.mark.parametrize("route", routes(), ids=lambda route: f"{route.method} {route.path}")
def test_every_route_but_health_and_the_page_is_guarded(guarded: RunningServer, route) -> None:
    response = guarded.client.request(route.method, route.path.replace("{model:path}", "tiny-omni"))
    if route.path in ("/health", "/"):
        assert response.status_code == 200 and KEY not in response.text
    else:
        check_error(response, 401, "invalid_api_key")


def test_unknown_paths_tell_nothing(guarded: RunningServer) -> None:
    check_error(guarded.get("/nothing"), 401)


def test_keys_are_never_logged(guarded: RunningServer, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        guarded.get("/v1/models", headers=bearer(KEY))
        guarded.get("/v1/models", headers=bearer("sk-secret-but-wrong"))
    assert KEY not in caplog.text and "sk-secret" not in caplog.text


def test_all_keys_are_compared_by_hash_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many comparisons of equal length for any key: what a clock could tell apart is not there."""
    keys, compared = Keys(["a", "bb", "ccc"]), []
    monkeypatch.setattr(
        "lluda.serving.http.keys.hmac.compare_digest",
        lambda left, right, compare=hmac.compare_digest: (
            compared.append((len(left), len(right))) or compare(left, right)
        ),
    )
    for key in ("a", "ccc", "x", "k" * 4000):
        compared.clear()
        assert keys.accepts(Headers(bearer(key))) == (key in ("a", "ccc"))
        assert compared == [(32, 32)] * 3


def test_no_key_reuses_what_another_asked(guarded: RunningServer) -> None:
    """C20: else the time of an answer would tell whether somebody asked the same."""
    body = {"model": "tiny-omni", "messages": [{"role": "user", "content": "one two three " * 20}], "max_tokens": 2}

    def reused(headers: dict[str, str]) -> int:
        answer = guarded.post("/v1/chat/completions", body, headers=headers).json()
        return int(answer["usage"]["prompt_tokens_details"]["cached_tokens"])

    assert [reused(bearer(KEY)), reused({"x-api-key": KEY}) > 16] == [0, True]
    assert [reused(bearer(OTHER)), reused(bearer(OTHER)) > 16] == [0, True]


def test_keys_of_a_file_and_of_the_environment(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("# of the team\none\n\n two \n")
    keys = Keys.read(file, "three, four")
    assert all(keys.accepts(Headers(bearer(key))) for key in ("one", "two", "three", "four"))
    assert not keys.accepts(Headers(bearer("# of the team")))


@pytest.mark.parametrize("content", [b"", b"# none\n", b"caf\xc3\xa9\n", b"two words\n", b"k" * 5000])
def test_bad_key_files_are_refused(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "keys"
    file.write_bytes(content)
    with pytest.raises(InvalidRequest):
        Keys.read(file)


def test_missing_key_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="cannot be read"):
        Keys.read(tmp_path / "none")
