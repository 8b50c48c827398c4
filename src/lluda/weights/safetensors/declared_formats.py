"""Matrices in a safetensors file whose format safetensors has no dtype for: they are stored as bytes, and the file's
metadata says what they are (docs/formats.md)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from lluda.errors import CorruptFile, UnsupportedModel
from lluda.files.json_file import parse_json
from lluda.formats.format import Format
from lluda.formats.registry import FORMATS
from lluda.weights.entry import TensorEntry

_PREFIX = "lluda."
_MAX_SIZE = 2**31 - 1


def metadata_key(declared: Format) -> str:
    """The metadata's key for a format: its value is a JSON object of ``[rows, columns]`` by the name of each tensor."""
    return _PREFIX + declared.name.lower()


def declaration(declared: Format, shapes: Mapping[str, Sequence[int]]) -> dict[str, str]:
    """The metadata that says which tensors are stored in ``declared``; empty if there are none."""
    if not shapes:
        return {}
    return {metadata_key(declared): json.dumps(shapes, separators=(",", ":"), ensure_ascii=False)}


def with_declared_formats(
    entries: Mapping[str, TensorEntry], metadata: Mapping[str, str], file: Path
) -> Mapping[str, TensorEntry]:
    """``entries`` of a safetensors file, those that its metadata declares with their matrix's shape and their format's
    name as dtype.

    CorruptFile: a declaration that is not JSON of the right form, or that does not fit the stored tensor.
    UnsupportedModel: a declaration of a format that there is not.
    """
    result = dict(entries)
    known = {metadata_key(one): one for one in FORMATS.values() if not one.is_plain}
    for key in metadata:
        if not key.startswith(_PREFIX):
            continue
        if key not in known:
            raise UnsupportedModel(
                f"{file}: metadata {key[:80]} declares tensors in a format that this lluda does not have; "
                "update lluda, or register the format before the file is opened"
            )
        declared = known[key]
        shapes = parse_json(metadata[key], file, part=f"metadata {key}")
        if not isinstance(shapes, dict):
            raise CorruptFile(file, f"metadata {key} must be an object of shapes by tensor name", found=shapes)
        for name, shape in shapes.items():
            if name not in entries:
                raise CorruptFile(file, f"{declared.name} tensor {name[:120]!r} is declared but not in the file")
            result[name] = _declared_entry(result[name], declared, shape)
    return result


def _declared_entry(entry: TensorEntry, declared: Format, shape: object) -> TensorEntry:
    file, what = entry.file, f"{declared.name} tensor {entry.name[:120]!r}"
    if not isinstance(shape, list) or len(shape) != 2 or not all(type(n) is int and 1 <= n <= _MAX_SIZE for n in shape):
        raise CorruptFile(file, f"{what}: its shape must be two integers from 1 to {_MAX_SIZE}", found=shape)
    if entry.dtype != "U8" or len(entry.shape) != 1:
        found = f"{entry.dtype} {list(entry.shape)}"
        raise CorruptFile(file, f"{what} must be stored as bytes", expected="U8 in one dimension", found=found)
    if entry.offset % declared.alignment:
        rule = f"{what} must begin at a multiple of {declared.alignment} bytes"
        raise CorruptFile(file, rule, found=entry.offset)
    smallest = declared.least_bytes((shape[0], shape[1]))
    if entry.nbytes < smallest:
        rule = f"{what} is too short for its shape {shape}"
        raise CorruptFile(file, rule, expected=f"at least {smallest} bytes", found=entry.nbytes)
    return replace(entry, shape=(shape[0], shape[1]), dtype=declared.name)
