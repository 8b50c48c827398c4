"""Data tables of journal entries and documents, written from the JSON of real runs and never by hand.

``python -m tools.journal ENTRY.md NAME RESULT.json …`` replaces what stands in ENTRY.md between
``<!-- table: NAME -->`` and ``<!-- end -->``. A result is what ``lluda validate --json`` or ``lluda bench --json``
printed (several give one row each), any list of flat objects, or an object of the kind ``rows`` with such a list and
the machine it is of. ``--layers`` makes a validation's table by stage.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lluda.errors import CorruptFile, InvalidRequest, LludaError
from lluda.files.atomic_file import atomic_file

Result = Mapping[str, Any]
Row = Mapping[str, Any]

_LAYER_FIGURES = ("max_abs_error", "mean_abs_error", "relative_error", "argmax_agreement")
_ABSENT = "–"


def table_of(results: Sequence[Any], *, layers: bool = False) -> str:
    """The Markdown table of results of one kind, with a line below it that says what they were run with.

    Raises:
        InvalidRequest: nothing to show, results of different kinds, or ``layers`` for what is no single validation.
    """
    kinds = {_kind(result) for result in results}
    if len(kinds) != 1:
        raise InvalidRequest(f"a table needs results of one kind; found {', '.join(sorted(kinds)) or 'none'}")
    kind = kinds.pop()
    if layers and (kind != "validation" or len(results) > 1):
        raise InvalidRequest("--layers shows the stages of one validation result")
    rows = _rows(kind, results, layers)
    if not rows:
        raise InvalidRequest("the results hold no rows to show")
    return f"{markdown_table(rows)}\n{_provenance(results)}"


def markdown_table(rows: Sequence[Row]) -> str:
    """A table of flat objects; columns are their keys in the order they first appear, numbers stand right."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    numeric = {name for name in columns if all(_is_number(row.get(name)) for row in rows)}
    lines = [
        _line(columns),
        _line(["---:" if name in numeric else "---" for name in columns]),
        *(_line([_text(row.get(name)) for name in columns]) for row in rows),
    ]
    return "\n".join(lines) + "\n"


def replace_table(text: str, name: str, table: str, path: str = "entry") -> str:
    """``text`` with ``table`` between the markers of ``name``, and nothing else changed.

    Raises:
        InvalidRequest: the markers are missing, or stand there more than once.
    """
    start, end = f"<!-- table: {name} -->", "<!-- end -->"
    if text.count(start) != 1:
        raise InvalidRequest(f"{path}: must have the marker {start} once; found it {text.count(start)} times")
    head, rest = text.split(start)
    inside, found, tail = rest.partition(end)
    if not found or "<!-- table:" in inside:
        raise InvalidRequest(f"{path}: the marker {start} is not followed by its {end}")
    return f"{head}{start}\n{table.strip()}\n{end}{tail}"


def main(argv: Sequence[str] | None = None) -> int:
    """The command in the module's docstring; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tools.journal", description="Write a table from results.")
    parser.add_argument("entry", type=Path, help="the Markdown file with the markers")
    parser.add_argument("name", help="the table's name in its marker")
    parser.add_argument("results", type=Path, nargs="+", metavar="RESULT.json")
    parser.add_argument("--layers", action="store_true", help="one validation, stage by stage")
    args = parser.parse_args(argv)
    try:
        table = table_of([_read_json(path) for path in args.results], layers=args.layers)
        text = _read(args.entry)
        with atomic_file(args.entry) as file:
            file.write(replace_table(text, args.name, table, str(args.entry)).encode())
    except LludaError as error:
        print(f"tools.journal: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def _kind(result: Any) -> str:
    if isinstance(result, list) and all(isinstance(row, Mapping) for row in result):
        return "rows"
    if not isinstance(result, Mapping):
        raise InvalidRequest(f"a result must be an object or a list of objects, not {type(result).__name__}")
    if result.get("kind") in ("validation", "omni validation"):
        return "validation"
    return "bench" if "rows" in result and result.get("kind") != "rows" else "rows"


def _rows(kind: str, results: Sequence[Any], layers: bool) -> list[Row]:
    if layers:
        return [_layer_row(stage) for component in _components(results[0]) for stage in component["stages"]]
    if kind == "validation":
        return [_validation_row(result, component) for result in results for component in _components(result)]
    if kind == "bench":
        return [_bench_row(row) for result in results for row in result["rows"]]
    return [row for result in results for row in _flat(result)]


def _flat(result: Any) -> list[Row]:
    if isinstance(result, list):
        return result
    return list(result["rows"]) if result.get("kind") == "rows" else [result]


def _components(result: Result) -> list[Result]:
    """Of a validation, with today's keys: results of before one ladder had ``bars`` and ``last``, and those of text
    models one component's figures at the top."""
    if "components" in result:
        renamed = {"last": "ends", "bars": "thresholds"}
        return [{renamed.get(key, key): value for key, value in one.items()} for one in result["components"]]
    distance = result["error_to_float64"] or {}
    figures = {"component": "text", "stages": result["layers"], "ends": ["logits"], "ratio": distance.get("ratio")}
    passed = [{"passed": result["passed"]}] if result["passed"] is not None else []
    return [{**figures, "greedy": result["greedy"], "distribution": result["distribution"], "thresholds": passed}]


