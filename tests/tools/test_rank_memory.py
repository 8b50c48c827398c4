"""What a rank takes is its share of the model, in its own memory and of the file's pages."""

from __future__ import annotations

import pytest

from tests.conftest import TINY_QWEN3
from tests.engine.parallel.ranks import folder_of
from tools.rank_memory import measure

WIDE = TINY_QWEN3 | {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 6,
    "vocab_size": 16384,
    "torch_dtype": "float32",
}
"""380 MB; were the pages of what is copied not released, a rank would have 60 to 100 MB more than its share."""

ALLOCATOR = 30_000_000
"""Bytes, the same for a model of any size."""


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [2, 4])
def test_a_rank_takes_its_share(tmp_path, ranks):
    row = measure(str(folder_of(WIDE, tmp_path / "model")), ranks)
    assert len(row["taken_bytes"]) == ranks - 1
    for taken in row["taken_bytes"]:
        assert 0.95 * row["share_bytes"] < taken < 1.05 * row["planned_bytes"] + ALLOCATOR
