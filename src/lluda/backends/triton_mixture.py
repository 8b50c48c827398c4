"""A mixture of experts for a few rows, in Triton: each row's chosen experts are the only ones read.

The router's logits come from `triton_gemv.project`. Every program finds the experts' ranks for itself, by comparing all
logits with all: that takes a fraction of a launch. The experts' places are read from a table of addresses.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from lluda.backends.triton_gemv import _row
from lluda.backends.triton_target import launch_options, let_next_start, wait_for_input

MAX_EXPERTS = 256
_TYPES = {torch.bfloat16: tl.bfloat16, torch.float32: tl.float32}


@triton.jit
def _ranks(logits_ptr, EXPERTS: tl.constexpr, PADDED: tl.constexpr):  # noqa: N803
    """Of each expert its place in the order of logits (of equals the lowest first), its number and its logit."""
    e = tl.arange(0, PADDED)
    logit = tl.load(logits_ptr + e, mask=e < EXPERTS, other=float("-inf"))
    above = logit[None, :] > logit[:, None]
    level = (logit[None, :] == logit[:, None]) & (e[None, :] < e[:, None])
    return tl.sum((above | level).to(tl.int32), 1), e, logit


@triton.jit
def _gate_up(x_ptr, norm_ptr, logits_ptr, table_ptr, out_ptr, eps,
             EXPERTS: tl.constexpr, PADDED: tl.constexpr, LOGITS: tl.constexpr, TOP_K: tl.constexpr,
             N: tl.constexpr, SHARED: tl.constexpr, K: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
             CHUNKS: tl.constexpr, COMPUTE: tl.constexpr, PDL: tl.constexpr):  # fmt: skip
    r, pid = tl.program_id(1), tl.program_id(0)
    per: tl.constexpr = (N + BLOCK_N - 1) // BLOCK_N
    let_next_start(PDL)
    wait_for_input(PDL)
    slot = tl.minimum(pid // per, TOP_K)
    n = (pid - slot * per) * BLOCK_N + tl.arange(0, BLOCK_N)
    count = tl.where(slot < TOP_K, N, SHARED)
    rank, e, _ = _ranks(logits_ptr + r * LOGITS, EXPERTS, PADDED)
    expert = tl.where(slot < TOP_K, tl.sum(tl.where(rank == slot, e, 0), 0), EXPERTS)
    gate_ptr = tl.multiple_of(tl.load(table_ptr + expert * 3).to(tl.pointer_type(COMPUTE)), 16)
    up_ptr = tl.multiple_of(tl.load(table_ptr + expert * 3 + 1).to(tl.pointer_type(COMPUTE)), 16)
    gate = tl.zeros([BLOCK_N], tl.float32)
    up = tl.zeros([BLOCK_N], tl.float32)
    for chunk in tl.static_range(CHUNKS):
        at = chunk * BLOCK_K + tl.arange(0, BLOCK_K)
        inside = (n < count)[:, None] & (at < K)[None, :]
        gate_w = tl.load(gate_ptr + n[:, None] * K + at[None, :], mask=inside, other=0.0)
        up_w = tl.load(up_ptr + n[:, None] * K + at[None, :], mask=inside, other=0.0)
        x = _row(x_ptr, norm_ptr, eps, r, chunk * BLOCK_K, K, CHUNKS, BLOCK_K, True, COMPUTE)[None, :]
        gate += tl.sum(gate_w.to(tl.float32) * x, 1)
        up += tl.sum(up_w.to(tl.float32) * x, 1)
    out = gate / (1.0 + tl.exp(-gate)) * up
    at_out = out_ptr + r * (TOP_K * N + SHARED) + slot * N + n
    tl.store(at_out, out.to(out_ptr.dtype.element_ty), mask=n < count)


@triton.jit
def _down(a_ptr, logits_ptr, table_ptr, x_ptr,
          EXPERTS: tl.constexpr, PADDED: tl.constexpr, LOGITS: tl.constexpr, TOP_K: tl.constexpr,
          NORMALISE: tl.constexpr, N: tl.constexpr, SHARED: tl.constexpr, WIDTH: tl.constexpr, BLOCK_N: tl.constexpr,
          BLOCK_K: tl.constexpr, SHARED_K: tl.constexpr, COMPUTE: tl.constexpr, PDL: tl.constexpr):  # fmt: skip
    r = tl.program_id(1)
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    let_next_start(PDL)
    wait_for_input(PDL)
    rank, e, logit = _ranks(logits_ptr + r * LOGITS, EXPERTS, PADDED)
    chance = tl.exp(logit - tl.max(logit, 0))
    total = tl.sum(tl.where(rank < TOP_K, chance, 0.0), 0) if NORMALISE else tl.sum(chance, 0)
    cols = tl.arange(0, BLOCK_K)
    inside = (n < WIDTH)[:, None] & (cols < N)[None, :]
    acts = a_ptr + r * (TOP_K * N + SHARED)
    sums = tl.zeros([BLOCK_N], tl.float32)
    for slot in tl.static_range(TOP_K):
        expert = tl.sum(tl.where(rank == slot, e, 0), 0)
        weight = tl.sum(tl.where(rank == slot, chance, 0.0), 0) / total
        down_ptr = tl.multiple_of(tl.load(table_ptr + expert * 3 + 2).to(tl.pointer_type(COMPUTE)), 16)
        w = tl.load(down_ptr + n[:, None] * N + cols[None, :], mask=inside, other=0.0)
        a = tl.load(acts + slot * N + cols, mask=cols < N, other=0.0).to(tl.float32)
        sums += weight * tl.sum(w.to(tl.float32) * a[None, :], 1)
    if SHARED > 0:
        k = tl.arange(0, SHARED_K)
        down_ptr = tl.multiple_of(tl.load(table_ptr + EXPERTS * 3 + 2).to(tl.pointer_type(COMPUTE)), 16)
        both = (n < WIDTH)[:, None] & (k < SHARED)[None, :]
        w = tl.load(down_ptr + n[:, None] * SHARED + k[None, :], mask=both, other=0.0)
        a = tl.load(acts + TOP_K * N + k, mask=k < SHARED, other=0.0).to(tl.float32)
        gate = 1.0 / (1.0 + tl.exp(-tl.load(logits_ptr + r * LOGITS + EXPERTS)))
        sums += gate * tl.sum(w.to(tl.float32) * a[None, :], 1)
    x = tl.load(x_ptr + r * WIDTH + n, mask=n < WIDTH, other=0.0)
    tl.store(x_ptr + r * WIDTH + n, x + sums, mask=n < WIDTH)


def mixture(
    x: Tensor,
    norm: tuple[Tensor, float],
    logits: Tensor,
    table: Tensor,
    *,
    experts: int,
    top_k: int,
    width: int,
    shared: int,
    normalise: bool,
    compute: torch.dtype,
    pdl: bool,
    tiles: tuple[tuple[int, int], tuple[int, int]] | None = None,
) -> Tensor:
    """``x [rows, hidden]`` (float32, changed in place) plus the chosen experts of its norm, weighted by the router.

    Args:
        logits: float32 ``[rows, experts (+ 1 with a shared expert: its gate's)]``.
        table: int64 ``[experts (+ 1), 3]``, addresses of the gate, up and down matrices, contiguous in ``compute``.
        width: inner width of an expert; ``shared``: of the shared expert, 0 without one.
    """
    rows, hidden = x.shape
    device, padded = x.device, triton.next_power_of_2(experts)
    acts = torch.empty(rows, top_k * width + shared, dtype=compute, device=device)
    block_k = min(triton.next_power_of_2(hidden), 4096)
    (block_n, warps), (down_n, down_warps) = tiles or _tiles(hidden, width)
    blocks = top_k * triton.cdiv(width, block_n) + triton.cdiv(shared, block_n)
    sizes = {
        "EXPERTS": experts, "PADDED": padded, "LOGITS": logits.shape[1], "TOP_K": top_k, "N": width, "SHARED": shared
    }  # fmt: skip
    _gate_up[(blocks, rows)](
        x, norm[0], logits, table, acts, norm[1], K=hidden, BLOCK_N=block_n, BLOCK_K=block_k,
        CHUNKS=triton.cdiv(hidden, block_k), COMPUTE=_TYPES[compute], **sizes, **launch_options(pdl, warps),
    )  # fmt: skip
    _down[(triton.cdiv(hidden, down_n), rows)](
        acts, logits, table, x, NORMALISE=normalise, WIDTH=hidden, BLOCK_N=down_n,
        BLOCK_K=triton.next_power_of_2(width), SHARED_K=max(16, triton.next_power_of_2(shared)),
        COMPUTE=_TYPES[compute], **sizes, **launch_options(pdl, down_warps),
    )  # fmt: skip
    return x


def _tiles(hidden: int, width: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """Rows of a matrix for one program, and its warps: of gate and up, of down."""
    block = min(triton.next_power_of_2(hidden), 4096)
    return (max(1, min(8, 8192 // block)), 4), (max(1, min(4, 4096 // triton.next_power_of_2(width))), 4)
