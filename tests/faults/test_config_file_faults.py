"""Broken config.json files (row A3): refused by name and rule, in under a second, before any value is judged."""

from __future__ import annotations

import json
import os
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lluda.errors import CorruptFile, ModelNotFound
from lluda.files.json_file import MAX_DEPTH, parse_json, read_json
from lluda.weights.checkpoint import read_config, read_generation_config
from tests.conftest import RELEASED_CONFIGS, watchdog

BROKEN = {
    "empty file": (b"", "the file is empty"),
    "invalid JSON": (b'{"a": 1,}', "not JSON: .* at line 1, column 9"),
    "two values": (b"{} {}", "not JSON: Extra data"),
    "comment": (b"{} // comment", "not JSON"),
    "byte order mark": (b"\xef\xbb\xbf{}", "byte order mark"),
    "UTF-16": ('{"a": 1}'.encode("utf-16"), "UTF-16 text: save it as UTF-8"),
    "Latin-1": ('{"a": "é"}'.encode("latin-1"), "not UTF-8 .*0xe9 at 7"),
    "control character": (b'{"a": "\x01"}', "not JSON: Invalid control character"),
    "depth 100 k of lists": (b"[" * 100_000 + b"]" * 100_000, "nested too deep"),
    "depth 100 k of objects": (b'{"a":' * 100_000 + b"1" + b"}" * 100_000, "nested too deep"),
    "one level too deep": (b"[" * (MAX_DEPTH + 1) + b"]" * (MAX_DEPTH + 1), f"nested too deep .*at most {MAX_DEPTH}"),
    "unclosed depth": (b"[" * 100_000, "nested too deep"),
    "NaN": (b'{"rope_theta": NaN}', "NaN is not a JSON number"),
    "Infinity": (b'{"rope_theta": Infinity}', "Infinity is not a JSON number"),
    "minus Infinity": (b'{"rope_theta": -Infinity}', "-Infinity is not a JSON number"),
    "overflow to infinity": (b'{"rope_theta": 1e999}', "1e999 is too large for float64"),
    "integer of 5000 digits": (b'{"n": ' + b"9" * 5000 + b"}", "an integer of 5000 digits"),
    "duplicate keys": (b'{"hidden_size": 1024, "hidden_size": 4096}', "'hidden_size' appears twice"),
    "duplicate keys inside": (b'{"a": [{"c": 1, "b": 1, "\\u0062": 1}]}', "'b' appears twice"),
    "a string": (b'"config"', "neither an object nor an array"),
    "an array": (b"[]", "the JSON must be an object"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a3_config_is_refused_by_name_and_rule(tmp_path: Path, case: str) -> None:
    content, rule = BROKEN[case]
    (tmp_path / "config.json").write_bytes(content)
    with watchdog(1), pytest.raises(CorruptFile, match=rule) as caught:
        read_config(tmp_path)
    assert str(tmp_path / "config.json") in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


def test_a3_100_mb_are_refused_by_size_before_reading(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(b"{}")
    os.truncate(path, 100 * 10**6)
    tracemalloc.start()
    too_large = r"config\.json: the JSON file is too large .*found 100000000"
    with watchdog(1), pytest.raises(CorruptFile, match=too_large):
        read_config(tmp_path)
    assert tracemalloc.get_traced_memory()[1] < 10**6
    tracemalloc.stop()


def test_a3_a_large_config_of_one_long_string_takes_its_own_size(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(b'{"a": "' + b"x" * 4_000_000)
    with watchdog(1), pytest.raises(CorruptFile, match="Unterminated string"):
        read_json(path)


@pytest.mark.parametrize("name", ["config.json", "generation_config.json"])
def test_a3_a_pipe_is_not_waited_on(tmp_path: Path, name: str) -> None:
    os.mkfifo(tmp_path / name)
    with pytest.raises(CorruptFile, match=r"a regular file is needed here .*a pipe"):
        read_config(tmp_path) if name == "config.json" else read_generation_config(tmp_path)


def test_a3_the_generation_config_is_read_as_strictly(tmp_path: Path) -> None:
    assert read_generation_config(tmp_path) == {}
    (tmp_path / "generation_config.json").write_text('{"top_k": 20, "eos_token_id": [1, 2]}')
    assert read_generation_config(tmp_path) == {"top_k": 20, "eos_token_id": [1, 2]}
    (tmp_path / "generation_config.json").write_text('{"top_k": 20, "top_k": 1}')
    with pytest.raises(CorruptFile, match=r"generation_config\.json: the key 'top_k' appears twice"):
        read_generation_config(tmp_path)


def test_a1_a_missing_config_names_the_file(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound, match=r"config\.json: no such file"):
        read_config(tmp_path)


def test_the_deepest_allowed_nesting_is_read(tmp_path: Path) -> None:
    path = tmp_path / "deep.json"
    path.write_bytes(b"[" * MAX_DEPTH + b"]" * MAX_DEPTH)
    assert isinstance(read_json(path), list)


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=200, deadline=None)
@given(value=json_values)
def test_strict_json_is_read_as_python_reads_it(value: object) -> None:
    text = json.dumps(value)
    assert parse_json(text.encode(), Path("x.json")) == json.loads(text)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.binary(max_size=40) | st.text(alphabet='{}[]",:0123456789eE+-. ntf\\u', max_size=40).map(str.encode))
def test_a3_any_bytes_are_refused_or_read(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(content)
    try:
        value = read_json(path)
    except CorruptFile:
        return
    assert value == json.loads(content)


@pytest.mark.parametrize("model", ["Qwen3-0.6B", "Qwen3-Omni-30B-A3B-Instruct"])
def test_released_configs_are_read(model: str) -> None:
    folder = RELEASED_CONFIGS / model
    assert read_config(folder) == json.loads((folder / "config.json").read_text())
