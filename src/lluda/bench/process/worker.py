"""``python -m lluda.bench.process.worker``: one engine measured in a process of its own.

Reads one `Job` as JSON from stdin; writes one JSON object a line: ``{"info": …}`` when the model is open, then a
``{"test", "value", "unit", "reads"}`` for each sample. Whatever the engine prints goes to stderr. Exit code 1: see
stderr's last line.
"""

from __future__ import annotations

import ctypes
import gc
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from dataclasses import asdict
from importlib import import_module
from json import dumps

from lluda.bench.engines import ENGINES
from lluda.bench.measured.speech import measure_speech
from lluda.bench.measurements import measure
from lluda.bench.process.job import LISTENING_TESTS, PRODUCT_TESTS, Job, Sample
from lluda.bench.session import HasInfo
from lluda.errors import LludaError

_PR_SET_PDEATHSIG = 1  # <linux/prctl.h>
_COLLECT_EVERY = 200_000
"""Objects between two garbage collections, for every engine in Python: as the ``lluda`` command starts."""


def main() -> int:
    """Run the job on stdin."""
    # Native libraries print to descriptor 1 behind Python's back: keep it for rows alone.
    rows = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)

    def opened(session: HasInfo) -> None:
        print(dumps({"info": asdict(session.info)}), file=rows)

    die_with_parent()
    gc.set_threshold(_COLLECT_EVERY, *gc.get_threshold()[1:])
    try:
        job = Job.from_json(sys.stdin.read())
        for sample in samples(job, opened):
            print(dumps(asdict(sample)), file=rows)
    except LludaError as error:
        print(" ".join(str(error).split()), file=sys.stderr)
        return 1
    except Exception:
        traceback.print_exc()
        return 1
    return 0


def samples(job: Job, opened: Callable[[HasInfo], None]) -> Iterator[Sample]:
    """All samples of a job, as they are known; ``opened`` gets the open session."""
    engine = ENGINES[job.engine]
    if job.plan.text_tests:
        yield from measure(job, import_module(engine.module).open_session, opened)
    if job.plan.omni_tests:
        assert engine.speech is not None, "the run asks an engine for what it can do"
        # The text session's info stays: decoding's share of the bandwidth is counted from it.
        once = (lambda _session: None) if job.plan.text_tests else opened
        _release_memory(job.device)
        yield from measure_speech(job, import_module(engine.speech).open_session, once)
    if set(LISTENING_TESTS) & set(job.plan.tests):
        from lluda.bench.measured.listening import measure_listening

        first = not (job.plan.text_tests or job.plan.omni_tests)
        _release_memory(job.device)
        yield from measure_listening(job, opened if first else lambda _session: None)
    if set(PRODUCT_TESTS) & set(job.plan.tests) and job.engine == "lluda":
        from lluda.bench.prediction.products import measure_products
        from lluda.bench.source import open_source

        _release_memory(job.device)
        source = open_source(job)
        yield from measure_products(source.backend("thinker"), source.format).samples()


def _release_memory(device: str) -> None:
    """What the text tests held may be most of a GPU's."""
    from lluda.backends import device_runtime

    gc.collect()
    device_runtime(device).release_memory()


def die_with_parent() -> None:
    """Ask Linux to kill this process when the one that started it ends, however it ends: a parent that is itself killed
    cannot stop its workers, and one in the middle of a test would go on for minutes."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


if __name__ == "__main__":
    code = main()
    sys.stderr.flush()
    # Engines with threads of their own may hang or crash while the interpreter is torn down; all rows are out.
    os._exit(code)
