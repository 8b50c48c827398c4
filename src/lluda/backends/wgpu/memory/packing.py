"""BF16 weights in the packed form of the device (`wgsl.forms.Packed`), made of the values, without loss.

Codes are ``exponent - offset``, so that a shift makes an exponent of a code; those that have none, two in ten thousand,
are escapes. One offset serves all rows that lie in one buffer.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from lluda.formats.packed_bf16 import BLOCK, BLOCK_BYTES, in_block_order

_CODES = 15
_HIGHEST = 205  # exponent from which on 2^(offset - 64) nears the end of float32; larger weights are escapes


@dataclass(frozen=True, slots=True)
class PackedRows:
    """``body`` uint8 ``[rows, columns / 128 * 192]``, escapes of each row (int64 ``[rows]``), and of all of them column
    and BF16 bits (int32 ``[escapes, 2]``)."""

    body: Tensor
    counts: Tensor
    escapes: Tensor


def offset_of(pieces: Iterable[Tensor]) -> int:
    """What a code lacks to its exponent, such that as many weights as can be have a code. ``pieces`` are BF16."""
    counts = torch.zeros(256, dtype=torch.int64)
    for piece in pieces:
        counts += torch.bincount(_exponents(piece).view(-1), minlength=256)
    used = counts.tolist()
    covered = [sum(used[max(top - _CODES, 0) + 1 : top + 1]) for top in range(_HIGHEST + 1)]
    return covered.index(max(covered)) - _CODES


def pack_rows(values: Tensor, offset: int) -> PackedRows:
    """Rows of BF16 ``[rows, columns]``, columns a multiple of 128."""
    bits = _bits(values)
    code = ((bits >> 7) & 255) - offset
    code = torch.where((code >= 1) & (code <= _CODES) & (code + offset > 0), code, 0)
    escaped = (code == 0) & ((bits & 0x7FFF) != 0)
    kept = torch.where(escaped, 0, ((bits >> 8) & 128) | (bits & 127)).to(torch.uint8)
    kept, codes = (in_block_order(part.view(-1, BLOCK)).view(-1, BLOCK) for part in (kept, code.to(torch.uint8)))
    half = BLOCK // 2
    body = torch.cat((kept, codes[:, :half] | (codes[:, half:] << 4)), dim=1)
    where = escaped.nonzero()
    escapes = torch.stack((where[:, 1].int(), bits[escaped]), dim=1)
    rows = len(values)
    return PackedRows(body.view(rows, -1), torch.bincount(where[:, 0], minlength=rows), escapes)


def side_words(offset: int, parts: Sequence[PackedRows]) -> Tensor:
    """What lies beside the bodies of ``parts``: int32 words."""
    ends = torch.cat([part.counts for part in parts]).cumsum(0)
    factor = torch.tensor([2.0 ** (offset - 64)], dtype=torch.float32).view(torch.int32)
    return torch.cat((factor, F.pad(ends, (1, 0)).int(), *(part.escapes.view(-1) for part in parts)))


def packed_row_bytes(columns: int) -> int:
    """Bytes of a row's blocks."""
    return columns // BLOCK * BLOCK_BYTES


def _bits(values: Tensor) -> Tensor:
    return values.contiguous().view(torch.int16).to(torch.int32) & 0xFFFF


def _exponents(values: Tensor) -> Tensor:
    return (_bits(values) >> 7) & 255
