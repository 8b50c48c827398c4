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


def load_options(name: str) -> Mapping[str, Any]:
    """The options of format ``name``, in any case of letters; InvalidRequest for a name that is none."""
    known = {key.lower(): options for key, options in FORMATS.items()}
    if name.lower() in known:
        return known[name.lower()]
    raise InvalidRequest(f"format {name!r:.40} does not exist; choose from {', '.join(FORMATS)}")


def held_format(name: str, model: str, held: Collection[str]) -> str:
    """What to call a run of format ``name`` whose matrices are ``held`` so: Q8_0 also where the file has it and was to
    run as it is. InvalidRequest: Q8_0 was wanted, and ``model`` has none."""
    if name.startswith("Q8_0") and "Q8_0" not in held:
        raise InvalidRequest(f"{model} has no Q8_0 weights to measure; make a file of them: lluda quantize")
    return "Q8_0" if "Q8_0" in held and name == "BF16" else name
