// Products of 1 to 16 rows with Q8_0 weights on the matrix unit (AMX): its products of bytes, on the q where they lie.
//
// A block of 32 columns of a row is written as whole numbers X < 2^30 times a power of two, so that values down to 2^-22
// of its largest are exact and smaller ones are rounded to 2^-30 of it; and X as four signed bytes. The q of 16 weight
// rows times each of the four are sums of integers, exact; they are put together in float32 with the scales of both.
//
// Four blocks and their four bytes are the 16 lanes of a tile of sums, which is why one row uses the unit as well as many
// do. Each row has tiles of its own, so that it gets the same bits alone and among others.
#pragma once

#include "matrix_tiles.hpp"
#include "q8_kernel.hpp"

namespace lluda {
namespace {

constexpr int kRunBlocks = 4;  // blocks of a tile of sums
constexpr int kDigits = 4;     // bytes of a whole number
constexpr int64_t kRunBytes = kRunBlocks * kQ8Bytes;
constexpr int kMostMatrixRows = 4;  // whose tiles of sums fit beside those of weights and rows

// Four blocks of a row: for each the tile [words of four columns][lanes], zero but in its own lanes; then what each lane's
// sums are multiplied with, besides the weights' scale.
struct alignas(64) DigitRun {
    uint32_t words[kRunBlocks][kQ8Weights / 4][kMatrixLanes];
    float factors[kMatrixLanes];
};

LLUDA_INLINE int64_t digit_runs(int64_t width) { return (width + kRunBlocks * kQ8Weights - 1) / (kRunBlocks * kQ8Weights); }

// 2^(29 - e) of a block whose largest magnitude is in 2^e .. 2^(e + 1); from 2^-90 on, and no number where that is none.
LLUDA_INLINE float digit_scale(uint32_t largest) {
    if (largest >= 0x7f800000u) return __builtin_nanf("");
    const uint32_t exponent = largest >> 23;
    const uint32_t scale = (2 * 127 + 29 - (exponent > 37 ? exponent : 37)) << 23;
    float out;
    memcpy(&out, &scale, sizeof out);
    return out;
}

// A word of each column's byte j, side by side for j = 0 .. 3, of every four columns.
LLUDA_INLINE __m512i digits_of(Floats x, float scale) {
    const __m512i shifted = _mm512_add_epi32(_mm512_cvtps_epi32(reinterpret_cast<__m512>(x * scale)),
                                             _mm512_set1_epi32(0x00808080));
    const __m512i bytes = _mm512_xor_si512(shifted, _mm512_set1_epi32(0x00808080));
    const __m128i by_digit = _mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    return _mm512_shuffle_epi8(bytes, _mm512_broadcast_i32x4(by_digit));
}

template <int Word>
LLUDA_INLINE void put_word(__m512i digits, __mmask16 lanes, uint32_t *words) {
    constexpr int kAll = Word * 0x55;
    _mm512_store_si512(words + Word * kMatrixLanes, _mm512_maskz_shuffle_i32x4(lanes, digits, digits, kAll));
}

// Block `index` of a run: 32 values of a prepared row.
LLUDA_INLINE void put_block(const uint16_t *x, int index, DigitRun &run) {
    const Floats half[2] = {load_bf16(x), load_bf16(x + kLanes)};
    const Words a = as_words(half[0]) & 0x7fffffffu, b = as_words(half[1]) & 0x7fffffffu;
    const float scale = digit_scale(_mm512_reduce_max_epu32(reinterpret_cast<__m512i>(a > b ? a : b)));
    const __mmask16 lanes = static_cast<__mmask16>(0xf << (kDigits * index));
    for (int h = 0; h < 2; ++h) {
        uint32_t *words = run.words[index][h * kDigits];
        const __m512i digits = digits_of(half[h], scale);
        put_word<0>(digits, lanes, words);
        put_word<1>(digits, lanes, words);
        put_word<2>(digits, lanes, words);
        put_word<3>(digits, lanes, words);
    }
    float factor = 1.0f / scale;
    for (int digit = 0; digit < kDigits; ++digit, factor *= 256.0f) run.factors[kDigits * index + digit] = factor;
}

int64_t digits_workspace(int rows, int64_t width) {
    return rows * digit_runs(width) * static_cast<int64_t>(sizeof(DigitRun));
}

void arrange_digits(const LinearTask &task, void *workspace) {
    const int64_t runs = digit_runs(task.weight->in_features);
    auto *run = static_cast<DigitRun *>(workspace);
    for (int r = 0; r < task.rows; ++r) {
        const auto *x = static_cast<const uint16_t *>(task.x[r]);
        for (int64_t i = 0; i < runs; ++i, ++run)
            for (int block = 0; block < kRunBlocks; ++block, x += kQ8Weights) put_block(x, block, *run);
    }
}

// The scales of `blocks` blocks of a run, each in the lanes of its block; zero in those of missing ones.
LLUDA_INLINE Floats scales_of_run(const uint8_t *run, int blocks) {
    constexpr short kStep = kQ8Bytes / 2;
    alignas(64) static constexpr short kPlaces[32] = {
        0,         0,         0,         0,         kStep,     kStep,     kStep,     kStep,
        2 * kStep, 2 * kStep, 2 * kStep, 2 * kStep, 3 * kStep, 3 * kStep, 3 * kStep, 3 * kStep};
    const int64_t halves = blocks * (kQ8Bytes / 2);
    const auto part = [&](int64_t from) LLUDA_INLINE_LAMBDA {
        const int64_t left = halves - from;
        const __mmask32 there = left >= 32 ? ~__mmask32{0} : static_cast<__mmask32>((1u << (left > 0 ? left : 0)) - 1u);
        return _mm512_maskz_loadu_epi16(there, reinterpret_cast<const uint16_t *>(run) + from);
    };
    const __m512i found = _mm512_permutex2var_epi16(part(0), _mm512_load_si512(kPlaces), part(32));
    return reinterpret_cast<Floats>(_mm512_cvtph_ps(_mm512_castsi512_si256(found)));
}

typedef int32_t ByteSums[kMatrixOutputs][kMatrixLanes];

// The sums of Rows rows, each in a tile; the intrinsics want tiles as literals.
template <int Rows>
LLUDA_INLINE void start_sums_of_bytes() {
    _tile_zero(0);
    if constexpr (Rows > 1) _tile_zero(1);
    if constexpr (Rows > 2) _tile_zero(2);
    if constexpr (Rows > 3) _tile_zero(3);
}

template <int Rows>
LLUDA_INLINE void store_sums_of_bytes(ByteSums *sums) {
    constexpr int64_t kStride = kMatrixLanes * 4;
    _tile_stored(0, sums[0], kStride);
    if constexpr (Rows > 1) _tile_stored(1, sums[1], kStride);
    if constexpr (Rows > 2) _tile_stored(2, sums[2], kStride);
    if constexpr (Rows > 3) _tile_stored(3, sums[3], kStride);
}

// A run of `blocks` blocks of 16 weight rows times that of Rows rows, which are `runs` runs apart.
template <int Rows>
LLUDA_INLINE void multiply_run(const uint8_t *weights, int64_t row_bytes, int blocks, const DigitRun *x, int64_t runs,
                               ByteSums *sums) {
    constexpr int64_t kStride = kMatrixLanes * 4;
    start_sums_of_bytes<Rows>();
    for (int b = 0; b < blocks; ++b) {
        _tile_loadd(6, weights + b * kQ8Bytes + kQ8Values, row_bytes);
        _tile_loadd(4, x->words[b], kStride);
        _tile_dpbssd(0, 6, 4);
        if constexpr (Rows > 1) {
            _tile_loadd(5, x[runs].words[b], kStride);
            _tile_dpbssd(1, 6, 5);
        }
        if constexpr (Rows > 2) {
            _tile_loadd(4, x[2 * runs].words[b], kStride);
            _tile_dpbssd(2, 6, 4);
        }
        if constexpr (Rows > 3) {
            _tile_loadd(5, x[3 * runs].words[b], kStride);
            _tile_dpbssd(3, 6, 5);
        }
    }
    store_sums_of_bytes<Rows>(sums);
}

// The q of 16 weight rows from `weights` on, and where they are read from memory ahead: the tile behind this one, in the
// order in which it lies there.
struct ByteTile {
    const uint8_t *weights;
    int64_t row_bytes;
    int outputs;

