"""What several ranks cannot share is said before a process is started, and what becomes of ranks is heard."""

from __future__ import annotations

import socket
import threading
import weakref

import pytest
import torch

import lluda
from lluda.cli.main import main
from lluda.engine.parallel.channel import Channel
from lluda.engine.parallel.ranks import gather_ranks, under_torchrun
from lluda.engine.parallel.watch import Beat, Failed, RankWatch, Ready
from lluda.errors import InvalidRequest, RankLost
from tests.conftest import watchdog


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"tensor_parallel": 16}, r"8 heads of .*q_proj\.weight cannot be shared by 16 ranks; .*divides 8"),
        ({"tensor_parallel": 3}, r"8 heads .* cannot be shared by 3 ranks"),
        ({"tensor_parallel": 0}, r"tensor_parallel must be a positive integer, not 0"),
        ({"tensor_parallel": 2, "device": "wgpu"}, r"needs a backend of torch's .* not wgpu; leave it out"),
        ({"tensor_parallel": 2, "backend": "wgpu"}, r"needs a backend of torch's"),
        ({"tensor_parallel": 2, "device": "cuda:1"}, r"device is cuda, not 'cuda:1'; CUDA_VISIBLE_DEVICES"),
        ({"tensor_parallel": 2, "place": "experts=cpu"}, r"place puts its experts elsewhere; leave one of them out"),
        ({"tensor_parallel": 2, "place": "thinker=cpu"}, r"place puts its thinker elsewhere"),
    ],
)
def test_what_cannot_be_shared_is_refused(options, said):
    with pytest.raises(InvalidRequest, match=said):
        lluda.load("tiny-omni", **options)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_the_command_says_how_many_gpus_there_are(capsys):
    assert main(["generate", "-m", "tiny-omni", "--tp", "2", "--device", "cuda", "x"]) == 2
    assert "--tp) 2 needs 2 GPUs but there are 0; take --device cpu" in capsys.readouterr().err


def test_torchrun_that_started_another_number(monkeypatch):
    for name, value in {"RANK": "0", "WORLD_SIZE": "3", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    assert under_torchrun()
    with pytest.raises(InvalidRequest, match=r"is 2 but torchrun started 3 processes; start 2 \(--nproc-per-node 2\)"):
        gather_ranks(2)


class Told:
    """Who is told that a rank is gone."""

    def __init__(self) -> None:
        self.error: RankLost | None = None
        self.known = threading.Event()

    def lost(self, error: RankLost) -> None:
        self.error = error
        self.known.set()


@pytest.fixture
def rank():
    """The first rank's watch over one other, the connection of that, and who is told of its end."""
    server = socket.create_server(("127.0.0.1", 0))
    theirs = socket.create_connection(server.getsockname())
    ours, _ = server.accept()
    told, channel = Told(), Channel(theirs)
    watch = RankWatch({1: Channel(ours)}, {}, weakref.WeakMethod(told.lost))
    yield watch, channel, told
    watch.close()
    channel.close()
    server.close()


def test_a_rank_that_is_ready(rank):
    watch, channel, told = rank
    channel.send(Beat())
    channel.send(Ready(12))
    with watchdog(10):
        assert watch.wait_ready() == {1: 12}
    assert watch.error is None and not told.known.is_set()


@pytest.mark.parametrize(
    ("ending", "said"),
    [
        (lambda channel: channel.send(Failed("no memory left")), "rank 1 of 2 failed: no memory left, so the model"),
        (lambda channel: channel.close(), "rank 1 of 2 closed its connection"),
    ],
    ids=["fault", "end"],
)
def test_a_rank_that_cannot_load_or_ends(rank, ending, said):
    watch, channel, told = rank
    ending(channel)
    with watchdog(10), pytest.raises(RankLost, match=said):
        watch.wait_ready()
    assert told.known.wait(10) and told.error is watch.error
