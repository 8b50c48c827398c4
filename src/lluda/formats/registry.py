"""Formats by name. A new one is a file like those beside this, and `register`; readers, writers and the loader then
know it, and a backend without a kernel for it takes its decoded values."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from lluda.errors import InvalidRequest
from lluda.formats.format import Format
from lluda.formats.ggml import GGML_FORMATS
from lluda.formats.packed_bf16 import PACKED_BF16
from lluda.formats.plain import PLAIN_FORMATS
from lluda.formats.q8_0 import Q8_0

_FORMATS: dict[str, Format] = {one.name: one for one in (*PLAIN_FORMATS, PACKED_BF16, Q8_0, *GGML_FORMATS)}

FORMATS: Mapping[str, Format] = MappingProxyType(_FORMATS)
"""All formats by their names."""


def register(new: Format) -> None:
    """Make ``new`` known by its name. InvalidRequest: another has it."""
    if _FORMATS.setdefault(new.name, new) is not new:
        raise InvalidRequest(f"the format {new.name!r} is registered already; give yours another name")
