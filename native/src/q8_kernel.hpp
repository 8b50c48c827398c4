// Tiles of Q8_0 weights times 1 to 16 prepared rows (linear_kernel.hpp), in two ways.
//
// Exact: q is exact in BF16 and in float32, so the sum of a block's q * x is one of floats, and d multiplies it once.
// Rounded: the rows are rounded to Q8_0 too, the sum of a block is one of integers, and both scales multiply it once;
// their product has 22 bits, so that nothing is rounded before the sum over the blocks.
#pragma once

#include "q8_rows.hpp"
#include "weight_group.hpp"

namespace lluda {
namespace {

typedef float RunFloats __attribute__((vector_size(kQ8Run * 4)));

LLUDA_INLINE uint16_t half_of_block(const uint8_t *block) {
    uint16_t half;
    memcpy(&half, block, 2);
    return half;
}

#if defined(__F16C__)

// The scales of `count` blocks, 1 .. kQ8Run; behind them the last one again.
LLUDA_INLINE void load_scales(const uint8_t *blocks, int count, RunFloats &out) {
    const auto half = [&](int i) LLUDA_INLINE_LAMBDA {
        return static_cast<short>(half_of_block(blocks + (i < count ? i : count - 1) * kQ8Bytes));
    };
    const __m128i halves = _mm_set_epi16(half(7), half(6), half(5), half(4), half(3), half(2), half(1), half(0));
    out = reinterpret_cast<RunFloats>(_mm256_cvtph_ps(halves));
}

#elif defined(__aarch64__)

LLUDA_INLINE void load_scales(const uint8_t *blocks, int count, RunFloats &out) {
    uint16_t halves[kQ8Run];
    for (int i = 0; i < kQ8Run; ++i) halves[i] = half_of_block(blocks + (i < count ? i : count - 1) * kQ8Bytes);
    const float16x8_t d = vreinterpretq_f16_u16(vld1q_u16(halves));
    const float32x4_t floats[2] = {vcvt_f32_f16(vget_low_f16(d)), vcvt_high_f32_f16(d)};
    memcpy(&out, floats, sizeof out);
}

#else

LLUDA_INLINE float float_of_bits(uint32_t bits) {
    float v;
    memcpy(&v, &bits, 4);
    return v;
}

LLUDA_INLINE float widen_half(uint16_t half) {
    const uint32_t sign = static_cast<uint32_t>(half & 0x8000u) << 16, size = half & 0x7fffu;
    if (size < 0x400u) {
        const float v = static_cast<float>(size) * (1.0f / 16777216.0f);
        return sign ? -v : v;
    }
    return float_of_bits(sign | ((size << 13) + (size >= 0x7c00u ? 0x70000000u : 0x38000000u)));
}

LLUDA_INLINE void load_scales(const uint8_t *blocks, int count, RunFloats &out) {
    for (int i = 0; i < kQ8Run; ++i)
        out[i] = widen_half(half_of_block(blocks + (i < count ? i : count - 1) * kQ8Bytes));
}

#endif

// The 32 q of a block, to be multiplied with `Rows` rows as other weights are.
#if defined(__AVX512BF16__)

LLUDA_INLINE __m512 floats_of_bytes(const uint8_t *p) {
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i *>(p))));
}

LLUDA_INLINE Group load_bytes(const uint8_t *p) {
    return {reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(floats_of_bytes(p + 16), floats_of_bytes(p)))};
}

#elif LLUDA_BF16_PAIRS

// A q has 8 bits of mantissa at most, so that the upper half of its float is all of it.
LLUDA_INLINE uint16x8_t halves_of_bytes(int8x8_t q) {
    const int16x8_t wide = vmovl_s8(q);
    const float32x4_t low = vcvtq_f32_s32(vmovl_s16(vget_low_s16(wide)));
    const float32x4_t high = vcvtq_f32_s32(vmovl_high_s16(wide));
    return vuzp2q_u16(vreinterpretq_u16_f32(low), vreinterpretq_u16_f32(high));
}

LLUDA_INLINE Group load_bytes(const uint8_t *p) {
    Group group;
    for (int i = 0; i < kGroupVectors; ++i)
        group.pairs[i] = vreinterpretq_u32_u16(halves_of_bytes(vreinterpret_s8_u8(vld1_u8(p + 2 * kLanes * i))));
    return group;
}

#else

struct ByteGroup {
    Floats even[kGroupVectors], odd[kGroupVectors];
};

