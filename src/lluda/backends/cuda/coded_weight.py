"""Matrices as the kernels of the cuda backend read them where they are not plain numbers: packed BF16, and Q8_0.

Each is one run of bytes on the device, so that an address and a shape are all a kernel needs. Both are made on the
device, from what the file has (`coded`) or from BF16 values.

Packed, without loss: 64 bytes of which the first 4 are ``2^(offset - 64)`` (float32); blocks of 192 bytes as in the
file, but with codes that are ``exponent - offset`` (1 to 15), or 0 for zeros and escapes, so that a shift makes an
exponent of a code; int32 offsets of each row's escapes ``[rows + 1]``, filled up to 8 bytes; int64 escapes, ``column <<
32 | bits``. Escapes are the weights of exponents beyond the 15 neighbours most often used, about two in ten thousand.

Q8_0: int8 ``q [rows, columns]``, then float16 scales ``[rows, columns / 32]``.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lluda.backends.exponent_codes import CODES, best_offset, coded_parts, exponent_counts, joined
from lluda.formats import packed_bf16, q8_0
from lluda.formats.stored_tensor import StoredTensor

PACKED, Q8_0 = packed_bf16.PACKED_BF16.name, q8_0.Q8_0.name
HEADER, BLOCK_WEIGHTS, PACKED_BYTES = 64, packed_bf16.BLOCK, packed_bf16.BLOCK_BYTES

_AT_ONCE = 1 << 24  # weights, so that what is needed beside them stays small


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
    counts = torch.stack([exponent_counts(piece) for piece in pieces]).sum(0)
    zeros = torch.stack([(piece == 0).sum() for piece in pieces]).sum()
    *used, zero = torch.cat((counts, zeros[None])).tolist()
    offset = best_offset(used)
    escapes = rows * columns - sum(used[max(offset, 0) + 1 : offset + CODES + 1]) - zero
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


def coded(stored: StoredTensor) -> CodedWeight | None:
    """A matrix of a file, on the device, in the form that kernels read; None: there is none for its format."""
    if stored.format is packed_bf16.PACKED_BF16:
        return pack(stored.decode())
    return split_q8_0(stored) if stored.format is q8_0.Q8_0 else None


def split_q8_0(stored: StoredTensor) -> CodedWeight:
    """Q8_0 blocks, on the device, with their scales behind the numbers."""
    rows, columns = stored.shape
    groups = columns // q8_0.BLOCK
    count = rows * columns
    data = torch.empty(count + 2 * rows * groups, dtype=torch.uint8, device=stored.data.device)
    blocks = stored.data.view(rows, groups, q8_0.BLOCK_BYTES)
    data[:count].view(rows, groups, q8_0.BLOCK).copy_(blocks[..., 2:])
    data[count:].view(rows, groups, 2).copy_(blocks[..., :2])
    return CodedWeight(data, Q8_0, rows, columns)


def _pack_rows(values: Tensor, offset: int, body: Tensor) -> tuple[Tensor, Tensor]:
    """Write rows into ``body [rows, blocks, 192]``; of each row how many escapes it has, and all of them."""
    parts = coded_parts(values, offset)
    kept, codes = (_in_blocks(part, body.shape[1]) for part in (parts.kept, parts.codes))
    body[..., :BLOCK_WEIGHTS] = kept
    body[..., BLOCK_WEIGHTS:] = joined(codes)
    row, column = parts.escaped.nonzero(as_tuple=True)
    return torch.bincount(row, minlength=len(values)).to(torch.int32), (column << 32) | parts.bits[row, column]


def _in_blocks(values: Tensor, blocks: int) -> Tensor:
    """Bytes of weights (uint8 ``[rows, columns]``) as they lie in blocks: ``[rows, blocks, 128]``."""
    rows, columns = values.shape
    padded = torch.nn.functional.pad(values, (0, blocks * BLOCK_WEIGHTS - columns))
    return packed_bf16.in_block_order(padded.view(-1, BLOCK_WEIGHTS)).view(rows, blocks, BLOCK_WEIGHTS)
