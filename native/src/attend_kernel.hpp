// Attention of the query heads that share one key-value head, over a run of positions, with the running softmax of
// Milakov and Gimelshein 2018 (as in FlashAttention): chunk by chunk, so that scores never leave the cache.
#pragma once

#include "kernels.hpp"
#include "row_kernels.hpp"

namespace lluda {
namespace {

constexpr int kChunk = 32;  // positions; 32 x 128 floats are 16 KiB, half a first-level cache

LLUDA_INLINE int64_t padded_head(int64_t head_dim) { return (head_dim + kLanes - 1) / kLanes * kLanes; }

// Widened rows [kChunk, padded] | padded queries [group, padded] | sums [group, padded] | scores [group, kChunk]
int64_t attend_workspace(int group, int64_t head_dim) {
    return padded_head(head_dim) * (kChunk + 2 * group) + group * kChunk;
}

LLUDA_INLINE void widen_rows(const AttendTask &task, const void *cache, int64_t from, int count, int64_t padded,
                             float *out) {
    const int64_t dim = task.head_dim;
    for (int p = 0; p < count; ++p) {
        float *row = out + p * padded;
        const int64_t at = (from + p) * dim;
        for (int64_t i = 0; i < dim; i += kLanes) {
            const int64_t n = dim - i < kLanes ? dim - i : kLanes;
            Floats v;
            if (task.cache_is_bf16) {
                const uint16_t *source = static_cast<const uint16_t *>(cache) + at + i;
                v = n == kLanes ? load_bf16(source) : load_bf16_part(source, n);
            } else {
                const float *source = static_cast<const float *>(cache) + at + i;
                v = n == kLanes ? load(source) : load_part(source, n);
            }
            store(row + i, v);
        }
    }
}

// scores[q][p] for Queries x Positions of them: 16 sums in registers.
template <int Queries, int Positions>
LLUDA_INLINE void score_tile(const float *query, const float *keys, int64_t padded, float *scores) {
    static_assert(Queries * Positions == 16, "sum_16 finishes a tile");
    Floats sums[16] = {};
    for (int64_t i = 0; i < padded; i += kLanes)
        for (int q = 0; q < Queries; ++q) {
            const Floats a = load(query + q * padded + i);
            for (int p = 0; p < Positions; ++p) sums[q * Positions + p] += a * load(keys + p * padded + i);
        }
    float out[16];
    sum_16(sums, out);
    for (int q = 0; q < Queries; ++q)
        for (int p = 0; p < Positions; ++p) scores[q * kChunk + p] = out[q * Positions + p];
}

// Rows of keys beyond the chunk's positions hold older numbers; their scores are not used.
LLUDA_INLINE void score_chunk(const float *query, int group, const float *keys, int count, int64_t padded,
                              float *scores) {
    int q = 0;
    for (; q + 4 <= group; q += 4)
        for (int p = 0; p < count; p += 4)
            score_tile<4, 4>(query + q * padded, keys + p * padded, padded, scores + q * kChunk + p);
    for (; q + 2 <= group; q += 2)
        for (int p = 0; p < count; p += 8)
            score_tile<2, 8>(query + q * padded, keys + p * padded, padded, scores + q * kChunk + p);
    for (; q < group; ++q)
        for (int p = 0; p < count; p += 16)
            score_tile<1, 16>(query + q * padded, keys + p * padded, padded, scores + q * kChunk + p);
}

// Scores to exp(score - top), raising top and shrinking what was summed under the old one.
LLUDA_INLINE void soften(const AttendTask &task, int q, int count, float *scores, float *sums, int64_t padded) {
    float top = task.top[q];
    for (int p = 0; p < count; ++p) top = scores[p] > top ? scores[p] : top;
    if (top > task.top[q]) {
        const float shrink = exponential_of(task.top[q] - top);
        task.total[q] *= shrink;
        for (int64_t i = 0; i < padded; i += kLanes) store(sums + i, load(sums + i) * shrink);
        task.top[q] = top;
    }
    Floats total{};
    for (int p = 0; p < count; p += kLanes) {
        const int n = count - p < kLanes ? count - p : kLanes;
        store_part(scores + p, exponential(load_part(scores + p, n) - top), n);
        total += load_part(scores + p, n);
    }
    task.total[q] += sum(total);
}

// sums[q] += weights[q][p] * values[p], for Queries at a time and two vectors of the head.
template <int Queries>
LLUDA_INLINE void weigh_values(const float *weights, const float *values, int count, int64_t padded, float *sums) {
    int64_t i = 0;
    for (; i + 2 * kLanes <= padded; i += 2 * kLanes) {
        Floats a[Queries], b[Queries];
        for (int q = 0; q < Queries; ++q) {
            a[q] = load(sums + q * padded + i);
            b[q] = load(sums + q * padded + i + kLanes);
        }
        for (int p = 0; p < count; ++p) {
            const Floats v = load(values + p * padded + i), w = load(values + p * padded + i + kLanes);
            for (int q = 0; q < Queries; ++q) {
                a[q] += v * weights[q * kChunk + p];
                b[q] += w * weights[q * kChunk + p];
            }
        }
        for (int q = 0; q < Queries; ++q) {
            store(sums + q * padded + i, a[q]);
            store(sums + q * padded + i + kLanes, b[q]);
        }
    }
    for (; i < padded; i += kLanes)
        for (int q = 0; q < Queries; ++q) {
            Floats a = load(sums + q * padded + i);
            for (int p = 0; p < count; ++p) a += load(values + p * padded + i) * weights[q * kChunk + p];
            store(sums + q * padded + i, a);
        }
}

void attend(const AttendTask &task) {
    const int64_t dim = task.head_dim, padded = padded_head(dim);
    float *rows = task.workspace;
    float *query = rows + kChunk * padded;
    float *sums = query + task.group * padded;
    float *scores = sums + task.group * padded;
    memset(rows, 0, static_cast<size_t>((kChunk + 2 * task.group) * padded) * 4);
    for (int q = 0; q < task.group; ++q) {
        memcpy(query + q * padded, task.query + q * dim, static_cast<size_t>(dim) * 4);
        task.top[q] = -__builtin_inff();
        task.total[q] = 0.0f;
    }
    for (int64_t from = task.begin; from < task.end; from += kChunk) {
        const int count = static_cast<int>(task.end - from < kChunk ? task.end - from : kChunk);
        widen_rows(task, task.keys, from, count, padded, rows);
        score_chunk(query, task.group, rows, count, padded, scores);
        for (int q = 0; q < task.group; ++q)
            soften(task, q, count, scores + q * kChunk, sums + q * padded, padded);
        widen_rows(task, task.values, from, count, padded, rows);
        int q = 0;
        for (; q + 4 <= task.group; q += 4)
            weigh_values<4>(scores + q * kChunk, rows, count, padded, sums + q * padded);
        for (; q + 2 <= task.group; q += 2)
            weigh_values<2>(scores + q * kChunk, rows, count, padded, sums + q * padded);
        for (; q < task.group; ++q) weigh_values<1>(scores + q * kChunk, rows, count, padded, sums + q * padded);
    }
    for (int q = 0; q < task.group; ++q)
        memcpy(task.out + q * dim, sums + q * padded, static_cast<size_t>(dim) * 4);
}

}  // namespace
}  // namespace lluda
