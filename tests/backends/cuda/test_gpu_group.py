"""Sums over GPUs: the kernel, one rank after the other, and blocks that add to zeros in the place of their rows. On a
GPU, else in Triton's interpreter."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton", reason="the kernels of the cuda backend are Triton's: pip install triton")

from lluda.backends.backend import Precision
from lluda.backends.blocks import MixtureBlock, Norm, SwiGLUBlock
from lluda.backends.cuda.backend import CudaBackend
from lluda.backends.cuda.kernels.triton_group_sum import BLOCK, add_sum
from lluda.backends.cuda.kernels.triton_target import interpreted
from tests.backends.cuda.test_cuda import DEVICE, HIDDEN, rows, swiglu, vector

pytestmark = pytest.mark.skipif(
    DEVICE.type == "cpu" and not interpreted(), reason="no GPU, and triton was imported before it could be interpreted"
)


@pytest.mark.parametrize("ranks", [2, 3])
def test_numbers_of_all_ranks_are_added(ranks):
    """Each rank in turn, the others' words lying in its inbox; several sums, so that both halves come again."""
    count = BLOCK + 40
    generator = torch.Generator().manual_seed(3)
    inboxes = [torch.zeros(2, ranks, 2 * BLOCK, dtype=torch.int64, device=DEVICE) for _ in range(ranks)]
    peers = torch.tensor([inbox.data_ptr() for inbox in inboxes], device=DEVICE)
    epochs = [torch.zeros(2, dtype=torch.int32, device=DEVICE) for _ in range(ranks)]
    running = torch.zeros(1, dtype=torch.int32, device=DEVICE)
    for epoch in range(1, 5):
        x = torch.randn(count, generator=generator).to(DEVICE)
        branches = [torch.randn(count, generator=generator).to(DEVICE) for _ in range(ranks)]
        expected = x.clone()
        for branch in branches:
            expected = expected + branch
        for rank in range(ranks):
            for other in range(rank + 1, ranks):  # those that come later have not sent theirs yet
                words = branches[other].view(torch.int32).long() & 0xFFFFFFFF | epoch << 32
                inboxes[rank][epoch & 1, other, :count] = words
            own, branch = x.clone(), branches[rank].clone()
            found = add_sum(own, branch, inboxes[rank], peers, epochs[rank], running, rank=rank, pdl=False)
            assert torch.equal(found, expected) and not branch.any()
        assert all(counts.tolist() == [epoch, epoch] for counts in epochs)


def test_nobody_is_waited_for_once_it_is_given_up():
    """Numbers that never come: the kernel ends, whatever it leaves."""
    inbox = torch.zeros(2, 2, BLOCK, dtype=torch.int64, device=DEVICE)
    peers = torch.tensor([inbox.data_ptr()] * 2, device=DEVICE)
    epochs, given_up = (torch.full((1,), value, dtype=torch.int32, device=DEVICE) for value in (0, 1))
    x = torch.ones(8, device=DEVICE)
    add_sum(x, x.clone(), inbox, peers, epochs, given_up, rank=0, pdl=False)
    assert epochs.tolist() == [1]


@pytest.mark.parametrize("count", [1, 8, 70])
def test_a_block_adds_to_what_it_is_given_in_place_of_its_rows(count):
    torch.manual_seed(1)
    backend = CudaBackend(DEVICE, Precision.of("f32"))
    dense = SwiGLUBlock(Norm(vector(HIDDEN), 1e-6), swiglu(backend, 64), None)
    experts = [swiglu(backend, 32) for _ in range(4)]
    router = torch.randn(4, HIDDEN).to(DEVICE) / 10
    mixture = MixtureBlock(Norm(vector(HIDDEN), 1e-6), router, experts, 2, True)
    for run, block in ((backend.swiglu_block, dense), (backend.mixture_block, mixture)):
        x, onto = rows(count), rows(count)
        whole, zeros = run(x.clone(), block), torch.zeros((), device=DEVICE).expand_as(x)
        branch = run(x.clone(), block, zeros)
        torch.testing.assert_close(x + branch, whole, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(run(x.clone(), block, onto.clone()), onto + branch, rtol=1e-5, atol=1e-5)
