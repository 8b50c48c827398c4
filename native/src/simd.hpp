// Vectors of float, as wide as the translation unit's instruction set: LLUDA_LANES of them. Compiler vector types (GCC
// and clang) carry the arithmetic, so one source serves every machine; intrinsics only where shuffles matter.
//
// Included by the per-instruction-set units only. Everything is in an anonymous namespace, and no library template is
// used: an inline function compiled here must never be linked into code that runs on a lesser machine.
#pragma once

#include <stdint.h>
#include <string.h>

#if defined(__AVX512F__) || defined(__AVX2__)
#include <immintrin.h>
#endif
#if defined(__aarch64__)
#include <arm_neon.h>
#endif

// The hardware multiplies pairs of BF16 numbers and adds them in float32.
#if defined(__AVX512BF16__) || defined(__ARM_FEATURE_BF16_VECTOR_ARITHMETIC)
#define LLUDA_BF16_PAIRS 1
#else
#define LLUDA_BF16_PAIRS 0
#endif

#define LLUDA_INLINE inline __attribute__((always_inline))
#define LLUDA_INLINE_LAMBDA __attribute__((always_inline))

namespace lluda {
namespace {

constexpr int kLanes = LLUDA_LANES;

typedef float Floats __attribute__((vector_size(LLUDA_LANES * 4)));
typedef uint32_t Words __attribute__((vector_size(LLUDA_LANES * 4)));
typedef int32_t Ints __attribute__((vector_size(LLUDA_LANES * 4)));
typedef uint16_t Halves __attribute__((vector_size(LLUDA_LANES * 2)));
// As they lie in memory: any alignment.
typedef float FloatsInMemory __attribute__((vector_size(LLUDA_LANES * 4), aligned(1), may_alias));
typedef uint32_t WordsInMemory __attribute__((vector_size(LLUDA_LANES * 4), aligned(1), may_alias));
typedef uint16_t HalvesInMemory __attribute__((vector_size(LLUDA_LANES * 2), aligned(1), may_alias));

LLUDA_INLINE Floats load(const float *p) { return *reinterpret_cast<const FloatsInMemory *>(p); }
LLUDA_INLINE void store(float *p, Floats v) { *reinterpret_cast<FloatsInMemory *>(p) = v; }
LLUDA_INLINE Floats broadcast(float v) { return v - Floats{}; }
LLUDA_INLINE Words as_words(Floats v) { return reinterpret_cast<Words>(v); }
LLUDA_INLINE Floats as_floats(Words v) { return reinterpret_cast<Floats>(v); }
LLUDA_INLINE Floats greater(Floats a, Floats b) { return a > b ? a : b; }
LLUDA_INLINE int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

// The first n of a vector; the rest is zero.
LLUDA_INLINE Floats load_part(const float *p, int64_t n) {
#if defined(__AVX512F__)
    return reinterpret_cast<Floats>(_mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << n) - 1u), p));
#else
    Floats v{};
    memcpy(&v, p, static_cast<size_t>(n) * 4);
    return v;
#endif
}

LLUDA_INLINE void store_part(float *p, Floats v, int64_t n) {
#if defined(__AVX512F__)
    _mm512_mask_storeu_ps(p, static_cast<__mmask16>((1u << n) - 1u), reinterpret_cast<__m512>(v));
#else
    memcpy(p, &v, static_cast<size_t>(n) * 4);
#endif
}

LLUDA_INLINE Words load_halves(const uint16_t *p) {
    const Halves v = *reinterpret_cast<const HalvesInMemory *>(p);
    return __builtin_convertvector(v, Words);
}

LLUDA_INLINE Floats load_bf16(const uint16_t *p) { return as_floats(load_halves(p) << 16); }

LLUDA_INLINE Floats load_bf16_part(const uint16_t *p, int64_t n) {
    Halves v{};
    memcpy(&v, p, static_cast<size_t>(n) * 2);
    return as_floats(__builtin_convertvector(v, Words) << 16);
}

// Bits of the nearest BF16 (ties to even; a NaN stays one), in the lower half of each word.
LLUDA_INLINE Words bf16_bits(Floats v) {
    const Words bits = as_words(v);
    const Words nearest = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    const Words quiet_nan = (bits >> 16) | 0x40u;
    return (bits & 0x7fffffffu) > 0x7f800000u ? quiet_nan : nearest;
}

