"""Matrices as the kernels of the cuda backend read them where they are not plain numbers: packed BF16, and Q8_0.

Each is one run of bytes on the device, so that an address and a shape are all a kernel needs. Both are made on the
device, from what the file has (docs/formats.md) or from BF16 values.

Packed, without loss: 64 bytes of which the first 4 are ``2^(offset - 64)`` (float32); blocks of 192 bytes as in the
file, but with codes that are ``exponent - offset`` (1 to 15), or 0 for zeros and escapes, so that a shift makes an
exponent of a code; int32 offsets of each row's escapes ``[rows + 1]``, filled up to 8 bytes; int64 escapes, ``column <<
32 | bits``. Escapes are the weights of exponents beyond the 15 neighbours most often used, about two in ten thousand.

Q8_0: int8 ``q [rows, columns]``, then float16 scales ``[rows, columns / 32]``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lluda.backends.q8_0 import BLOCK, BLOCK_BYTES

PACKED, Q8_0 = "PACKED_BF16", "Q8_0"
HEADER, BLOCK_WEIGHTS, PACKED_BYTES = 64, 128, 192

_CODES = 15
_HIGHEST = 205  # exponent from which on 2^(offset - 64) nears the end of float32; larger weights are escapes
_AT_ONCE = 1 << 24  # weights, so that what is needed beside them stays small
_FILE_EXPONENTS = slice(40, 56)


@dataclass(frozen=True, slots=True, eq=False)
class CodedWeight:
    """A matrix in one of this file's forms, which ``format`` names; ``data`` (uint8) are its bytes."""

    data: Tensor
    format: str
    out_features: int
    in_features: int

    @property
    def nbytes(self) -> int:
        """Bytes that one product reads."""
        return self.data.nbytes


