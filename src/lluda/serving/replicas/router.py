"""How Ray Serve chooses a replica: by the request's key, with bounded loads, else the one with the least to do."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ray.serve.experimental.consistent_hash_router import ConsistentHashRouter

from lluda.serving.replicas import membership
from lluda.serving.replicas.ranking import ranked

if TYPE_CHECKING:
    from ray.serve.request_router import PendingRequest, RunningReplica


class AffinityRouter(ConsistentHashRouter):  # type: ignore[misc]
    """In Ray's proxies. Of its router by consistent hashing this has the loop over waiting requests; the order of
    replicas is `ranked`'s."""

    def initialize_state(self, free: int = 1, spare: float = 0.25) -> None:
        """Called by Ray with ``request_router_kwargs``."""
        super().initialize_state(num_fallback_replicas=0)
        self._free, self._spare = free, spare

    def update_replicas(self, replicas: list[RunningReplica]) -> None:
        """Called by Ray whenever a replica comes or goes."""
        super().update_replicas(replicas)
        membership.tell(one.replica_id.unique_id for one in replicas)

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """Replicas, one a rank: each is asked when those before it are full."""
        key = ""
        if pending_request is not None:
            pending_request.routing_context.should_backoff = True
            key = pending_request.metadata.session_id or ""
        by_name = {one.replica_id.unique_id: one for one in candidate_replicas}
        loads = {name: self.replica_queue_len_cache.get(one.replica_id) or 0 for name, one in by_name.items()}
        return [[by_name[name]] for name in ranked(key, loads, free=self._free, spare=self._spare)]
