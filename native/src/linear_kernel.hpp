// Products of 1 to 16 prepared rows with a range of output features.
//
// A tile is Outputs weight rows times Rows prepared rows, its sums all in registers, so that each weight is loaded (and
// decoded) once for all of them. Weight rows lie one after the other, so a range is one stream through memory.
#pragma once

#include "kernels.hpp"
#include "q8_kernel.hpp"
#if defined(__ARM_FEATURE_MATMUL_INT8)
#include "i8mm_kernel.hpp"
#endif
#include "weight_group.hpp"

namespace lluda {
namespace {

// Prefetching into the second-level cache, measured on Zen 4. A single stream (one weight row after the other) is what
// the hardware's prefetchers are made for: one line of each block, half a page ahead, only carries them over page ends,
// and fetching every line would be limited by the first-level miss buffers. Several rows side by side they do not
// follow, so there every line is fetched, in the order of memory. Past the last row this touches nothing that faults.
template <int Outputs>
LLUDA_INLINE void prefetch_block(uintptr_t tile, int64_t block, int64_t block_bytes) {
    constexpr uintptr_t kAhead = Outputs == 1 ? 2048 : 10240;
    const uintptr_t ahead = tile + kAhead + static_cast<uintptr_t>(block * block_bytes * Outputs);
    const int64_t span = Outputs == 1 ? 64 : block_bytes * Outputs;
    for (int64_t at = 0; at < span; at += 64)
        __builtin_prefetch(reinterpret_cast<const void *>(ahead + static_cast<uintptr_t>(at)), 0, 2);
}

// One weight row in either format, read in blocks of 128.
struct PlainRow {
    const uint16_t *values;
    static constexpr int64_t kBytes = kBlockWeights * 2;  // of a block
    LLUDA_INLINE uintptr_t start() const { return reinterpret_cast<uintptr_t>(values); }
    struct Block {
        const uint16_t *p;
        LLUDA_INLINE Group group(int g) const { return load_group(p + g * kGroupWeights); }
    };
    LLUDA_INLINE Block block(int64_t index, const ExponentTable &) const { return {values + index * kBlockWeights}; }
};

struct PackedRow {
    const uint8_t *blocks;
    static constexpr int64_t kBytes = kBlockBytes;
    LLUDA_INLINE uintptr_t start() const { return reinterpret_cast<uintptr_t>(blocks); }
    struct Block {
        Group groups[4];
        LLUDA_INLINE Group group(int g) const { return groups[g]; }
    };
    LLUDA_INLINE Block block(int64_t index, const ExponentTable &table) const {
        Block block;
        decode_block(blocks + index * kBlockBytes, table, block.groups);
        return block;
    }
};

LLUDA_INLINE PlainRow row_of(const lluda_weight &w, int64_t output, PlainRow *) {
    return {static_cast<const uint16_t *>(w.values) + output * w.in_features};
}

LLUDA_INLINE PackedRow row_of(const lluda_weight &w, int64_t output, PackedRow *) {
    return {static_cast<const uint8_t *>(w.values) + output * blocks_per_row(w.in_features) * kBlockBytes};
}

// Whole blocks of a row, and what follows them (only plain rows have a rest: packed rows are padded).
LLUDA_INLINE int64_t whole_blocks(int64_t width, PlainRow *) { return width / kBlockWeights; }
LLUDA_INLINE int64_t whole_blocks(int64_t width, PackedRow *) { return blocks_per_row(width); }

// One sum for each output and row, whatever their number: a row gets the same bits alone and among others. What waits
// for a sum's last addition is no loss, since the processor is at the next outputs meanwhile.
template <int Outputs, int Rows>
struct Sums {
    Floats v[Outputs * Rows];

