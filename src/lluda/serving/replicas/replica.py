"""One replica: the server's application in an actor of Ray's."""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from ray import serve

from lluda import load
from lluda.serving.app import build_app
from lluda.serving.replicas import membership
from lluda.serving.replicas.all_metrics import merged
from lluda.serving.service import Service
from lluda.serving.watchdog import Watchdog

if TYPE_CHECKING:
    from prometheus_client.core import Metric
    from starlette.applications import Starlette

    from lluda.serving.replicas.plan import ReplicaPlan

_log = logging.getLogger(__name__)

_LAST_SECONDS = 3.0
"""For answers of a replica whose engine has failed."""

_METRICS_SECONDS = 2.0
"""For the counters of all replicas; those of one that does not answer are left out."""


@serve.ingress()  # type: ignore[untyped-decorator, unused-ignore]
class Replica:
    """Loads the model, and answers as `lluda.serving.server.Server` does; Ray listens, starts and ends it."""

    async def __init__(self, plan: ReplicaPlan) -> None:  # type: ignore[misc]  # Ray awaits it
        context = serve.get_replica_context()
        self._number = context.replica_id.unique_id
        self._loop = asyncio.get_running_loop()
        settings = replace(plan.settings, replica=self._number)
        self._service = service = Service(settings)
        model = await service.in_worker(load, plan.model, **plan.options)
        await service.in_worker(model.warm_up, settings.limits.running)
        self._watchdog = Watchdog(model.engine, settings.limits.step_seconds, self._failed)
        await service.use(model)
        service.exposition = self._exposition
        membership.watch(self._number, partial(self._loop.call_soon_threadsafe, self._leave))
        # The handle's router hears which replicas get requests; `options` starts it.
        self._all = serve.get_deployment_handle(context.deployment, context.app_name).options(stream=False)
        _log.info("%s", model.describe())

    def __serve_build_asgi_app__(self) -> Starlette:
        """What Ray calls for the application, after the constructor."""
        return build_app(self._service)

    async def check_health(self) -> None:
        """What Ray asks every few seconds: as ``GET /ready``. RuntimeError: the replica is to be replaced."""
        if self._service.has_failed:
            raise RuntimeError("the engine has failed")
        if not await self._service.readiness.check():
            raise RuntimeError("the engine gives no token")

    async def counters(self) -> tuple[str, list[Metric]]:
        """The replica's number, and what it counts."""
        return self._number, list(self._service.metrics.registry.collect())

    def __del__(self) -> None:
        """What Ray calls when all requests have ended."""
        if hasattr(self, "_watchdog"):
            self._watchdog.stop()
            self._service.close()

    async def _exposition(self) -> bytes:
        """``GET /metrics``, whichever replica is asked: those of all."""
        answers = await self._all.broadcast("counters").results_async(
            timeout_s=_METRICS_SECONDS, return_exceptions=True
        )
        return merged(dict(one for one in answers if not isinstance(one, BaseException)))

    def _leave(self) -> None:
        """No request comes any more: sessions end when they are idle, and Ray waits for all the rest."""
        _log.info("replica %s gets no more requests", self._number)
        self._leaving = self._loop.create_task(self._service.sessions.drain(self._service.limits.drain_seconds))

    def _failed(self) -> None:
        """On the watchdog's thread: the last answers, then the process ends, and Ray starts another."""
        ended = threading.Timer(_LAST_SECONDS, os._exit, (1,))
        ended.daemon = True
        ended.start()
        self._loop.call_soon_threadsafe(self._service.fail)
