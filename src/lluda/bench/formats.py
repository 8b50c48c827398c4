"""Weight formats that lluda can be measured in, side by side in one run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lluda.errors import InvalidRequest

FORMATS: Mapping[str, Mapping[str, Any]] = {
    "BF16": {"dtype": "bf16"},
    "packed": {"dtype": "bf16", "weights": "packed"},
    "F32": {"dtype": "f32"},
}
"""The `LoadOptions` each format stands for. A new format is one more entry."""


def load_options(name: str) -> Mapping[str, Any]:
    """The options of format ``name``, in any case of letters; InvalidRequest for a name that is none."""
    known = {key.lower(): options for key, options in FORMATS.items()}
    if name.lower() in known:
        return known[name.lower()]
    raise InvalidRequest(f"format {name!r:.40} does not exist; choose from {', '.join(FORMATS)}")
