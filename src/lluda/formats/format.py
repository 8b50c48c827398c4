"""What every format offers: its layout, both ways between values and bytes, and the rules its bytes must keep."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import prod
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from lluda.formats.stored_tensor import StoredTensor


@dataclass(frozen=True, slots=True)
class Violation:
    """A rule that a tensor's bytes break, and where it helps the value it asks for and the one found."""

    rule: str
    expected: object = None
    found: object = None


class Format(ABC):
    """A storage format, of which there is one instance. ``name`` is what files, reports and kernels call it."""

    name: str
    alignment = 1
    """The bytes must begin at a multiple of this, in memory and in a file."""
    is_plain = False
    """Whether the bytes are the numbers themselves, so that decoding copies nothing."""
    values_as = "F32"
    """The plain format of the dtype that `decode` gives."""
    holds_weights = True
    """Whether a model's weights may be stored so; integers and 8-bit floats need scales that lie elsewhere."""
    checks_finiteness = False
    """Whether `surely_finite` costs no more than `violations` did."""

    @abstractmethod
    def least_bytes(self, shape: tuple[int, ...]) -> int:
        """The fewest bytes that a tensor of ``shape`` takes."""

    @abstractmethod
    def decode(self, stored: StoredTensor) -> torch.Tensor:
        """The values, of the stored shape and on the device of the bytes, in the smallest dtype that holds them
        exactly (float32 at the most where arithmetic makes them). UnsupportedModel: nothing here decodes them."""

    def encode(self, values: torch.Tensor) -> torch.Tensor | None:
        """The bytes (uint8 ``[n]``) of ``values`` (any float dtype), on their device. None: the format cannot hold
        these, or is not worth it for these. FloatingPointError: NaN or infinity, where it has none."""
        raise NotImplementedError(f"lluda does not write {self.name}")

    def part(self, stored: StoredTensor, axis: int, part: slice) -> StoredTensor | None:  # noqa: ARG002
        """Rows (``axis`` 0; a vector's values) or columns (1) ``part`` as a tensor of their own, reading no others:
        of the same memory, or a copy. None: they cannot be cut there."""
        return None

    def violations(self, stored: StoredTensor) -> Iterator[Violation]:
        """The rules that the bytes (on the CPU) break. One may presume that those before it hold, so only the first is
        to be asked for. What breaks none is safe for kernels to read."""
        if stored.nbytes < self.least_bytes(stored.shape):
            yield Violation(
                "it is too short for its shape", f"at least {self.least_bytes(stored.shape)} bytes", stored.nbytes
            )

    def surely_finite(self, stored: StoredTensor) -> bool:  # noqa: ARG002  (formats that can tell read it)
        """Whether the format tells, without decoding, that no value is NaN or infinity."""
        return False


class BlockFormat(Format):
    """A format of blocks: each holds ``block`` consecutive values of a row in ``block_bytes`` bytes, and a row is a
    whole number of them."""

    def __init__(self, name: str, block: int, block_bytes: int) -> None:
        self.name, self.block, self.block_bytes = name, block, block_bytes

    def row_bytes(self, columns: int) -> int:
        """Bytes of a row of so many values."""
        return columns // self.block * self.block_bytes

    def least_bytes(self, shape: tuple[int, ...]) -> int:
        """What whole blocks take: these formats have nothing beside them."""
        return prod(shape) // self.block * self.block_bytes

    def part(self, stored: StoredTensor, axis: int, part: slice) -> StoredTensor | None:
        """Rows are a view; columns, cut between blocks, a copy."""
        shape = list(stored.shape)
        shape[axis] = part.stop - part.start
        if axis == len(shape) - 1 and (part.start % self.block or part.stop % self.block):
            return None
        rows = stored.data.view(prod(stored.shape[:axis]), -1)
        size = rows.shape[1] // stored.shape[axis] if axis < len(shape) - 1 else self.block_bytes
        unit = 1 if axis < len(shape) - 1 else self.block
        cut = rows[:, part.start // unit * size : part.stop // unit * size]
        return replace(stored, shape=tuple(shape), data=cut.contiguous().view(-1))

    def violations(self, stored: StoredTensor) -> Iterator[Violation]:
        """Whole blocks in each row, and no byte more or less."""
        columns = stored.shape[-1] if stored.shape else 1
        if columns % self.block:
            yield Violation(f"its rows must be a multiple of {self.block} values", None, columns)
        if stored.nbytes != self.least_bytes(stored.shape):
            yield Violation("its length does not fit its shape", self.least_bytes(stored.shape), stored.nbytes)
