"""Which replica a request belongs to. What Ray makes of it is tests/replicas'."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import pytest
from starlette.datastructures import Headers

from lluda.serving.replicas.affinity import CHAT, COMPLETIONS, RESPONSES, key_of, made_by
from lluda.serving.replicas.ranking import ranked

SYSTEM = {"role": "system", "content": "Be brief."}
FIRST, SECOND = {"role": "user", "content": "One?"}, {"role": "user", "content": "Two?"}
ANSWER = {"role": "assistant", "content": "Yes."}
NAMES = [f"r{number}" for number in range(8)]


def key(path: str, body: dict[str, Any], **headers: str) -> str:
    return key_of(path, Headers(headers), json.dumps(body).encode(), complete=True)


def test_a_conversation_keeps_its_key() -> None:
    first = key(CHAT, {"messages": [SYSTEM, FIRST]})
    assert first.startswith("prompt:")
    assert key(CHAT, {"messages": [SYSTEM, FIRST, ANSWER, SECOND], "temperature": 0}) == first
    assert key(CHAT, {"messages": [SYSTEM, SECOND]}) != first
    assert key(CHAT, {"messages": [FIRST]}) != first


def test_responses_and_completions() -> None:
    assert key(RESPONSES, {"input": "One?"}) != key(RESPONSES, {"input": "One?", "instructions": "Be brief."})
    assert key(RESPONSES, {"input": [FIRST]}) == key(RESPONSES, {"input": [FIRST, ANSWER, SECOND]})
    same = "A" * 1024
    assert key(COMPLETIONS, {"prompt": same + "B"}) == key(COMPLETIONS, {"prompt": [same + "C", "D"]})
    assert key(COMPLETIONS, {"prompt": [1, 2]}) == key(COMPLETIONS, {"prompt": [[1, 2], [3]]})
    assert key(COMPLETIONS, {"prompt": [1, 2]}) != key(COMPLETIONS, {"prompt": [1, 3]})


@pytest.mark.parametrize("body", [b"", b"{", b"[1]", b'{"messages": 3}', b'{"messages": []}', b"[" * 100_000])
def test_what_is_no_request_has_no_key(body: bytes) -> None:
    assert key_of(CHAT, Headers(), body, complete=True) == ""


def test_a_long_body_is_known_by_its_beginning() -> None:
    head = b'{"messages": [' + b" " * (64 << 10)
    keys = {key_of(CHAT, Headers(), head + more, complete=False) for more in (b"1", b"22")}
    assert len(keys) == 1 and keys.pop().startswith("body:")


def test_what_refers_to_a_replica_goes_there() -> None:
    assert made_by("", "x") == "x"
    sound = {"role": "assistant", "audio": {"id": f"audio_{made_by('abc', 'f00')}"}}
    assert key(CHAT, {"messages": [FIRST, sound, SECOND]}) == "replica:abc"
    assert key(CHAT, {"messages": [FIRST, {"role": "assistant", "audio": {"id": "audio_f00"}}]}).startswith("prompt:")
    secret = f"ek_{made_by('abc', 'f00')}"
    assert key_of("/v1/realtime", Headers({"authorization": f"Bearer {secret}"}), b"", complete=False) == "replica:abc"
    offered = Headers({"sec-websocket-protocol": f"realtime, openai-insecure-api-key.{secret}"})
    assert key_of("/v1/realtime", offered, b"", complete=False) == "replica:abc"


def test_a_session_of_the_clients_own_decides() -> None:
    given = {"x-session-id": "replica:abc"}
    one = key(CHAT, {"messages": [FIRST]}, **given)
    assert one == key(CHAT, {"messages": [SECOND]}, **given)
    assert one.startswith("session:"), "no replica can be named from outside"


def test_keys_are_spread_and_stay_when_a_replica_leaves() -> None:
    idle = dict.fromkeys(NAMES, 0)
    firsts = {str(number): ranked(f"prompt:{number}", idle, free=8, spare=0.25)[0] for number in range(800)}
    assert min(Counter(firsts.values()).values()) > 60
    fewer = dict.fromkeys(NAMES[1:], 0)
    moved = {one for one, name in firsts.items() if ranked(f"prompt:{one}", fewer, free=8, spare=0.25)[0] != name}
    assert moved == {one for one, name in firsts.items() if name == NAMES[0]}


def test_loads_are_bounded() -> None:
    own, second, *_ = ranked("prompt:1", dict.fromkeys(NAMES, 0), free=2, spare=0.25)
    assert ranked("prompt:1", dict.fromkeys(NAMES, 0) | {own: 1}, free=2, spare=0.25)[0] == own, "below free"
    assert ranked("prompt:1", dict.fromkeys(NAMES, 0) | {own: 2}, free=2, spare=0.25)[0] == second
    assert ranked("prompt:1", dict.fromkeys(NAMES, 10), free=2, spare=0.25)[0] == own, "all have as much"
    busy = dict.fromkeys(NAMES, 10) | {own: 14}
    assert ranked("prompt:1", busy, free=2, spare=0.25)[0] == second
    assert ranked("prompt:1", busy, free=2, spare=0.25)[-1] == own, "but asked, if all others are full"


def test_without_a_key_the_least_busy_is_first() -> None:
    loads = {name: number for number, name in enumerate(NAMES)}
    assert ranked("", loads, free=8, spare=0.25) == NAMES


def test_a_named_replica_is_the_only_choice_while_it_is_there() -> None:
    loads = dict.fromkeys(NAMES, 0) | {"r3": 99}
    assert ranked("replica:r3", loads, free=1, spare=0.25) == ["r3"]
    assert len(ranked("replica:gone", loads, free=1, spare=0.25)) == len(NAMES)