    LLUDA_INLINE void prefetch(int64_t run) const {
        const uintptr_t next = reinterpret_cast<uintptr_t>(weights) +
                               static_cast<uintptr_t>(kMatrixOutputs * (row_bytes + run * kRunBytes));
        for (int64_t at = 0; at < kMatrixOutputs * kRunBytes; at += 64)
            __builtin_prefetch(reinterpret_cast<const void *>(next + static_cast<uintptr_t>(at)), 0, 2);
    }
};

// A tile of weights, all 16 rows or fewer, times Rows rows from x on.
template <int Rows, bool Whole>
class ByteProducts {
public:
    // `sums`: memory of two runs.
    LLUDA_INLINE ByteProducts(const ByteTile &tile, int64_t width, const DigitRun *x, ByteSums (*sums)[Rows])
        : tile_(tile), blocks_(width / kQ8Weights), runs_(digit_runs(width)), x_(x), sums_(sums) {}

    // What a run stores is added when the next is under way: it is not there at once.
    LLUDA_INLINE void run(bool is_first_pass) {
        const int64_t whole = blocks_ / kRunBlocks;
        for (int64_t run = 0; run < whole; ++run) {
            multiply(run, kRunBlocks, is_first_pass);
            if (run > 0) add(run - 1, kRunBlocks);
        }
        if (whole > 0) add(whole - 1, kRunBlocks);
        if (whole == runs_) return;
        const int rest = static_cast<int>(blocks_ - whole * kRunBlocks);
        multiply(whole, rest, is_first_pass);
        add(whole, rest);
    }

