"""All layers of a small dense network over one row in one launch, in Triton: programs stay, one a multiprocessor, and
hand each other their numbers.

A number that another program waits for is written as a word of 64 bits: the number, and the epoch in which it was made.
Who needs it reads until every word is of that epoch, which takes one way through the cache, where a grid barrier takes
three (write and fence, count, look, then read). An epoch is a layer of a launch: nothing is ever reset, so a captured
launch can be replayed. A word is written again only by who has received what all its readers made of it. As soon as a
program has the numbers of a phase, it asks for its weights of the next, which lie in registers until then.

Programs wait for each other, so that all must be on the device at once: there is a program for each multiprocessor, and
the launch is a cooperative one.
"""

import triton
import triton.language as tl

from lluda.backends.triton_attention import attend_block, cache_block, combine, turn

ENTRIES = 8
"""Numbers of a layer in the table: addresses of q, k, v, o, gate, up and down, and the window."""

_ENTRIES = tl.constexpr(ENTRIES)


@triton.jit
def _publish(words_ptr, at, values, epoch, mask):
    bits = values.to(tl.int32, bitcast=True).to(tl.int64) & 0xFFFFFFFF
    tl.store(words_ptr + at, (epoch.to(tl.int64) << 32) | bits, mask=mask)


@triton.jit
def _late(words, epoch, mask):
    """Which words are not of the epoch."""
    return (mask & ((words >> 32).to(tl.int32) != epoch)).to(tl.int32)


@triton.jit
def _number(words):
    return words.to(tl.int32).to(tl.float32, bitcast=True)


@triton.jit
def _words(words_ptr, here, K: tl.constexpr, DEEP: tl.constexpr, WIDE: tl.constexpr):
    words = ()
    for chunk in tl.static_range(DEEP):
        at = chunk * WIDE + tl.arange(0, WIDE)
        words += (tl.load(words_ptr + at, mask=here & (at < K), other=0, volatile=True),)
    return words


@triton.jit
def _missing(words, epoch, here, K: tl.constexpr, DEEP: tl.constexpr, WIDE: tl.constexpr):
    late = _late(words[0], epoch, here & (tl.arange(0, WIDE) < K))
    for chunk in tl.static_range(1, DEEP):
        late += _late(words[chunk], epoch, here & (chunk * WIDE + tl.arange(0, WIDE) < K))
    return tl.sum(late, 0)


@triton.jit
def _receive(words_ptr, epoch, here, K: tl.constexpr, DEEP: tl.constexpr, WIDE: tl.constexpr):
    """K numbers of the epoch in DEEP vectors; zeros, not waited for, unless ``here``."""
    words = _words(words_ptr, here, K, DEEP, WIDE)
    while _missing(words, epoch, here, K, DEEP, WIDE) > 0:
        words = _words(words_ptr, here, K, DEEP, WIDE)
    numbers = ()
    for chunk in tl.static_range(DEEP):
        numbers += (_number(words[chunk]),)
    return numbers


@triton.jit
def _load(ptr, here, K: tl.constexpr, DEEP: tl.constexpr, WIDE: tl.constexpr):
    vectors = ()
    for chunk in tl.static_range(DEEP):
        at = chunk * WIDE + tl.arange(0, WIDE)
        vectors += (tl.load(ptr + at, mask=here & (at < K), other=0.0),)
    return vectors


@triton.jit
def _sum(one, other, DEEP: tl.constexpr):
    both = ()
    for chunk in tl.static_range(DEEP):
        both += (one[chunk] + other[chunk],)
    return both


@triton.jit
def _addresses(first, second, third, n, N0: tl.constexpr, N1: tl.constexpr, ROW: tl.constexpr):
    """Of rows ``n``, ROW bytes each, of up to three matrices of N0, N1 and more rows, one below the other."""
    place = n.to(tl.int64) * ROW
    if N1 > 0:
        second -= N0 * ROW
        third -= (N0 + N1) * ROW
        return place + tl.where(n < N0, first, tl.where(n < N0 + N1, second, third))
    else:
        return place + first


