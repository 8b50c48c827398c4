// Products on the matrix unit (AMX): a tile of 16 weight rows by 32 columns, read where it lies or from decoded blocks,
// times the same columns of up to 16 rows that lie side by side, as in panels (kernels.hpp). Each row has sums of its
// own, so that it gets the same bits alone and among others.
//
// The unit adds up a tile's products as Intel's manual says under TDPBF16PS: those of even and of odd columns apart, in
// float32, denormal numbers counting as zero. It computes some 30 times as fast as vdpbf16ps does on the same core, so
// that 16 rows cost what reading the weights costs. Q8_0: amx_q8_kernel.hpp.
#pragma once

#include "amx_q8_kernel.hpp"
#include "matrix_tiles.hpp"
#include "q8_panel_kernel.hpp"

namespace lluda {
namespace {

// ---- 1 to 16 rows

// Lanes that `rows` rows lie side by side in. One row is its own panel.
LLUDA_INLINE int side_by_side(int rows) { return rows == 1 ? 1 : rows <= 4 ? 4 : rows <= 8 ? 8 : 16; }

// Q8_0 takes more than rows side by side do.
int64_t matrix_workspace(int rows, int64_t width) { return digits_workspace(rows, width); }

void matrix_arrange(const LinearTask &task, void *workspace) {
    if (task.weight->format == LLUDA_FORMAT_Q8_0) return arrange_digits(task, workspace);
    if (task.rows == 1 || task.weight->format == LLUDA_FORMAT_Q8_0_ROWS) return;
    const int64_t words = padded_width(task.weight->in_features) / 2, lanes = side_by_side(task.rows);
    const __mmask16 there = static_cast<__mmask16>((1u << lanes) - 1u);
    uint32_t *panel = static_cast<uint32_t *>(workspace);
    for (int64_t k = 0; k < words; k += 16) {
        __m512i a[16];
        for (int r = 0; r < 16; ++r)
            a[r] = r < task.rows ? _mm512_loadu_si512(static_cast<const uint32_t *>(task.x[r]) + k)
                                 : _mm512_setzero_si512();
        transpose_16(a);
        for (int i = 0; i < 16; ++i) _mm512_mask_storeu_epi32(panel + (k + i) * lanes, there, a[i]);
    }
}

// A block of 128 columns of 16 weight rows.
struct Stage {
    alignas(64) uint16_t values[kMatrixOutputs][kBlockWeights];
};

struct BlockAt {
    const void *values;
    int64_t stride;  // in bytes
};

// Weight rows of a tile are kApart rows apart, and the rows between are the next tiles', so that each row's stream has a
// page of memory to itself: those are the streams that the hardware's prefetchers follow (rows of 2 KB: 10 % faster).
constexpr int kApart = 2;
constexpr int kGroupOutputs = kApart * kMatrixOutputs;  // consecutive weight rows that tiles share

// The weight rows output, output + kApart, … of a tile, `count` of them, in blocks of 128 columns. Rows that are
// missing are whatever the stage holds; their sums are not used.
class PlainTiles {
public:
    LLUDA_INLINE PlainTiles(const lluda_weight &w, int64_t output, int count)
        : values_(static_cast<const uint16_t *>(w.values) + output * w.in_features),
          width_(w.in_features),
          count_(count) {}

