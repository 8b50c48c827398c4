// Attention of up to 64 rows of one sequence and query head: chunk by chunk of positions with a running softmax (Dao et
// al. 2022), two tile products each. Queries are lanes, so that softmax needs nothing from its neighbours; chunks that
// no row sees are never read.
#pragma once

#include "attend_kernel.hpp"
#include "panel_kernel.hpp"

namespace lluda {
namespace {

constexpr int kTileChunk = 96;         // positions
constexpr float kNothingYet = -1e30f;  // top of a row before the first score; scores that are hidden are -inf

// Sums [head_dim][kTileRows] | scores, then weights [kTileChunk][kTileRows] | keys and values of a chunk as words
int64_t attend_tile_workspace(int64_t head_dim) {
    return (head_dim + kTileChunk) * kTileRows + 2 * kTileChunk * head_dim;
}

#if LLUDA_BF16_PAIRS

// A BF16 cache on a machine with pairs: keys are words as they lie; values are paired position by position.
struct PairChunk {
    static constexpr int kPerWord = 2;
    static constexpr bool kFloats = false;

    static LLUDA_INLINE const void *keys(const AttendTileTask &task, int64_t begin, int, uint32_t *) {
        return static_cast<const uint16_t *>(task.keys) + begin * task.head_dim;
    }
    static LLUDA_INLINE const void *values(const AttendTileTask &task, int64_t begin, int count, uint32_t *buffer) {
        const int64_t dim = task.head_dim;
        const uint16_t *from = static_cast<const uint16_t *>(task.values) + begin * dim;
        for (int p = 0; p < count; p += 2, from += 2 * dim, buffer += dim) {
            const bool alone = p + 1 == count;
            int64_t i = 0;
            for (; i + kLanes <= dim; i += kLanes)
                store_words(buffer + i,
                            alone ? load_halves(from + i) : load_halves(from + i) | load_halves(from + dim + i) << 16);
            for (; i < dim; ++i) buffer[i] = alone ? from[i] : from[i] | static_cast<uint32_t>(from[dim + i]) << 16;
        }
        return buffer - (count + 1) / 2 * dim;
    }
};

#endif

// Keys and values as floats, in place or widened.
struct FloatChunk {
    static constexpr int kPerWord = 1;
    static constexpr bool kFloats = true;

