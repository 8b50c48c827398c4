from __future__ import annotations

import pytest
import torch

from lluda.config.model import ModelConfig
from lluda.engine.kv_cache import CacheOptions, KVCache
from lluda.errors import InvalidRequest, LimitExceeded
from tests.conftest import TINY_QWEN3

CONFIG = ModelConfig.from_hf(TINY_QWEN3).text
CPU = torch.device("cpu")


def rows(count: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shape = (count, CONFIG.num_key_value_heads, CONFIG.head_dim)
    return torch.randn(shape, generator=generator), torch.randn(shape, generator=generator)


def store(cache: KVCache, keys: torch.Tensor, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """What the reference backend does in one step, for every layer."""
    buffers = cache.reserve(len(keys))
    start, end = cache.length, cache.length + len(keys)
    for buffer, rows in zip(buffers, (keys, values), strict=True):
        buffer[:, :, start:end] = rows.transpose(0, 1)
    cache.advance(len(keys))
    return buffers[0][-1, :, :end], buffers[1][-1, :, :end]


@pytest.mark.parametrize("strategy", ["growing", "preallocated"])
def test_stored_rows_come_back_in_order(strategy):
    cache = KVCache(CONFIG, CacheOptions(1000, strategy, "f32"), CPU)
    keys, values = rows(700)
    for start in range(0, 700, 90):
        all_keys, all_values = store(cache, keys[start : start + 90], values[start : start + 90])
    assert cache.length == 700
    assert torch.equal(all_keys, keys.transpose(0, 1))
    assert torch.equal(all_values, values.transpose(0, 1))


def test_growing_takes_little_at_first_and_preallocated_all():
    small = KVCache(CONFIG, CacheOptions(100_000, "growing", "bf16"), CPU)
    large = KVCache(CONFIG, CacheOptions(100_000, "preallocated", "bf16"), CPU)
    assert large.nbytes == CacheOptions(100_000).bytes_for(CONFIG, 100_000)
    assert small.nbytes < large.nbytes / 100


def test_growing_never_passes_the_limit():
    cache = KVCache(CONFIG, CacheOptions(300, "growing", "f32"), CPU)
    store(cache, *rows(299))
    assert cache.capacity == 300


def test_bf16_storage_rounds_once():
    keys, values = rows(3)
    stored, _ = store(KVCache(CONFIG, CacheOptions(10, dtype="bf16"), CPU), keys, values)
    assert torch.equal(stored, keys.bfloat16().transpose(0, 1))


def test_truncate_keeps_a_prefix():
    cache = KVCache(CONFIG, CacheOptions(10, dtype="f32"), CPU)
    keys, values = rows(6)
    store(cache, keys, values)
    cache.truncate(2)
    again, _ = store(cache, keys[4:], values[4:])
    assert torch.equal(again, torch.cat((keys[:2], keys[4:])).transpose(0, 1))


def test_bad_options_and_a_full_cache():
    with pytest.raises(InvalidRequest, match="growing, preallocated"):
        CacheOptions(8, "paged")  # type: ignore[arg-type]
    with pytest.raises(InvalidRequest, match="kv_dtype 'f16'"):
        CacheOptions(8, dtype="f16")
    cache = KVCache(CONFIG, CacheOptions(4, dtype="f32"), CPU)
    with pytest.raises(LimitExceeded, match="holds 4 positions but 5"):
        cache.reserve(5)
