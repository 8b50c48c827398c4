from __future__ import annotations

import numpy as np
import pytest

from lluda.bench import bandwidth


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_the_parts_are_the_whole_buffer_once(threads: int) -> None:
    buffer = np.arange(1000, dtype=np.uint16).view(np.uint8)
    parts = bandwidth._parts(buffer, threads)
    assert len(parts) == threads
    assert np.concatenate(parts).tobytes() == buffer.tobytes()


@pytest.mark.parametrize("name", list(bandwidth.readers()))
def test_time_to_read_grows_with_the_bytes(name: str) -> None:
    reader = bandwidth.readers()[name]
    small, large = (bandwidth._parts(bandwidth._buffer(size << 20), 1) for size in (1, 32))
    quick, slow = (min(bandwidth._pass_seconds(reader, parts) for _ in range(5)) for parts in (small, large))
    assert slow > 3 * quick, f"{name} cannot have read all of 32 MiB in {slow} s when 1 MiB takes {quick} s"


def test_the_best_reader_is_named() -> None:
    measured = bandwidth.measure_bandwidth(2, 8 << 20)
    assert 1e8 < measured.bytes_per_second < 1e13
    assert any(measured.method.startswith(name) for name in bandwidth.readers())
    assert "2 threads" in measured.method
