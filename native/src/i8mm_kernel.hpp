// Tiles of Q8_0 weights times rows rounded to Q8_0 (q8_kernel.hpp) with SMMLA, which multiplies 2 rows of 8 bytes with 2
// others: two outputs and two rows at a time. Sums of a block are of integers, so that they do not depend on who is
// beside whom.
#pragma once

#include "q8_kernel.hpp"

namespace lluda {
namespace {

// The 32 q of a block of two rows, 8 columns of both at a time.
struct BytePairs {
    int8x16_t v[4];

    LLUDA_INLINE BytePairs(const void *first, const void *second) {
        for (int i = 0; i < 2; ++i) {
            const int64x2_t a = vreinterpretq_s64_s8(vld1q_s8(static_cast<const int8_t *>(first) + 16 * i));
            const int64x2_t b = vreinterpretq_s64_s8(vld1q_s8(static_cast<const int8_t *>(second) + 16 * i));
            v[2 * i] = vreinterpretq_s8_s64(vzip1q_s64(a, b));
            v[2 * i + 1] = vreinterpretq_s8_s64(vzip2q_s64(a, b));
        }
    }
};

// Outputs x 2 rows: o0 r0, o0 r1, o1 r0, o1 r1.
LLUDA_INLINE Floats block_products(const BytePairs &w, const BytePairs &x) {
    int32x4_t sums = vdupq_n_s32(0);
    for (int i = 0; i < 4; ++i) sums = vmmlaq_s32(sums, w.v[i], x.v[i]);
    return vcvtq_f32_s32(sums);
}

LLUDA_INLINE Floats factors_of(float w0, float w1, float x0, float x1) {
    return Floats{w0, w0, w1, w1} * Floats{x0, x1, x0, x1};
}

// As rounded_tile; where the number of outputs or rows is odd, the last one counts twice.
template <int Outputs, int Rows>
LLUDA_INLINE void paired_rounded_tile(const lluda_weight &w, int64_t output, const void *const *x,
                                      float (&out)[kTileSums]) {
    constexpr int kOutputPairs = (Outputs + 1) / 2, kRowPairs = (Rows + 1) / 2;
    const Q8Rows<Outputs> weights(w, output);
    RoundedRow rows[2 * kRowPairs];
    for (int r = 0; r < 2 * kRowPairs; ++r) rows[r] = RoundedRow(x[r < Rows ? r : Rows - 1], w.in_features);
    const auto twin = [](int o) LLUDA_INLINE_LAMBDA { return o < Outputs ? o : Outputs - 1; };
    Floats sums[kOutputPairs][kRowPairs] = {};
    for_runs(w.in_features, [&](int64_t first, int count) LLUDA_INLINE_LAMBDA {
        weights.prefetch(first);
        RunFloats d[2 * kOutputPairs];
        for (int o = 0; o < 2 * kOutputPairs; ++o) load_scales(weights.block(twin(o), first), count, d[o]);
        for (int b = 0; b < count; ++b)
            for (int o = 0; o < kOutputPairs; ++o) {
                const BytePairs bytes(weights.block(2 * o, first + b) + kQ8Values,
                                      weights.block(twin(2 * o + 1), first + b) + kQ8Values);
                for (int r = 0; r < kRowPairs; ++r) {
                    const RoundedRow &even = rows[2 * r], &odd = rows[2 * r + 1];
                    const Floats factors = factors_of(d[2 * o][b], d[2 * o + 1][b], even.scales[first + b],
                                                      odd.scales[first + b]);
                    const BytePairs row(even.blocks[first + b].q, odd.blocks[first + b].q);
                    sums[o][r] += factors * block_products(bytes, row);
                }
            }
    });
    for (int o = 0; o < Outputs; ++o)
        for (int r = 0; r < Rows; ++r) out[o * Rows + r] = sums[o / 2][r / 2][o % 2 * 2 + r % 2];
}

}  // namespace
}  // namespace lluda
