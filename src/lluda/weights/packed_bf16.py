"""Packed BF16 matrices as they lie in a file (docs/formats.md): which tensors are packed, their rules, and the way back
to BF16 in plain torch.

Kernels that multiply with the packed form trust what passes here; their own library checks it once more.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from lluda.errors import CorruptFile
from lluda.files.json_file import parse_json
from lluda.weights.entry import TensorEntry

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

DTYPE = "PACKED_BF16"
"""What a packed tensor's entry has as its dtype."""

METADATA_KEY = "lluda.packed_bf16"
"""Key of a safetensors file's metadata: a JSON object of ``[rows, columns]`` by the name of each packed tensor."""

ALIGNMENT = 64
_MAGIC = b"LLUDAPB1"
_HEADER_BYTES = 64
_BLOCK_WEIGHTS, _BLOCK_BYTES = 128, 192
_MAX_SIZE, _MAX_ESCAPES = 2**31 - 1, 2**32 - 1
_EXPONENTS = slice(40, 56)
_ESCAPE_CODE = 15
_NON_FINITE = 255  # the exponent of NaN and infinity
_CHUNK_WEIGHTS = 1 << 20  # unpacked at once, so that intermediate values stay small


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
        escape_rows = _HEADER_BYTES + rows * -(-columns // _BLOCK_WEIGHTS) * _BLOCK_BYTES
        escape_columns = _aligned(escape_rows + 4 * (rows + 1))
        escape_values = _aligned(escape_columns + 4 * escapes)
        return cls(escape_rows, escape_columns, escape_values, _aligned(escape_values + 2 * escapes))


@dataclass(frozen=True, slots=True, eq=False)
class PackedMatrix:
    """A checked packed matrix. ``stored`` are its bytes (uint8, where they lie); the rest are views of them:
    ``exponents`` the exponent of each code (uint8 ``[16]``), ``offsets`` where each row's escapes begin (uint32
    ``[rows + 1]``), ``columns`` (uint32) and ``values`` (uint16, BF16 bits) the escapes."""

    shape: tuple[int, int]
    stored: torch.Tensor
    exponents: NDArray[np.uint8]
    offsets: NDArray[np.uint32]
    columns: NDArray[np.uint32]
    values: NDArray[np.uint16]

    def may_hold_non_finite(self) -> bool:
        """Whether a NaN or infinity is among the escapes or has a code; without either there is none in the matrix."""
        return bool((self.exponents == _NON_FINITE).any() or ((self.values >> 7 & 255) == _NON_FINITE).any())

    def unpacked(self) -> torch.Tensor:
        """The matrix in BF16, bit for bit."""
        import torch

        matrix = torch.empty(self.shape, dtype=torch.bfloat16)
        for begin, rows in self.row_groups():
            matrix[begin : begin + len(rows)] = rows
        return matrix

    def row_groups(self) -> Iterator[tuple[int, torch.Tensor]]:
        """The matrix in pieces: a first row, and consecutive rows in BF16."""
        step = max(1, _CHUNK_WEIGHTS // self.shape[1])
        for begin in range(0, self.shape[0], step):
            yield begin, self._rows(begin, min(begin + step, self.shape[0]))

    def _rows(self, begin: int, end: int) -> torch.Tensor:
        import numpy as np
        import torch

        rows, columns = end - begin, self.shape[1]
        row_bytes = -(-columns // _BLOCK_WEIGHTS) * _BLOCK_BYTES
        start = _HEADER_BYTES + begin * row_bytes
        blocks = self.stored[start : start + rows * row_bytes].view(-1, _BLOCK_BYTES)
        signs, pairs = blocks[:, :_BLOCK_WEIGHTS], blocks[:, _BLOCK_WEIGHTS:]
        codes = torch.cat((pairs & 15, pairs >> 4), dim=1).int().view(-1)
        exponents = torch.from_numpy(self.exponents.copy())
        high = (signs & 0x80) | torch.index_select(exponents >> 1, 0, codes).view(signs.shape)
        low = (signs & 0x7F) | torch.index_select(exponents << 7, 0, codes).view(signs.shape)
        bits = torch.stack((_in_order(low), _in_order(high)), dim=-1).view(rows, -1).view(torch.int16)
        ordered = bits[:, :columns].contiguous()
        of_rows = slice(int(self.offsets[begin]), int(self.offsets[end]))
        row_of = np.repeat(np.arange(rows), np.diff(self.offsets[begin : end + 1]))
        ordered.numpy()[row_of, self.columns[of_rows]] = self.values[of_rows].view(np.int16)
        return ordered.view(torch.bfloat16)


def _in_order(block_bytes: torch.Tensor) -> torch.Tensor:
    """Bytes of blocks (uint8 ``[blocks, 128]``) in the order of their weights: byte 64a + 16q + 8h + j of a block
    belongs to its weight 64a + 32h + 8q + j."""
    import torch

    eights = block_bytes.view(torch.int64).view(-1, 2, 4, 2)
    return eights.transpose(2, 3).reshape(-1).view(torch.uint8)


def with_packed_shapes(
    entries: Mapping[str, TensorEntry], metadata: Mapping[str, str], file: Path
) -> Mapping[str, TensorEntry]:
    """``entries`` of a safetensors file, those that its metadata calls packed with their matrix's shape and `DTYPE`.

    CorruptFile: a declaration that is not JSON of the right form, or that does not fit the stored tensor.
    """
    if METADATA_KEY not in metadata:
        return entries
    where = f"metadata {METADATA_KEY}"
    declared = parse_json(metadata[METADATA_KEY], file, part=where)
    if not isinstance(declared, dict):
        raise CorruptFile(file, f"{where} must be an object of shapes by tensor name", found=declared)
    result = dict(entries)
    for name, shape in declared.items():
        what = f"packed tensor {name[:120]!r}"
        if name not in entries:
            raise CorruptFile(file, f"{what} is declared but not in the file")
        result[name] = _packed_entry(entries[name], shape, what)
    return result


def _packed_entry(entry: TensorEntry, shape: object, what: str) -> TensorEntry:
    file = entry.file
    if not isinstance(shape, list) or len(shape) != 2 or not all(type(n) is int and 1 <= n <= _MAX_SIZE for n in shape):
        raise CorruptFile(file, f"{what}: its shape must be two integers from 1 to {_MAX_SIZE}", found=shape)
    if entry.dtype != "U8" or len(entry.shape) != 1:
        found = f"{entry.dtype} {list(entry.shape)}"
        raise CorruptFile(file, f"{what} must be stored as bytes", expected="U8 in one dimension", found=found)
    if entry.offset % ALIGNMENT:
        raise CorruptFile(file, f"{what} must begin at a multiple of {ALIGNMENT} bytes", found=entry.offset)
    smallest = PackedSections.of(shape[0], shape[1], 0).end
    if entry.nbytes < smallest:
        rule = f"{what} is too short for its shape {shape}"
        raise CorruptFile(file, rule, expected=f"at least {smallest} bytes", found=entry.nbytes)
    return replace(entry, shape=(shape[0], shape[1]), dtype=DTYPE)


def packed_matrix(stored: torch.Tensor, entry: TensorEntry) -> PackedMatrix:
    """The checked matrix in the bytes ``stored`` (uint8 ``[n]``) of ``entry``. Reads the header and the escapes, not
    the blocks: a block is valid whatever its bytes.

    CorruptFile: any rule of docs/formats.md broken.
    """
    import numpy as np

    rows, columns = entry.shape
    raw: NDArray[np.uint8] = stored.numpy()  # torch would start threads for what takes microseconds
    escapes = _checked_header(raw[:_HEADER_BYTES].tobytes(), entry)
    sections = PackedSections.of(rows, columns, escapes)
    _require(entry, entry.nbytes == sections.end, "its length does not fit its shape and escapes",
             sections.end, entry.nbytes)  # fmt: skip
    exponents = raw[_EXPONENTS]
    _require(entry, exponents[_ESCAPE_CODE] == 0, "code 15 must have the exponent 0", 0, int(exponents[_ESCAPE_CODE]))
    offsets = raw[sections.escape_rows :][: 4 * (rows + 1)].view("<u4")
    ends = [int(offsets[0]), int(offsets[-1])]
    _require(entry, ends == [0, escapes], "its escape rows must run from 0 to the number of escapes",
             [0, escapes], ends)  # fmt: skip
    _require(entry, bool((offsets[1:] >= offsets[:-1]).all()), "its escape rows must not descend")
    where = raw[sections.escape_columns :][: 4 * escapes].view("<u4")
    largest = int(where.max(initial=0))
    _require(entry, largest < columns, "an escape's column is beyond the row", f"below {columns}", largest)
    first_of_row = np.zeros(escapes + 1, dtype=np.bool_)
    first_of_row[offsets] = True
    ascends = (where[1:] > where[:-1]) | first_of_row[1:escapes]
    _require(entry, bool(ascends.all()), "its escape columns must ascend within a row")
    values = raw[sections.escape_values :][: 2 * escapes].view("<u2")
    return PackedMatrix((rows, columns), stored, exponents, offsets, where, values)


def _checked_header(header: bytes, entry: TensorEntry) -> int:
    """The number of escapes."""
    rows, columns, escapes, nbytes = (int.from_bytes(header[at : at + 8], "little") for at in (8, 16, 24, 32))
    _require(entry, header[:8] == _MAGIC, "it must begin with LLUDAPB1", None, header[:8])
    _require(entry, (rows, columns) == entry.shape, "its header has another shape than the file declares",
             list(entry.shape), [rows, columns])  # fmt: skip
    _require(entry, nbytes == entry.nbytes, "its header has another length than the file", entry.nbytes, nbytes)
    most = min(rows * columns, _MAX_ESCAPES)
    _require(entry, escapes <= most, "its number of escapes is out of range", f"at most {most}", escapes)
    return escapes


def _require(entry: TensorEntry, rule: bool, what: str, expected: object = None, found: object = None) -> None:
    if not rule:
        what = f"packed tensor {entry.name[:120]!r}: {what}; download or pack it again"
        raise CorruptFile(entry.file, what, expected=expected, found=found)


def _aligned(offset: int) -> int:
    return -(-offset // ALIGNMENT) * ALIGNMENT
