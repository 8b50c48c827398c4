"""Packed BF16: a matrix in 12 bits a weight, without loss. docs/formats.md words the layout, and names its parts.

This is the definition in torch, on any device. The native library packs the same bytes faster and multiplies with them
as they lie; kernels trust what `violations` lets pass.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from lluda.formats.format import Format, Violation
from lluda.formats.plain import bytes_of, plain_tensor
from lluda.formats.stored_tensor import StoredTensor

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

ALIGNMENT = 64
HEADER_BYTES = 64
BLOCK, BLOCK_BYTES = 128, 192
"""Weights of a block, and its bytes: signs and mantissas, then codes."""

_MAGIC = b"LLUDAPB1"
_MAX_ESCAPES = 2**32 - 1
_EXPONENTS = slice(40, 56)
_ESCAPE_CODE = 15
_NON_FINITE = 255  # the exponent of NaN and infinity
_CHUNK_WEIGHTS = 1 << 20  # coded at once, so that intermediate values stay small
_WORTHWHILE = 0.85  # of the BF16 bytes


@dataclass(frozen=True, slots=True)
class PackedSections:
    """Byte offsets of a packed matrix's parts, and its length."""

    escape_rows: int
    escape_columns: int
    escape_values: int
    end: int

    @classmethod
    def of(cls, rows: int, columns: int, escapes: int) -> PackedSections:
        """The geometry for a shape and a number of escapes."""
        escape_rows = HEADER_BYTES + rows * row_bytes(columns)
        escape_columns = _aligned(escape_rows + 4 * (rows + 1))
        escape_values = _aligned(escape_columns + 4 * escapes)
        return cls(escape_rows, escape_columns, escape_values, _aligned(escape_values + 2 * escapes))