    LLUDA_INLINE BlockAt block(int64_t index, Stage &stage) const {
        const int64_t from = index * kBlockWeights, columns = smaller(width_ - from, kBlockWeights);
        if (count_ == kMatrixOutputs && columns == kBlockWeights) return {values_ + from, kApart * width_ * 2};
        memset(&stage, 0, sizeof stage);
        for (int o = 0; o < count_; ++o)
            memcpy(stage.values[o], values_ + o * kApart * width_ + from, static_cast<size_t>(columns) * 2);
        return {stage.values, sizeof stage.values[0]};
    }

private:
    const uint16_t *values_;
    const int64_t width_;
    const int count_;
};

class PackedTiles {
public:
    LLUDA_INLINE PackedTiles(const lluda_weight &w, int64_t output, int count)
        : w_(w), row_bytes_(blocks_per_row(w.in_features) * kBlockBytes), count_(count) {
        blocks_ = static_cast<const uint8_t *>(w.values) + output * row_bytes_;
        // The rows of the tile after this one begin one row further, or behind those that the tiles share.
        next_ = row_bytes_ * (output % kApart + 1 < kApart ? 1 : kGroupOutputs - kApart + 1);
        table_ = exponent_table(w.exponents);
        for (int o = 0; o < kMatrixOutputs; ++o) {
            escape_[o] = o < count ? w.escape_rows[output + o * kApart] : 0;
            end_[o] = o < count ? w.escape_rows[output + o * kApart + 1] : 0;
            column_[o] = next_column(o);
        }
    }

    LLUDA_INLINE BlockAt block(int64_t index, Stage &stage) {
        for (int o = 0; o < count_; ++o) {
            const uint8_t *block = blocks_ + o * kApart * row_bytes_ + index * kBlockBytes;
            prefetch_block(block);
            Group groups[4];
            decode_block(block, table_, groups);
            for (int g = 0; g < 4; ++g) _mm512_store_si512(stage.values[o] + g * kGroupWeights, groups[g].pairs);
        }
        const int32_t stop = static_cast<int32_t>((index + 1) * kBlockWeights);
        unsigned due = _mm512_cmplt_epi32_mask(_mm512_load_si512(column_), _mm512_set1_epi32(stop));
        for (; due; due &= due - 1) put_escapes(__builtin_ctz(due), stop, stage);
        return {stage.values, sizeof stage.values[0]};
    }

private:
    // The same block of the next tile, into the second-level cache: decoding leaves the hardware's prefetchers too
    // little time. Past the last row this touches nothing that faults.
    LLUDA_INLINE void prefetch_block(const uint8_t *block) const {
        const uintptr_t next = reinterpret_cast<uintptr_t>(block) + static_cast<uintptr_t>(next_);
        for (int64_t at = 0; at < kBlockBytes; at += 64)
            __builtin_prefetch(reinterpret_cast<const void *>(next + static_cast<uintptr_t>(at)), 0, 2);
    }

    LLUDA_INLINE int32_t next_column(int row) const {
        return escape_[row] < end_[row] ? static_cast<int32_t>(w_.escape_columns[escape_[row]]) : INT32_MAX;
    }

    // The weights that the packed form keeps aside.
    void put_escapes(int row, int32_t stop, Stage &stage) {
        for (; column_[row] < stop; ++escape_[row], column_[row] = next_column(row))
            stage.values[row][column_[row] % kBlockWeights] = w_.escape_values[escape_[row]];
    }

