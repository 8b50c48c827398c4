// 32 consecutive weights in registers, however they are stored, and their product with prepared rows.
#pragma once

#include "packed_layout.hpp"
#include "simd.hpp"

namespace lluda {
namespace {

constexpr int64_t kGroupWeights = 32;

#if defined(__AVX512BF16__)

// Prepared rows are BF16 in natural order; the hardware multiplies pairs and adds them in float32.
typedef uint16_t Prepared;

struct Group {
    __m512i pairs;
};

LLUDA_INLINE int64_t prepared_index(int64_t column) { return column; }

LLUDA_INLINE Group load_group(const uint16_t *p) { return {_mm512_loadu_si512(p)}; }

LLUDA_INLINE Group load_group_part(const uint16_t *p, int64_t n) {
    return {_mm512_maskz_loadu_epi16(static_cast<__mmask32>((1ull << n) - 1ull), p)};
}

LLUDA_INLINE Floats multiply_add(Floats total, Group w, const Prepared *x) {
    const __m512i row = _mm512_loadu_si512(x);
    return reinterpret_cast<Floats>(_mm512_dpbf16_ps(reinterpret_cast<__m512>(total), reinterpret_cast<__m512bh>(row),
                                                     reinterpret_cast<__m512bh>(w.pairs)));
}

#else

constexpr int kGroupVectors = static_cast<int>(kGroupWeights) / (2 * kLanes);

struct Group {
    Words pairs[kGroupVectors];
};

LLUDA_INLINE Group load_group(const uint16_t *p) {
    Group w;
    for (int i = 0; i < kGroupVectors; ++i) w.pairs[i] = *reinterpret_cast<const WordsInMemory *>(p + 2 * kLanes * i);
    return w;
}

LLUDA_INLINE Group load_group_part(const uint16_t *p, int64_t n) {
    uint16_t whole[kGroupWeights] = {};
    memcpy(whole, p, static_cast<size_t>(n) * 2);
    return load_group(whole);
}

#if LLUDA_BF16_PAIRS

// As above.
typedef uint16_t Prepared;

LLUDA_INLINE int64_t prepared_index(int64_t column) { return column; }

LLUDA_INLINE Floats multiply_add(Floats total, const Group &w, const Prepared *x) {
    for (int i = 0; i < kGroupVectors; ++i)
        total = vbfdotq_f32(total, vreinterpretq_bf16_u16(vld1q_u16(x + 2 * kLanes * i)),
                            vreinterpretq_bf16_u32(w.pairs[i]));
    return total;
}

#else

// Prepared rows are float32 (of values rounded to BF16): in every run of 2 * kLanes, first those of even, then those of
// odd columns, because a word of weights splits into two vectors so: shift left for the even, mask for the odd.
typedef float Prepared;

LLUDA_INLINE int64_t prepared_index(int64_t column) {
    const int64_t run = column / (2 * kLanes) * (2 * kLanes), rest = column % (2 * kLanes);
    return run + rest % 2 * kLanes + rest / 2;
}

LLUDA_INLINE Floats multiply_add(Floats total, const Group &w, const Prepared *x) {
    for (int i = 0; i < kGroupVectors; ++i) {
        total += as_floats(w.pairs[i] << 16) * load(x + 2 * kLanes * i);
        total += as_floats(w.pairs[i] & 0xffff0000u) * load(x + 2 * kLanes * i + kLanes);
    }
    return total;
}

#endif
#endif

// The two bytes of a weight that its code stands for: the exponent's lowest bit in bit 7, and the rest shifted down.
struct ExponentTable {
#if defined(__AVX512F__)
    __m512i low, high;
#elif defined(__AVX2__)
    __m256i low, high;
#elif defined(__aarch64__)
    uint8x16_t low, high;
#else
    uint8_t low[16], high[16];
#endif
};

LLUDA_INLINE ExponentTable exponent_table(const uint8_t *exponents) {
    uint8_t low[16], high[16];
    for (int i = 0; i < 16; ++i) {
        low[i] = static_cast<uint8_t>(exponents[i] << 7);
        high[i] = static_cast<uint8_t>(exponents[i] >> 1);
    }
    ExponentTable table;
#if defined(__AVX512F__)
    table.low = _mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i *>(low)));
    table.high = _mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i *>(high)));
#elif defined(__AVX2__)
    table.low = _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i *>(low)));
    table.high = _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i *>(high)));
#elif defined(__aarch64__)
    table.low = vld1q_u8(low);
    table.high = vld1q_u8(high);
#else
    memcpy(table.low, low, 16);
    memcpy(table.high, high, 16);
#endif
    return table;
}

#if defined(__AVX512BW__)

