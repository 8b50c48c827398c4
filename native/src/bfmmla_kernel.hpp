// Products of panels of BF16 pairs (panel_kernel.hpp) with BFMMLA, which multiplies 2 rows of 4 columns with 2 others: two
// outputs, two lanes, two words at a time. As the Arm manual has it, each sum takes its words one after the other.
#pragma once

#include "q8_panel_kernel.hpp"

namespace lluda {
namespace {

constexpr int kPairRows = 2 * kLanes;  // lanes of a register tile, in pairs

// Two words of two outputs: where the first ones lie, and how far the second ones are.
struct OutputPair {
    const char *first, *second;

    LLUDA_INLINE bfloat16x8_t words(int64_t word_bytes) const {
        uint32_t word[4];
        memcpy(word, first, 4);
        memcpy(word + 1, first + word_bytes, 4);
        memcpy(word + 2, second, 4);
        memcpy(word + 3, second + word_bytes, 4);
        return vreinterpretq_bf16_u32(vld1q_u32(word));
    }
    LLUDA_INLINE bfloat16x8_t adjacent_words() const {
        return vreinterpretq_bf16_u8(vcombine_u8(vld1_u8(reinterpret_cast<const uint8_t *>(first)),
                                                 vld1_u8(reinterpret_cast<const uint8_t *>(second))));
    }
    // The second words zero.
    LLUDA_INLINE bfloat16x8_t last_words() const {
        uint32_t word[4] = {};
        memcpy(word, first, 4);
        memcpy(word + 2, second, 4);
        return vreinterpretq_bf16_u32(vld1q_u32(word));
    }
    LLUDA_INLINE void move(int64_t bytes) {
        first += bytes;
        second += bytes;
    }
};

// Two words of the lanes of a register tile, pair by pair.
struct LanePairs {
    bfloat16x8_t v[kPairRows / 2];

    LLUDA_INLINE LanePairs(const uint32_t *x, const uint32_t *next) {
        for (int i = 0; i < 2; ++i) {
            const Words a = load_words(x + i * kLanes), b = next ? load_words(next + i * kLanes) : Words{};
            v[2 * i] = vreinterpretq_bf16_u32(vzip1q_u32(a, b));
            v[2 * i + 1] = vreinterpretq_bf16_u32(vzip2q_u32(a, b));
        }
    }
};

// Sums of Outputs outputs, in pairs (the last one twice if their number is odd), and a register tile's lanes.
template <int Outputs>
struct PairSums {
    static constexpr int kPairs = (Outputs + 1) / 2;
    Floats v[kPairs][kPairRows / 2];

    LLUDA_INLINE void load_from(const float *out) {
        for (int p = 0; p < kPairs; ++p)
            for (int i = 0; i < 2; ++i) {
                const Floats a = load(row(out, 2 * p) + i * kLanes), b = load(row(out, 2 * p + 1) + i * kLanes);
                v[p][2 * i] = vcombine_f32(vget_low_f32(a), vget_low_f32(b));
                v[p][2 * i + 1] = vcombine_f32(vget_high_f32(a), vget_high_f32(b));
            }
    }
    LLUDA_INLINE void store_to(float *out) const {
        for (int p = 0; p < kPairs; ++p)
            for (int i = 0; i < 2; ++i) {
                const Floats a = v[p][2 * i], b = v[p][2 * i + 1];
                float *at = out + 2 * p * kTileRows + i * kLanes;
                store(at, vcombine_f32(vget_low_f32(a), vget_low_f32(b)));
                if (2 * p + 1 < Outputs) store(at + kTileRows, vcombine_f32(vget_high_f32(a), vget_high_f32(b)));
            }
    }
    LLUDA_INLINE void add(const bfloat16x8_t (&w)[kPairs], const LanePairs &x) {
        for (int p = 0; p < kPairs; ++p)
            for (int j = 0; j < kPairRows / 2; ++j) v[p][j] = vbfmmlaq_f32(v[p][j], w[p], x.v[j]);
    }

private:
    static LLUDA_INLINE const float *row(const float *out, int output) {
        return out + (output < Outputs ? output : Outputs - 1) * kTileRows;
    }
};

template <int Outputs>
__attribute__((noinline)) void pair_tile(const TileTask &task, int first, int lane) {
    constexpr int kPairs = PairSums<Outputs>::kPairs;
    const int64_t output_bytes = task.output_stride * 4, word_bytes = task.word_stride * 4;
    const char *weights = static_cast<const char *>(task.multiplicands) + first * output_bytes;
    OutputPair outputs[kPairs];
    for (int p = 0; p < kPairs; ++p)
        outputs[p] = {weights + 2 * p * output_bytes,
                      weights + (2 * p + 1 < Outputs ? 2 * p + 1 : 2 * p) * output_bytes};
    const uint32_t *x = static_cast<const uint32_t *>(task.panel) + lane;
    float *out = task.out + first * kTileRows + lane;
    uintptr_t ahead = reinterpret_cast<uintptr_t>(task.prefetch) + static_cast<uintptr_t>(first * task.words * 4);
    PairSums<Outputs> sums{};
    if (task.accumulate) sums.load_from(out);
    bfloat16x8_t w[kPairs];
    int64_t k = 0;
    for (; k + 2 <= task.words; k += 2, x += 2 * task.panel_width) {
        if (task.prefetch && lane == 0 && k % kFetchWords == 0)
            for (int o = 0; o < Outputs; ++o, ahead += 64)
                __builtin_prefetch(reinterpret_cast<const void *>(ahead), 0, 2);
        for (int p = 0; p < kPairs; ++p) {
            w[p] = word_bytes == 4 ? outputs[p].adjacent_words() : outputs[p].words(word_bytes);
            outputs[p].move(2 * word_bytes);
        }
        sums.add(w, LanePairs(x, x + task.panel_width));
    }
    if (k < task.words) {
        for (int p = 0; p < kPairs; ++p) w[p] = outputs[p].last_words();
        sums.add(w, LanePairs(x, nullptr));
    }
    sums.store_to(out);
}

void pair_multiply_tile(const TileTask &task) {
    if (task.scales || task.floats) return multiply_any_tile(task);
    for (int lane = 0; lane < task.lanes; lane += kPairRows) {
        int o = 0;
        for (; o + 8 <= task.outputs; o += 8) pair_tile<8>(task, o, lane);
        for (; o + 2 <= task.outputs; o += 2) pair_tile<2>(task, o, lane);
        for (; o < task.outputs; ++o) pair_tile<1>(task, o, lane);
    }
}

}  // namespace
}  // namespace lluda