    const lluda_weight &w_;
    const uint8_t *blocks_;
    const int64_t row_bytes_;
    const int count_;
    int64_t next_;
    ExponentTable table_;
    uint32_t escape_[kMatrixOutputs], end_[kMatrixOutputs];
    alignas(64) int32_t column_[kMatrixOutputs];  // of each row's next escape
};

// Four sums take turns, so that a product need not wait for the one before it.
LLUDA_INLINE void multiply_block(const BlockAt &weights, const uint32_t *x, int64_t lanes) {
    const char *w = static_cast<const char *>(weights.values);
    const int64_t stride = lanes * 4, step = kMatrixWords * lanes;
    _tile_loadd(4, x, stride);
    _tile_loadd(6, w, weights.stride);
    _tile_dpbf16ps(0, 6, 4);
    _tile_loadd(5, x + step, stride);
    _tile_loadd(7, w + 64, weights.stride);
    _tile_dpbf16ps(1, 7, 5);
    _tile_loadd(4, x + 2 * step, stride);
    _tile_loadd(6, w + 128, weights.stride);
    _tile_dpbf16ps(2, 6, 4);
    _tile_loadd(5, x + 3 * step, stride);
    _tile_loadd(7, w + 192, weights.stride);
    _tile_dpbf16ps(3, 7, 5);
}

// The four sums of a tile to every kApart-th of `sums` [outputs][kTileRows].
LLUDA_INLINE void add_up_tile(float *sums) {
    alignas(64) float parts[4][kMatrixOutputs][kMatrixLanes];
    _tile_stored(0, parts[0], kMatrixLanes * 4);
    _tile_stored(1, parts[1], kMatrixLanes * 4);
    _tile_stored(2, parts[2], kMatrixLanes * 4);
    _tile_stored(3, parts[3], kMatrixLanes * 4);
    for (int o = 0; o < kMatrixOutputs; ++o)
        store(sums + o * kApart * kTileRows,
              (load(parts[0][o]) + load(parts[1][o])) + (load(parts[2][o]) + load(parts[3][o])));
}

template <class Tiles>
LLUDA_INLINE void multiply_tiles(Tiles &&tiles, int64_t blocks, const uint32_t *x, int64_t lanes) {
    Stage stages[2];  // one is filled while the tiles of the other are multiplied
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    BlockAt next = tiles.block(0, stages[0]);
    for (int64_t b = 0; b < blocks; ++b) {
        const BlockAt here = next;
        if (b + 1 < blocks) next = tiles.block(b + 1, stages[(b + 1) % 2]);
        multiply_block(here, x + b * (kBlockWeights / 2) * lanes, lanes);
    }
}

template <class Tiles>
__attribute__((noinline)) void matrix_range(const LinearTask &task, int64_t begin, int64_t end, const uint32_t *x) {
    const int64_t blocks = blocks_per_row(task.weight->in_features), lanes = side_by_side(task.rows);
    alignas(64) float sums[kGroupOutputs * kTileRows];
    const TilesInUse in_use(kMatrixOutputs, task.rows, 6);
    for (int64_t output = begin; output < end; output += kGroupOutputs) {
        const int count = static_cast<int>(smaller(end - output, kGroupOutputs));
        for (int first = 0; first < kApart && first < count; ++first) {
            const int rows = (count - first + kApart - 1) / kApart;
            multiply_tiles(Tiles(*task.weight, output + first, rows), blocks, x, lanes);
            add_up_tile(sums + first * kTileRows);
        }
        put_outputs(task, output, count, sums);
    }
}

void matrix_linear(const LinearTask &task, int64_t begin, int64_t end, const void *workspace) {
    const auto *x = static_cast<const uint32_t *>(task.rows == 1 ? task.x[0] : workspace);
    switch (task.weight->format) {
        case LLUDA_FORMAT_BF16:
            return matrix_range<PlainTiles>(task, begin, end, x);
        case LLUDA_FORMAT_PACKED_BF16:
            return matrix_range<PackedTiles>(task, begin, end, x);
        case LLUDA_FORMAT_Q8_0:
            return byte_linear(task, begin, end, workspace);
        default:
            return vector_linear(task, begin, end, workspace);
    }
}

// ---- Many rows

// Sums of 16 outputs and lanes from `out` on, to and from a tile, which the intrinsics want as a literal.
template <int Tile>
LLUDA_INLINE void load_sums(const float *out) {
    constexpr int64_t kStride = kTileRows * 4;
    if constexpr (Tile == 0) _tile_loadd(0, out, kStride);
    if constexpr (Tile == 1) _tile_loadd(1, out, kStride);
    if constexpr (Tile == 2) _tile_loadd(2, out, kStride);
    if constexpr (Tile == 3) _tile_loadd(3, out, kStride);
}

template <int Tile>
LLUDA_INLINE void start_sums(const TileTask &task, const float *out) {
    if (task.accumulate) return load_sums<Tile>(out);
    if constexpr (Tile == 0) _tile_zero(0);
    if constexpr (Tile == 1) _tile_zero(1);
    if constexpr (Tile == 2) _tile_zero(2);
    if constexpr (Tile == 3) _tile_zero(3);
}

template <int Tile>
LLUDA_INLINE void put_sums_of(float *out) {
    constexpr int64_t kStride = kTileRows * 4;
    if constexpr (Tile == 0) _tile_stored(0, out, kStride);
    if constexpr (Tile == 1) _tile_stored(1, out, kStride);
    if constexpr (Tile == 2) _tile_stored(2, out, kStride);
    if constexpr (Tile == 3) _tile_stored(3, out, kStride);
}

// Where the operands of a task's products lie, as they are gone through: tile by tile of words, tap by tap.
struct Operands {
    const char *w;
    const uint32_t *x;
    int64_t w_stride, x_stride;
    uintptr_t ahead;

