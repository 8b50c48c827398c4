"""BF16 weights cut into what a packed form of a device stores, for kernels that make an exponent of a code by a shift:
sign and mantissa, the code ``exponent - offset``, and escapes for the few exponents that have no code.

The file's form (`formats/packed_bf16.py`) has codes of another kind; order and size of blocks are the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lluda.formats.packed_bf16 import BLOCK

CODES = 15
"""Exponents that have a code: 1 to 15. Code 0 is of zeros and escapes."""

_HIGHEST = 205  # exponent from which on 2^(offset - 64) nears the end of float32; larger weights are escapes


@dataclass(frozen=True, slots=True)
class CodedParts:
    """``kept``: sign and mantissa, ``codes`` (both uint8, 0 where ``escaped``), and all ``bits`` (int32)."""

    kept: Tensor
    codes: Tensor
    escaped: Tensor
    bits: Tensor


def exponent_counts(values: Tensor) -> Tensor:
    """How often each of the 256 exponents is among BF16 ``values``: int64 ``[256]``."""
    return torch.bincount(((_bits(values) >> 7) & 255).flatten(), minlength=256)


def best_offset(counts: Sequence[int]) -> int:
    """What a code lacks to its exponent, such that as many weights as can be have a code."""
    covered = [sum(counts[max(top - CODES, 0) + 1 : top + 1]) for top in range(_HIGHEST + 1)]
    return covered.index(max(covered)) - CODES


def coded_parts(values: Tensor, offset: int) -> CodedParts:
    """BF16 ``values`` of any shape, with codes that lack ``offset`` to their exponents."""
    bits = _bits(values)
    code = ((bits >> 7) & 255) - offset
    code = torch.where((code >= 1) & (code <= CODES) & (code + offset > 0), code, 0)
    escaped = (code == 0) & ((bits & 0x7FFF) != 0)
    kept = torch.where(escaped, 0, ((bits >> 8) & 128) | (bits & 127))
    return CodedParts(kept.to(torch.uint8), code.to(torch.uint8), escaped, bits)


def joined(codes: Tensor) -> Tensor:
    """Codes in the order of blocks ``[..., 128]``, two in a byte: ``[..., 64]``."""
    return codes[..., : BLOCK // 2] | (codes[..., BLOCK // 2 :] << 4)


def _bits(values: Tensor) -> Tensor:
    return values.contiguous().view(torch.int16).to(torch.int32) & 0xFFFF