    LLUDA_INLINE void add(const Group (&w)[Outputs], const Prepared *const *x, int64_t column) {
        for (int r = 0; r < Rows; ++r)
            for (int o = 0; o < Outputs; ++o) v[o * Rows + r] = multiply_add(v[o * Rows + r], w[o], x[r] + column);
    }
};

LLUDA_INLINE void add_rest(PlainRow row, int64_t from, int64_t width, const Prepared *const *x, int rows, float *out) {
    for (int64_t column = from; column < width; column += kGroupWeights) {
        const int64_t n = width - column < kGroupWeights ? width - column : kGroupWeights;
        const Group w = n == kGroupWeights ? load_group(row.values + column) : load_group_part(row.values + column, n);
        for (int r = 0; r < rows; ++r) out[r] += sum(multiply_add(Floats{}, w, x[r] + column));
    }
}

LLUDA_INLINE void add_rest(PackedRow, int64_t, int64_t, const Prepared *const *, int, float *) {}

// out[o * Rows + r]: weight row `output + o` times prepared row r.
template <class Row, int Outputs, int Rows>
LLUDA_INLINE void tile(const lluda_weight &w, int64_t output, const ExponentTable &table, const Prepared *const *x,
                       float (&out)[kTileSums]) {
    Row row[Outputs];
    for (int o = 0; o < Outputs; ++o) row[o] = row_of(w, output + o, static_cast<Row *>(nullptr));
    const int64_t blocks = whole_blocks(w.in_features, static_cast<Row *>(nullptr));
    Sums<Outputs, Rows> sums{};
    for (int64_t b = 0; b < blocks; ++b) {
        prefetch_block<Outputs>(row[0].start(), b, Row::kBytes);
        typename Row::Block block[Outputs];
        for (int o = 0; o < Outputs; ++o) block[o] = row[o].block(b, table);
#pragma GCC unroll 4
        for (int g = 0; g < 4; ++g) {
            Group same[Outputs];
            for (int o = 0; o < Outputs; ++o) same[o] = block[o].group(g);
            sums.add(same, x, b * kBlockWeights + g * kGroupWeights);
        }
    }
    sum_all(sums.v, out);
    for (int o = 0; o < Outputs; ++o) add_rest(row[o], blocks * kBlockWeights, w.in_features, x, Rows, out + o * Rows);
}

// The weights that the packed form keeps aside (they decode to zero), added exactly.
LLUDA_INLINE void add_escapes(const lluda_weight &w, int64_t output, const Prepared *const *x, int rows, float *out) {
    for (uint32_t i = w.escape_rows[output]; i < w.escape_rows[output + 1]; ++i) {
        const int64_t at = prepared_index(w.escape_columns[i]);
        const float value = widen(w.escape_values[i]);
        for (int r = 0; r < rows; ++r) {
            if constexpr (sizeof(Prepared) == 2) {
                out[r] += value * widen(static_cast<uint16_t>(x[r][at]));
            } else {
                out[r] += value * static_cast<float>(x[r][at]);
            }
        }
    }
}

// Sums of a tile to where they belong: out[o * Rows + r] to y[first + r][output + o].
template <int Outputs, int Rows>
LLUDA_INLINE void put(const LinearTask &task, int64_t output, int first, float *out) {
    if (task.weight->bias) {
        for (int o = 0; o < Outputs; ++o)
            for (int r = 0; r < Rows; ++r) out[o * Rows + r] += task.weight->bias[output + o];
    }
    for (int r = 0; r < Rows; ++r) {
        float *y = static_cast<float *>(task.y[first + r]) + output;
        if (task.store == Store::kFloat) {
            for (int o = 0; o < Outputs; ++o) y[o] = out[o * Rows + r];
        } else if (task.store == Store::kAdd) {
            for (int o = 0; o < Outputs; ++o)
                y[o] += task.scale ? task.scale[output + o] * out[o * Rows + r] : out[o * Rows + r];
        } else {
            uint16_t *half = static_cast<uint16_t *>(task.y[first + r]) + output;
            for (int o = 0; o < Outputs; ++o) half[o] = bf16_bits_of(out[o * Rows + r]);
        }
    }
}

// Weight rows of a tile: as many as registers suffice for the sums, since every load of a prepared row then serves that
// many products. One or two rows wait for memory, and a single stream of it is fastest.
template <int Rows>
constexpr int tile_outputs() {
#if defined(__aarch64__)
    return 2;
#endif
    if (kLanes < 16) return Rows <= 2 ? 2 : 1;  // two, since one sum alone would wait for its last addition
    return Rows <= 2 ? 1 : Rows <= 5 ? 3 : 2;
}

// Q8_0 rows are not read row by row but tile by tile (q8_kernel.hpp).
struct ExactQ8 {};
struct RoundedQ8 {};

template <class Row, int Outputs, int Rows>
LLUDA_INLINE void tile_and_put(const LinearTask &task, int64_t output, int first, const ExponentTable &table) {
    float out[kTileSums];
    if constexpr (__is_same(Row, ExactQ8)) {
        exact_tile<Outputs, Rows>(*task.weight, output, task.x + first, out);
    } else if constexpr (__is_same(Row, RoundedQ8)) {
#if defined(__ARM_FEATURE_MATMUL_INT8)
        paired_rounded_tile<Outputs, Rows>(*task.weight, output, task.x + first, out);
#else
        rounded_tile<Outputs, Rows>(*task.weight, output, task.x + first, out);
#endif
    } else {
        const Prepared *x[Rows];
        for (int r = 0; r < Rows; ++r) x[r] = static_cast<const Prepared *>(task.x[first + r]);
        tile<Row, Outputs, Rows>(*task.weight, output, table, x, out);
        for (int o = 0; o < Outputs; ++o) {
            if (task.weight->format == LLUDA_FORMAT_PACKED_BF16)
                add_escapes(*task.weight, output + o, x, Rows, out + o * Rows);
        }
    }
    put<Outputs, Rows>(task, output, first, out);
}

// Rows first .. first+Rows-1 of the task. Not inlined: each is a loop of its own with its own register allocation.
template <class Row, int Rows>
__attribute__((noinline)) void rows_of_range(const LinearTask &task, int first, int64_t begin, int64_t end,
                                             const ExponentTable &table) {
    constexpr int kOutputs = tile_outputs<Rows>();
    int64_t output = begin;
    for (; output + kOutputs <= end; output += kOutputs) tile_and_put<Row, kOutputs, Rows>(task, output, first, table);
    for (; output < end; ++output) tile_and_put<Row, 1, Rows>(task, output, first, table);
}

template <class Row>
LLUDA_INLINE void range(const LinearTask &task, int first, int rows, int64_t begin, int64_t end,
                        const ExponentTable &table) {
    switch (rows) {
        case 1:
            return rows_of_range<Row, 1>(task, first, begin, end, table);
        case 2:
            return rows_of_range<Row, 2>(task, first, begin, end, table);
        case 3:
            return rows_of_range<Row, 3>(task, first, begin, end, table);
        case 4:
            return rows_of_range<Row, 4>(task, first, begin, end, table);
        case 5:
            return rows_of_range<Row, 5>(task, first, begin, end, table);
        case 6:
            return rows_of_range<Row, 6>(task, first, begin, end, table);
        case 7:
            return rows_of_range<Row, 7>(task, first, begin, end, table);
        default:
            return rows_of_range<Row, 8>(task, first, begin, end, table);
    }
}

template <class Row>
void linear_in_format(const LinearTask &task, int64_t begin, int64_t end, const ExponentTable &table) {
    constexpr int kMost = 8;  // rows of a tile: with two weight rows, 16 of the 32 registers are sums
    const int parts = (task.rows + kMost - 1) / kMost;
    if (parts == 1) return range<Row>(task, 0, task.rows, begin, end, table);
    // More rows: pass over few weight rows at a time, so that the next pass finds them in the first-level cache.
    constexpr int64_t kStep = 2;
    for (int64_t output = begin; output < end; output += kStep) {
        const int64_t stop = output + kStep < end ? output + kStep : end;
        for (int part = 0; part < parts; ++part) {
            const int first = task.rows * part / parts;
            range<Row>(task, first, task.rows * (part + 1) / parts - first, output, stop, table);
        }
    }
}

void vector_linear(const LinearTask &task, int64_t begin, int64_t end, const void *) {
    switch (task.weight->format) {
        case LLUDA_FORMAT_PACKED_BF16:
            return linear_in_format<PackedRow>(task, begin, end, exponent_table(task.weight->exponents));
        case LLUDA_FORMAT_Q8_0:
            return linear_in_format<ExactQ8>(task, begin, end, ExponentTable{});
        case LLUDA_FORMAT_Q8_0_ROWS:
            return linear_in_format<RoundedQ8>(task, begin, end, ExponentTable{});
        default:
            return linear_in_format<PlainRow>(task, begin, end, ExponentTable{});
    }
}

}  // namespace
}  // namespace lluda