def row_bytes(columns: int) -> int:
    """Bytes of a row's blocks."""
    return -(-columns // BLOCK) * BLOCK_BYTES


class PackedFormat(Format):
    """The format PACKED_BF16, of matrices ``[rows, columns]``."""

    name = "PACKED_BF16"
    alignment = ALIGNMENT
    values_as = "BF16"
    checks_finiteness = True

    def least_bytes(self, shape: tuple[int, ...]) -> int:
        """Packed without an escape."""
        rows, columns = shape
        return PackedSections.of(rows, columns, 0).end

    def decode(self, stored: StoredTensor) -> torch.Tensor:
        """BF16, bit for bit."""
        import torch

        matrix = torch.empty(stored.shape, dtype=torch.bfloat16, device=stored.data.device)
        for begin, rows in decoded_rows(stored):
            matrix[begin : begin + len(rows)] = rows
        return matrix

    def encode(self, values: torch.Tensor) -> torch.Tensor | None:
        """A BF16 matrix. None: it would take 0.85 or more of its BF16 bytes."""
        return _encode(values)

    def part(self, stored: StoredTensor, axis: int, part: slice) -> StoredTensor:
        """A packed matrix of the same codes; of columns that begin or end inside a block one packed anew, or BF16 where
        that is not worth it."""
        if axis == 0:
            return _cut(stored, part, slice(0, stored.shape[1]))
        rows, columns = stored.shape
        inside = part.stop % BLOCK and part.stop < columns
        if not (part.start % BLOCK or inside):
            return _cut(stored, slice(0, rows), part)
        begin, end = part.start // BLOCK * BLOCK, min(-(-part.stop // BLOCK) * BLOCK, columns)
        around = self.decode(_cut(stored, slice(0, rows), slice(begin, end)))
        values = around[:, part.start - begin : part.stop - begin].contiguous()
        data = _encode(values)
        return plain_tensor(values) if data is None else replace(stored, shape=tuple(values.shape), data=data)

    def violations(self, stored: StoredTensor) -> Iterator[Violation]:
        """Reads the header and the escapes, not the blocks: a block is valid whatever its bytes."""
        raw: NDArray[np.uint8] = stored.data.numpy()  # torch would start threads for what takes microseconds
        yield from _header_violations(raw[:HEADER_BYTES].tobytes(), stored)
        yield from _escape_violations(raw, *stored.shape)

    def surely_finite(self, stored: StoredTensor) -> bool:
        """Without the exponent 255 among codes and escapes there is no NaN and no infinity."""
        parts = PackedParts.of(stored)
        among_codes = (parts.exponents == _NON_FINITE).any()
        return not bool(among_codes | ((parts.values >> 7 & 255) == _NON_FINITE).any())


PACKED_BF16 = PackedFormat()


@dataclass(frozen=True, slots=True, eq=False)
class PackedParts:
    """Views of a packed matrix: the exponent of each code (uint8 ``[16]``), where each row's escapes begin (int64
    ``[rows + 1]``), the escapes' columns (int64) and BF16 bits (int16)."""

    exponents: torch.Tensor
    offsets: torch.Tensor
    columns: torch.Tensor
    values: torch.Tensor

    @classmethod
    def of(cls, stored: StoredTensor) -> PackedParts:
        """Of a valid matrix."""
        import torch

        data, (rows, columns) = stored.data, stored.shape
        escapes = int(data[24:32].view(torch.int64))
        at = PackedSections.of(rows, columns, escapes)
        offsets = data[at.escape_rows :][: 4 * (rows + 1)].view(torch.int32).long() & 0xFFFFFFFF
        where = data[at.escape_columns :][: 4 * escapes].view(torch.int32).long()
        return cls(data[_EXPONENTS], offsets, where, data[at.escape_values :][: 2 * escapes].view(torch.int16))


def _cut(stored: StoredTensor, rows: slice, columns: slice) -> StoredTensor:
    """Rows and (of whole blocks, or up to the last) columns, copied."""
    import torch

    parts, wide = PackedParts.of(stored), row_bytes(stored.shape[1])
    offsets = parts.offsets[rows.start : rows.stop + 1]
    of_rows = slice(int(offsets[0]), int(offsets[-1]))
    where, bits = parts.columns[of_rows], parts.values[of_rows]
    kept = (where >= columns.start) & (where < columns.stop)
    count = rows.stop - rows.start
    row_of = torch.repeat_interleave(torch.arange(count), offsets.diff())[kept]
    body = stored.data[HEADER_BYTES + rows.start * wide : HEADER_BYTES + rows.stop * wide].view(count, wide)
    first = columns.start // BLOCK * BLOCK_BYTES
    body = body[:, first : first + row_bytes(columns.stop - columns.start)]
    shape = (count, columns.stop - columns.start)
    ends = torch.bincount(row_of, minlength=count).cumsum(0)
    data = torch.zeros(PackedSections.of(*shape, len(row_of)).end, dtype=torch.uint8)
    data[HEADER_BYTES : HEADER_BYTES + body.numel()].view(body.shape)[...] = body
    _write_beside_blocks(data, shape, parts.exponents, ends, where[kept] - columns.start, bits[kept])
    return replace(stored, shape=shape, data=data)


def _write_beside_blocks(
    data: torch.Tensor,
    shape: tuple[int, int],
    exponents: torch.Tensor,
    ends: torch.Tensor,
    where: torch.Tensor,
    bits: torch.Tensor,
) -> None:
    """The header and the escapes of a packed matrix: the exponent of each code, after each row the number of escapes so
    far, and the column and BF16 bits of each escape."""
    import torch

    rows, columns = shape
    escapes = len(where)
    at = PackedSections.of(rows, columns, escapes)
    data[:8] = torch.tensor(list(_MAGIC))
    data[8:40] = bytes_of(torch.tensor([rows, columns, escapes, at.end])).to(data.device)
    data[_EXPONENTS] = exponents
    # Both fit 32 bits without a sign, whose pattern is that of int32.
    data[at.escape_rows + 4 :][: 4 * rows] = bytes_of(ends.int())
    data[at.escape_columns :][: 4 * escapes] = bytes_of(where.int())
    data[at.escape_values :][: 2 * escapes] = bytes_of(bits)


def decoded_rows(stored: StoredTensor) -> Iterator[tuple[int, torch.Tensor]]:
    """A packed matrix in pieces: a first row, and consecutive rows in BF16."""
    parts = PackedParts.of(stored)
    step = max(1, _CHUNK_WEIGHTS // stored.shape[1])
    for begin in range(0, stored.shape[0], step):
        yield begin, _decode_rows(stored, parts, begin, min(begin + step, stored.shape[0]))


def _decode_rows(stored: StoredTensor, parts: PackedParts, begin: int, end: int) -> torch.Tensor:
    import torch

    rows, columns = end - begin, stored.shape[1]
    start, size = HEADER_BYTES + begin * row_bytes(columns), rows * row_bytes(columns)
    blocks = stored.data[start : start + size].view(-1, BLOCK_BYTES)
    signs, pairs = blocks[:, :BLOCK], blocks[:, BLOCK:]
    codes = torch.cat((pairs & 15, pairs >> 4), dim=1).int().view(-1)
    high = (signs & 0x80) | torch.index_select(parts.exponents >> 1, 0, codes).view(signs.shape)
    low = (signs & 0x7F) | torch.index_select(parts.exponents << 7, 0, codes).view(signs.shape)
    bits = torch.stack((_in_order(low), _in_order(high)), dim=-1).view(rows, -1).view(torch.int16)
    ordered = bits[:, :columns].contiguous()
    offsets = parts.offsets[begin : end + 1]
    first, last = int(offsets[0]), int(offsets[-1])
    row_of = torch.repeat_interleave(torch.arange(rows, device=offsets.device), offsets.diff())
    ordered[row_of, parts.columns[first:last]] = parts.values[first:last]
    return ordered.view(torch.bfloat16)


def _in_order(block_bytes: torch.Tensor) -> torch.Tensor:
    """Bytes of blocks (uint8 ``[blocks, 128]``) in the order of their weights: byte 64a + 16q + 8h + j of a block
    belongs to its weight 64a + 32h + 8q + j."""
    import torch

    eights = block_bytes.view(torch.int64).view(-1, 2, 4, 2)
    return eights.transpose(2, 3).reshape(-1).view(torch.uint8)


def in_block_order(weight_bytes: torch.Tensor) -> torch.Tensor:
    """Bytes of weights (uint8 ``[blocks, 128]``) in the order in which a block has them: the other way round."""
    import torch

    eights = weight_bytes.contiguous().view(torch.int64).view(-1, 2, 2, 4)
    return eights.transpose(2, 3).reshape(-1, BLOCK // 8).view(torch.uint8)


def _encode(values: torch.Tensor) -> torch.Tensor | None:
    import torch

    rows, columns = values.shape
    bits = values.bfloat16().contiguous().view(torch.int16)
    pieces = torch.split(bits, max(1, _CHUNK_WEIGHTS // columns))
    exponents, code_of, escapes = _coding(pieces)
    at = PackedSections.of(rows, columns, escapes)
    if at.end >= _WORTHWHILE * 2 * rows * columns or escapes > _MAX_ESCAPES:
        return None
    data = torch.zeros(at.end, dtype=torch.uint8, device=values.device)
    body = data[HEADER_BYTES : at.escape_rows].view(rows, -1, BLOCK_BYTES)
    found = [
        _encode_rows(piece, code_of, part)
        for piece, part in zip(pieces, torch.split(body, len(pieces[0])), strict=True)
    ]
    counts, where, bits = (torch.cat(parts) for parts in zip(*found, strict=True))
    _write_beside_blocks(data, (rows, columns), exponents, counts.cumsum(0), where, bits)
    return data


def _coding(pieces: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, torch.Tensor, int]:
    """The exponent of each code (uint8 ``[16]``), the code of each of BF16's bit patterns (uint8 ``[65536]``), and how
    many weights have none. The most frequent exponent comes first, of two as frequent the smaller."""
    import torch

    counts = (
        torch.stack([torch.bincount(_patterns(piece).view(-1), minlength=1 << 16) for piece in pieces]).sum(0).cpu()
    )
    patterns = torch.arange(1 << 16)
    exponent_of = patterns >> 7 & 255
    # Denormals are always escapes, since some dot products flush them to zero.
    is_denormal = (exponent_of == 0) & ((patterns & 0x7F) != 0)
    frequency = torch.zeros(256, dtype=torch.int64).index_add_(0, exponent_of, counts.masked_fill(is_denormal, 0))
    chosen = frequency.sort(descending=True, stable=True).indices[:_ESCAPE_CODE]
    chosen = chosen[frequency[chosen] > 0]
    exponents = torch.zeros(16, dtype=torch.uint8)
    exponents[: len(chosen)] = chosen.to(torch.uint8)
    code_of_exponent = torch.full((256,), _ESCAPE_CODE, dtype=torch.uint8)
    code_of_exponent[chosen] = torch.arange(len(chosen), dtype=torch.uint8)
    code_of = code_of_exponent[exponent_of].masked_fill_(is_denormal, _ESCAPE_CODE)
    escapes = int(counts[code_of == _ESCAPE_CODE].sum())
    return exponents.to(pieces[0].device), code_of.to(pieces[0].device), escapes


def _encode_rows(
    bits: torch.Tensor, code_of: torch.Tensor, body: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Write rows of BF16 ``bits`` (int16) into ``body [rows, blocks, 192]``; of each row how many escapes it has, and
    the columns and bits of all of them."""
    import torch

    codes = torch.index_select(code_of, 0, _patterns(bits).view(-1)).view(bits.shape)
    escaped = codes == _ESCAPE_CODE
    kept = ((bits >> 8 & 0x80) | (bits & 0x7F)).to(torch.uint8).masked_fill_(escaped, 0)
    missing = body.shape[1] * BLOCK - bits.shape[1]
    kept, codes = (
        in_block_order(torch.nn.functional.pad(part, (0, missing), value=fill).view(-1, BLOCK)).view(
            *body.shape[:2], -1
        )
        for part, fill in ((kept, 0), (codes, _ESCAPE_CODE))
    )
    body[..., :BLOCK] = kept
    body[..., BLOCK:] = codes[..., : BLOCK // 2] | (codes[..., BLOCK // 2 :] << 4)
    return escaped.sum(1), escaped.nonzero()[:, 1], bits[escaped]


def _patterns(bits: torch.Tensor) -> torch.Tensor:
    return bits.int() & 0xFFFF


def _header_violations(header: bytes, stored: StoredTensor) -> Iterator[Violation]:
    rows, columns, escapes, nbytes = (int.from_bytes(header[at : at + 8], "little") for at in (8, 16, 24, 32))
    if header[:8] != _MAGIC:
        yield Violation("it must begin with LLUDAPB1", None, header[:8])
    if (rows, columns) != stored.shape:
        rule = "its header has another shape than the file declares"
        yield Violation(rule, list(stored.shape), [rows, columns])
    if nbytes != stored.nbytes:
        yield Violation("its header has another length than the file", stored.nbytes, nbytes)
    if escapes > (most := min(rows * columns, _MAX_ESCAPES)):
        yield Violation("its number of escapes is out of range", f"at most {most}", escapes)
    if (end := PackedSections.of(rows, columns, escapes).end) != stored.nbytes:
        yield Violation("its length does not fit its shape and escapes", end, stored.nbytes)
    if code := header[_EXPONENTS][_ESCAPE_CODE]:
        yield Violation("code 15 must have the exponent 0", 0, code)


def _escape_violations(raw: NDArray[np.uint8], rows: int, columns: int) -> Iterator[Violation]:
    import numpy as np

    escapes = int.from_bytes(raw[24:32].tobytes(), "little")
    at = PackedSections.of(rows, columns, escapes)
    offsets = raw[at.escape_rows :][: 4 * (rows + 1)].view("<u4")
    ends = [int(offsets[0]), int(offsets[-1])]
    if ends != [0, escapes]:
        yield Violation("its escape rows must run from 0 to the number of escapes", [0, escapes], ends)
    if not (offsets[1:] >= offsets[:-1]).all():
        yield Violation("its escape rows must not descend")
    where = raw[at.escape_columns :][: 4 * escapes].view("<u4")
    if (largest := int(where.max(initial=0))) >= columns:
        yield Violation("an escape's column is beyond the row", f"below {columns}", largest)
    first_of_row = np.zeros(escapes + 1, dtype=np.bool_)
    first_of_row[offsets] = True
    if not ((where[1:] > where[:-1]) | first_of_row[1:escapes]).all():
        yield Violation("its escape columns must ascend within a row")


def _aligned(offset: int) -> int:
    return -(-offset // ALIGNMENT) * ALIGNMENT
