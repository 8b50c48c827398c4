// Attention of the query heads that share one key-value head, over a run of positions, with the running softmax of
// Milakov and Gimelshein 2018 (as in FlashAttention): chunk by chunk, so that scores never leave the first-level cache.
#pragma once

#include "kernels.hpp"
#include "row_kernels.hpp"

namespace lluda {
namespace {

constexpr int kChunk = 64;            // positions
constexpr int64_t kRun = 2 * kLanes;  // head elements handled as a pair of vectors

LLUDA_INLINE int64_t padded_head(int64_t head_dim) {
    const int64_t step = kRun > kGroupWeights ? kRun : kGroupWeights;
    return (head_dim + step - 1) / step * step;
}

LLUDA_INLINE int64_t query_floats(int64_t head_dim) { return prepared_bytes(head_dim) / 4; }

// Prepared or padded queries | sums [group, padded] | scores [group, kChunk]
int64_t attend_workspace(int group, int64_t head_dim) {
    const int64_t query =
        query_floats(head_dim) > padded_head(head_dim) ? query_floats(head_dim) : padded_head(head_dim);
    return group * (query + padded_head(head_dim) + kChunk);
}

// Tiles read several positions side by side, which hardware prefetchers do not follow: so the same place of the next
// chunk is fetched into the second-level cache while this one is worked on. Past the cache this touches nothing that
// faults.
template <class Element>
LLUDA_INLINE void prefetch_next_chunk(const Element *here, int64_t dim, int64_t elements) {
    const uintptr_t next = reinterpret_cast<uintptr_t>(here) + static_cast<uintptr_t>(kChunk * dim) * sizeof(Element);
    for (uintptr_t line = 0; line < static_cast<uintptr_t>(elements) * sizeof(Element); line += 64)
        __builtin_prefetch(reinterpret_cast<const void *>(next + line), 0, 2);
}

// A BF16 cache. Keys are to queries what weights are to prepared rows; values come as (even, odd) pairs of vectors.
struct Bf16Cache {
    typedef uint16_t Element;
    typedef Prepared Query;

    static LLUDA_INLINE int64_t query_stride(int64_t dim) {
        return prepared_bytes(dim) / static_cast<int64_t>(sizeof(Prepared));
    }
    static LLUDA_INLINE void put_query(const float *x, int64_t dim, Query *out) { prepare_f32(x, dim, out); }

    template <int Queries, int Positions>
    static LLUDA_INLINE void score(const Query *query, int64_t stride, const Element *const *keys, int64_t dim,
                                   Floats *sums) {
        for (int64_t i = 0; i < dim; i += kGroupWeights)
            for (int p = 0; p < Positions; ++p) {
                const Group key =
                    dim - i >= kGroupWeights ? load_group(keys[p] + i) : load_group_part(keys[p] + i, dim - i);
                for (int q = 0; q < Queries; ++q)
                    sums[q * Positions + p] = multiply_add(sums[q * Positions + p], key, query + q * stride + i);
            }
    }

    static LLUDA_INLINE void pair(const Element *p, Floats &even, Floats &odd) {
        const Words words = *reinterpret_cast<const WordsInMemory *>(p);
        even = as_floats(words << 16);
        odd = as_floats(words & 0xffff0000u);
    }
    // Element i of a run is in lane i / 2 of the even or odd vector.
    static LLUDA_INLINE int64_t place(int64_t i) { return i / kRun * kRun + i % 2 * kLanes + i % kRun / 2; }
};

struct F32Cache {
    typedef float Element;
    typedef float Query;

    static LLUDA_INLINE int64_t query_stride(int64_t dim) { return padded_head(dim); }
    static LLUDA_INLINE void put_query(const float *x, int64_t dim, Query *out) {
        memset(out, 0, static_cast<size_t>(padded_head(dim)) * 4);
        memcpy(out, x, static_cast<size_t>(dim) * 4);
    }

