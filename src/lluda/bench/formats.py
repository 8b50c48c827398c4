"""Weight formats that lluda can be measured in, side by side in one run."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from lluda.errors import InvalidRequest

FORMATS: Mapping[str, Mapping[str, Any]] = {
    "BF16": {"dtype": "bf16"},
    "packed": {"dtype": "bf16", "weights": "packed"},
    "F32": {"dtype": "f32"},
    "Q8_0": {"dtype": "bf16"},
    "Q8_0-rounded": {"dtype": "bf16", "activations": "q8_0"},
}
"""The `LoadOptions` each format stands for. A new format is one more entry. Those of Q8_0 are for files that have it;
``rounded``: rows are rounded to Q8_0 as well, as llama.cpp does."""

BYTES_PER_WEIGHT = {"BF16": 2.0, "packed": 1.52, "F32": 4.0, "Q8_0": 34 / 32, "Q8_0-rounded": 34 / 32}
"""About what a weight takes in each."""


def format_name(name: str) -> str:
    """The format of ``name``, given in any case of letters; InvalidRequest for a name that is none."""
    found = next((known for known in FORMATS if known.lower() == name.lower()), None)
    if found is None:
        raise InvalidRequest(f"format {name!r:.40} does not exist; choose from {', '.join(FORMATS)}")
    return found


def load_options(name: str) -> Mapping[str, Any]:
    """The options of a format. Errors as `format_name`."""
    return FORMATS[format_name(name)]


def held_format(name: str, model: str, held: Collection[str]) -> str:
    """What to call a run of format ``name`` whose matrices are ``held`` so: Q8_0 also where the file has it and was to
    run as it is. InvalidRequest: Q8_0 was wanted, and ``model`` has none."""
    if name.startswith("Q8_0") and "Q8_0" not in held:
        raise InvalidRequest(f"{model} has no Q8_0 weights to measure; make a file of them: lluda quantize")
    return "Q8_0" if "Q8_0" in held and name == "BF16" else name