    LLUDA_INLINE Operands(const TileTask &task, int first, int tap)
        : w(static_cast<const char *>(task.multiplicands) + (first * task.output_stride + tap * task.tap_words) * 4),
          x(static_cast<const uint32_t *>(task.panel) + tap * task.tap_lanes),
          w_stride(task.output_stride * 4),
          x_stride(task.panel_width * 4),
          ahead(task.prefetch && tap == 0
                    ? reinterpret_cast<uintptr_t>(task.prefetch) + static_cast<uintptr_t>(first * task.words * 4)
                    : 0) {}

    LLUDA_INLINE void prefetch(int outputs) {
        if (!ahead) return;
        for (int o = 0; o < outputs; ++o, ahead += 64)
            __builtin_prefetch(reinterpret_cast<const void *>(ahead), 0, 2);
    }
    LLUDA_INLINE void move() {
        w += 64;
        x += kMatrixWords * x_stride / 4;
    }
};

// 16 outputs from `first` on times Sums * 16 lanes, over whole tiles of words.
template <int Sums>
__attribute__((noinline)) void matrix_outputs(const TileTask &task, int first, int64_t words) {
    float *out = task.out + first * kTileRows;
    start_sums<0>(task, out);
    if constexpr (Sums > 1) start_sums<1>(task, out + kMatrixLanes);
    if constexpr (Sums > 2) start_sums<2>(task, out + 2 * kMatrixLanes);
    if constexpr (Sums > 3) start_sums<3>(task, out + 3 * kMatrixLanes);
    for (int tap = 0; tap < task.taps; ++tap) {
        Operands at(task, first, tap);
        for (int64_t k = 0; k < words; k += kMatrixWords, at.move()) {
            at.prefetch(kMatrixOutputs);
            _tile_loadd(7, at.w, at.w_stride);
            _tile_loadd(4, at.x, at.x_stride);
            _tile_dpbf16ps(0, 7, 4);
            if constexpr (Sums > 1) {
                _tile_loadd(5, at.x + kMatrixLanes, at.x_stride);
                _tile_dpbf16ps(1, 7, 5);
            }
            if constexpr (Sums > 2) {
                _tile_loadd(6, at.x + 2 * kMatrixLanes, at.x_stride);
                _tile_dpbf16ps(2, 7, 6);
            }
            if constexpr (Sums > 3) {
                _tile_loadd(4, at.x + 3 * kMatrixLanes, at.x_stride);
                _tile_dpbf16ps(3, 7, 4);
            }
        }
    }
    put_sums_of<0>(out);
    if constexpr (Sums > 1) put_sums_of<1>(out + kMatrixLanes);
    if constexpr (Sums > 2) put_sums_of<2>(out + 2 * kMatrixLanes);
    if constexpr (Sums > 3) put_sums_of<3>(out + 3 * kMatrixLanes);
}

// 32 outputs from `first` on times Lanes, 16 or 32 of them: each tile that is loaded serves two outputs or lanes.
template <int Lanes>
__attribute__((noinline)) void matrix_output_pairs(const TileTask &task, int first, int64_t words) {
    constexpr bool kTwo = Lanes > kMatrixLanes;
    float *out = task.out + first * kTileRows, *second = out + kMatrixOutputs * kTileRows;
    start_sums<0>(task, out);
    start_sums<1>(task, second);
    if constexpr (kTwo) start_sums<2>(task, out + kMatrixLanes);
    if constexpr (kTwo) start_sums<3>(task, second + kMatrixLanes);
    for (int tap = 0; tap < task.taps; ++tap) {
        Operands at(task, first, tap);
        for (int64_t k = 0; k < words; k += kMatrixWords, at.move()) {
            at.prefetch(2 * kMatrixOutputs);
            _tile_loadd(6, at.w, at.w_stride);
            _tile_loadd(4, at.x, at.x_stride);
            _tile_dpbf16ps(0, 6, 4);
            _tile_loadd(7, at.w + kMatrixOutputs * at.w_stride, at.w_stride);
            _tile_dpbf16ps(1, 7, 4);
            if constexpr (kTwo) {
                _tile_loadd(5, at.x + kMatrixLanes, at.x_stride);
                _tile_dpbf16ps(2, 6, 5);
                _tile_dpbf16ps(3, 7, 5);
            }
        }
    }
    put_sums_of<0>(out);
    put_sums_of<1>(second);
    if constexpr (kTwo) put_sums_of<2>(out + kMatrixLanes);
    if constexpr (kTwo) put_sums_of<3>(second + kMatrixLanes);
}

// Up to 16 at a time of the outputs begin .. end-1.
LLUDA_INLINE void matrix_tiles(const TileTask &task, int begin, int end, int64_t words) {
    if (begin >= end) return;
    const TilesInUse in_use(end - begin < kMatrixOutputs ? end - begin : kMatrixOutputs, kMatrixLanes, 7);
    for (int o = begin; o < end; o += kMatrixOutputs) {
        switch (task.lanes / kMatrixLanes) {
            case 1:
                matrix_outputs<1>(task, o, words);
                break;
            case 2:
                matrix_outputs<2>(task, o, words);
                break;
            case 3:
                matrix_outputs<3>(task, o, words);
                break;
            default:
                matrix_outputs<4>(task, o, words);
        }
    }
}

// Of the first outputs as many as are done 32 at a time.
LLUDA_INLINE int matrix_pairs(const TileTask &task, int64_t words) {
    const int lanes = task.lanes / kMatrixLanes, paired = task.outputs / kGroupOutputs * kGroupOutputs;
    if (lanes > 2 || paired == 0) return 0;
    const TilesInUse in_use(kMatrixOutputs, kMatrixLanes, 6);
    for (int o = 0; o < paired; o += kGroupOutputs) {
        if (lanes == 1) {
            matrix_output_pairs<kMatrixLanes>(task, o, words);
        } else {
            matrix_output_pairs<2 * kMatrixLanes>(task, o, words);
        }
    }
    return paired;
}

// The vector kernels do what is left over of words, and what is no product of BF16 pairs in rows: a choice that does
// not depend on how outputs and lanes are shared out.
void matrix_multiply_tile(const TileTask &task) {
    const int64_t words = task.words / kMatrixWords * kMatrixWords;
    if (task.scales || task.floats || task.word_stride != 1 || words == 0) return multiply_taps<multiply_any_tile>(task);
    const int paired = matrix_pairs(task, words), whole = task.outputs / kMatrixOutputs * kMatrixOutputs;
    matrix_tiles(task, paired, whole, words);
    matrix_tiles(task, whole, task.outputs, words);
    if (words == task.words) return;
    TileTask rest = task;
    rest.prefetch = nullptr;
    rest.multiplicands = static_cast<const uint32_t *>(task.multiplicands) + words;
    rest.panel = static_cast<const uint32_t *>(task.panel) + words * task.panel_width;
    rest.words = task.words - words;
    rest.accumulate = true;
    multiply_taps<multiply_any_tile>(rest);
}

}  // namespace
}  // namespace lluda