def pack(values: Tensor) -> CodedWeight:
    """A BF16 matrix in packed form, on its device."""
    rows, columns = values.shape
    blocks = -(-columns // BLOCK_WEIGHTS)
    pieces = torch.split(values, max(1, _AT_ONCE // columns))
    counts = torch.stack([torch.bincount(_exponents(piece).flatten(), minlength=256) for piece in pieces]).sum(0)
    zeros = torch.stack([(piece == 0).sum() for piece in pieces]).sum()
    *used, zero = torch.cat((counts, zeros[None])).tolist()
    offset = _offset(used)
    escapes = rows * columns - sum(used[max(offset, 0) + 1 : offset + _CODES + 1]) - zero
    end = HEADER + rows * blocks * PACKED_BYTES
    entries = end + -(-(rows + 1) * 4 // 8) * 8
    data = torch.zeros(entries + 8 * escapes, dtype=torch.uint8, device=values.device)
    data[:4].view(torch.float32).fill_(2.0 ** (offset - 64))
    body = data[HEADER:end].view(rows, blocks, PACKED_BYTES)
    found = [
        _pack_rows(piece, offset, part) for piece, part in zip(pieces, torch.split(body, len(pieces[0])), strict=True)
    ]
    data[end : end + 4 * (rows + 1)].view(torch.int32)[1:] = torch.cat([each for each, _ in found]).cumsum(0)
    data[entries:].view(torch.int64)[:] = torch.cat([bits for _, bits in found])
    return CodedWeight(data, PACKED, rows, columns)


def unpack_file(stored: Tensor, device: torch.device) -> Tensor:
    """A packed matrix as a file has it (uint8, checked) -> BF16 values on ``device``."""
    _, rows, columns, escapes, _ = stored[:40].view(torch.int64).tolist()
    blocks = -(-columns // BLOCK_WEIGHTS)
    exponents = stored[_FILE_EXPONENTS].to(device, torch.int32)
    end = HEADER + rows * blocks * PACKED_BYTES
    parts = []
    for body in torch.split(stored[HEADER:end].view(rows, blocks, PACKED_BYTES), max(1, _AT_ONCE // columns)):
        block = body.to(device).to(torch.int32)
        kept, codes = block[..., :BLOCK_WEIGHTS], block[..., BLOCK_WEIGHTS:]
        exponent = exponents[torch.cat((codes & 15, codes >> 4), dim=2)]
        bits = torch.empty_like(kept)
        bits[..., _order(device)] = ((kept & 128) << 8) | (exponent << 7) | (kept & 127)
        parts.append(bits.flatten(1)[:, :columns].to(torch.int16))
    values = torch.cat(parts)
    first_column = _aligned(end + 4 * (rows + 1))
    first_value = _aligned(first_column + 4 * escapes)
    offsets = stored[end : end + 4 * (rows + 1)].view(torch.int32).to(device, torch.int64)
    at = torch.repeat_interleave(torch.arange(rows, device=device), offsets.diff())
    at_columns = stored[first_column : first_column + 4 * escapes].view(torch.int32).to(device, torch.int64)
    values[at, at_columns] = stored[first_value : first_value + 2 * escapes].view(torch.int16).to(device)
    return values.view(torch.bfloat16)


def split_q8_0(blocks: Tensor) -> CodedWeight:
    """Q8_0 blocks (uint8 ``[rows, columns / 32 * 34]``, on the device) with their scales behind the numbers."""
    rows, groups = len(blocks), blocks.shape[1] // BLOCK_BYTES
    count = rows * groups * BLOCK
    data = torch.empty(count + 2 * rows * groups, dtype=torch.uint8, device=blocks.device)
    stored = blocks.view(rows, groups, BLOCK_BYTES)
    data[:count].view(rows, groups, BLOCK).copy_(stored[..., 2:])
    data[count:].view(rows, groups, 2).copy_(stored[..., :2])
    return CodedWeight(data, Q8_0, rows, groups * BLOCK)


def _bits(values: Tensor) -> Tensor:
    return values.contiguous().view(torch.int16).to(torch.int32) & 0xFFFF


def _exponents(values: Tensor) -> Tensor:
    return (_bits(values) >> 7) & 255


def _offset(counts: Sequence[int]) -> int:
    """What a code lacks to its exponent: such that as many weights as can be have a code."""
    covered = [sum(counts[max(top - _CODES, 0) + 1 : top + 1]) for top in range(_HIGHEST + 1)]
    return covered.index(max(covered)) - _CODES


def _pack_rows(values: Tensor, offset: int, body: Tensor) -> tuple[Tensor, Tensor]:
    """Write rows into ``body [rows, blocks, 192]``; of each row how many escapes it has, and all of them."""
    bits = _bits(values)
    code = ((bits >> 7) & 255) - offset
    code = torch.where((code >= 1) & (code <= _CODES) & (code + offset > 0), code, 0)
    escaped = (code == 0) & ((bits & 0x7FFF) != 0)
    kept = torch.where(escaped, 0, ((bits >> 8) & 128) | (bits & 127))
    order = _order(values.device)
    kept, code = (_in_blocks(part, body.shape[1])[..., order] for part in (kept, code))
    half = BLOCK_WEIGHTS // 2
    body[..., :BLOCK_WEIGHTS] = kept.to(torch.uint8)
    body[..., BLOCK_WEIGHTS:] = (code[..., :half] | (code[..., half:] << 4)).to(torch.uint8)
    row, column = escaped.nonzero(as_tuple=True)
    return torch.bincount(row, minlength=len(values)).to(torch.int32), (column << 32) | bits[row, column]


def _in_blocks(values: Tensor, blocks: int) -> Tensor:
    rows, columns = values.shape
    missing = blocks * BLOCK_WEIGHTS - columns
    return torch.nn.functional.pad(values, (0, missing)).view(rows, blocks, BLOCK_WEIGHTS)


def _order(device: torch.device) -> Tensor:
    """Which weight of a block has its sign and mantissa in byte 0, 1, … (docs/formats.md)."""
    byte = torch.arange(BLOCK_WEIGHTS, device=device)
    return byte // 64 * 64 + byte % 16 // 8 * 32 + byte % 64 // 16 * 8 + byte % 8


def _aligned(offset: int) -> int:
    return -(-offset // 64) * 64
