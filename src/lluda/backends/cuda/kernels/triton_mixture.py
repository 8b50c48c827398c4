"""A mixture of experts for a few rows, in Triton: each row's chosen experts are the only ones read.

The router's logits come from `triton_gemv.project`; one program a row finds the experts' ranks by comparing all logits
with all, and where the chosen ones lie in a table of addresses.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from lluda.backends.cuda.coded_weight import PACKED
from lluda.backends.cuda.kernels.triton_formats import aside, compute_of, dot, fetch, form_of, row, settle, tile_columns
from lluda.backends.cuda.kernels.triton_target import interpreted, kernel, launch_options, take_input
from lluda.backends.weight import Weight

MAX_EXPERTS = 256


@kernel()
def _choose(logits_ptr, table_ptr, place_ptr, weight_ptr,
            EXPERTS: tl.constexpr, PADDED: tl.constexpr, LOGITS: tl.constexpr, TOP_K: tl.constexpr,
            SHARED: tl.constexpr, NORMALISE: tl.constexpr, PDL: tl.constexpr):  # fmt: skip
    """Of each row the addresses of the chosen experts' matrices and their weights, the shared expert's last."""
    r = tl.program_id(0)
    SLOTS: tl.constexpr = TOP_K + (SHARED > 0)
    e = tl.arange(0, PADDED)
    take_input(PDL)
    logit = tl.load(logits_ptr + r * LOGITS + e, mask=e < EXPERTS, other=float("-inf"))
    # NaN comes last, so that every place is written with an expert that there is.
    order = tl.where(logit != logit, float("-inf"), logit)
    above = order[None, :] > order[:, None]
    level = (order[None, :] == order[:, None]) & (e[None, :] < e[:, None])
    rank = tl.sum((above | level).to(tl.int32), 1)
    chance = tl.exp(logit - tl.max(logit, 0))
    total = tl.sum(tl.where(rank < TOP_K, chance, 0.0), 0) if NORMALISE else tl.sum(chance, 0)
    chosen = (rank < TOP_K) & (e < EXPERTS)
    tl.store(weight_ptr + r * SLOTS + rank, chance / total, mask=chosen)
    for part in tl.static_range(3):
        place = tl.load(table_ptr + e * 3 + part, mask=chosen, other=0)
        tl.store(place_ptr + (r * SLOTS + rank) * 3 + part, place, mask=chosen)
    if SHARED > 0:
        tl.store(weight_ptr + r * SLOTS + TOP_K, 1.0 / (1.0 + tl.exp(-tl.load(logits_ptr + r * LOGITS + EXPERTS))))
        for part in tl.static_range(3):
            tl.store(place_ptr + (r * SLOTS + TOP_K) * 3 + part, tl.load(table_ptr + EXPERTS * 3 + part))


@kernel()
def _gate_up(x_ptr, norm_ptr, place_ptr, out_ptr, eps,
             TOP_K: tl.constexpr, N: tl.constexpr, SHARED: tl.constexpr, K: tl.constexpr, BLOCK_N: tl.constexpr,
             BLOCK_K: tl.constexpr, CHUNKS: tl.constexpr, FORM: tl.constexpr, WEIGHT: tl.constexpr,
             PDL: tl.constexpr):  # fmt: skip
    r, pid = tl.program_id(1), tl.program_id(0)
    per: tl.constexpr = (N + BLOCK_N - 1) // BLOCK_N
    slot = tl.minimum(pid // per, TOP_K)
    n = (pid - slot * per) * BLOCK_N + tl.arange(0, BLOCK_N)
    count = tl.where(slot < TOP_K, N, SHARED)
    # The rows were there before the experts were chosen.
    x_row = x_ptr + r * K
    x, scale = row(x_row, norm_ptr, eps, 0, K, CHUNKS, BLOCK_K, True, WEIGHT, FORM)
    take_input(PDL)
    place = place_ptr + (r * (TOP_K + (SHARED > 0)) + slot) * 3
    gate_base, up_base = tl.load(place), tl.load(place + 1)
    gate = tl.zeros([BLOCK_N], tl.float32)
    up = tl.zeros([BLOCK_N], tl.float32)
    for chunk in tl.static_range(CHUNKS):
        start = chunk * BLOCK_K
        gate_w, gate_its = fetch(gate_base, n, count, start, K, BLOCK_K, FORM, WEIGHT)
        up_w, up_its = fetch(up_base, n, count, start, K, BLOCK_K, FORM, WEIGHT)
        if chunk > 0:
            x, scale = row(x_row, norm_ptr, eps, start, K, CHUNKS, BLOCK_K, True, WEIGHT, FORM)
        if chunk == 0:
            gate_begin, gate_end, gate_entry, gate_factor = aside(gate_base, n, count, K, FORM)
            up_begin, up_end, up_entry, up_factor = aside(up_base, n, count, K, FORM)
        gate += dot(gate_w, gate_its, x, BLOCK_N, BLOCK_K, FORM)
        up += dot(up_w, up_its, x, BLOCK_N, BLOCK_K, FORM)
    gate = settle(gate, gate_begin, gate_end, gate_entry, gate_factor, gate_base, n, count, x_row, norm_ptr, scale,
                  K, True, WEIGHT, FORM)  # fmt: skip
    up = settle(up, up_begin, up_end, up_entry, up_factor, up_base, n, count, x_row, norm_ptr, scale,
                K, True, WEIGHT, FORM)  # fmt: skip
    out = gate / (1.0 + tl.exp(-gate)) * up
    at_out = out_ptr + r * (TOP_K * N + SHARED) + slot * N + n
    tl.store(at_out, out.to(out_ptr.dtype.element_ty), mask=n < count)


@kernel()
def _down(a_ptr, place_ptr, weight_ptr, x_ptr,
          TOP_K: tl.constexpr, N: tl.constexpr, SHARED: tl.constexpr, WIDTH: tl.constexpr, BLOCK_N: tl.constexpr,
          BLOCK_K: tl.constexpr, SHARED_K: tl.constexpr, FORM: tl.constexpr, WEIGHT: tl.constexpr,
          PDL: tl.constexpr):  # fmt: skip
    r = tl.program_id(1)
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    SLOTS: tl.constexpr = TOP_K + (SHARED > 0)
    place, weights = place_ptr + r * SLOTS * 3 + 2, weight_ptr + r * SLOTS
    acts = a_ptr + r * (TOP_K * N + SHARED)
    x = tl.load(x_ptr + r * WIDTH + n, mask=n < WIDTH, other=0.0)
    # Chosen two kernels ago; the first expert's rows are asked for before what they are multiplied with is there.
    base = tl.load(place)
    w, beside = fetch(base, n, WIDTH, 0, N, BLOCK_K, FORM, WEIGHT)
    begin, end, entry, factor = aside(base, n, WIDTH, N, FORM)
    take_input(PDL)
    sums = tl.zeros([BLOCK_N], tl.float32)
    for slot in tl.static_range(TOP_K):
        if slot > 0:
            base = tl.load(place + slot * 3)
            w, beside = fetch(base, n, WIDTH, 0, N, BLOCK_K, FORM, WEIGHT)
            begin, end, entry, factor = aside(base, n, WIDTH, N, FORM)
        a_row = acts + slot * N
        a, scale = row(a_row, a_row, 0.0, 0, N, 1, BLOCK_K, False, WEIGHT, FORM)
        part = dot(w, beside, a, BLOCK_N, BLOCK_K, FORM)
        part = settle(part, begin, end, entry, factor, base, n, WIDTH, a_row, a_row, scale, N, False, WEIGHT, FORM)
        sums += tl.load(weights + slot) * part
    if SHARED > 0:
        base, a_row = tl.load(place + TOP_K * 3), acts + TOP_K * N
        w, beside = fetch(base, n, WIDTH, 0, SHARED, SHARED_K, FORM, WEIGHT)
        begin, end, entry, factor = aside(base, n, WIDTH, SHARED, FORM)
        a, scale = row(a_row, a_row, 0.0, 0, SHARED, 1, SHARED_K, False, WEIGHT, FORM)
        part = dot(w, beside, a, BLOCK_N, SHARED_K, FORM)
        part = settle(part, begin, end, entry, factor, base, n, WIDTH, a_row, a_row, scale, SHARED, False, WEIGHT, FORM)
        sums += tl.load(weights + TOP_K) * part
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
    like: Weight,
    pdl: bool,
    onto: Tensor | None = None,
    tiles: tuple[tuple[int, int], tuple[int, int]] | None = None,
) -> Tensor:
    """``x [rows, hidden]`` (float32, changed in place) plus the chosen experts of its norm, weighted by the router.
    With ``onto`` these are added to that, in the place of ``x``.

    Args:
        logits: float32 ``[rows, experts (+ 1 with a shared expert: its gate's)]``.
        table: int64 ``[experts (+ 1), 3]``, addresses of the gate, up and down matrices, all of the form of ``like``.
        width: inner width of an expert; ``shared``: of the shared expert, 0 without one.
    """
    rows, hidden = x.shape
    device, padded = x.device, triton.next_power_of_2(experts)
    acts = torch.empty(rows, top_k * width + shared, dtype=compute_of(like), device=device)
    block_k = tile_columns(hidden, like, 4096)
    (block_n, warps), (down_n, down_warps) = tiles or _tiles(hidden, width, like)
    blocks = top_k * triton.cdiv(width, block_n) + triton.cdiv(shared, block_n)
    slots = top_k + (shared > 0)
    places = torch.empty(rows, slots, 3, dtype=torch.int64, device=device)
    weights = torch.empty(rows, slots, dtype=torch.float32, device=device)
    _choose[(rows,)](
        logits, table, places, weights, EXPERTS=experts, PADDED=padded, LOGITS=logits.shape[1], TOP_K=top_k,
        SHARED=shared, NORMALISE=normalise, **launch_options(pdl, 8),
    )  # fmt: skip
    sizes = {"TOP_K": top_k, "N": width, "SHARED": shared, **form_of(like)}
    _gate_up[(blocks, rows)](
        x, norm[0], places, acts, norm[1], K=hidden, BLOCK_N=block_n, BLOCK_K=block_k,
        CHUNKS=triton.cdiv(hidden, block_k), **sizes, **launch_options(pdl, warps),
    )  # fmt: skip
    _down[(triton.cdiv(hidden, down_n), rows)](
        acts, places, weights, x if onto is None else onto, WIDTH=hidden, BLOCK_N=down_n,
        BLOCK_K=tile_columns(width, like, 1 << 20), SHARED_K=max(16, tile_columns(max(1, shared), like, 1 << 20)),
        **sizes, **launch_options(pdl, down_warps),
    )  # fmt: skip
    return x if onto is None else onto


def _tiles(hidden: int, width: int, like: Weight) -> tuple[tuple[int, int], tuple[int, int]]:
    """Rows of a matrix for one program, and its warps: of gate and up, of down. Packed weights are more work in
    registers: half as many for half as many warps decode a thinker a tenth faster (journal/11-gpu.md)."""
    if interpreted():
        return (16, 4), (32, 4)
    weights, warps = (4096, (2, 4)) if like.format == PACKED else (8192, (4, 8))
    columns = min(triton.next_power_of_2(hidden), 4096), triton.next_power_of_2(width)
    gate_up, down = (max(1, min(8, weights // count)) for count in columns)
    return (gate_up, warps[0]), (down, warps[1])
