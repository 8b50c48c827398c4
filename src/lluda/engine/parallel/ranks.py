"""Where the ranks of a model come from, and how they find each other: processes that rank 0 starts, or those that
torchrun started, which say so by RANK and WORLD_SIZE."""

from __future__ import annotations

import os
import secrets
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta

import torch
from torch import distributed
from torch._C._distributed_c10d import PrefixStore, Store, TCPStore
from torch.distributed.rendezvous import rendezvous

from lluda.engine.parallel.channel import Channel
from lluda.errors import InvalidRequest, LludaError

_FOLLOWER = "lluda.engine.parallel.follower"
_START_SECONDS = 120
"""Within which all ranks have started: importing torch takes seconds, of a cold disk tens of them."""

_ADDRESS = "lluda/control"


@dataclass(frozen=True, slots=True)
class RankLinks:
    """Two connections with one other rank: ``orders`` go to it, ``reports`` come from it."""

    orders: Channel
    reports: Channel


def under_torchrun() -> bool:
    """Whether this process is one of several that torchrun (or a launcher like it) started."""
    return {"RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"} <= os.environ.keys()


def is_follower() -> bool:
    """Whether torchrun made this process another rank than the first."""
    return under_torchrun() and int(os.environ["RANK"]) > 0


def local_rank() -> int:
    """The number of this process among those of its machine: the GPU that it takes."""
    return int(os.environ.get("LOCAL_RANK", os.environ.get("RANK", "0")))


def ranks_here(ranks: int) -> int:
    """How many of ``ranks`` are on this machine: all, if torchrun did not start some of them on others."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", ranks)) if under_torchrun() else ranks


def rank_device(device: str) -> torch.device:
    """The device of this process where each of several takes one: of GPUs, that of its number on its machine."""
    return torch.device(device, local_rank()) if device == "cuda" else torch.device(device)


def gather_ranks(ranks: int) -> tuple[Store, dict[int, RankLinks], dict[int, subprocess.Popen[bytes]]]:
    """On rank 0: the store by which ``ranks`` of them find each other, the connections with each, and those processes
    that were started here.

    InvalidRequest: torchrun started another number. LludaError: they did not all come."""
    if distributed.is_initialized():
        raise LludaError(
            "this process already shares a model with other ranks (or has a torch.distributed group of its own): close "
            "that first, or load this one in a process of its own"
        )
    processes: dict[int, subprocess.Popen[bytes]] = {}
    if under_torchrun():
        found = int(os.environ["WORLD_SIZE"])
        if found != ranks:
            raise InvalidRequest(
                f"tensor_parallel is {ranks} but torchrun started {found} processes; start {ranks} "
                f"(--nproc-per-node {ranks}), or leave torchrun out and lluda starts them"
            )
        store, _, _ = next(rendezvous("env://"))
        host = os.environ["MASTER_ADDR"]
    else:
        host = "127.0.0.1"
        store = TCPStore(host, 0, ranks, is_master=True, wait_for_workers=False)
        for rank in range(1, ranks):
            processes[rank] = _start(rank, ranks, host, store.port)
    try:
        return store, _accept(store, host, ranks), processes
    except BaseException:
        for process in processes.values():
            process.kill()
        raise


def join_ranks() -> tuple[Store, RankLinks]:
    """On another rank: the store, and the connections with rank 0."""
    store, rank, _ = next(rendezvous("env://"))
    store.wait([_ADDRESS], timedelta(seconds=_START_SECONDS))
    host, port, token = store.get(_ADDRESS).decode().split(" ")
    links = []
    for kind in ("orders", "reports"):
        connection = socket.create_connection((host, int(port)), timeout=_START_SECONDS)
        connection.settimeout(None)
        connection.sendall(f"{token} {rank} {kind}\n".encode())
        links.append(Channel(connection))
    return store, RankLinks(*links)


def open_group(store: Store, rank: int, ranks: int, device: torch.device) -> None:
    """Make all ranks torch.distributed's default group, over NCCL where their devices are GPUs, else gloo."""
    if device.type == "cuda":
        torch.accelerator.set_device_index(device.index or 0)
    with _loopback_where_alone(), _own_excepthook():
        distributed.init_process_group(
            "nccl" if device.type == "cuda" else "gloo",
            store=PrefixStore("lluda", store),
            rank=rank,
            world_size=ranks,
            device_id=device if device.type == "cuda" else None,
        )


def _start(rank: int, ranks: int, host: str, port: int) -> subprocess.Popen[bytes]:
    """A rank beside this one. In a session of its own, Ctrl-C reaches rank 0 alone, which ends it."""
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "MASTER_ADDR": host, "MASTER_PORT": port}
    return subprocess.Popen(
        [sys.executable, "-m", _FOLLOWER],
        stdin=subprocess.DEVNULL,
        start_new_session=True,
        env=_environment() | {name: str(value) for name, value in place.items()},
    )


def _environment() -> dict[str, str]:
    """Of this process, with the folders that it imports from."""
    return dict(os.environ) | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}


def _accept(store: Store, host: str, ranks: int) -> dict[int, RankLinks]:
    token = secrets.token_hex(16)
    found: dict[tuple[int, str], Channel] = {}
    with socket.create_server((host, 0)) as server:
        server.settimeout(_START_SECONDS)
        store.set(_ADDRESS, f"{host} {server.getsockname()[1]} {token}")
        while len(found) < 2 * (ranks - 1):
            try:
                connection, _ = server.accept()
            except TimeoutError:
                missing = sorted(set(range(1, ranks)) - {rank for rank, _ in found})
                raise LludaError(
                    f"rank {missing[0]} of {ranks} did not start within {_START_SECONDS} s; what it wrote to stderr "
                    "says why"
                ) from None
            named = _greeting(connection, token)
            if named is not None:
                found[named] = Channel(connection)
            else:
                connection.close()
    return {rank: RankLinks(found[rank, "orders"], found[rank, "reports"]) for rank in range(1, ranks)}


def _greeting(connection: socket.socket, token: str) -> tuple[int, str] | None:
    """Which rank's connection it is, and for what; None: a stranger's."""
    connection.settimeout(10)
    line = bytearray()
    with suppress(OSError):
        while not line.endswith(b"\n") and len(line) < 100:
            line += connection.recv(1) or b"\n"
    connection.settimeout(None)
    words = line.decode("ascii", "replace").split()
    if len(words) != 3 or not secrets.compare_digest(words[0], token):
        return None
    return int(words[1]), words[2]


@contextmanager
def _own_excepthook() -> Iterator[None]:
    """torch.distributed would print the traceback of every exception that nobody catches a second time."""
    hook = sys.excepthook
    try:
        yield
    finally:
        sys.excepthook = hook


@contextmanager
def _loopback_where_alone() -> Iterator[None]:
    """gloo looks up this machine's name to choose an interface, which not every machine has: where all ranks are on
    one, it need not."""
    name = "GLOO_SOCKET_IFNAME"
    if under_torchrun() or name in os.environ or not os.path.exists("/sys/class/net/lo"):  # noqa: PTH110
        yield
        return
    os.environ[name] = "lo"
    try:
        yield
    finally:
        del os.environ[name]
