"""Processes that were forked off one that had computed.

A fork has the memory of its parent but none of its threads: torch's and the kernels' pools wait there for workers that
do not exist, for ever (a GPU refuses with an error of its own). So what computes asks here first.
"""

from __future__ import annotations

import os

from lluda.errors import LludaError


class _Process:
    """Of this process: whether it has computed, and whether it is a fork of one that had."""

    computed = False
    forked = False


def require_own_threads() -> None:
    """To be called before computing. LludaError: this process was forked off one that had computed."""
    if _Process.forked:
        raise LludaError(
            "this process was forked (os.fork, or multiprocessing's start method 'fork') from one that had computed "
            "with a model, whose threads do not come along: load the model in a process that is not forked "
            "(multiprocessing.get_context('spawn'), or subprocess), or fork before the first model is loaded"
        )
    _Process.computed = True


def _in_child() -> None:
    _Process.forked = _Process.forked or _Process.computed


os.register_at_fork(after_in_child=_in_child)
