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
    """The options of format ``name``; InvalidRequest for a name that is none."""
    if name not in FORMATS:
        raise InvalidRequest(f"format {name!r:.40} does not exist; choose from {', '.join(FORMATS)}")
    return FORMATS[name]
