"""In which order replicas are asked."""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Mapping

from lluda.serving.replicas.affinity import PINNED


def ranked(key: str, loads: Mapping[str, int], *, free: int, spare: float) -> list[str]:
    """Names of replicas, the best first; ``loads``: the requests that each has.

    A key's replicas stand in the order of their rendezvous hashes (Thaler and Ravishankar 1998), so that a replica that
    comes or goes moves its own keys alone. Those at the bound come last, as in consistent hashing with bounded loads
    (Mirrokni, Thorup and Zadimoghaddam 2018): ``1 + spare`` times the mean load, or ``free`` requests, whichever is
    more. A key that names a replica that is there has no other choice: what it refers to is nowhere else. Without a
    key the one with the least to do is first.
    """
    pinned = key.removeprefix(PINNED)
    if key.startswith(PINNED) and pinned in loads:
        return [pinned]
    if not key:
        return sorted(loads, key=lambda name: (loads[name], random.random()))
    bound = max(free, math.ceil((1 + spare) * (sum(loads.values()) + 1) / max(1, len(loads))))
    order = sorted(loads, key=lambda name: hashlib.blake2b(f"{key} {name}".encode(), digest_size=8).digest())
    below = [name for name in order if loads[name] < bound]
    return below + sorted((name for name in order if loads[name] >= bound), key=loads.__getitem__)
