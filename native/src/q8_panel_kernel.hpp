// Products of many rows with Q8_0 weights (panel_kernel.hpp): the weights as words, and panels rounded to Q8_0.
//
// Where words are pairs of BF16 columns they hold q alone, of weights and of rounded rows, and the scales of both
// multiply the sums of blocks. Where words are floats they hold d * q, which is exact in them.
#pragma once

#include "panel_kernel.hpp"
#include "q8_kernel.hpp"

namespace lluda {
namespace {

constexpr int64_t kBlockWords = kQ8Weights / kColumnsPerWord;

LLUDA_INLINE Floats round_floats(Floats v) {
#if defined(__AVX512F__)
    return reinterpret_cast<Floats>(_mm512_roundscale_ps(reinterpret_cast<__m512>(v), 0));
#else
    return __builtin_convertvector(nearest_integers(v), Floats);
#endif
}

// A block of a vector of lanes, from its words to those of its rounded form.
LLUDA_INLINE Floats round_block_of_lanes(const uint32_t *words, int64_t width, uint32_t *out) {
    Words most{};
    for (int64_t k = 0; k < kBlockWords; ++k) {
        const Words word = load_words(words + k * width) & 0x7fffffffu;
        const Words low = kColumnsPerWord == 2 ? word << 16 & 0x7fffffffu : word;
        const Words high = kColumnsPerWord == 2 ? word & 0xffff0000u : word;
        most = low > most ? low : most;
        most = high > most ? high : most;
    }
    const Rounding rounding = rounding_of(most);
    for (int64_t k = 0; k < kBlockWords; ++k) {
        const Words word = load_words(words + k * width);
        if constexpr (kColumnsPerWord == 2) {
            const Words low = as_words(round_floats(as_floats(word << 16) * rounding.factor));
            const Words high = as_words(round_floats(as_floats(word & 0xffff0000u) * rounding.factor));
            store_words(out + k * width, low >> 16 | high);
        } else {
            store(reinterpret_cast<float *>(out + k * width),
                  round_floats(as_floats(word) * rounding.factor) * rounding.scale);
        }
    }
    return rounding.scale;
}

void round_panel(const void *panel, int64_t words, int64_t width, void *out, float *scales) {
    for (int64_t k = 0; k < words; k += kBlockWords, scales += width)
        for (int64_t lane = 0; lane < width; lane += kLanes) {
            const int64_t at = k * width + lane;
            store(scales + lane, round_block_of_lanes(static_cast<const uint32_t *>(panel) + at, width,
                                                      static_cast<uint32_t *>(out) + at));
        }
}

// Blocks of one row as words, and their scales where words do not have them.
LLUDA_INLINE void decode_q8_blocks(const uint8_t *block, int64_t blocks, uint32_t *words, float *scales) {
    for (int64_t first = 0; first < blocks; first += kQ8Run) {
        const int count = static_cast<int>(blocks - first < kQ8Run ? blocks - first : kQ8Run);
        RunFloats d;
        load_scales(block, count, d);
        if constexpr (kColumnsPerWord == 2) memcpy(scales + first, &d, static_cast<size_t>(count) * 4);
        for (int b = 0; b < count; ++b, block += kQ8Bytes, words += kBlockWords) {
#if LLUDA_BF16_PAIRS
            const Group pairs = load_bytes(block + kQ8Values);
            memcpy(words, &pairs, sizeof pairs);
#else
            for (int i = 0; i < kQ8Weights; i += kLanes) {
                Bytes q;
                memcpy(&q, block + kQ8Values + i, sizeof q);
                store(reinterpret_cast<float *>(words + i), __builtin_convertvector(q, Floats) * d[b]);
            }
#endif
        }
    }
}

const void *words_of_any_weight(const lluda_weight &w, int64_t begin, int64_t end, int64_t from, int64_t to,
                                void *buffer, int64_t *stride, const float **scales) {
    *scales = nullptr;
    if (w.format != LLUDA_FORMAT_Q8_0 && w.format != LLUDA_FORMAT_Q8_0_ROWS)
        return words_of_weight(w, begin, end, from, to, buffer, stride);
    const int64_t blocks = (to - from) / kQ8Weights, words = blocks * kBlockWords;
    const uint8_t *row = static_cast<const uint8_t *>(w.values) +
                         (begin * w.in_features + from) / kQ8Weights * kQ8Bytes;
    uint32_t *out = static_cast<uint32_t *>(buffer);
    *stride = words + 16;
    if constexpr (kColumnsPerWord == 2) {
        *scales = reinterpret_cast<const float *>(out + words);
        *stride += blocks;
    }
    for (int64_t output = begin; output < end; ++output, out += *stride, row += w.in_features / kQ8Weights * kQ8Bytes)
        decode_q8_blocks(row, blocks, out, reinterpret_cast<float *>(out + words));
    return buffer;
}

#if LLUDA_BF16_PAIRS

// As register_tile, with the sums of a block in registers of their own.
template <int Outputs, int Vectors>
__attribute__((noinline)) void scaled_tile(const TileTask &task, int first, int lane) {
    const uint32_t *w = static_cast<const uint32_t *>(task.multiplicands) + first * task.output_stride;
    const float *scales = task.scales + first * task.output_stride;
    const uint32_t *x = static_cast<const uint32_t *>(task.panel) + lane;
    const float *row_scales = task.panel_scales ? task.panel_scales + lane : nullptr;
    float *out = task.out + first * kTileRows + lane;
    uintptr_t ahead = reinterpret_cast<uintptr_t>(task.prefetch) + static_cast<uintptr_t>(first * task.words * 2);
    Floats sums[Outputs][Vectors];
    for (int o = 0; o < Outputs; ++o)
        for (int v = 0; v < Vectors; ++v)
            sums[o][v] = task.accumulate ? load(out + o * kTileRows + v * kLanes) : Floats{};
    for (int64_t k = 0; k < task.words; k += kBlockWords, w += kBlockWords, ++scales) {
        if (task.prefetch && lane == 0)
            for (int o = 0; o < Outputs; ++o, ahead += kQ8Bytes)
                __builtin_prefetch(reinterpret_cast<const void *>(ahead), 0, 2);
        Floats block[Outputs][Vectors] = {};
        for (int i = 0; i < kBlockWords; ++i, x += task.panel_width) {
            Words column[Vectors];
            for (int v = 0; v < Vectors; ++v) column[v] = load_words(x + v * kLanes);
            for (int o = 0; o < Outputs; ++o) {
                const Words word = w[o * task.output_stride + i] - Words{};
                for (int v = 0; v < Vectors; ++v) block[o][v] = PairWord::multiply_add(block[o][v], word, column[v]);
            }
        }
        for (int v = 0; v < Vectors; ++v) {
            const Floats row_scale = row_scales ? load(row_scales + v * kLanes) : broadcast(1.0f);
            for (int o = 0; o < Outputs; ++o) sums[o][v] += block[o][v] * (row_scale * scales[o * task.output_stride]);
        }
        if (row_scales) row_scales += task.panel_width;
    }
    for (int o = 0; o < Outputs; ++o)
        for (int v = 0; v < Vectors; ++v) store(out + o * kTileRows + v * kLanes, sums[o][v]);
}

template <int Vectors>
LLUDA_INLINE void scaled_tiles(const TileTask &task, int lane) {
    constexpr int kOutputs = Vectors <= 2 ? 6 : 3;
    int o = 0;
    for (; o + kOutputs <= task.outputs; o += kOutputs) scaled_tile<kOutputs, Vectors>(task, o, lane);
    for (; o < task.outputs; ++o) scaled_tile<1, Vectors>(task, o, lane);
}

void multiply_any_tile(const TileTask &task) {
    if (!task.scales) return multiply_tile(task);
    if constexpr (kLanes == 16) {
        switch (task.lanes / kLanes) {
            case 1:
                return scaled_tiles<1>(task, 0);
            case 2:
                return scaled_tiles<2>(task, 0);
            case 3:
                return scaled_tiles<3>(task, 0);
            default:
                return scaled_tiles<4>(task, 0);
        }
    } else {
        for (int lane = 0; lane < task.lanes; lane += 2 * kLanes) scaled_tiles<2>(task, lane);
    }
}

#else

void multiply_any_tile(const TileTask &task) { multiply_tile(task); }

#endif

// A tap at a time.
template <void (*Multiply)(const TileTask &)>
void multiply_taps(const TileTask &task) {
    TileTask tap = task;
    for (int t = 0; t < task.taps; ++t) {
        Multiply(tap);
        tap.multiplicands = static_cast<const uint32_t *>(tap.multiplicands) + task.tap_words;
        tap.panel = static_cast<const uint32_t *>(tap.panel) + task.tap_lanes;
        tap.prefetch = nullptr;
        tap.accumulate = true;
    }
}

}  // namespace
}  // namespace lluda
