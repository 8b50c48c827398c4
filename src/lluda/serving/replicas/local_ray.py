"""``lluda serve --replicas``: a Ray of one machine, for as long as the command runs."""

from __future__ import annotations

import logging
import os
import re
import signal
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

import ray
from ray import serve

from lluda.errors import InvalidRequest, LludaError
from lluda.serving.replicas.application import NAME, build_application
from lluda.serving.replicas.proxy_middleware import CALLBACK, VARIABLE

if TYPE_CHECKING:
    from lluda.serving.replicas.plan import ReplicaPlan

RESTART = getattr(signal, "SIGUSR1", None)
"""The signal that restarts the replicas one after the other."""


def serve_here(plan: ReplicaPlan, host: str, port: int, ready: Callable[[], None]) -> int:
    """Start Ray and the replicas, call ``ready``, and serve until a signal, which drains; the next one ends at once.
    The exit code.

    InvalidRequest: the machine has not what the replicas reserve. LludaError: a replica did not start.
    """
    os.environ[VARIABLE] = CALLBACK
    ray.init(
        address="local",
        num_cpus=max(os.cpu_count() or 1, round(plan.most * plan.cpus)),
        include_dashboard=False,
        logging_level=logging.WARNING,
        log_to_driver=True,
        configure_logging=False,
    )
    try:
        _check_room(plan)
        serve.start(proxy_location="HeadOnly", http_options={"host": host, "port": port})
        signals = _Signals()
        _deploy(plan)
        ready()
        while signals.next() == RESTART:
            _deploy(plan)
        _drain(signals)
        return 0
    finally:
        serve.shutdown()
        ray.shutdown()


def _check_room(plan: ReplicaPlan) -> None:
    gpus = ray.cluster_resources().get("GPU", 0.0)
    if plan.gpus * plan.most > gpus:
        raise InvalidRequest(
            f"--replicas {plan.most}: each takes {plan.gpus:g} GPUs, and this machine has {gpus:g}; ask for "
            "fewer, or for --device cpu"
        )


def _deploy(plan: ReplicaPlan) -> None:
    try:
        serve.run(build_application(plan), name=NAME)
    except RuntimeError as error:
        status = serve.status().applications.get(NAME)
        found = "" if status is None else "\n".join(one.message for one in status.deployments.values())
        raise LludaError(f"the replicas did not start: {_last_line(found or str(error))}") from None


def _last_line(text: str) -> str:
    """What a traceback ends with: the error itself. Ray colours it, and writes more of it on stderr."""
    lines = [line.strip() for line in re.sub(r"\x1b\[[0-9;]*m", "", text).splitlines()]
    return next((line for line in reversed(lines) if line), "for no reason that Ray knows")


def _drain(signals: _Signals) -> None:
    """Until what runs has ended, or another signal comes. Without this Ray would end its proxies first."""
    ending = threading.Thread(target=serve.delete, args=(NAME,), daemon=True)
    ending.start()
    while ending.is_alive() and not signals.waiting:
        ending.join(0.2)


class _Signals:
    """Signals as they come, from where there are replicas to be ended."""

    def __init__(self) -> None:
        self._came = threading.Event()
        self._numbers: list[int] = []
        for number in filter(None, (signal.SIGTERM, signal.SIGINT, getattr(signal, "SIGHUP", None), RESTART)):
            if signal.getsignal(number) is not signal.SIG_IGN:  # nohup
                signal.signal(number, self._note)

    @property
    def waiting(self) -> bool:
        """Whether one came that `next` has not given."""
        return bool(self._numbers)

    def next(self) -> int:
        """Waits for one."""
        while not self._numbers:
            self._came.wait(1.0)
            self._came.clear()
        return self._numbers.pop(0)

    def _note(self, number: int, _: object) -> None:
        self._numbers.append(number)
        self._came.set()
