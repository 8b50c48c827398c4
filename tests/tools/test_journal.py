"""Tables are written from results, between their markers, and nothing else of a file changes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lluda.errors import InvalidRequest
from tools.journal import main, markdown_table, replace_table, table_of

ROOT = Path(__file__).resolve().parents[2]
ENTRY = "# Title\n\n<!-- table: speed -->\nold\n<!-- end -->\n\nText.\n\n<!-- table: parity -->\n<!-- end -->\n"

LAYER = {
    "stage": "logits",
    "argmax_agreement": 0.984375,
    "max_abs_error": 0.01234567,
    "mean_abs_error": 0.001,
    "range": 20.0,
    "relative_error": 0.000617,
    "error_to_float64": {"lluda": 0.064, "reference": 0.124, "ratio": 0.51613},
    "first_divergence": None,
}
TEXT = {
    "component": "text",
    "stages": [
        LAYER | {"stage": "embeddings", "error_to_float64": {"lluda": 0.0, "reference": 0.0, "ratio": None}},
        LAYER,
    ],
    "ends": ["logits"],
    "ratio": 0.51613,
    "greedy": {"tokens": 16, "agreement": 0.5625},
    "distribution": None,
    "thresholds": [{"name": "text: distance to float64", "passed": True}],
}
VALIDATION = {
    "kind": "validation",
    "model": {"name": "Qwen3-0.6B"},
    "reference": "transformers",
    "dtype": "bf16",
    "backend": "reference backend on cpu",
    "tokens": 64,
    "mode": "one prefill",
    "components": [TEXT],
    "passed": True,
    "versions": {"lluda": "0.1.0", "torch": "2.13.0"},
}
BENCH = {
    "machine": {"cpu": "a | b", "threads": 2},
    "rows": [
        {"engine": "lluda", "test": "tg128", "median": 18.25, "min": 18, "max": 19.0, "roofline_fraction": 0.873},
        {"engine": "transformers", "test": "tg128", "median": 9.5, "min": 9, "max": 10, "roofline_fraction": None},
    ],
}  # fmt: skip


def cells(table: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in table.splitlines() if "|" in line]


def test_validations_become_one_row_for_each_component():
    exact = LAYER | {"error_to_float64": None}
    failing = [{"name": "a", "passed": True}, {"name": "b", "passed": False}]
    other = TEXT | {"stages": [exact], "ratio": None, "greedy": None, "thresholds": failing}
    table = table_of([VALIDATION, VALIDATION | {"dtype": "f32", "components": [other]}])
    header, _, first, second = cells(table)[:4]
    row = dict(zip(header, first, strict=True))
    assert row["model"] == "Qwen3-0.6B"
    assert row["run"] == "64 tokens, one prefill"
    assert row["ratio"] == "0.5161"
    assert row["tokens or codes equal"] == "9 of 16"
    assert row["thresholds"] == "passed"
    row = dict(zip(header, second, strict=True))
    assert (row["thresholds"], row["ratio"], row["tokens or codes equal"]) == ("FAILED", "–", "–")
    assert table.endswith("\nRun with lluda 0.1.0, torch 2.13.0, reference backend on cpu.\n")


def test_llama_cpp_has_its_own_columns():
    parts = {"mean_kl": 0.00316, "max_kl": 0.0131, "correlation": 0.99961}
    result = VALIDATION | {"components": [TEXT | {"distribution": parts}], "reference": "llama.cpp"}
    header, _, row = cells(table_of([result]))
    assert dict(zip(header, row, strict=True))["mean KL (nats)"] == "0.00316"
    assert "ratio" not in header


def test_layers_of_one_validation():
    header, _, first, last = cells(table_of([VALIDATION], layers=True))
    assert dict(zip(header, first, strict=True))["ratio"] == "–"
    assert dict(zip(header, last, strict=True)) == {
        "stage": "logits",
        "max abs error": "0.01235",
        "mean abs error": "0.001",
        "relative error": "0.000617",
        "argmax agreement": "0.9844",
        "lluda to float64": "0.064",
        "reference to float64": "0.124",
        "ratio": "0.5161",
    }
    for wrong in ([VALIDATION, VALIDATION], [BENCH]):
        with pytest.raises(InvalidRequest, match="one validation"):
            table_of(wrong, layers=True)


def test_bench_rows_and_their_machine():
    table = table_of([BENCH])
    header, rule, lluda, peer = cells(table)[:4]
    assert dict(zip(header, lluda, strict=True))["of bandwidth"] == "87%"
    assert dict(zip(header, peer, strict=True))["of bandwidth"] == "–"
    assert dict(zip(header, rule, strict=True))["median"] == "---:"
    assert "Run with cpu: a \\| b, threads: 2." in table


def test_plain_rows_and_mixed_kinds():
    assert cells(table_of([[{"a": 1}, {"b": "x|y"}]]))[2:] == [["1", "–"], ["–", "x\\|y"]]
    with pytest.raises(InvalidRequest, match="one kind; found bench, validation"):
        table_of([BENCH, VALIDATION])
    with pytest.raises(InvalidRequest, match="no rows"):
        table_of([[]])
    with pytest.raises(InvalidRequest, match="not int"):
        table_of([3])


def test_numbers_are_readable():
    table = markdown_table([{"n": 751632384, "x": 1.23456789e-7, "ok": True, "s": "a\nb", "year": 2026}])
    assert cells(table)[2] == ["751,632,384", "1.235e-07", "yes", "a b", "2026"]


@given(head=st.text(), tail=st.text(), table=st.text(alphabet="ab|\n"))
def test_only_what_is_between_the_markers_changes(head, tail, table):
    start, end = "<!-- table: x -->", "<!-- end -->"
    if start in head or start in tail:
        return
    once = replace_table(f"{head}{start}old{end}{tail}", "x", table)
    assert once == f"{head}{start}\n{table.strip()}\n{end}{tail}"
    assert replace_table(once, "x", table) == once


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("no marker", "found it 0 times"),
        (ENTRY.replace("parity", "speed"), "found it 2 times"),
        ("<!-- table: speed -->\nno end", "not followed by its"),
        ("<!-- table: speed -->\n<!-- table: other -->\n<!-- end -->", "not followed by its"),
    ],
)
def test_broken_markers_are_refused(text, message):
    with pytest.raises(InvalidRequest, match=message):
        replace_table(text, "speed", "| a |")


def test_the_command_writes_the_entry(tmp_path):
    entry, result = tmp_path / "07.md", tmp_path / "r.json"
    entry.write_text(ENTRY)
    result.write_text(json.dumps(VALIDATION))
    assert main([str(entry), "parity", str(result)]) == 0
    text = entry.read_text()
    assert text.startswith(ENTRY.split("<!-- table: parity -->", maxsplit=1)[0])
    assert "Qwen3-0.6B" in text


def test_the_command_leaves_the_entry_alone_on_an_error(tmp_path, capsys):
    entry, result = tmp_path / "07.md", tmp_path / "r.json"
    entry.write_text(ENTRY)
    result.write_text("{broken")
    assert main([str(entry), "parity", str(result)]) == 2
    assert "must be JSON" in capsys.readouterr().err
    assert main([str(entry), "parity", str(tmp_path / "absent.json")]) == 2
    assert entry.read_text() == ENTRY


def test_an_omni_validation_ends_in_several_stages():
    stages = [LAYER | {"stage": name, "max_abs_error": error} for name, error in (("conv", 0.5), ("output", 0.25))]
    encoder = TEXT | {"component": "vision_encoder", "stages": [*stages, LAYER], "ends": ["output", "logits"]}
    header, _, row = cells(table_of([VALIDATION | {"components": [encoder]}]))[:3]
    found = dict(zip(header, row, strict=True))
    assert (found["component"], found["max error"], found["lluda to float64"]) == ("vision_encoder", "0.25", "0.128")


@pytest.mark.parametrize("name", ["qwen3-06b-f32", "qwen3-06b-bf16", "validate-omni-talker-f32"])
def test_results_of_before_one_ladder_are_read(name):
    """Those that the journal keeps."""
    result = json.loads((ROOT / "journal" / "data" / f"{name}.json").read_text())
    header, _, *rows = cells(table_of([result]))
    found = [dict(zip(header, row, strict=True)) for row in rows if len(row) == len(header)]
    assert {row["thresholds"] for row in found} == {"passed"}
    assert [row["component"] for row in found] == (["talker", "code_predictor"] if "omni" in name else ["text"])


def test_rows_with_the_machine_they_are_of() -> None:
    table = table_of(
        [{"kind": "rows", "machine": {"cpu": "one", "git_commit": "abc"}, "rows": [{"part": "rope", "ms": 1.5}]}]
    )
    assert "| rope | 1.5 |" in table
    assert "Run with cpu: one, git_commit: abc." in table


def test_a_prediction_stands_beside_what_was_measured() -> None:
    row = {"engine": "lluda", "format": "BF16", "test": "tg128", "median": 10.0, "predicted": 9.0}
    assert "| 9 |" in table_of([{"rows": [row]}])
    assert "predicted" not in table_of([{"rows": [row | {"predicted": None}]}])
