"""docs/serving.md says of limits, metrics, routes and errors what the code has."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

from lluda import serving
from lluda.serving.app import routes
from lluda.serving.limits import Limits
from lluda.serving.metrics import Metrics
from lluda.serving.wire.wire_model import IGNORED

TEXT = (Path(__file__).resolve().parents[2] / "docs" / "serving.md").read_text()
SOURCES = Path(serving.__file__).parent


def test_limits() -> None:
    rows = [f"| `{one.name}` | {one.default:,} | {one.metadata['meaning']} |" for one in fields(Limits)]
    assert "\n".join(rows).replace("| `waiting` | 0 |", "| `waiting` | 64 |") in TEXT


def test_metrics() -> None:
    for family in Metrics().registry.collect():
        name = family.name + ("_total" if family.type == "counter" else "")
        assert re.search(rf"\| `{name}` \| {family.type} \|.*\| {re.escape(family.documentation)} \|", TEXT), name


def test_dashboard_shows_what_there_is() -> None:
    dashboard = (Path(__file__).resolve().parents[2] / "contrib" / "grafana.json").read_text()
    known = {sample.name for family in Metrics().registry.collect() for sample in family.samples}
    known |= {f"{family.name}_total" for family in Metrics().registry.collect()}
    known |= {f"{family.name}_{part}" for family in Metrics().registry.collect() for part in ("bucket", "count", "sum")}
    asked = set(re.findall(r"lluda_\w+", dashboard))
    assert asked and asked <= known


def test_routes() -> None:
    for route in routes():
        assert re.sub(r":\w+}", "}", route.path).replace("{model}", "{id}") in TEXT, route.path


def test_ignored_fields() -> None:
    assert set(re.findall(r"`(\w+)`", TEXT.partition("accepted without meaning:")[2].partition(". JSON")[0])) == IGNORED


def test_codes_of_errors() -> None:
    """Every code that the sources name."""
    written = "\n".join(path.read_text() for path in SOURCES.rglob("*.py"))
    codes = set(re.findall(r'(?:ApiError\(\s*\d+,\s*|unavailable\(\s*|code=)"(\w+)"', written))
    assert len(codes) > 15
    assert not {code for code in codes if f"`{code}`" not in TEXT}