    static LLUDA_INLINE const void *floats(const AttendTileTask &task, const void *cache, int64_t begin, int count,
                                           uint32_t *buffer) {
        const int64_t dim = task.head_dim;
        if (!task.cache_is_bf16) return static_cast<const float *>(cache) + begin * dim;
        from_bf16(static_cast<const uint16_t *>(cache) + begin * dim, count * dim, reinterpret_cast<float *>(buffer));
        return buffer;
    }
    static LLUDA_INLINE const void *keys(const AttendTileTask &task, int64_t begin, int count, uint32_t *buffer) {
        return floats(task, task.keys, begin, count, buffer);
    }
    static LLUDA_INLINE const void *values(const AttendTileTask &task, int64_t begin, int count, uint32_t *buffer) {
        return floats(task, task.values, begin, count, buffer);
    }
};

// Scores of `count` positions from `begin` on that a row may not see become -inf.
LLUDA_INLINE void hide(const AttendTileTask &task, int64_t begin, int count, int lane, float *scores) {
    Ints after, last;  // visible: after < p <= last
    for (int l = 0; l < kLanes; ++l) {
        const int64_t position = task.positions[lane + l] - begin;
        last[l] = static_cast<int32_t>(smaller(position, count));
        after[l] = -1;
        if (task.window > 0 && position - task.window > -1)
            after[l] = static_cast<int32_t>(smaller(position - task.window, count));
    }
    const Floats hidden = broadcast(-__builtin_inff());
    for (int p = 0; p < count; ++p) {
        const Ints here = p - Ints{};
        float *at = scores + p * kTileRows;
        store(at, ((here > after) & (here <= last)) ? load(at) : hidden);
    }
}

// A vector of rows: scores to weights exp(score - top), which are rounded to BF16 words if paired.
template <class Chunk>
LLUDA_INLINE void soften_lanes(const AttendTileTask &task, int count, float *scores, float *sums, float *top,
                               float *total) {
    Floats highest = load(top);
    for (int p = 0; p < count; ++p) {
        const Floats score = load(scores + p * kTileRows) * task.scale;
        store(scores + p * kTileRows, score);
        highest = greater(score, highest);
    }
    const Floats shrink = exponential(load(top) - highest);
    Floats sum = load(total) * shrink;
    for (int64_t i = 0; i < task.head_dim; ++i) store(sums + i * kTileRows, load(sums + i * kTileRows) * shrink);
    for (int p = 0; p < count; p += Chunk::kPerWord) {
        Floats weight = exponential(load(scores + p * kTileRows) - highest);
        if constexpr (Chunk::kPerWord == 1) {
            sum += weight;
            store(scores + p * kTileRows, weight);
        } else {
            Words word = bf16_bits(weight);
            sum += as_floats(word << 16);
            if (p + 1 < count) {
                const Words next = bf16_bits(exponential(load(scores + (p + 1) * kTileRows) - highest)) << 16;
                sum += as_floats(next);
                word |= next;
            }
            store(scores + p / 2 * kTileRows, as_floats(word));
        }
    }
    store(top, highest);
    store(total, sum);
}

// Results to the panel; lanes outside begin .. end-1 belong to others.
LLUDA_INLINE void put_attended(const AttendTileTask &task, int lane, const float *sums, const float *total) {
    uint32_t *out = static_cast<uint32_t *>(task.out) + lane;
    const Floats factor = 1.0f / load(total);
    const bool whole = lane >= task.begin && lane + kLanes <= task.end;
    for (int64_t i = 0; i < task.head_dim; i += kColumnsPerWord, out += task.width) {
        Words word = bf16_bits(load(sums + i * kTileRows) * factor);
        if constexpr (kColumnsPerWord == 1) {
            word <<= 16;
        } else {
            word |= bf16_bits(load(sums + (i + 1) * kTileRows) * factor) << 16;
        }
        if (whole) {
            store_words(out, word);
        } else {
            for (int l = 0; l < kLanes; ++l)
                if (lane + l >= task.begin && lane + l < task.end) out[l] = word[l];
        }
    }
}

template <class Chunk>
void attend_tile_in(const AttendTileTask &task) {
    const int64_t dim = task.head_dim;
    const int first = task.begin / kPanelRows * kPanelRows;
    const int lanes = (task.end - first + kPanelRows - 1) / kPanelRows * kPanelRows;
    float *sums = task.workspace, *scores = sums + dim * kTileRows;
    uint32_t *keys = reinterpret_cast<uint32_t *>(scores + kTileChunk * kTileRows), *values = keys + kTileChunk * dim;
    float top[kTileRows], total[kTileRows];
    for (int l = 0; l < kTileRows; ++l) {
        top[l] = kNothingYet;
        total[l] = 0.0f;
    }
    memset(sums, 0, static_cast<size_t>(dim * kTileRows) * 4);
    int64_t lowest = task.positions[task.begin], highest = lowest;
    for (int l = task.begin; l < task.end; ++l) {
        lowest = task.positions[l] < lowest ? task.positions[l] : lowest;
        highest = task.positions[l] > highest ? task.positions[l] : highest;
    }
    const int64_t start = task.window > 0 && lowest + 1 > task.window ? lowest + 1 - task.window : 0;
    for (int64_t begin = start; begin <= highest; begin += kTileChunk) {
        const int count = static_cast<int>(smaller(highest + 1 - begin, kTileChunk));
        TileTask product{};
        product.multiplicands = Chunk::keys(task, begin, count, keys);
        product.words = product.output_stride = dim / Chunk::kPerWord;
        product.word_stride = 1;
        product.outputs = count;
        product.panel = static_cast<const uint32_t *>(task.query) + first;
        product.panel_width = task.width;
        product.lanes = lanes;
        product.floats = Chunk::kFloats;
        product.out = scores + first;
        multiply_tile(product);
        const bool hidden = begin + count > lowest + 1 || (task.window > 0 && begin < highest + 1 - task.window);
        for (int lane = first; lane < first + lanes; lane += kLanes) {
            if (hidden) hide(task, begin, count, lane, scores + lane);
            soften_lanes<Chunk>(task, count, scores + lane, sums + lane, top + lane, total + lane);
        }
        product.multiplicands = Chunk::values(task, begin, count, values);
        product.words = (count + Chunk::kPerWord - 1) / Chunk::kPerWord;
        product.output_stride = 1;
        product.word_stride = dim;
        product.outputs = static_cast<int>(dim);
        product.panel = scores + first;
        product.panel_width = kTileRows;
        product.accumulate = true;
        product.out = sums + first;
        multiply_tile(product);
    }
    for (int lane = first; lane < first + lanes; lane += kLanes) put_attended(task, lane, sums + lane, total + lane);
}

void attend_tile(const AttendTileTask &task) {
#if LLUDA_BF16_PAIRS
    if (task.cache_is_bf16) return attend_tile_in<PairChunk>(task);
#endif
    attend_tile_in<FloatChunk>(task);
}

}  // namespace
}  // namespace lluda
