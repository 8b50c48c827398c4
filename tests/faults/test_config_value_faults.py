"""Well-formed config.json files with bad values: each is read, or one LludaError, before anything is enumerated."""

from __future__ import annotations

import copy
import random
import tracemalloc
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from lluda.config.decoder import MAX_EXPERTS
from lluda.config.model import ModelConfig
from lluda.errors import CorruptFile, LludaError
from lluda.models.build import all_parameters
from tests.conftest import TINY_LLAMA, TINY_MOE, TINY_QWEN3, watchdog

OMNI = "Qwen3-Omni-30B-A3B-Instruct"
SECONDS, MEMORY = 2, 200_000_000
"""What a refusal may cost, whatever a small file says."""

WRONG: tuple[Any, ...] = (
    None, True, False, -1, 0, 1, 2, 3, 65536, 2**24, 2**63, -(2**63), 0.5, -0.0, 1e-300, 1e300, "", "x", "128", "yarn",
    [], [0], [1, 2], [[1]], ["full_attention"], {}, {"a": 1}, {"rope_type": "yarn"}, "\ud800",
)  # fmt: skip


@pytest.fixture
def omni(released_config: Callable[[str], dict[str, Any]]) -> dict[str, Any]:
    return released_config(OMNI)


def large(raw: dict[str, Any], layers: int, experts: int) -> dict[str, Any]:
    return raw | {"num_hidden_layers": layers, "num_experts": experts}


def test_d6_layers_times_experts_are_bounded_before_they_are_named(omni: dict[str, Any]) -> None:
    """1 KB that asked for 800 million tensors was worked on for ever."""
    thinker, talker = copy.deepcopy(omni), copy.deepcopy(omni)
    for raw, section in ((thinker, "thinker_config"), (talker, "talker_config")):
        raw[section]["text_config"] = large(raw[section]["text_config"], 4096, 65536)
    for raw in (large(TINY_MOE, 4096, 65536), large(TINY_MOE, 2, MAX_EXPERTS // 2 + 1), thinker, talker):
        tracemalloc.start()
        with watchdog(SECONDS), pytest.raises(CorruptFile, match="num_hidden_layers times num_experts must be at most"):
            ModelConfig.from_hf(raw)
        assert tracemalloc.get_traced_memory()[1] < MEMORY
        tracemalloc.stop()


def test_d6_the_largest_model_that_is_taken_is_named_within_the_limits() -> None:
    config = ModelConfig.from_hf(large(TINY_MOE, 4096, MAX_EXPERTS // 4096))
    tracemalloc.start()
    with watchdog(SECONDS):
        names = sum(1 for _ in all_parameters(config))
    assert names > 3 * MAX_EXPERTS
    assert tracemalloc.get_traced_memory()[1] < MEMORY
    tracemalloc.stop()


def test_d6_the_largest_released_qwen3_is_far_below_the_bound() -> None:
    """Qwen3-235B-A22B has 94 layers of 128 experts (its model card)."""
    assert MAX_EXPERTS > 2 * 94 * 128


@pytest.mark.parametrize("key", ["upsampling_ratios", "upsample_rates"])
def test_d6_stages_that_multiply_nothing_are_counted_too(omni: dict[str, Any], key: str) -> None:
    omni["code2wav_config"][key] = [1] * 100_000
    with watchdog(SECONDS), pytest.raises(CorruptFile, match=f"{key} must hold at most 16 numbers .*found 100000"):
        ModelConfig.from_hf(omni)


def places(node: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Every key of every object, by its path."""
    for key, value in node.items():
        yield (*path, key)
        if isinstance(value, dict):
            yield from places(value, (*path, key))


def with_value(raw: dict[str, Any], path: tuple[str, ...], value: Any) -> dict[str, Any]:
    result = copy.deepcopy(raw)
    section = result
    for name in path[:-1]:
        section = section[name]
    section[path[-1]] = value
    return result


def read_or_refused(raw: dict[str, Any]) -> None:
    """An error has one line, of bounded length, that can be printed."""
    try:
        ModelConfig.from_hf(raw, "folder/config.json")
    except LludaError as error:
        message = str(error)
        assert "folder/config.json" in message
        assert "\n" not in message and len(message) < 600
        message.encode()


YARN = {
    "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, "attention_factor": 1.2, "mscale": 1.0,
    "mscale_all_dim": 1.0, "beta_fast": 32, "beta_slow": 1, "truncate": True, "rope_theta": 1e6, "type": "yarn",
}  # fmt: skip


@pytest.mark.parametrize("raw", [
    TINY_QWEN3 | {"rope_scaling": YARN, "use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1},
    TINY_QWEN3 | {"rope_parameters": YARN, "rope_scaling": YARN, "layer_types": ["full_attention"] * 3},
    TINY_MOE | {"num_local_experts": 8, "dtype": "bfloat16"}, TINY_LLAMA,
], ids=["yarn", "both", "moe", "llama"])  # fmt: skip
def test_every_value_of_a_text_config_replaced_by_every_wrong_one(raw: dict[str, Any]) -> None:
    for path in places(raw):
        for value in WRONG:
            read_or_refused(with_value(raw, path, value))


def test_values_of_an_omni_config_replaced_by_wrong_ones(omni: dict[str, Any]) -> None:
    """A seeded sample of places and values; every place once at least."""
    generator = random.Random(0)
    for path in places(omni):
        read_or_refused(with_value(omni, path, generator.choice(WRONG)))


@pytest.mark.parametrize("key", ["\ud800", "a\nb", "x" * 10_000, ""])
def test_an_unknown_key_is_shown_in_one_printable_line(omni: dict[str, Any], key: str) -> None:
    for path in ((key,), ("thinker_config", key), ("thinker_config", "text_config", "rope_scaling", key)):
        with pytest.raises(LludaError, match="unknown keys"):
            ModelConfig.from_hf(with_value(omni, path, 1))
        read_or_refused(with_value(omni, path, 1))


def test_keys_of_an_omni_config_left_out_and_repeated_elsewhere(omni: dict[str, Any]) -> None:
    generator = random.Random(1)
    paths = list(places(omni))
    for path in generator.sample(paths, 150):
        document = copy.deepcopy(omni)
        section = document
        for name in path[:-1]:
            section = section[name]
        section[generator.choice(paths)[-1]] = section.pop(path[-1])
        read_or_refused(document)
