from __future__ import annotations

import numpy as np
import pytest

from lluda.bench.prediction import bandwidth


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_the_parts_are_the_whole_buffer_once(threads: int) -> None:
    buffer = np.arange(1000, dtype=np.uint16).view(np.uint8)
    parts = bandwidth._parts(buffer, threads)
    assert len(parts) == threads
    assert np.concatenate(parts).tobytes() == buffer.tobytes()


@pytest.mark.parametrize("name", list(bandwidth.readers()))
def test_a_reader_reads_every_byte(name: str) -> None:
    """Each changed byte changes what the reader returns: the search finds a 0, the union of bits gains one."""
    reader = bandwidth.readers()[name]
    buffer = np.ones(4096, dtype=np.uint8)
    unchanged = reader(buffer)
    for place in range(0, len(buffer), 61):
        buffer[place] = 0 if "memchr" in name else 0xFE
        assert reader(buffer) != unchanged, f"byte {place} was not read"
        buffer[place] = 1


def test_the_best_reader_is_named() -> None:
    measured = bandwidth.measure_bandwidth(2, 8 << 20)
    assert 1e8 < measured.bytes_per_second < 1e13
    assert any(measured.method.startswith(name) for name in bandwidth.readers())
    assert "2 threads" in measured.method
