"""Writes safetensors files as a stream: the header first, then each tensor's bytes as they are made.

Source: the format section of the safetensors README: an 8-byte little-endian length N, N bytes of JSON, then the bytes
of all tensors without gaps. The JSON is padded with spaces to a multiple of 8 bytes, so that tensors are aligned.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path

from lluda.files.atomic_file import atomic_file
from lluda.weights.safetensors.header import DTYPE_BITS, LENGTH_BYTES, MAX_HEADER_BYTES

_ALIGNMENT = 8


@dataclass(frozen=True, slots=True)
class NewTensor:
    """A tensor to write: name, shape in torch order, and dtype as safetensors spells it (``BF16``, ``F32``, …)."""

    name: str
    shape: tuple[int, ...]
    dtype: str

    @property
    def nbytes(self) -> int:
        """Bytes of its values."""
        return prod(self.shape) * DTYPE_BITS[self.dtype] // 8


def safetensors_header(tensors: Sequence[NewTensor], metadata: Mapping[str, str], *, min_bytes: int = 0) -> bytes:
    """The length field and the padded JSON for tensors that follow each other in the order given, at least
    ``min_bytes`` bytes in all."""
    header: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    offset = 0
    for tensor in tensors:
        assert tensor.name not in header, f"{tensor.name} is to be written twice"
        end = offset + tensor.nbytes
        header[tensor.name] = {"dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": [offset, end]}
        offset = end
    raw = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    raw += b" " * max(-len(raw) % _ALIGNMENT, min_bytes - LENGTH_BYTES - len(raw))
    assert len(raw) <= MAX_HEADER_BYTES, f"a header of {len(raw)} bytes; the format allows {MAX_HEADER_BYTES}"
    return len(raw).to_bytes(LENGTH_BYTES, "little") + raw


def write_safetensors(
    path: Path,
    tensors: Sequence[NewTensor],
    chunks: Callable[[NewTensor], Iterable[memoryview]],
    *,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write ``path`` with ``tensors`` in that order.

    ``chunks(tensor)`` yields the tensor's little-endian bytes in pieces; each is written before the next is asked for,
    so one buffer may serve all. ``metadata`` defaults to ``{"format": "pt"}``, which transformers asks for. The file
    appears under its name only when it is whole.

    Raises:
        LludaError: the disk is full or the file cannot be written.
    """
    with atomic_file(path) as file:
        file.write(safetensors_header(tensors, {"format": "pt"} if metadata is None else metadata))
        for tensor in tensors:
            written = 0
            for chunk in chunks(tensor):
                file.write(chunk)
                written += chunk.nbytes
            assert written == tensor.nbytes, f"{tensor.name}: {written} bytes made for {tensor.nbytes}"
