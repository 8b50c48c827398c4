"""Rows of a matrix in the packed form of a file, in that of the device, without their values in between.

Blocks have the same bytes in the same order; codes are of another kind (`backends/exponent_codes.py`), and the few
exponents that have none there are escapes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lluda.backends.exponent_codes import CODES
from lluda.backends.wgpu.memory.packing import PackedRows
from lluda.formats.packed_bf16 import BLOCK, BLOCK_BYTES, HEADER_BYTES, PackedParts, row_bytes
from lluda.formats.stored_tensor import StoredTensor

_HALF = BLOCK // 2
_ESCAPE = 15
"""The file's code of escapes."""


@dataclass(frozen=True, slots=True)
class StoredRows:
    """Rows ``begin`` to ``end`` of a packed matrix of whole blocks."""

    stored: StoredTensor
    begin: int
    end: int

    @property
    def blocks(self) -> Tensor:
        """Their bytes, uint8 ``[blocks, BLOCK_BYTES]``."""
        wide = row_bytes(self.stored.shape[1])
        start = HEADER_BYTES + self.begin * wide
        return self.stored.data[start : start + (self.end - self.begin) * wide].view(-1, BLOCK_BYTES)

    def escapes(self, parts: PackedParts) -> tuple[Tensor, Tensor, Tensor]:
        """Row (of these), column and BF16 bits (int32) of each."""
        offsets = parts.offsets[self.begin : self.end + 1]
        of_rows = slice(int(offsets[0]), int(offsets[-1]))
        row_of = torch.repeat_interleave(torch.arange(self.end - self.begin), offsets.diff())
        return row_of, parts.columns[of_rows], parts.values[of_rows].int() & 0xFFFF


def exponents_of(rows: StoredRows) -> Tensor:
    """How often each of the 256 exponents is among them: int64 ``[256]``."""
    parts = PackedParts.of(rows.stored)
    pairs = torch.bincount(rows.blocks[:, BLOCK:].flatten(), minlength=256).view(16, 16)
    codes = pairs.sum(0) + pairs.sum(1)
    codes[_ESCAPE] = 0
    counts = torch.zeros(256, dtype=torch.int64).index_add_(0, parts.exponents.long(), codes)
    _, _, bits = rows.escapes(parts)
    return counts + torch.bincount(bits >> 7 & 255, minlength=256)


def repack(rows: StoredRows, offset: int) -> PackedRows:
    """With codes that lack ``offset`` to their exponents."""
    parts, columns = PackedParts.of(rows.stored), rows.stored.shape[1]
    exponents = parts.exponents.int()
    code_of = exponents - offset
    has_code = (code_of >= 1) & (code_of <= CODES) & (exponents > 0)
    code_of = torch.where(has_code, code_of, 0).to(torch.uint8)
    code_of[_ESCAPE] = 0
    pair = torch.arange(256)
    made = code_of[pair & 15] | (code_of[pair >> 4] << 4)
    body = rows.blocks.clone()
    pairs = body[:, BLOCK:].long()
    body[:, BLOCK:] = made[pairs]
    row_of, column, bits = rows.escapes(parts)
    kept = body[:, :BLOCK]
    kept[row_of * (columns // BLOCK) + column // BLOCK, _byte_of(column % BLOCK)] = 0
    # What had a code in the file and has none here.
    lost = ~has_code & (exponents > 0)
    lost[_ESCAPE] = False
    if lost.any():
        halves = [(lost[half_codes]).nonzero() for half_codes in (pairs & 15, pairs >> 4)]
        block = torch.cat([where[:, 0] for where in halves])
        byte = torch.cat([where[:, 1] + half * _HALF for half, where in enumerate(halves)])
        codes = torch.cat([(pairs[tuple(where.T)] >> 4 * half) & 15 for half, where in enumerate(halves)])
        sign_mantissa = kept[block, byte].int()
        kept[block, byte] = 0
        wide = columns // BLOCK
        row_of = torch.cat((row_of, block // wide))
        column = torch.cat((column, block % wide * BLOCK + _weight_of(byte)))
        its = (sign_mantissa & 0x80) << 8 | exponents[codes] << 7 | (sign_mantissa & 0x7F)
        bits = torch.cat((bits, its))
    order = (row_of * columns + column).argsort()
    escapes = torch.stack((column[order].int(), bits[order].int()), dim=1)
    count = rows.end - rows.begin
    return PackedRows(body.view(count, -1), torch.bincount(row_of, minlength=count), escapes)


def _byte_of(weight: Tensor) -> Tensor:
    """Where a weight of a block has its sign and mantissa: 64a + 32h + 8q + j lies at 64a + 16q + 8h + j."""
    inside = weight % _HALF
    return weight - inside + inside % 32 // 8 * 16 + inside // 32 * 8 + inside % 8


def _weight_of(byte: Tensor) -> Tensor:
    """The other way round."""
    inside = byte % _HALF
    return byte - inside + inside % 16 // 8 * 32 + inside // 16 * 8 + inside % 8