LLUDA_INLINE uint16_t bf16_bits_of(float v) {
    uint32_t bits;
    memcpy(&bits, &v, 4);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<uint16_t>((bits >> 16) | 0x40u);
    return static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

LLUDA_INLINE float widen(uint16_t bits) {
    const uint32_t word = static_cast<uint32_t>(bits) << 16;
    float v;
    memcpy(&v, &word, 4);
    return v;
}

LLUDA_INLINE void store_halves(uint16_t *p, Words v) {
    *reinterpret_cast<HalvesInMemory *>(p) = __builtin_convertvector(v, Halves);
}

LLUDA_INLINE float sum(Floats v) {
#if defined(__AVX512F__)
    return _mm512_reduce_add_ps(reinterpret_cast<__m512>(v));
#elif defined(__aarch64__)
    return vaddvq_f32(v);  // neighbours first, as sum_16 adds them
#else
    float lane[kLanes];
    memcpy(lane, &v, sizeof v);
    for (int width = kLanes / 2; width > 0; width /= 2)
        for (int i = 0; i < width; ++i) lane[i] += lane[i + width];
    return lane[0];
#endif
}

LLUDA_INLINE float largest(Floats v) {
    float lane[kLanes];
    memcpy(lane, &v, sizeof v);
    for (int width = kLanes / 2; width > 0; width /= 2)
        for (int i = 0; i < width; ++i) lane[i] = lane[i] > lane[i + width] ? lane[i] : lane[i + width];
    return lane[0];
}

// exp to about 1e-7 relative: x = n ln 2 + r, |r| <= ln 2 / 2, polynomial in r, exponent bits from n. NaN stays NaN;
// below -87.3 the result is 0, above 88.3 it is that of 88.3 (2.2e38).
LLUDA_INLINE Floats exponential(Floats x) {
    const Floats low = broadcast(-87.3f), high = broadcast(88.3f);
    const Floats bounded = x < low ? low : (x > high ? high : x);
    const float to_integer = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer in the low bits
    const Floats shifted = bounded * 1.44269504f + to_integer;
    const Floats n = shifted - to_integer;
    const Floats r = (bounded - n * 0.693145752f) - n * 1.42860677e-6f;
    Floats p = r * (1.0f / 5040.0f) + (1.0f / 720.0f);
    p = p * r + (1.0f / 120.0f);
    p = p * r + (1.0f / 24.0f);
    p = p * r + (1.0f / 6.0f);
    p = p * r + 0.5f;
    p = p * r + 1.0f;
    p = p * r + 1.0f;
    const Words scaled = as_words(p) + (as_words(shifted) << 23);
    return x < low ? Floats{} : as_floats(scaled);
}

// out[i] = sum of the lanes of v[i], for 16 vectors at once.
LLUDA_INLINE void sum_16(const Floats *v, float *out) {
#if defined(__AVX512F__)
    // Four halvings: each adds what two vectors hold of disjoint lanes. They end in this order of vectors, so start in
    // it.
    constexpr unsigned char order[16] = {0, 2, 1, 3, 8, 10, 9, 11, 4, 6, 5, 7, 12, 14, 13, 15};
    __m512 a[16];
    for (int i = 0; i < 16; ++i) a[i] = reinterpret_cast<__m512>(v[order[i]]);
    for (int i = 0; i < 8; ++i)
        a[i] = _mm512_add_ps(_mm512_shuffle_f32x4(a[i], a[i + 8], 0x44), _mm512_shuffle_f32x4(a[i], a[i + 8], 0xee));
    for (int i = 0; i < 4; ++i)
        a[i] = _mm512_add_ps(_mm512_shuffle_f32x4(a[i], a[i + 4], 0x88), _mm512_shuffle_f32x4(a[i], a[i + 4], 0xdd));
    for (int i = 0; i < 2; ++i)
        a[i] = _mm512_add_ps(_mm512_shuffle_ps(a[i], a[i + 2], 0x44), _mm512_shuffle_ps(a[i], a[i + 2], 0xee));
    const __m512 total = _mm512_add_ps(_mm512_shuffle_ps(a[0], a[1], 0x88), _mm512_shuffle_ps(a[0], a[1], 0xdd));
    _mm512_storeu_ps(out, total);
#elif defined(__aarch64__)
    for (int i = 0; i < 16; i += 4)
        vst1q_f32(out + i, vpaddq_f32(vpaddq_f32(v[i], v[i + 1]), vpaddq_f32(v[i + 2], v[i + 3])));
#else
    for (int i = 0; i < 16; ++i) out[i] = sum(v[i]);
#endif
}

constexpr int kTileSums = 16;  // that a tile of products has at most: 3 x 5 and 2 x 8

// out[i] = sum of the lanes of v[i].
template <int Count>
LLUDA_INLINE void sum_all(const Floats (&v)[Count], float (&out)[kTileSums]) {
    if constexpr (Count > 4) {
        Floats padded[kTileSums] = {};
        for (int i = 0; i < Count; ++i) padded[i] = v[i];
        sum_16(padded, out);
    } else {
        for (int i = 0; i < Count; ++i) out[i] = sum(v[i]);
    }
}

}  // namespace
}  // namespace lluda