@triton.jit
def _entries(row_ptr):
    """A layer's numbers in the table."""
    return (tl.load(row_ptr), tl.load(row_ptr + 1), tl.load(row_ptr + 2), tl.load(row_ptr + 3), tl.load(row_ptr + 4),
            tl.load(row_ptr + 5), tl.load(row_ptr + 6), tl.load(row_ptr + 7))  # fmt: skip


@triton.jit
def _rows(pid, part, PARTS: tl.constexpr, ROWS: tl.constexpr):
    return (pid * PARTS + part) * ROWS + tl.arange(0, ROWS)


@triton.jit
def _fetch(first, second, third, count, pid, N0: tl.constexpr, N1: tl.constexpr, K: tl.constexpr, PARTS: tl.constexpr,
           ROWS: tl.constexpr, DEEP: tl.constexpr, WIDE: tl.constexpr, WEIGHT: tl.constexpr):  # fmt: skip
    """A program's rows of the matrices, of which there are ``count`` in all: tiles ``[ROWS, WIDE]``, DEEP of them for
    each of PARTS."""
    tiles = ()
    for part in tl.static_range(PARTS):
        n = _rows(pid, part, PARTS, ROWS)
        at = _addresses(first, second, third, n, N0, N1, K * WEIGHT.primitive_bitwidth // 8)
        rows = tl.multiple_of(at.to(tl.pointer_type(WEIGHT)), 16 if K * WEIGHT.primitive_bitwidth % 128 == 0 else 2)
        for chunk in tl.static_range(DEEP):
            columns = chunk * WIDE + tl.arange(0, WIDE)
            inside = (n < count)[:, None] & (columns < K)[None, :]
            tiles += (tl.load(rows[:, None] + columns[None, :], mask=inside, other=0.0),)
    return tiles


@triton.jit
def _product(tiles, x, part: tl.constexpr, DEEP: tl.constexpr):
    sums = tiles[part * DEEP].to(tl.float32) * x[0][None, :]
    for chunk in tl.static_range(1, DEEP):
        sums += tiles[part * DEEP + chunk].to(tl.float32) * x[chunk][None, :]
    return tl.sum(sums, 1)


@triton.jit
def _normed(x, weight, eps, K: tl.constexpr, DEEP: tl.constexpr, COMPUTE: tl.constexpr):
    squares = x[0] * x[0]
    for chunk in tl.static_range(1, DEEP):
        squares += x[chunk] * x[chunk]
    scale = tl.rsqrt(tl.sum(squares, 0) / K + eps)
    normed = ()
    for chunk in tl.static_range(DEEP):
        normed += ((x[chunk] * scale * weight[chunk]).to(COMPUTE).to(tl.float32),)
    return normed


@triton.jit
def _row(values, index, chosen):
    return tl.sum(tl.where((index == chosen)[:, None], values, 0.0), 0)


@triton.jit
def _attend(qkv, attended, part_ptr, stat_ptr, counter_ptr, store_ptr, cos, sin, norm_ptr, eps, window, layer,
            index, epoch, pid,
            PROGRAMS: tl.constexpr, HEADS: tl.constexpr, KV_HEADS: tl.constexpr, HALF: tl.constexpr,
            WIDE: tl.constexpr, PADDED: tl.constexpr, BLOCK: tl.constexpr, SPLITS: tl.constexpr, LEAST: tl.constexpr,
            NORM: tl.constexpr, COMPUTE: tl.constexpr, CACHE: tl.constexpr):  # fmt: skip
    """The row's attention in one layer: each key head, and each part of a long cache, by another program."""
    GROUP: tl.constexpr = HEADS // KV_HEADS
    DIM: tl.constexpr = 2 * HALF
    length = tl.load(store_ptr + 2) + index
    capacity = tl.load(store_ptr + 3)
    count = tl.minimum(length + 1, capacity).to(tl.int32)
    slot = (length % capacity).to(tl.int32)
    low = tl.maximum(count - window, 0)
    per = tl.maximum(tl.cdiv(tl.cdiv(count - low, SPLITS), BLOCK) * BLOCK, LEAST)
    used = tl.cdiv(count - low, per)
    d, wide, g = tl.arange(0, WIDE), tl.arange(0, 2 * WIDE), tl.arange(0, PADDED)
    half, whole = d < HALF, wide < DIM
    for item in range(pid, KV_HEADS * used, PROGRAMS):
        head, split = item % KV_HEADS, item // KV_HEADS
        start = low + split * per
        end = tl.minimum(start + per, count)
        place = (layer * KV_HEADS + head) * capacity * DIM
        keys = tl.multiple_of(tl.load(store_ptr).to(tl.pointer_type(CACHE)), 16) + place
        values = tl.multiple_of(tl.load(store_ptr + 1).to(tl.pointer_type(CACHE)), 16) + place
        k1, k2, v = cache_block(keys, values, start + tl.arange(0, BLOCK), end, HALF, WIDE)
        # Below the query heads stand, in the same tensor, their key head and its values.
        line = tl.where(g < GROUP, head * GROUP + g, HEADS + head + (g - GROUP) * KV_HEADS)
        at = line[:, None] * DIM + d[None, :]
        inside = (g < GROUP + 2)[:, None] & half[None, :]
        lower = tl.load(qkv + at, mask=inside, other=0, volatile=True)
        upper = tl.load(qkv + at + HALF, mask=inside, other=0, volatile=True)
        while tl.sum(_late(lower, epoch, inside) + _late(upper, epoch, inside)) > 0:
            lower = tl.load(qkv + at, mask=inside, other=0, volatile=True)
            upper = tl.load(qkv + at + HALF, mask=inside, other=0, volatile=True)
        a, b = _number(lower), _number(upper)
        value1, value2 = _row(a, g, GROUP + 1), _row(b, g, GROUP + 1)
        norm = norm_ptr + tl.where(g == GROUP, DIM, 0)[:, None] + d[None, :]
        a, b = turn(a, b, norm, eps, cos, sin, HALF, NORM)
        key1, key2 = _row(a, g, GROUP).to(CACHE), _row(b, g, GROUP).to(CACHE)
        query1, query2 = a.to(CACHE), b.to(CACHE)
        value = tl.reshape(tl.trans(tl.join(value1, value2)), [2 * WIDE]).to(CACHE)
        if (slot >= start) & (slot < end):
            tl.store(keys + slot * DIM + d, key1, mask=half)
            tl.store(keys + slot * DIM + HALF + d, key2, mask=half)
            tl.store(values + slot * DIM + d, value1.to(CACHE), mask=half)
            tl.store(values + slot * DIM + HALF + d, value2.to(CACHE), mask=half)
        highest = tl.full([PADDED], float("-inf"), tl.float32)
        total = tl.zeros([PADDED], tl.float32)
        mixed = tl.zeros([PADDED, 2 * WIDE], tl.float32)
        for block in range(start, end, BLOCK):
            slots = block + tl.arange(0, BLOCK)
            here = (slots == slot)[:, None]
            k1, k2 = tl.where(here, key1[None, :], k1), tl.where(here, key2[None, :], k2)
            v = tl.where(here, value[None, :], v)
            highest, total, mixed = attend_block(
                query1, query2, k1, k2, v, slots < end, highest, total, mixed, DIM, CACHE
            )
            k1, k2, v = cache_block(keys, values, slots + BLOCK, end, HALF, WIDE)
        total, mixed, last = combine(
            highest, total, mixed, head, split, used, part_ptr, stat_ptr, counter_ptr, SPLITS, PADDED, WIDE
        )
        if last:
            rows = (mixed / total[:, None]).to(COMPUTE).to(tl.float32)
            out = (head * GROUP + g)[:, None] * DIM + wide[None, :]
            _publish(attended, out, rows, epoch, (g < GROUP)[:, None] & whole[None, :])


@triton.jit
def run_layers(x_ptr, cos_ptr, sin_ptr, store_ptr, table_ptr, norm_ptr, head_norm_ptr, scale_ptr, words_ptr, epoch_ptr,
               part_ptr, stat_ptr, counter_ptr, eps, layers, index,
               PROGRAMS: tl.constexpr, HIDDEN: tl.constexpr, INNER: tl.constexpr, HEADS: tl.constexpr,
               KV_HEADS: tl.constexpr, HALF: tl.constexpr, WIDE: tl.constexpr, PADDED: tl.constexpr,
               BLOCK: tl.constexpr, SPLITS: tl.constexpr, LEAST: tl.constexpr,
               QKV_PARTS: tl.constexpr, QKV_ROWS: tl.constexpr, X_PARTS: tl.constexpr, X_ROWS: tl.constexpr,
               I_PARTS: tl.constexpr, I_ROWS: tl.constexpr,
               X_DEEP: tl.constexpr, X_WIDE: tl.constexpr, A_DEEP: tl.constexpr, A_WIDE: tl.constexpr,
               I_DEEP: tl.constexpr, I_WIDE: tl.constexpr, NORM: tl.constexpr, SCALE: tl.constexpr,
               WEIGHT: tl.constexpr, CACHE: tl.constexpr):  # fmt: skip
    """Row ``x_ptr [HIDDEN]``, float32, through all layers in place; it is row ``index`` of those that the store is
    given. ``norm_ptr`` and ``scale_ptr`` are ``[layers, 2, HIDDEN]``, ``head_norm_ptr [layers, 2, 2 * HALF]``."""
    pid = tl.program_id(0)
    Q: tl.constexpr = HEADS * 2 * HALF
    KV: tl.constexpr = KV_HEADS * 2 * HALF
    QKV: tl.constexpr = Q + 2 * KV
    qkv, attended = words_ptr, words_ptr + QKV
    middle, acts = attended + Q, attended + Q + HIDDEN
    ends = acts + INNER
    epoch = tl.load(epoch_ptr + pid)
    # Who has no rows of a phase does not wait for its input: it could miss the time until that is written again.
    for_qkv, for_inner = pid * (QKV_PARTS * QKV_ROWS) < QKV, pid * (I_PARTS * I_ROWS) < INNER
    for_x = pid * (X_PARTS * X_ROWS) < HIDDEN
    d = tl.arange(0, WIDE)
    cos = tl.load(cos_ptr + d, mask=d < HALF, other=0.0)
    sin = tl.load(sin_ptr + d, mask=d < HALF, other=0.0)
    residual = ()
    for part in tl.static_range(X_PARTS):
        n = _rows(pid, part, X_PARTS, X_ROWS)
        residual += (tl.load(x_ptr + n, mask=n < HIDDEN, other=0.0),)
    q, k, v, o, gate, up, down, window = _entries(table_ptr)
    tiles = _fetch(q, k, v, QKV, pid, Q, KV, HIDDEN, QKV_PARTS, QKV_ROWS, X_DEEP, X_WIDE, WEIGHT)
    for layer in range(layers):
        more = layer + 1 < layers
        next_q, next_k, next_v, next_o, next_gate, next_up, next_down, next_window = _entries(
            table_ptr + tl.where(more, layer + 1, layer) * _ENTRIES
        )
        epoch += 1

        weight = _load(norm_ptr + layer * (2 * HIDDEN), for_qkv, HIDDEN, X_DEEP, X_WIDE)
        x = _receive(ends, epoch - 1, for_qkv & (layer > 0), HIDDEN, X_DEEP, X_WIDE)
        x = _sum(x, _load(x_ptr, for_qkv & (layer == 0), HIDDEN, X_DEEP, X_WIDE), X_DEEP)
        tiles_o = _fetch(o, o, o, HIDDEN, pid, HIDDEN, 0, Q, X_PARTS, X_ROWS, A_DEEP, A_WIDE, WEIGHT)
        x = _normed(x, weight, eps, HIDDEN, X_DEEP, WEIGHT)
        for part in tl.static_range(QKV_PARTS):
            n = _rows(pid, part, QKV_PARTS, QKV_ROWS)
            _publish(qkv, n, _product(tiles, x, part, X_DEEP), epoch, n < QKV)

        _attend(qkv, attended, part_ptr, stat_ptr, counter_ptr, store_ptr, cos, sin,
                head_norm_ptr + layer * (4 * HALF), eps, window.to(tl.int32), layer, index, epoch, pid, PROGRAMS, HEADS,
                KV_HEADS, HALF, WIDE, PADDED, BLOCK, SPLITS, LEAST, NORM, WEIGHT, CACHE)  # fmt: skip

        a = _receive(attended, epoch, for_x, Q, A_DEEP, A_WIDE)
        gates = _fetch(gate, gate, gate, INNER, pid, INNER, 0, HIDDEN, I_PARTS, I_ROWS, X_DEEP, X_WIDE, WEIGHT)
        ups = _fetch(up, up, up, INNER, pid, INNER, 0, HIDDEN, I_PARTS, I_ROWS, X_DEEP, X_WIDE, WEIGHT)
        after = ()
        for part in tl.static_range(X_PARTS):
            n = _rows(pid, part, X_PARTS, X_ROWS)
            sums = _product(tiles_o, a, part, A_DEEP)
            if SCALE:
                sums *= tl.load(scale_ptr + layer * (2 * HIDDEN) + n, mask=n < HIDDEN, other=0.0)
            after += (residual[part] + sums,)
            _publish(middle, n, after[part], epoch, n < HIDDEN)

        weight = _load(norm_ptr + layer * (2 * HIDDEN) + HIDDEN, for_inner, HIDDEN, X_DEEP, X_WIDE)
        x = _receive(middle, epoch, for_inner, HIDDEN, X_DEEP, X_WIDE)
        tiles_d = _fetch(down, down, down, HIDDEN, pid, HIDDEN, 0, INNER, X_PARTS, X_ROWS, I_DEEP, I_WIDE, WEIGHT)
        x = _normed(x, weight, eps, HIDDEN, X_DEEP, WEIGHT)
        for part in tl.static_range(I_PARTS):
            n = _rows(pid, part, I_PARTS, I_ROWS)
            g = _product(gates, x, part, X_DEEP)
            act = g / (1.0 + tl.exp(-g)) * _product(ups, x, part, X_DEEP)
            _publish(acts, n, act.to(WEIGHT).to(tl.float32), epoch, n < INNER)

        a = _receive(acts, epoch, for_x, INNER, I_DEEP, I_WIDE)
        count = tl.where(more, QKV, 0)
        tiles = _fetch(next_q, next_k, next_v, count, pid, Q, KV, HIDDEN, QKV_PARTS, QKV_ROWS, X_DEEP, X_WIDE, WEIGHT)
        residual = ()
        for part in tl.static_range(X_PARTS):
            n = _rows(pid, part, X_PARTS, X_ROWS)
            sums = _product(tiles_d, a, part, I_DEEP)
            if SCALE:
                sums *= tl.load(scale_ptr + layer * (2 * HIDDEN) + HIDDEN + n, mask=n < HIDDEN, other=0.0)
            residual += (after[part] + sums,)
            _publish(ends, n, residual[part], epoch, n < HIDDEN)

        q, k, v, o, gate, up, down, window = next_q, next_k, next_v, next_o, next_gate, next_up, next_down, next_window
    for part in tl.static_range(X_PARTS):
        n = _rows(pid, part, X_PARTS, X_ROWS)
        tl.store(x_ptr + n, residual[part], mask=n < HIDDEN)
    tl.store(epoch_ptr + pid, epoch)