    template <int Queries, int Positions>
    static LLUDA_INLINE void score(const Query *query, int64_t stride, const Element *const *keys, int64_t dim,
                                   Floats *sums) {
        for (int64_t i = 0; i < dim; i += kLanes)
            for (int p = 0; p < Positions; ++p) {
                const Floats key = dim - i >= kLanes ? load(keys[p] + i) : load_part(keys[p] + i, dim - i);
                for (int q = 0; q < Queries; ++q) sums[q * Positions + p] += key * load(query + q * stride + i);
            }
    }

    static LLUDA_INLINE void pair(const Element *p, Floats &first, Floats &second) {
        first = load(p);
        second = load(p + kLanes);
    }
    static LLUDA_INLINE int64_t place(int64_t i) { return i; }
};

// scores[q][p] for Queries x Positions of them: 16 sums in registers. Positions past `count` repeat the last.
template <class Cache, int Queries, int Positions>
LLUDA_INLINE void score_tile(const AttendTask &task, const typename Cache::Query *query,
                             const typename Cache::Element *keys, int count, float *scores) {
    static_assert(Queries * Positions == 16, "sum_16 finishes a tile");
    const int64_t dim = task.head_dim;
    for (int p = 0; p < count; p += Positions) {
        const typename Cache::Element *at[Positions];
        for (int i = 0; i < Positions; ++i) at[i] = keys + smaller(p + i, count - 1) * dim;
        prefetch_next_chunk(at[0], dim, Positions * dim);
        Floats sums[16] = {};
        Cache::template score<Queries, Positions>(query, Cache::query_stride(dim), at, dim, sums);
        float out[16];
        sum_16(sums, out);
        for (int q = 0; q < Queries; ++q)
            for (int i = 0; i < Positions; ++i) scores[q * kChunk + p + i] = out[q * Positions + i] * task.scale;
    }
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
        const int64_t n = smaller(count - p, kLanes);
        store_part(scores + p, exponential(load_part(scores + p, n) - top), n);
        total += load_part(scores + p, n);
    }
    task.total[q] += sum(total);
}

// sums[q] += weights[q][p] * values[p] for Queries query heads and Runs runs of head elements from `from` on.
template <class Cache, int Queries, int Runs>
LLUDA_INLINE void weigh_runs(const float *weights, const typename Cache::Element *values, int count, int64_t dim,
                             int64_t padded, int64_t from, float *sums) {
    Floats a[Queries][2 * Runs];
    for (int q = 0; q < Queries; ++q)
        for (int v = 0; v < 2 * Runs; ++v) a[q][v] = load(sums + q * padded + from + v * kLanes);
    for (int p = 0; p < count; ++p) {
        prefetch_next_chunk(values + p * dim + from, dim, Runs * kRun);
        for (int run = 0; run < Runs; ++run) {
            Floats first, second;
            Cache::pair(values + p * dim + from + run * kRun, first, second);
            for (int q = 0; q < Queries; ++q) {
                a[q][2 * run] += first * weights[q * kChunk + p];
                a[q][2 * run + 1] += second * weights[q * kChunk + p];
            }
        }
    }
    for (int q = 0; q < Queries; ++q)
        for (int v = 0; v < 2 * Runs; ++v) store(sums + q * padded + from + v * kLanes, a[q][v]);
}

// The elements after the last whole run, one position at a time through a padded copy.
template <class Cache, int Queries>
LLUDA_INLINE void weigh_rest(const float *weights, const typename Cache::Element *values, int count, int64_t dim,
                             int64_t padded, int64_t from, float *sums) {
    for (int p = 0; p < count; ++p) {
        typename Cache::Element rest[kRun] = {};
        memcpy(rest, values + p * dim + from, static_cast<size_t>(dim - from) * sizeof(rest[0]));
        Floats first, second;
        Cache::pair(rest, first, second);
        for (int q = 0; q < Queries; ++q) {
            float *at = sums + q * padded + from;
            store(at, load(at) + first * weights[q * kChunk + p]);
            store(at + kLanes, load(at + kLanes) + second * weights[q * kChunk + p]);
        }
    }
}

template <class Cache, int Queries>
LLUDA_INLINE void weigh_values(const float *weights, const typename Cache::Element *values, int count, int64_t dim,
                               int64_t padded, float *sums) {
    constexpr int kRuns = Queries == 4 ? 1 : 2;  // eight sums at least, to hide the latency of the additions
    int64_t i = 0;
    for (; i + kRuns * kRun <= dim; i += kRuns * kRun)
        weigh_runs<Cache, Queries, kRuns>(weights, values, count, dim, padded, i, sums);
    for (; i + kRun <= dim; i += kRun) weigh_runs<Cache, Queries, 1>(weights, values, count, dim, padded, i, sums);
    if (i < dim) weigh_rest<Cache, Queries>(weights, values, count, dim, padded, i, sums);
}

template <class Cache>
LLUDA_INLINE void attend_chunk(const AttendTask &task, const typename Cache::Query *query, float *sums, float *scores,
                               const typename Cache::Element *keys, const typename Cache::Element *values, int count) {
    const int64_t dim = task.head_dim, stride = Cache::query_stride(dim), padded = padded_head(dim);
    int q = 0;
    for (; q + 4 <= task.group; q += 4)
        score_tile<Cache, 4, 4>(task, query + q * stride, keys, count, scores + q * kChunk);
    for (; q + 2 <= task.group; q += 2)
        score_tile<Cache, 2, 8>(task, query + q * stride, keys, count, scores + q * kChunk);
    for (; q < task.group; ++q) score_tile<Cache, 1, 16>(task, query + q * stride, keys, count, scores + q * kChunk);
    for (q = 0; q < task.group; ++q) soften(task, q, count, scores + q * kChunk, sums + q * padded, padded);
    for (q = 0; q + 4 <= task.group; q += 4)
        weigh_values<Cache, 4>(scores + q * kChunk, values, count, dim, padded, sums + q * padded);
    for (; q + 2 <= task.group; q += 2)
        weigh_values<Cache, 2>(scores + q * kChunk, values, count, dim, padded, sums + q * padded);
    for (; q < task.group; ++q)
        weigh_values<Cache, 1>(scores + q * kChunk, values, count, dim, padded, sums + q * padded);
}

template <class Cache>
void attend_in(const AttendTask &task) {
    typedef typename Cache::Element Element;
    typedef typename Cache::Query Query;
    const int64_t dim = task.head_dim, padded = padded_head(dim), stride = Cache::query_stride(dim);
    float *sums = task.workspace;
    float *scores = sums + task.group * padded;
    Query *query = reinterpret_cast<Query *>(scores + task.group * kChunk);
    memset(sums, 0, static_cast<size_t>(task.group * padded) * 4);
    for (int q = 0; q < task.group; ++q) {
        Cache::put_query(task.query + q * dim, dim, query + q * stride);
        task.top[q] = -__builtin_inff();
        task.total[q] = 0.0f;
    }
    const Element *keys = static_cast<const Element *>(task.keys), *values = static_cast<const Element *>(task.values);
    for (int64_t from = task.begin; from < task.end; from += kChunk) {
        const int count = static_cast<int>(smaller(task.end - from, kChunk));
        attend_chunk<Cache>(task, query, sums, scores, keys + from * dim, values + from * dim, count);
    }
    for (int q = 0; q < task.group; ++q)
        for (int64_t i = 0; i < dim; ++i) task.out[q * dim + i] = sums[q * padded + Cache::place(i)];
}

void attend(const AttendTask &task) {
    if (task.cache_is_bf16) {
        attend_in<Bf16Cache>(task);
    } else {
        attend_in<F32Cache>(task);
    }
}

}  // namespace
}  // namespace lluda