    // sums[o * kTileRows + r]
    LLUDA_INLINE void put(float *sums) const {
        for (int r = 0; r < Rows; ++r) {
            float out[kMatrixOutputs];
            sum_16(totals_[r], out);
            for (int o = 0; o < kMatrixOutputs; ++o) sums[o * kTileRows + r] = out[o];
        }
    }

private:
    LLUDA_INLINE void multiply(int64_t run, int blocks, bool is_first_pass) const {
        if (is_first_pass) tile_.prefetch(run);
        multiply_run<Rows>(tile_.weights + run * kRunBytes, tile_.row_bytes, blocks, x_ + run, runs_, sums_[run % 2]);
    }

    LLUDA_INLINE void add(int64_t run, int blocks) {
        const uint8_t *weights = tile_.weights + run * kRunBytes;
        const ByteSums *sums = sums_[run % 2];
        Floats factors[Rows];
        for (int r = 0; r < Rows; ++r) factors[r] = load(x_[run + r * runs_].factors);
        for (int o = 0; o < (Whole ? kMatrixOutputs : tile_.outputs); ++o) {
            const Floats scales = scales_of_run(weights + o * tile_.row_bytes, blocks);
            for (int r = 0; r < Rows; ++r) {
                const auto whole = reinterpret_cast<Floats>(_mm512_cvtepi32_ps(_mm512_load_si512(sums[r][o])));
                totals_[r][o] += whole * (scales * factors[r]);
            }
        }
    }

    const ByteTile tile_;
    const int64_t blocks_, runs_;
    const DigitRun *const x_;
    ByteSums (*const sums_)[Rows];
    Floats totals_[Rows][kMatrixOutputs] = {};
};

template <int Rows, bool Whole>
__attribute__((noinline)) void multiply_bytes(const ByteTile &tile, int64_t width, const DigitRun *x,
                                              bool is_first_pass, float *sums) {
    alignas(64) ByteSums parts[2][Rows];
    ByteProducts<Rows, Whole> products(tile, width, x, parts);
    products.run(is_first_pass);
    products.put(sums);
}

template <int Rows>
LLUDA_INLINE void byte_tile(const ByteTile &tile, int64_t width, const DigitRun *x, bool is_first_pass, float *sums) {
    if (tile.outputs == kMatrixOutputs) return multiply_bytes<Rows, true>(tile, width, x, is_first_pass, sums);
    multiply_bytes<Rows, false>(tile, width, x, is_first_pass, sums);
}

LLUDA_INLINE void byte_rows(const ByteTile &tile, int64_t width, int rows, const DigitRun *x, float *sums) {
    for (int first = 0; first < rows; first += kMostMatrixRows) {
        const DigitRun *own = x + first * digit_runs(width);
        switch (rows - first) {
            case 1:
                byte_tile<1>(tile, width, own, first == 0, sums + first);
                break;
            case 2:
                byte_tile<2>(tile, width, own, first == 0, sums + first);
                break;
            case 3:
                byte_tile<3>(tile, width, own, first == 0, sums + first);
                break;
            default:
                byte_tile<4>(tile, width, own, first == 0, sums + first);
        }
    }
}

// `count` output features from `output` on, 16 at a time, of weights and rows that arrange_digits has laid out.
LLUDA_INLINE void byte_outputs(const LinearTask &task, int64_t output, int64_t end, int count, const DigitRun *x) {
    if (output >= end) return;
    const int64_t width = task.weight->in_features, row_bytes = width / kQ8Weights * kQ8Bytes;
    const auto *weights = static_cast<const uint8_t *>(task.weight->values);
    alignas(64) float sums[kMatrixOutputs * kTileRows];
    const TilesInUse in_use(count, kMatrixLanes, 6, kQ8Weights / 4);
    for (; output < end; output += count) {
        byte_rows({weights + output * row_bytes, row_bytes, count}, width, task.rows, x, sums);
        put_outputs(task, output, count, sums);
    }
}

// Output features begin .. end-1 of exact Q8_0 weights.
void byte_linear(const LinearTask &task, int64_t begin, int64_t end, const void *workspace) {
    const auto *x = static_cast<const DigitRun *>(workspace);
    const int64_t whole = begin + (end - begin) / kMatrixOutputs * kMatrixOutputs;
    byte_outputs(task, begin, whole, kMatrixOutputs, x);
    byte_outputs(task, whole, end, static_cast<int>(end - whole), x);
}

}  // namespace
}  // namespace lluda
