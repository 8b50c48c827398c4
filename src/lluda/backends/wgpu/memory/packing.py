"""BF16 weights in the packed form of the device (`wgsl.forms.Packed`), made of the values, without loss.

Codes are ``exponent - offset``, so that a shift makes an exponent of a code; those that have none, two in ten thousand,
are escapes. One offset serves all rows that lie in one buffer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from lluda.backends.exponent_codes import coded_parts, joined
from lluda.formats.packed_bf16 import BLOCK, BLOCK_BYTES, in_block_order


@dataclass(frozen=True, slots=True)
class PackedRows:
    """``body`` uint8 ``[rows, columns / 128 * 192]``, escapes of each row (int64 ``[rows]``), and of all of them column
    and BF16 bits (int32 ``[escapes, 2]``)."""

    body: Tensor
    counts: Tensor
    escapes: Tensor


def pack_rows(values: Tensor, offset: int) -> PackedRows:
    """Rows of BF16 ``[rows, columns]``, columns a multiple of 128."""
    parts = coded_parts(values, offset)
    kept, codes = (in_block_order(part.view(-1, BLOCK)).view(-1, BLOCK) for part in (parts.kept, parts.codes))
    body = torch.cat((kept, joined(codes)), dim=1)
    where = parts.escaped.nonzero()
    escapes = torch.stack((where[:, 1].int(), parts.bits[parts.escaped]), dim=1)
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
