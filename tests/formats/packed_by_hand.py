"""Packing as docs/formats.md words it, weight by weight: what the readers and the native packer are held against."""

from __future__ import annotations

import json
import struct
from collections import Counter
from pathlib import Path

import torch
from safetensors.torch import save_file

from lluda.formats.packed_bf16 import PACKED_BF16, PackedSections
from lluda.weights.safetensors.declared_formats import metadata_key

NATIVE_HEADER = struct.Struct("<8s4q16s8x")


def pack_by_hand(values: torch.Tensor) -> bytearray:
    """A BF16 matrix in packed form."""
    rows, columns = values.shape
    bits = (values.view(torch.int16).int() & 0xFFFF).tolist()
    counts = Counter(v >> 7 & 255 for row in bits for v in row if not is_denormal(v))
    ranked = sorted(counts, key=lambda exponent: (-counts[exponent], exponent))[:15]
    code_of = {exponent: code for code, exponent in enumerate(ranked)}
    blocks, offsets, where, kept = bytearray(), [0], [], []
    for row in bits:
        for start in range(0, columns, 128):
            block, codes = bytearray(192), [15] * 128
            for i, v in enumerate(row[start : start + 128]):
                place = 64 * (i // 64) + 16 * (i % 32 // 8) + 8 * (i % 64 // 32) + i % 8
                if is_denormal(v) or v >> 7 & 255 not in code_of:
                    where.append(start + i)
                    kept.append(v)
                else:
                    codes[place] = code_of[v >> 7 & 255]
                    block[place] = v >> 8 & 0x80 | v & 0x7F
            for i in range(64):
                block[128 + i] = codes[i] | codes[i + 64] << 4
            blocks += block
        offsets.append(len(where))
    sections = PackedSections.of(rows, columns, len(where))
    out = bytearray(sections.end)
    exponents = bytes(ranked).ljust(16, b"\0")
    out[:64] = NATIVE_HEADER.pack(b"LLUDAPB1", rows, columns, len(where), sections.end, exponents)
    for start, data in (
        (64, blocks),
        (sections.escape_rows, struct.pack(f"<{len(offsets)}I", *offsets)),
        (sections.escape_columns, struct.pack(f"<{len(where)}I", *where)),
        (sections.escape_values, struct.pack(f"<{len(kept)}H", *kept)),
    ):
        out[start : start + len(data)] = data
    return out


def is_denormal(bits: int) -> bool:
    return bits >> 7 & 255 == 0 and bits & 127 != 0


def write_packed(
    path: Path, stored: dict[str, bytes | bytearray], shapes: object, plain: dict[str, torch.Tensor] | None = None
) -> Path:
    """A safetensors file whose header is a multiple of 64 bytes: ``stored`` declared as packed with ``shapes``."""
    header: dict[str, object] = {"__metadata__": {metadata_key(PACKED_BF16): json.dumps(shapes)}}
    at, data = 0, b""
    for name, part in stored.items():
        header[name] = {"dtype": "U8", "shape": [len(part)], "data_offsets": [at, at + len(part)]}
        at, data = at + len(part), data + part
    for name, values in (plain or {}).items():
        part = values.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        header[name] = {"dtype": "BF16", "shape": list(values.shape), "data_offsets": [at, at + len(part)]}
        at, data = at + len(part), data + part
    raw = json.dumps(header).encode()
    raw += b" " * (-(len(raw) + 8) % 64)
    path.write_bytes(len(raw).to_bytes(8, "little") + raw + data)
    return path


def same_bits(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one.shape == other.shape and torch.equal(one.view(torch.int16), other.view(torch.int16))


def save_model(folder: Path, tensors: dict[str, torch.Tensor]) -> Path:
    """A model folder with an empty config."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text("{}")
    return folder
