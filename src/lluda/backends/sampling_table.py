"""Tables over a vocabulary by which a step chooses tokens (`capture.RowSampling`), and which of them is which.

A step is given a table's address. A backend that keeps a copy elsewhere must know whether what lies there is still the
same table: behind its numbers stands one that no other table has.
"""

from __future__ import annotations

import ctypes
from itertools import count

import torch
from torch import Tensor

_NUMBERS = count(1)


def sampling_table(vocab: int, dtype: torch.dtype) -> Tensor:
    """Zeros ``[vocab]`` of 4 bytes each, on the host, with a number behind them."""
    words = torch.zeros(vocab + 1, dtype=torch.int32)
    words[vocab] = next(_NUMBERS) & 0x7FFFFFFF
    return words[:vocab].view(dtype)


def number_of(address: int, vocab: int) -> int:
    """Of the table on the host at ``address``."""
    return ctypes.c_int32.from_address(address + 4 * vocab).value
