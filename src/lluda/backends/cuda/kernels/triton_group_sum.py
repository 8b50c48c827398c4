"""What several GPUs add to the same few rows, summed in one launch, in Triton.

Each number goes to the other GPUs' memory together with the number of the sum that it belongs to, in one word of eight
bytes, which arrive whole: whoever waits for it looks at the word itself, and no barrier is needed before or behind (the
idea of NCCL's LL protocol). Two halves of the memory take turns: a word is overwritten by the sum after next, which
another GPU begins only when it has this GPU's numbers of the next one, so when this one has read it.
"""

import triton
import triton.language as tl
from torch import Tensor

from lluda.backends.cuda.kernels.triton_target import kernel, launch_options, take_input

BLOCK = 512
"""Numbers of one program."""


@kernel()
def _add_sum(x_ptr, branch_ptr, inbox_ptr, peers_ptr, epoch_ptr, abort_ptr, count, room,
             RANK: tl.constexpr, RANKS: tl.constexpr, SIZE: tl.constexpr, PDL: tl.constexpr):  # fmt: skip
    pid = tl.program_id(0)
    at = pid * SIZE + tl.arange(0, SIZE)
    inside = at < count
    take_input(PDL)
    epoch = tl.load(epoch_ptr + pid) + 1
    half = (epoch & 1) * RANKS
    own = tl.load(branch_ptr + at, mask=inside, other=0.0)
    tag = epoch.to(tl.int64) << 32
    word = tag | (own.to(tl.int32, bitcast=True).to(tl.int64) & 0xFFFFFFFF)
    for peer in tl.static_range(RANKS):
        if peer != RANK:
            theirs = tl.load(peers_ptr + peer).to(tl.pointer_type(tl.int64))
            tl.store(theirs + (half + RANK) * room + at, word, mask=inside)
    # Meanwhile: the buffer is for the next branch, and whose numbers come is added in the order of the ranks.
    tl.store(branch_ptr + at, tl.zeros([SIZE], tl.float32), mask=inside)
    x = tl.load(x_ptr + at, mask=inside, other=0.0)
    for peer in tl.static_range(RANKS):
        if peer == RANK:
            x += own
        else:
            place = inbox_ptr + (half + peer) * room + at
            found = tl.load(place, mask=inside, other=0, volatile=True)
            late = tl.sum((inside & ((found >> 32) != epoch)).to(tl.int32), 0)
            while late > 0:
                found = tl.load(place, mask=inside, other=0, volatile=True)
                late = tl.sum((inside & ((found >> 32) != epoch)).to(tl.int32), 0)
                late = tl.where(tl.load(abort_ptr, volatile=True) > 0, 0, late)
            x += found.to(tl.int32).to(tl.float32, bitcast=True)
    tl.store(x_ptr + at, x, mask=inside)
    tl.store(epoch_ptr + pid, epoch)


def add_sum(
    x: Tensor, branch: Tensor, inbox: Tensor, peers: Tensor, epochs: Tensor, abort: Tensor, *, rank: int, pdl: bool
) -> Tensor:
    """``x += `` every rank's ``branch``, the same bits on all; both float32 of one shape. ``branch`` is zeros after it.

    Args:
        inbox: int64 ``[2, ranks, room]``, this rank's memory that the others write to; zeros at first.
        peers: int64 ``[ranks]``, the addresses of all ranks' inboxes, in this process.
        epochs: int32, a count for each program; zeros at first.
        abort: int32 ``[1]``: above zero nobody is waited for any more, and the result means nothing.
    """
    count, (_, ranks, room) = x.numel(), inbox.shape
    assert count <= room and x.is_contiguous() and branch.is_contiguous(), f"{count} numbers in room for {room}"
    _add_sum[(triton.cdiv(count, BLOCK),)](
        x, branch, inbox, peers, epochs, abort, count, room, RANK=rank, RANKS=ranks, SIZE=BLOCK,
        **launch_options(pdl, 4),
    )  # fmt: skip
    return x
