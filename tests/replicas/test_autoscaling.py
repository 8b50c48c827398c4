"""The number of replicas follows the requests."""

from __future__ import annotations

from pathlib import Path

from tests.replicas.conftest import running_replicas
from tests.replicas.load import callers


def test_another_replica_comes_where_requests_wait(tmp_path: Path) -> None:
    with running_replicas(tmp_path, "1:2", "--limit", "running=2") as few:
        assert len(few.wait_for_names(1)) == 1
        with callers(few.url, 6) as load:
            few.wait_for_names(2)
            load.wait_for(20, since=load.asked[-1].began)
        assert load.failures == []
