"""The Ray Serve application: replicas, how they are chosen, watched, replaced and counted."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from ray import serve
from ray.serve.config import AutoscalingConfig, BackpressureConfig, RequestRouterConfig

from lluda.serving.http.errors import RETRY_SECONDS
from lluda.serving.replicas.replica import Replica
from lluda.serving.replicas.router import AffinityRouter

if TYPE_CHECKING:
    from lluda.serving.limits import Limits
    from lluda.serving.replicas.plan import ReplicaPlan

NAME = "lluda"
"""Of the application and of its deployment."""

_OTHERS = 16
"""Requests of a replica beside answers and sessions: models, health, tokens."""

_HEALTH_SECONDS = 2.0
_HEALTH_TIMEOUT_SECONDS = 30.0
"""A prompt that takes this long counts as a hang."""

_SURGE_PERCENT = 100


def build_application(plan: ReplicaPlan) -> Any:
    """As ``serve.run`` takes it."""
    limits = plan.settings.limits
    room = limits.running + limits.waiting + limits.realtime_sessions + _OTHERS
    deployment = serve.deployment(
        name=NAME,
        max_ongoing_requests=room,
        max_queued_requests=limits.waiting,
        backpressure_config=BackpressureConfig(status_code=429, retry_after_s=RETRY_SECONDS),
        health_check_period_s=_HEALTH_SECONDS,
        health_check_timeout_s=_HEALTH_TIMEOUT_SECONDS,
        graceful_shutdown_wait_loop_s=1.0,
        graceful_shutdown_timeout_s=limits.drain_seconds + limits.write_stall_seconds,
        ray_actor_options={"num_cpus": plan.cpus, "num_gpus": plan.gpus},
        request_router_config=RequestRouterConfig(
            request_router_class=AffinityRouter, request_router_kwargs={"free": max(1, limits.running // 2)}
        ),
        rolling_update_percentage=0.01,  # one at a time
        max_surge_percent=math.ceil(_SURGE_PERCENT / plan.most) if plan.surge else 0,
        **_number(plan, limits),
    )
    return deployment(Replica).bind(plan)


def _number(plan: ReplicaPlan, limits: Limits) -> dict[str, Any]:
    """How many replicas: fixed, or so many that each has three quarters of the requests that may run."""
    if plan.least == plan.most:
        return {"num_replicas": plan.least}
    return {
        "autoscaling_config": AutoscalingConfig(
            min_replicas=plan.least,
            max_replicas=plan.most,
            target_ongoing_requests=max(1.0, 0.75 * limits.running),
            upscale_delay_s=5.0,
            downscale_delay_s=120.0,
        )
    }
