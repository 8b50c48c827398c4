// Rows rounded to Q8_0, as llama.cpp's CPU kernels round those that they multiply with Q8_0 weights. Their values are
// rounded to BF16 before, as for all other products.
#pragma once

#include "q8_layout.hpp"
#include "simd.hpp"

namespace lluda {
namespace {

constexpr int kQ8Run = 8;  // blocks whose scales are read together

typedef int8_t Bytes __attribute__((vector_size(LLUDA_LANES)));

#if defined(__AVX512VNNI__)

// The hardware multiplies unsigned with signed bytes: rows are kept as q + 128.
struct RoundedBlock {
    uint8_t q[kQ8Weights];
};

LLUDA_INLINE void put_rounded(const int8_t *q, RoundedBlock &out) {
    for (int i = 0; i < kQ8Weights; ++i) out.q[i] = static_cast<uint8_t>(q[i] ^ 0x80);
}

#elif defined(__ARM_FEATURE_DOTPROD)

struct RoundedBlock {
    int8_t q[kQ8Weights];
};

LLUDA_INLINE void put_rounded(const int8_t *q, RoundedBlock &out) { memcpy(out.q, q, sizeof out.q); }

#else

struct RoundedBlock {
    int16_t q[kQ8Weights];
};

LLUDA_INLINE void put_rounded(const int8_t *q, RoundedBlock &out) {
    for (int i = 0; i < kQ8Weights; ++i) out.q[i] = q[i];
}

#endif

// A rounded row: its blocks, then their scales, as many as whole runs have.
struct RoundedRow {
    const RoundedBlock *blocks;
    const float *scales;
    RoundedRow() = default;
    LLUDA_INLINE RoundedRow(const void *prepared, int64_t width)
        : blocks(static_cast<const RoundedBlock *>(prepared)),
          scales(reinterpret_cast<const float *>(blocks + width / kQ8Weights)) {}
};

// To the nearest integers, ties to even.
LLUDA_INLINE Ints nearest_integers(Floats v) {
#if defined(__AVX512F__)
    return reinterpret_cast<Ints>(_mm512_cvtps_epi32(reinterpret_cast<__m512>(v)));
#elif defined(__AVX2__)
    return reinterpret_cast<Ints>(_mm256_cvtps_epi32(reinterpret_cast<__m256>(v)));
#elif defined(__aarch64__)
    return vcvtnq_s32_f32(v);
#else
    Ints out;
    for (int i = 0; i < kLanes; ++i) out[i] = static_cast<int32_t>(__builtin_lrintf(v[i]));
    return out;
#endif
}

// To the nearest numbers that float16 has, ties to even.
LLUDA_INLINE Floats round_to_half(Floats v) {
#if defined(__AVX512F__)
    return reinterpret_cast<Floats>(_mm512_cvtph_ps(_mm512_cvtps_ph(reinterpret_cast<__m512>(v), 0)));
#elif defined(__F16C__)
    return reinterpret_cast<Floats>(_mm256_cvtph_ps(_mm256_cvtps_ph(reinterpret_cast<__m256>(v), 0)));
#elif defined(__aarch64__)
    return vcvt_f32_f16(vcvt_f16_f32(v));
#else
    const Words bits = as_words(v), sign = bits & 0x80000000u, size = bits & 0x7fffffffu;
    // Below 2^-14: multiples of 2^-24, which is the last place of 0.75.
    const Words small = as_words(as_floats(size) + 0.75f - 0.75f);
    const Words rounded = (size + 0xfffu + ((size >> 13) & 1u)) & ~0x1fffu;
    const Words large = rounded >= 0x47800000u ? Words{} + 0x7f800000u : rounded;
    const Words nearest = size < 0x38800000u ? small : large;
    return as_floats(sign | (size >= 0x7f800000u ? size : nearest));
#endif
}

// How blocks whose largest magnitudes have the bits `most` (a NaN is the largest) become q = 127 / largest * x. A scale
// that float16 rounds to zero makes zeros; one that is no number, a NaN.
struct Rounding {
    Floats scale, factor;
};

LLUDA_INLINE Rounding rounding_of(Words most) {
    const Floats largest = as_floats(most >= 0x7f800000u ? Words{} + 0x7fc00000u : most);
    const Floats scale = round_to_half(largest / 127.0f);
    return {scale, scale > 0.0f ? 127.0f / largest : Floats{}};
}

// One block; its scale is returned.
LLUDA_INLINE float round_block(const Floats (&v)[kQ8Weights / kLanes], RoundedBlock &out) {
    constexpr int kVectors = kQ8Weights / kLanes;
    Words most{};
    for (int i = 0; i < kVectors; ++i) {
        const Words size = as_words(v[i]) & 0x7fffffffu;
        most = size > most ? size : most;
    }
    uint32_t largest = 0;
    for (int i = 0; i < kLanes; ++i) largest = most[i] > largest ? most[i] : largest;
    const Rounding rounding = rounding_of(Words{} + largest);
    int8_t q[kQ8Weights];
    for (int i = 0; i < kVectors; ++i) {
        const Bytes bytes = __builtin_convertvector(nearest_integers(v[i] * rounding.factor), Bytes);
        memcpy(q + i * kLanes, &bytes, sizeof bytes);
    }
    put_rounded(q, out);
    return rounding.scale[0];
}

int64_t prepared_q8_bytes(int64_t width) {
    const int64_t blocks = (width + kQ8Weights - 1) / kQ8Weights, runs = (blocks + kQ8Run - 1) / kQ8Run;
    return blocks * static_cast<int64_t>(sizeof(RoundedBlock)) + (runs * kQ8Run * 4 + 63) / 64 * 64;
}

// load(i, n): values i .. i+kLanes-1 as BF16 has them, of which the first n are there.
template <class Load>
LLUDA_INLINE void prepare_q8(int64_t width, void *prepared, Load &&load_values) {
    const int64_t blocks = (width + kQ8Weights - 1) / kQ8Weights;
    auto *out = static_cast<RoundedBlock *>(prepared);
    float *scales = reinterpret_cast<float *>(out + blocks);
    for (int64_t b = 0; b < blocks; ++b) {
        Floats v[kQ8Weights / kLanes];
        for (int i = 0; i < kQ8Weights / kLanes; ++i) {
            const int64_t from = b * kQ8Weights + i * kLanes, left = width - from;
            v[i] = load_values(from, left < 0 ? 0 : left < kLanes ? left : kLanes);
        }
        scales[b] = round_block(v, out[b]);
    }
    for (int64_t b = blocks; b % kQ8Run != 0; ++b) scales[b] = 0.0f;
}

void prepare_q8_f32(const float *x, int64_t width, void *prepared) {
    prepare_q8(width, prepared, [&](int64_t i, int64_t n) LLUDA_INLINE_LAMBDA {
        return as_floats(bf16_bits(n == kLanes ? load(x + i) : load_part(x + i, n)) << 16);
    });
}

void prepare_q8_bf16(const uint16_t *x, int64_t width, void *prepared) {
    prepare_q8(width, prepared, [&](int64_t i, int64_t n) LLUDA_INLINE_LAMBDA {
        return n == kLanes ? load_bf16(x + i) : load_bf16_part(x + i, n);
    });
}

}  // namespace
}  // namespace lluda
