"""Whether this process's replica is one of those that get requests. Ray Serve tells a replica that it is to end only
after its requests have ended, which a realtime session may not do for an hour."""

from __future__ import annotations

from collections.abc import Callable, Iterable

_watched: dict[str, Callable[[], object]] = {}
_seen: set[str] = set()


def watch(replica: str, left: Callable[[], object]) -> None:
    """``left`` is called once, on a thread of Ray's, when ``replica`` was among those that get requests and is no
    more."""
    _watched[replica] = left


def tell(replicas: Iterable[str]) -> None:
    """These get requests now."""
    members = set(replicas)
    _seen.update(members & _watched.keys())
    for gone in _seen - members:
        _seen.discard(gone)
        _watched.pop(gone)()