LLUDA_INLINE void decode_half(__m512i signs, __m512i codes, const ExponentTable &table, __m512i out[2]) {
    // 0xea: (signs & mask) | exponent bits
    const __m512i low =
        _mm512_ternarylogic_epi32(signs, _mm512_set1_epi8(0x7f), _mm512_shuffle_epi8(table.low, codes), 0xea);
    const __m512i high = _mm512_ternarylogic_epi32(signs, _mm512_set1_epi8(static_cast<char>(0x80)),
                                                   _mm512_shuffle_epi8(table.high, codes), 0xea);
    out[0] = _mm512_unpacklo_epi8(low, high);
    out[1] = _mm512_unpackhi_epi8(low, high);
}

LLUDA_INLINE void decode_block(const uint8_t *block, const ExponentTable &table, Group out[4]) {
    const __m512i codes = _mm512_loadu_si512(block + kBlockCodes);
    const __m512i nibble = _mm512_set1_epi8(0x0f);
    __m512i pairs[4];
    decode_half(_mm512_loadu_si512(block), _mm512_and_si512(codes, nibble), table, pairs);
    decode_half(_mm512_loadu_si512(block + 64), _mm512_and_si512(_mm512_srli_epi16(codes, 4), nibble), table,
                pairs + 2);
#if defined(__AVX512BF16__)
    for (int i = 0; i < 4; ++i) out[i].pairs = pairs[i];
#else
    for (int i = 0; i < 4; ++i) out[i].pairs[0] = reinterpret_cast<Words>(pairs[i]);
#endif
}

#elif defined(__AVX2__)

LLUDA_INLINE void decode_block(const uint8_t *block, const ExponentTable &table, Group out[4]) {
    const __m256i nibble = _mm256_set1_epi8(0x0f), mantissa = _mm256_set1_epi8(0x7f);
    for (int part = 0; part < 4; ++part) {  // 32 sign-and-mantissa bytes each
        const auto *p = reinterpret_cast<const __m256i *>(block + part * 32);
        const auto *c = reinterpret_cast<const __m256i *>(block + kBlockCodes + part % 2 * 32);
        const __m256i signs = _mm256_loadu_si256(p);
        __m256i codes = _mm256_loadu_si256(c);
        if (part >= 2) codes = _mm256_srli_epi16(codes, 4);
        codes = _mm256_and_si256(codes, nibble);
        const __m256i low = _mm256_or_si256(_mm256_and_si256(signs, mantissa), _mm256_shuffle_epi8(table.low, codes));
        const __m256i high =
            _mm256_or_si256(_mm256_andnot_si256(mantissa, signs), _mm256_shuffle_epi8(table.high, codes));
        Group *half = out + part / 2 * 2;
        half[0].pairs[part % 2] = reinterpret_cast<Words>(_mm256_unpacklo_epi8(low, high));
        half[1].pairs[part % 2] = reinterpret_cast<Words>(_mm256_unpackhi_epi8(low, high));
    }
}

#elif defined(__aarch64__)

LLUDA_INLINE void decode_block(const uint8_t *block, const ExponentTable &table, Group out[4]) {
    const uint8x16_t mantissa = vdupq_n_u8(0x7f);
    for (int part = 0; part < 8; ++part) {  // 16 sign-and-mantissa bytes each
        const uint8x16_t signs = vld1q_u8(block + part * 16);
        uint8x16_t codes = vld1q_u8(block + kBlockCodes + part % 4 * 16);
        codes = part >= 4 ? vshrq_n_u8(codes, 4) : vandq_u8(codes, vdupq_n_u8(0x0f));
        const uint8x16_t low = vorrq_u8(vandq_u8(signs, mantissa), vqtbl1q_u8(table.low, codes));
        const uint8x16_t high = vorrq_u8(vbicq_u8(signs, mantissa), vqtbl1q_u8(table.high, codes));
        Group *half = out + part / 4 * 2;
        half[0].pairs[part % 4] = (Words)vreinterpretq_u32_u8(vzip1q_u8(low, high));
        half[1].pairs[part % 4] = (Words)vreinterpretq_u32_u8(vzip2q_u8(low, high));
    }
}

#else

LLUDA_INLINE void decode_block(const uint8_t *block, const ExponentTable &table, Group out[4]) {
    uint16_t values[kBlockWeights];
    for (int i = 0; i < kBlockWeights; ++i) {
        const int b = byte_of_weight(i);
        const int code = (block[kBlockCodes + code_byte(b)] >> code_shift(b)) & 15;
        values[i] =
            static_cast<uint16_t>((block[b] & 0x7f) | table.low[code] | ((block[b] & 0x80) | table.high[code]) << 8);
    }
    for (int g = 0; g < 4; ++g) out[g] = load_group(values + g * kGroupWeights);
}

#endif

}  // namespace
}  // namespace lluda