LLUDA_INLINE ByteGroup load_bytes(const uint8_t *p) {
    typedef int16_t PairsInMemory __attribute__((vector_size(LLUDA_LANES * 2), aligned(1), may_alias));
    ByteGroup group;
    for (int i = 0; i < kGroupVectors; ++i) {
        const Ints pairs =
            __builtin_convertvector(*reinterpret_cast<const PairsInMemory *>(p + 2 * kLanes * i), Ints);
        group.even[i] = __builtin_convertvector((pairs << 24) >> 24, Floats);
        group.odd[i] = __builtin_convertvector(pairs >> 8, Floats);
    }
    return group;
}

LLUDA_INLINE Floats multiply_add(Floats total, const ByteGroup &w, const Prepared *x) {
    for (int i = 0; i < kGroupVectors; ++i) {
        total += w.even[i] * load(x + 2 * kLanes * i);
        total += w.odd[i] * load(x + 2 * kLanes * i + kLanes);
    }
    return total;
}

#endif

// The 32 q of a block, and integers that add up to its product with a block of a rounded row.
#if defined(__AVX512VNNI__)

// Rows are q + 128, so sums begin at -128 times the weights'.
struct WeightBytes {
    __m256i q, start;
};
constexpr int kBlockLanes = 8;

LLUDA_INLINE WeightBytes load_weight_bytes(const uint8_t *p) {
    const __m256i q = _mm256_loadu_si256(reinterpret_cast<const __m256i *>(p)), none = _mm256_setzero_si256();
    return {q, _mm256_sub_epi32(none, _mm256_dpbusd_epi32(none, _mm256_set1_epi8(static_cast<char>(0x80)), q))};
}

LLUDA_INLINE __m256i block_products(const WeightBytes &w, const RoundedBlock &x) {
    return _mm256_dpbusd_epi32(w.start, _mm256_loadu_si256(reinterpret_cast<const __m256i *>(x.q)), w.q);
}

#elif defined(__AVX2__)

struct WeightBytes {
    __m256i low, high;
};
constexpr int kBlockLanes = 8;

LLUDA_INLINE WeightBytes load_weight_bytes(const uint8_t *p) {
    const auto *bytes = reinterpret_cast<const __m128i *>(p);
    return {_mm256_cvtepi8_epi16(_mm_loadu_si128(bytes)), _mm256_cvtepi8_epi16(_mm_loadu_si128(bytes + 1))};
}

LLUDA_INLINE __m256i block_products(const WeightBytes &w, const RoundedBlock &x) {
    const auto *q = reinterpret_cast<const __m256i *>(x.q);
    return _mm256_add_epi32(_mm256_madd_epi16(w.low, _mm256_loadu_si256(q)),
                            _mm256_madd_epi16(w.high, _mm256_loadu_si256(q + 1)));
}

#elif defined(__ARM_FEATURE_DOTPROD)

struct WeightBytes {
    int8x16_t low, high;
};
constexpr int kBlockLanes = 4;

LLUDA_INLINE WeightBytes load_weight_bytes(const uint8_t *p) {
    return {vreinterpretq_s8_u8(vld1q_u8(p)), vreinterpretq_s8_u8(vld1q_u8(p + 16))};
}

LLUDA_INLINE Ints block_products(const WeightBytes &w, const RoundedBlock &x) {
    return vdotq_s32(vdotq_s32(Ints{}, w.low, vld1q_s8(x.q)), w.high, vld1q_s8(x.q + 16));
}

#else

struct WeightBytes {
    const uint8_t *q;
};
constexpr int kBlockLanes = 4;

LLUDA_INLINE WeightBytes load_weight_bytes(const uint8_t *p) { return {p}; }

LLUDA_INLINE Ints block_products(const WeightBytes &w, const RoundedBlock &x) {
    Ints sums{};
    for (int i = 0; i < kQ8Weights; i += 4)
        for (int j = 0; j < 4; ++j) sums[j] += static_cast<int8_t>(w.q[i + j]) * x.q[i + j];
    return sums;
}

#endif

typedef float BlockFloats __attribute__((vector_size(kBlockLanes * 4)));
typedef int32_t BlockInts __attribute__((vector_size(kBlockLanes * 4)));

LLUDA_INLINE Floats spread(BlockFloats v) {
#if defined(__AVX512F__)
    return reinterpret_cast<Floats>(_mm512_zextps256_ps512(reinterpret_cast<__m256>(v)));
#else
    return v;
#endif
}

// Factors of a run in memory, where each is broadcast for nothing, unlike from a register.
struct FactorRun {
    float v[kQ8Run];
    LLUDA_INLINE void put(const RunFloats &factors) {
        memcpy(v, &factors, sizeof v);
        asm("" : "+m"(v));  // the compiler is not to know what is there
    }
};

