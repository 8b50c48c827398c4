"""``lluda bench --serve`` against a server of tiny-omni."""

from __future__ import annotations

import json

import pytest

pytest.importorskip("starlette", reason="a server needs the extra lluda[serve]")

from lluda.bench.server.call import Address
from lluda.bench.server.figures import figures
from lluda.bench.server.load import Load, measure
from lluda.cli.main import main
from lluda.errors import InvalidRequest
from lluda.serving.http.keys import Keys
from tests.serving.running import running_server


@pytest.fixture(scope="module")
def server():
    with running_server() as running:
        yield running


def test_the_command_writes_rounds_of_text_and_sound(server, tmp_path, capsys):
    output = tmp_path / "load.json"
    code = main(
        ["bench", "--serve", server.url, "--concurrency", "1,2", "--requests", "1", "--gen", "6", "--prompt", "6",
         "--output", str(output)]
    )  # fmt: skip
    assert code == 0
    document = json.loads(output.read_text())
    rounds = {(one["kind"], one["callers"]): one for one in document["rounds"]}
    assert set(rounds) == {(kind, callers) for kind in ("text", "spoken", "speech") for callers in (1, 2)}
    for (kind, callers), one in rounds.items():
        assert (one["requests"], one["failed"]) == (callers, 0)
        assert (one["first_token"] is None) == (kind == "speech")
        assert (one["first_sound"] is None) == (kind == "text")
        if kind != "text":
            assert one["real_time_factor"]["median"] > 0
    printed = capsys.readouterr().out
    assert "real-time factor" in printed and "callers' machine:" in printed
    assert server.service.model.engine.stats().failed == 0


def test_what_is_refused_is_told(server):
    """A prompt beyond the context: the first call of a kind says so before anything is measured."""
    address = Address.of(server.url)
    with pytest.raises(InvalidRequest, match=r"the server refuses what is to be measured \(text\): 400"):
        list(measure(address, Load(concurrency=(1,), prompt=9000)))


def test_a_key_is_sent(tmp_path, capsys):
    keys = tmp_path / "keys"
    keys.write_text("secret-of-the-test\n")
    with running_server(keys=Keys(["secret-of-the-test"])) as running:
        arguments = [
            "bench",
            "--serve",
            running.url,
            "--concurrency",
            "1",
            "--requests",
            "1",
            "--gen",
            "2",
            "--no-speech",
        ]
        assert main([*arguments, "--json"]) == 2
        assert "401" in capsys.readouterr().err
        assert main([*arguments, "--api-key-file", str(keys), "--json"]) == 0
        (one,) = json.loads(capsys.readouterr().out)["rounds"]
        assert one["failed"] == 0


def test_no_server_there(capsys):
    assert main(["bench", "--serve", "http://127.0.0.1:9", "--concurrency", "1"]) == 2
    assert "no server answers there" in capsys.readouterr().err


def test_without_speech_only_text_is_measured(server):
    (found,) = [
        figures(one)
        for one in measure(Address.of(server.url), Load(concurrency=(2,), requests=1, generate=2, speech=False))
    ]
    assert found.failed == 0 and found.tokens_per_second > 0


@pytest.mark.parametrize("more", [["--synth", "x"], ["--plot", "p.png"], ["--against", "transformers"]])
def test_what_does_not_go_with_it(more, capsys):
    assert main(["bench", "--serve", "http://127.0.0.1:9", *more]) == 2
    assert "leave --synth, --plot and --against out" in capsys.readouterr().err
