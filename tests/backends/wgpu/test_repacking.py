"""Packed rows of a file as the device has them, read as its kernels do."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("wgpu", reason="wgpu-py is not installed")

from lluda.backends.exponent_codes import best_offset, exponent_counts
from lluda.backends.wgpu.memory.packing import pack_rows
from lluda.backends.wgpu.memory.repacking import StoredRows, exponents_of, repack
from lluda.formats.packed_bf16 import PACKED_BF16
from lluda.formats.stored_tensor import StoredTensor


@pytest.fixture(scope="module")
def matrix():
    values = torch.randn(24, 384, generator=torch.Generator().manual_seed(3)).mul(0.02).bfloat16()
    values[::3] = 0.0
    values[1, :8] = torch.tensor([0.0, -0.0, 1e-30, -3e5, 2.0**-126, 1e-40, -1e-12, 7.0])
    values[2, 377:] = -1e20
    values[5, 130:140] *= 2.0**-9  # exponents of the file's codes that a window elsewhere leaves out
    return values, StoredTensor(PACKED_BF16, (24, 384), PACKED_BF16.encode(values))


def read(rows, columns, offset):
    """BF16 bits of rows of the device's form; of what an escape has, nothing may be left beside it."""
    blocks = rows.body.view(-1, 192).int()
    codes = torch.cat((blocks[:, 128:] & 15, blocks[:, 128:] >> 4), dim=1)
    bits = (blocks[:, :128] & 0x80) << 8 | torch.where(codes > 0, codes + offset, 0) << 7 | (blocks[:, :128] & 0x7F)
    # Byte 64a + 16q + 8h + j is of weight 64a + 32h + 8q + j.
    found = bits.view(-1, 2, 4, 2, 8).transpose(2, 3).reshape(-1, columns)
    row_of = torch.repeat_interleave(torch.arange(len(found)), rows.counts)
    column = rows.escapes[:, 0].long()
    assert not (found[row_of, column]).any()
    found[row_of, column] = rows.escapes[:, 1]
    return found


def bits_of(values):
    return values.view(torch.int16).int() & 0xFFFF


@pytest.mark.parametrize("shift", [0, 1, -2, 6])
@pytest.mark.parametrize(("begin", "end"), [(0, 24), (1, 2), (5, 17)])
def test_rows_are_as_if_made_of_their_values(matrix, begin, end, shift):
    values, stored = matrix
    rows, part = StoredRows(stored, begin, end), values[begin:end]
    counts = exponent_counts(part)
    assert torch.equal(exponents_of(rows), counts)
    offset = best_offset(counts.tolist()) + shift
    made = repack(rows, offset)
    assert torch.equal(read(made, 384, offset), bits_of(part))
    assert torch.equal(read(pack_rows(part, offset), 384, offset), bits_of(part))
    assert len(made.escapes) == int(made.counts.sum())


def test_codes_without_a_code_here_become_escapes(matrix):
    _, stored = matrix
    rows = StoredRows(stored, 0, 24)
    offset = best_offset(exponents_of(rows).tolist())
    assert len(repack(rows, offset + 6).escapes) > 2 * len(repack(rows, offset).escapes) > 0


def test_what_the_file_keeps_of_an_escape_is_not_looked_at(matrix):
    values, stored = matrix
    data = stored.data.clone()
    rows = StoredRows(StoredTensor(PACKED_BF16, stored.shape, data), 0, 24)
    blocks = rows.blocks
    is_escape = torch.cat((blocks[:, 128:] & 15, blocks[:, 128:] >> 4), dim=1) == 15
    blocks[:, :128][is_escape] = 0xFF
    offset = best_offset(exponent_counts(values).tolist())
    assert is_escape.any() and torch.equal(read(repack(rows, offset), 384, offset), bits_of(values))