// body(first, count) for the blocks of a row in runs; inlined for whole runs, whose count is a constant, and the rest.
template <class Body>
LLUDA_INLINE void for_runs(int64_t width, Body &&body) {
    const int64_t blocks = width / kQ8Weights;
    int64_t first = 0;
    for (; first + kQ8Run <= blocks; first += kQ8Run) body(first, kQ8Run);
    if (first < blocks) body(first, static_cast<int>(blocks - first));
}

// Weight rows output .. output + Outputs - 1, prefetched as plain rows are (linear_kernel.hpp).
template <int Outputs>
struct Q8Rows {
    const uint8_t *rows;
    int64_t row_bytes;
    LLUDA_INLINE Q8Rows(const lluda_weight &w, int64_t output)
        : row_bytes(w.in_features / kQ8Weights * kQ8Bytes) {
        rows = static_cast<const uint8_t *>(w.values) + output * row_bytes;
    }
    LLUDA_INLINE const uint8_t *block(int row, int64_t index) const {
        return rows + row * row_bytes + index * kQ8Bytes;
    }
    LLUDA_INLINE void prefetch(int64_t first) const {
        constexpr int64_t kRunBytes = kQ8Run * kQ8Bytes;
        const uintptr_t ahead = reinterpret_cast<uintptr_t>(rows) + (Outputs == 1 ? 2048 : 10240) +
                                static_cast<uintptr_t>(first * kQ8Bytes * Outputs);
        for (int64_t at = 0; at < (Outputs == 1 ? 64 : kRunBytes * Outputs); at += 64)
            __builtin_prefetch(reinterpret_cast<const void *>(ahead + static_cast<uintptr_t>(at)), 0, 2);
    }
};

// out[o * Rows + r]: weight row `output + o` times prepared row r.
template <int Outputs, int Rows>
LLUDA_INLINE void exact_tile(const lluda_weight &w, int64_t output, const void *const *x, float (&out)[kTileSums]) {
    constexpr int kSums = Outputs * Rows;
    const Q8Rows<Outputs> weights(w, output);
    Floats sums[kSums] = {};
    for_runs(w.in_features, [&](int64_t first, int count) LLUDA_INLINE_LAMBDA {
        weights.prefetch(first);
        FactorRun scales[Outputs];
        for (int o = 0; o < Outputs; ++o) {
            RunFloats d;
            load_scales(weights.block(o, first), count, d);
            scales[o].put(d);
        }
#pragma GCC unroll 8
        for (int b = 0; b < count; ++b)
            for (int o = 0; o < Outputs; ++o) {
                const auto group = load_bytes(weights.block(o, first + b) + kQ8Values);
                const Floats scale = broadcast(scales[o].v[b]);
                for (int r = 0; r < Rows; ++r) {
                    const Prepared *row = static_cast<const Prepared *>(x[r]) + (first + b) * kQ8Weights;
                    sums[o * Rows + r] += scale * multiply_add(Floats{}, group, row);
                }
            }
    });
    sum_all(sums, out);
}

// The same with rounded rows.
template <int Outputs, int Rows>
LLUDA_INLINE void rounded_tile(const lluda_weight &w, int64_t output, const void *const *x, float (&out)[kTileSums]) {
    constexpr int kSums = Outputs * Rows;
    const Q8Rows<Outputs> weights(w, output);
    RoundedRow rows[Rows];
    for (int r = 0; r < Rows; ++r) rows[r] = RoundedRow(x[r], w.in_features);
    BlockFloats sums[kSums] = {};
    for_runs(w.in_features, [&](int64_t first, int count) LLUDA_INLINE_LAMBDA {
        weights.prefetch(first);
        FactorRun factors[kSums];
        for (int o = 0; o < Outputs; ++o) {
            RunFloats d;
            load_scales(weights.block(o, first), count, d);
            for (int r = 0; r < Rows; ++r) {
                RunFloats x_d;
                memcpy(&x_d, rows[r].scales + first, sizeof x_d);
                factors[o * Rows + r].put(d * x_d);
            }
        }
#pragma GCC unroll 8
        for (int b = 0; b < count; ++b)
            for (int o = 0; o < Outputs; ++o) {
                const WeightBytes bytes = load_weight_bytes(weights.block(o, first + b) + kQ8Values);
                for (int r = 0; r < Rows; ++r) {
                    const auto products = reinterpret_cast<BlockInts>(block_products(bytes, rows[r].blocks[first + b]));
                    const BlockFloats factor = factors[o * Rows + r].v[b] - BlockFloats{};
                    sums[o * Rows + r] += factor * __builtin_convertvector(products, BlockFloats);
                }
            }
    });
    Floats wide[kSums];
    for (int i = 0; i < kSums; ++i) wide[i] = spread(sums[i]);
    sum_all(wide, out);
}

}  // namespace
}  // namespace lluda
