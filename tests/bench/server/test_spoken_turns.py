"""``lluda bench --serve --turns``: what is said in real time, against a server of tiny-omni."""

from __future__ import annotations

import json

import pytest

pytest.importorskip("starlette", reason="a server needs the extra lluda[serve]")

from lluda.bench.server.call import Address
from lluda.bench.server.load import Load, measure
from lluda.bench.server.spoken_turns import WAYS, take_turn
from lluda.cli.main import main
from lluda.errors import InvalidRequest
from tests.serving.running import running_server


@pytest.fixture(scope="module")
def server():
    with running_server() as running:
        yield running


def test_the_command_writes_what_came_of_each_way(server, tmp_path, capsys):
    output = tmp_path / "turns.json"
    arguments = ["--turns", "1", "--concurrency", "1", "--requests", "1", "--gen", "8", "--output", str(output)]
    assert main(["bench", "--serve", server.url, *arguments]) == 0
    rounds = {one["kind"]: one for one in json.loads(output.read_text())["rounds"]}
    assert set(rounds) == {f"{way}1" for way in WAYS}
    for kind, one in rounds.items():
        assert (one["requests"], one["failed"]) == (1, 0)
        assert one["first_sound"]["median"] > 0
        assert (one["first_sound_of_turn"] is None) == (kind == "sent1")
    said = rounds["said1"]
    # The pause that ends a turn lies between the two.
    assert said["first_sound"]["median"] > said["first_sound_of_turn"]["median"] + 0.3
    assert "of the turn" in capsys.readouterr().out


def test_a_turn_that_is_over_too_soon_fails(server, monkeypatch):
    """The server's rules end it in a gap of the speech."""
    from lluda.bench.server import spoken_turns

    whole = spoken_turns.voice

    def with_a_gap(seconds, rate, number):
        samples = whole(seconds, rate, number)
        samples[rate : 2 * rate] = spoken_turns.stillness(1, rate)
        return samples

    monkeypatch.setattr(spoken_turns, "voice", with_a_gap)
    seen = take_turn(Address.of(server.url), "tiny-omni", "said", 3, 0, tokens=4, timeout=60)
    assert "cut before its end" in seen.error


def test_what_the_server_refuses_is_told(server):
    seen = take_turn(Address.of(server.url), "tiny-omni", "sent", 1, 0, tokens=0, timeout=60)
    assert "max_output_tokens" in seen.error


def test_no_turns_without_seconds():
    with pytest.raises(InvalidRequest, match="turns must be at least 1"):
        Load(turns=(0,))


def test_a_model_of_text_takes_no_turns(server, monkeypatch):
    from lluda.bench.server import load

    monkeypatch.setattr(load, "_outputs", lambda _model: ["text"])
    with pytest.raises(InvalidRequest, match="does not speak"):
        next(measure(Address.of(server.url), Load(turns=(1,))))