def _validation_row(result: Result, component: Result) -> Row:
    """A component: the stages in which all that it computes ends."""
    ends = [stage for stage in component["stages"] if stage["stage"] in component["ends"]]
    tokens = result.get("tokens", result.get("prompt_rows"))
    row = {
        "model": result["model"]["name"],
        "component": component["component"],
        "dtype": result["dtype"],
        "reference": result["reference"],
        "run": f"{tokens} tokens, {result['mode']}" if "mode" in result else f"{tokens} tokens",
        "argmax agreement": min(stage["argmax_agreement"] for stage in ends),
        "max error": max(stage["max_abs_error"] for stage in ends),
        "/ range": max(stage["relative_error"] for stage in ends),
    }
    if component.get("distribution"):
        distribution = component["distribution"]
        row |= {"mean KL (nats)": distribution["mean_kl"], "correlation": distribution["correlation"]}
    else:
        distances = [stage["error_to_float64"] for stage in ends if stage["error_to_float64"]]
        for name in ("lluda", "reference"):
            row[f"{name} to float64"] = sum(one[name] for one in distances) if distances else None
        row["ratio"] = component["ratio"]
    greedy = component["greedy"] or {}
    equal = f"{round(greedy['agreement'] * greedy['tokens'])} of {greedy['tokens']}" if greedy else None
    return row | {"tokens or codes equal": equal, "thresholds": _verdict(component["thresholds"])}


def _verdict(thresholds: Sequence[Result]) -> str | None:
    if not thresholds:
        return None
    return "passed" if all(threshold["passed"] for threshold in thresholds) else "FAILED"


def _layer_row(layer: Result) -> Row:
    distance = layer["error_to_float64"] or {}
    figures = {name.replace("_", " "): layer[name] for name in _LAYER_FIGURES}
    to_truth = {f"{name} to float64": distance.get(name) for name in ("lluda", "reference")}
    return {"stage": layer["stage"], **figures, **to_truth, "ratio": distance.get("ratio")}


def _bench_row(row: Result) -> Row:
    named = {name: row.get(name) for name in ("engine", "format", "test", "median", "min", "max", "unit")}
    share = row.get("roofline_fraction")
    predicted = {"predicted": row["predicted"]} if row.get("predicted") is not None else {}
    return named | {"of bandwidth": None if share is None else f"{share:.0%}"} | predicted


def _provenance(results: Sequence[Any]) -> str:
    """What the results were run with, each thing once; empty where they do not say."""
    facts: dict[str, None] = {}
    for result in results:
        if not isinstance(result, Mapping):
            continue
        for name, version in (result.get("versions") or {}).items():
            facts[f"{name} {version}"] = None
        if "backend" in result:
            facts[str(result["backend"])] = None
        machine = result.get("machine")
        if isinstance(machine, Mapping):
            facts |= {f"{name}: {_text(value)}": None for name, value in machine.items() if value not in (None, "")}
    return f"\nRun with {', '.join(facts)}.\n" if facts else ""


def _is_number(value: Any) -> bool:
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool))


def _text(value: Any) -> str:
    if value is None:
        return _ABSENT
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}" if abs(value) >= 10000 else str(value)
    if isinstance(value, float):
        return f"{value:.4g}"
    return re.sub(r"\s+", " ", str(value)).replace("|", "\\|")


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise InvalidRequest(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise CorruptFile(path, "must be UTF-8 text", found=f"a bad byte at offset {error.start}") from error


def _read_json(path: Path) -> Any:
    try:
        return json.loads(_read(path))
    except ValueError as error:
        raise CorruptFile(path, f"must be JSON: {error}") from error


if __name__ == "__main__":
    sys.exit(main())
