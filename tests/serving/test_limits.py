"""The table of limits."""

from __future__ import annotations

from dataclasses import fields

import pytest

from lluda.errors import InvalidRequest
from lluda.serving.limits import Limits


def test_table_has_every_limit_with_its_value() -> None:
    lines = Limits(running=3).table().splitlines()
    assert [line.split()[0] for line in lines] == [one.name for one in fields(Limits)]
    assert lines[0].split()[1] == "3" and lines[1].split()[1] == "12"


def test_changes() -> None:
    changed = Limits().changed(["running=2", "queue_seconds=0.5"])
    assert (changed.running, changed.waiting, changed.queue_seconds) == (2, 8, 0.5)
    assert Limits().changed(["waiting=3"]).waiting == 3


@pytest.mark.parametrize(
    "assignment",
    [
        *("nothing=1", "running", "running=", "running=x", "running=0", "running=1.5", "running=-1"),
        *("ping_seconds=0", "ping_seconds=nan", "ping_seconds=inf", "ping_seconds=-1", "=3"),
    ],
)
def test_bad_changes_are_refused(assignment: str) -> None:
    with pytest.raises(InvalidRequest):
        Limits().changed([assignment])
