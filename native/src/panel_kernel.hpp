// Products of many rows: weights broadcast word by word against panels (kernels.hpp, panel.hpp).
//
// A register tile is some outputs times some vectors of rows; nothing is summed across lanes, so sums are stored as
// they are. Weights are read where they lie or decoded once for all rows of a call.
#pragma once

#include "kernels.hpp"
#include "row_kernels.hpp"

namespace lluda {
namespace {

#if LLUDA_BF16_PAIRS

// Two BF16 columns.
struct PairWord {
    static LLUDA_INLINE Floats multiply_add(Floats total, Words w, Words x) {
#if defined(__aarch64__)
        return vbfdotq_f32(total, vreinterpretq_bf16_u32(x), vreinterpretq_bf16_u32(w));
#else
        return reinterpret_cast<Floats>(_mm512_dpbf16_ps(reinterpret_cast<__m512>(total), reinterpret_cast<__m512bh>(x),
                                                         reinterpret_cast<__m512bh>(w)));
#endif
    }
};
constexpr int64_t kColumnsPerWord = 2;

#else

constexpr int64_t kColumnsPerWord = 1;

#endif

struct FloatWord {
    static LLUDA_INLINE Floats multiply_add(Floats total, Words w, Words x) {
        return total + as_floats(w) * as_floats(x);
    }
};

int64_t words(int64_t width) { return (width + kColumnsPerWord - 1) / kColumnsPerWord; }

LLUDA_INLINE Words load_words(const uint32_t *p) { return *reinterpret_cast<const WordsInMemory *>(p); }
LLUDA_INLINE void store_words(uint32_t *p, Words v) { *reinterpret_cast<WordsInMemory *>(p) = v; }

// Words of memory that holds BF16 numbers or floats, at any address.
LLUDA_INLINE Words broadcast_word(const char *p) {
    uint32_t word;
    memcpy(&word, p, 4);
    return word - Words{};
}

void words_of_bf16(const uint16_t *x, int64_t width, void *out) {
    if constexpr (kColumnsPerWord == 2) {
        memcpy(out, x, static_cast<size_t>(width) * 2);
        if (width % 2) static_cast<uint16_t *>(out)[width] = 0;
    } else {
        from_bf16(x, width, static_cast<float *>(out));
    }
}

void words_of_f32(const float *x, int64_t width, void *out) {
    if constexpr (kColumnsPerWord == 2) {
        to_bf16(x, width, static_cast<uint16_t *>(out));
        if (width % 2) static_cast<uint16_t *>(out)[width] = 0;
    } else {
        memcpy(out, x, static_cast<size_t>(width) * 4);
        round_to_bf16(static_cast<float *>(out), width);
    }
}

#if defined(__AVX512F__)

// Rows of 16 words to columns.
LLUDA_INLINE void transpose_16(__m512i (&a)[16]) {
    __m512i b[16];
    for (int i = 0; i < 16; i += 2) {
        b[i] = _mm512_unpacklo_epi32(a[i], a[i + 1]);
        b[i + 1] = _mm512_unpackhi_epi32(a[i], a[i + 1]);
    }
    for (int i = 0; i < 16; i += 4)
        for (int j = 0; j < 2; ++j) {
            a[i + 2 * j] = _mm512_unpacklo_epi64(b[i + j], b[i + j + 2]);
            a[i + 2 * j + 1] = _mm512_unpackhi_epi64(b[i + j], b[i + j + 2]);
        }
    // a[4 i + c] has in its 128-bit lane l column 4 l + c of rows 4 i .. 4 i + 3.
    for (int c = 0; c < 4; ++c) {
        const __m512i low = _mm512_shuffle_i32x4(a[c], a[4 + c], 0x44),
                      high = _mm512_shuffle_i32x4(a[c], a[4 + c], 0xee);
        const __m512i low2 = _mm512_shuffle_i32x4(a[8 + c], a[12 + c], 0x44),
                      high2 = _mm512_shuffle_i32x4(a[8 + c], a[12 + c], 0xee);
        b[c] = _mm512_shuffle_i32x4(low, low2, 0x88);
        b[4 + c] = _mm512_shuffle_i32x4(low, low2, 0xdd);
        b[8 + c] = _mm512_shuffle_i32x4(high, high2, 0x88);
        b[12 + c] = _mm512_shuffle_i32x4(high, high2, 0xdd);
    }
    for (int i = 0; i < 16; ++i) a[i] = b[i];
}

#endif

void pack_rows(const void *const *rows, int count, int64_t words, void *panel, int64_t panel_width) {
    uint32_t *out = static_cast<uint32_t *>(panel);
    const uint32_t *row[kPanelRows];
    for (int r = 0; r < kPanelRows; ++r) row[r] = static_cast<const uint32_t *>(rows[r < count ? r : count - 1]);
#if defined(__AVX512F__)
    for (int64_t k = 0; k < words; k += 16) {
        const int64_t n = words - k < 16 ? words - k : 16;
        __m512i a[16];
        for (int r = 0; r < 16; ++r)
            a[r] = _mm512_maskz_loadu_epi32(static_cast<__mmask16>((1u << n) - 1u), row[r] + k);
        transpose_16(a);
        for (int64_t i = 0; i < n; ++i) _mm512_storeu_si512(out + (k + i) * panel_width, a[i]);
    }
#else
    for (int64_t k = 0; k < words; ++k)
        for (int r = 0; r < kPanelRows; ++r) memcpy(out + k * panel_width + r, row[r] + k, 4);
#endif
}

// BF16 values of columns from .. to-1 of one weight row.
LLUDA_INLINE void decode_row(const lluda_weight &w, const ExponentTable &table, int64_t output, int64_t from,
                             int64_t to, uint16_t *out) {
    const uint8_t *blocks =
        static_cast<const uint8_t *>(w.values) + output * blocks_per_row(w.in_features) * kBlockBytes;
    for (int64_t at = from; at < to; at += kBlockWeights) {
        Group groups[4];
        decode_block(blocks + at / kBlockWeights * kBlockBytes, table, groups);
        memcpy(out + (at - from), groups, sizeof groups);
    }
    for (uint32_t i = w.escape_rows[output]; i < w.escape_rows[output + 1]; ++i) {
        const int64_t column = w.escape_columns[i];
        if (column >= from && column < to) out[column - from] = w.escape_values[i];
    }
}

const void *words_of_weight(const lluda_weight &w, int64_t begin, int64_t end, int64_t from, int64_t to, void *buffer,
                            int64_t *stride) {
    const bool packed = w.format == LLUDA_FORMAT_PACKED_BF16;
    const uint16_t *plain = static_cast<const uint16_t *>(w.values);
    if (kColumnsPerWord == 2 && !packed && w.in_features % 2 == 0) {
        *stride = w.in_features / 2;
        return plain + begin * w.in_features + from;
    }
    // Whole blocks are decoded; a line more keeps rows out of each other's sets in the first-level cache.
    const int64_t columns = to - from, padded = (columns + kBlockWeights - 1) / kBlockWeights * kBlockWeights;
    *stride = padded / kColumnsPerWord + 16;
    const ExponentTable table = packed ? exponent_table(w.exponents) : ExponentTable{};
    uint32_t *out = static_cast<uint32_t *>(buffer);
    for (int64_t output = begin; output < end; ++output, out += *stride) {
        if constexpr (kColumnsPerWord == 2) {
            uint16_t *halves = reinterpret_cast<uint16_t *>(out);
            if (packed) {
                decode_row(w, table, output, from, to, halves);
            } else {
                memcpy(halves, plain + output * w.in_features + from, static_cast<size_t>(columns) * 2);
            }
            if (columns % 2) halves[columns] = 0;
        } else {
            // The values come to the end of the row's buffer and are widened from its front.
            uint16_t *halves = reinterpret_cast<uint16_t *>(out + *stride) - padded;
            const uint16_t *values = plain + output * w.in_features + from;
            if (packed) {
                decode_row(w, table, output, from, to, halves);
                values = halves;
            }
            from_bf16(values, columns, reinterpret_cast<float *>(out));
        }
    }
    return buffer;
}

constexpr int kFetchWords = 16;  // a cache line of them

// Outputs from `first` on, vectors of lanes from `lane` on.
template <class Word, int Outputs, int Vectors>
__attribute__((noinline)) void register_tile(const TileTask &task, int first, int lane) {
    constexpr int kStep = Outputs % 3 == 0 ? 3 : 1;  // outputs that one pointer reaches by scaled addressing
    constexpr int kPointers = Outputs / kStep;
    const int64_t output_bytes = task.output_stride * 4, word_bytes = task.word_stride * 4;
    const char *p[kPointers];
    for (int i = 0; i < kPointers; ++i)
        p[i] = static_cast<const char *>(task.multiplicands) + (first + i * kStep) * output_bytes;
    const uint32_t *x = static_cast<const uint32_t *>(task.panel) + lane;
    float *out = task.out + first * kTileRows + lane;
    uintptr_t ahead = reinterpret_cast<uintptr_t>(task.prefetch) + static_cast<uintptr_t>(first * task.words * 4);
    Floats sums[Outputs][Vectors];
    for (int o = 0; o < Outputs; ++o)
        for (int v = 0; v < Vectors; ++v)
            sums[o][v] = task.accumulate ? load(out + o * kTileRows + v * kLanes) : Floats{};
    for (int64_t k = 0; k < task.words;) {
        if (task.prefetch && lane == 0)
            for (int o = 0; o < Outputs; ++o, ahead += 64)
                __builtin_prefetch(reinterpret_cast<const void *>(ahead), 0, 2);
        const int64_t stop = k + kFetchWords < task.words ? k + kFetchWords : task.words;
        for (; k < stop; ++k) {
            Words column[Vectors];
            for (int v = 0; v < Vectors; ++v) column[v] = load_words(x + v * kLanes);
            for (int i = 0; i < kPointers; ++i) {
                for (int j = 0; j < kStep; ++j) {
                    const Words w = broadcast_word(p[i] + j * output_bytes);
                    for (int v = 0; v < Vectors; ++v)
                        sums[i * kStep + j][v] = Word::multiply_add(sums[i * kStep + j][v], w, column[v]);
                }
                p[i] += word_bytes;
            }
            x += task.panel_width;
        }
    }
    for (int o = 0; o < Outputs; ++o)
        for (int v = 0; v < Vectors; ++v) store(out + o * kTileRows + v * kLanes, sums[o][v]);
}

template <class Word, int Vectors>
LLUDA_INLINE void register_tiles(const TileTask &task, int lane) {
    constexpr int kOutputs = kLanes == 16 && Vectors <= 2 ? 12 : 6;
    int o = 0;
    for (; o + kOutputs <= task.outputs; o += kOutputs) register_tile<Word, kOutputs, Vectors>(task, o, lane);
    for (; o + 3 <= task.outputs; o += 3) register_tile<Word, 3, Vectors>(task, o, lane);
    for (; o < task.outputs; ++o) register_tile<Word, 1, Vectors>(task, o, lane);
}

template <class Word>
LLUDA_INLINE void multiply_in(const TileTask &task) {
    if constexpr (kLanes == 16) {
        switch (task.lanes / kLanes) {
            case 1:
                return register_tiles<Word, 1>(task, 0);
            case 2:
                return register_tiles<Word, 2>(task, 0);
            case 3:
                return register_tiles<Word, 3>(task, 0);
            default:
                return register_tiles<Word, 4>(task, 0);
        }
    } else {
        for (int lane = 0; lane < task.lanes; lane += 2 * kLanes) register_tiles<Word, 2>(task, lane);
    }
}

void multiply_tile(const TileTask &task) {
#if LLUDA_BF16_PAIRS
    if (!task.floats) return multiply_in<PairWord>(task);
#endif
    multiply_in<FloatWord>(task);
}

// Sums [outputs][kTileRows] of 16 outputs and lanes to [lanes][16]; outputs that are missing are zero.
LLUDA_INLINE void lay_down(const float *sums, int outputs, float (&out)[16][16]) {
#if defined(__AVX512F__)
    __m512i a[16];
    for (int o = 0; o < 16; ++o) a[o] = o < outputs ? _mm512_loadu_si512(sums + o * kTileRows) : _mm512_setzero_si512();
    transpose_16(a);
    for (int r = 0; r < 16; ++r) _mm512_storeu_si512(out[r], a[r]);
#else
    for (int o = 0; o < 16; ++o)
        for (int r = 0; r < 16; ++r) out[r][o] = o < outputs ? sums[o * kTileRows + r] : 0.0f;
#endif
}

// `n` sums of one row, from output `o` on.
LLUDA_INLINE void put_sums(const PutTask &task, int row, int o, int n, const float *sums) {
    for (int i = 0; i < n; i += kLanes) {
        const int64_t m = n - i < kLanes ? n - i : kLanes;
        Floats v = load(sums + i);
        if (task.bias) v += load_part(task.bias + o + i, m);
        if (task.store == Store::kBFloat16) {
            const Words bits = bf16_bits(v);
            uint16_t *y = static_cast<uint16_t *>(task.y[row]) + o + i;
            for (int64_t j = 0; j < m; ++j) y[j] = static_cast<uint16_t>(bits[j]);
            continue;
        }
        float *y = static_cast<float *>(task.y[row]) + o + i;
        if (task.store == Store::kAdd) {
            if (task.factors) v *= task.factors[row];
            if (task.scale) v *= load_part(task.scale + o + i, m);
            v += load_part(y, m);
        }
        store_part(y, v, m);
    }
}

void put_tile(const PutTask &task) {
    for (int lane = 0; lane < task.rows; lane += 16)
        for (int o = 0; o < task.outputs; o += 16) {
            const int n = task.outputs - o < 16 ? task.outputs - o : 16;
            float rows[16][16];
            lay_down(task.sums + o * kTileRows + lane, n, rows);
            for (int r = 0; r < 16 && lane + r < task.rows; ++r) put_sums(task, lane + r, o, n, rows[r]);
        }
}

LLUDA_INLINE Words gated_bits(const float *gate, const float *up) {
    const Floats g = load(gate);
    return bf16_bits(g / (exponential(-g) + 1.0f) * load(up));
}

// Words of BF16 bits of [outputs][lanes] numbers as columns of a panel, from an even one on.
template <class Bits>
LLUDA_INLINE void put_words(int outputs, int lanes, void *panel, int64_t width, Bits &&bits) {
    uint32_t *out = static_cast<uint32_t *>(panel);
    for (int o = 0; o < outputs; o += kColumnsPerWord, out += width)
        for (int lane = 0; lane < lanes; lane += kLanes) {
            Words word = bits(o, lane);
            if constexpr (kColumnsPerWord == 1) {
                word <<= 16;
            } else if (o + 1 < outputs) {
                word |= bits(o + 1, lane) << 16;
            }
            store_words(out + lane, word);
        }
}

void gate_tile(const float *gate, const float *up, int outputs, int lanes, void *panel, int64_t width) {
    put_words(outputs, lanes, panel, width, [&](int o, int lane) LLUDA_INLINE_LAMBDA {
        return gated_bits(gate + o * kTileRows + lane, up + o * kTileRows + lane);
    });
}

void gelu(const float *x, int64_t count, uint16_t *out) {
    for (int64_t i = 0; i < count; i += kLanes) {
        const int64_t here = smaller(count - i, kLanes);
        const Halves halves = __builtin_convertvector(bf16_bits(gelu_erf(load_part(x + i, here))), Halves);
        memcpy(out + i, &halves, static_cast<size_t>(here) * 2);
    }
}

void gelu_tile(const float *sums, const float *bias, bool tanh, int outputs, int lanes, void *panel, int64_t width) {
    put_words(outputs, lanes, panel, width, [&](int o, int lane) LLUDA_INLINE_LAMBDA {
        const Floats x = load(sums + o * kTileRows + lane) + (bias ? bias[o] : 0.0f);
        return bf16_bits(tanh ? gelu_tanh(x) : gelu_erf(x));
    });
}

void snake_tile(const float *sums, const float *bias, const float *frequency, const float *amplitude, int outputs,
                int lanes, void *panel, int64_t width) {
    put_words(outputs, lanes, panel, width, [&](int o, int lane) LLUDA_INLINE_LAMBDA {
        const Floats x = load(sums + o * kTileRows + lane) + (bias ? bias[o] : 0.0f);
        return bf16_bits(x + amplitude[o] * squared_sine(frequency[o] * x));
    });
}

}  // namespace
}  // namespace lluda
