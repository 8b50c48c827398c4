from __future__ import annotations

import gc
import weakref

import torch

from lluda.backends.cpu import weight_memory
from lluda.backends.cpu.weight_memory import WeightMemory


def test_tensors_are_aligned_and_do_not_overlap() -> None:
    memory = WeightMemory()
    taken = [memory.allocate(size) for size in (1, 64, 65, 1000, 4096, 0, 7)]
    for index, tensor in enumerate(taken):
        tensor.fill_(index)
    for index, tensor in enumerate(taken):
        assert tensor.data_ptr() % 64 == 0
        assert (tensor == index).all()


def test_small_tensors_share_a_piece_and_a_large_one_has_its_own(monkeypatch) -> None:
    pieces = []
    make = weight_memory._huge_pages
    monkeypatch.setattr(weight_memory, "_huge_pages", lambda nbytes: pieces.append(nbytes) or make(nbytes))
    memory = WeightMemory()
    for _ in range(8):
        memory.allocate(8 << 20)
    assert pieces == [64 << 20]
    assert len(memory.allocate(100 << 20)) == 100 << 20
    assert pieces == [64 << 20, 100 << 20]


def test_a_piece_goes_with_its_last_tensor() -> None:
    memory = WeightMemory()
    first, second = memory.allocate(40 << 20), memory.allocate(40 << 20)
    gone = weakref.ref(first.untyped_storage())
    del first
    gc.collect()
    assert gone() is None
    assert torch.equal(second.fill_(3)[-2:], torch.tensor([3, 3], dtype=torch.uint8))
