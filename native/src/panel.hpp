// Rows of activations packed side by side for products of many rows (kernels.hpp), and those products.
#pragma once

#include <cstdint>
#include <vector>

#include "context.hpp"

namespace lluda {

// Tiles of kTileRows rows one after the other: [words][width] each, the last as wide as its rows need.
struct Panel {
    Panel() = default;
    Panel(Session &session, std::int64_t rows, std::int64_t columns);
    // In memory for its words and rows, these rounded up to a multiple of kPanelRows.
    Panel(const Kernels &kernels, std::uint32_t *memory, std::int64_t rows, std::int64_t columns);

    std::int64_t tiles() const { return (rows + kTileRows - 1) / kTileRows; }
    int tile_rows(std::int64_t tile) const;
    int tile_width(std::int64_t tile) const;
    // Word `word` of a tile's first row.
    std::uint32_t *at(std::int64_t tile, std::int64_t word) const;

    std::int64_t groups() const { return (rows + kPanelRows - 1) / kPanelRows; }
    // Lays rows of words into group `group` of kPanelRows rows.
    void pack_rows(std::int64_t group, const void *const *rows_of_words, int count) const;

    const Kernels *kernels = nullptr;
    std::int64_t rows = 0, columns = 0, words = 0;
    std::uint32_t *memory = nullptr;
};

// RMSNorm, or LayerNorm where there is a bias.
struct RowNorm {
    const float *weight, *bias;
    float eps;
    void apply(const Kernels &kernels, const float *x, std::int64_t width, float *out) const;
};

// Working memory of one lane: rows of words that are to be packed, and one float row.
class PanelPacker {
public:
    PanelPacker(Session &session, std::int64_t columns);
    // Rows of F32, normalised, of a group.
    void norm(const Panel &panel, std::int64_t group, const float *x, std::int64_t x_stride, const RowNorm &norm) const;
    void pack_bf16(const Panel &panel, std::int64_t group, const std::uint16_t *x, std::int64_t x_stride) const;

    // Words of row 0 .. kPanelRows - 1.
    std::uint32_t *row(int index) const { return words_ + index * stride_; }

private:
    const Kernels *kernels_;
    std::uint32_t *words_;
    float *normed_;
    std::int64_t stride_;
};

// One for each lane.
std::vector<PanelPacker> panel_packers(Session &session, std::int64_t columns);

// This lane's share of: all rows of x, normalised, into the panel.
void norm_into_panel(const Lane &lane, const Panel &panel, const std::vector<PanelPacker> &packers, const float *x,
                     std::int64_t x_stride, const RowNorm &norm);

constexpr std::int64_t kMostPanelRows = 512;  // calls with more rows pass over the weights again

// body(from, count) for rows in parts that fit into scratch memory.
template <class Body>
void for_rows(std::int64_t rows, Body &&body) {
    for (std::int64_t from = 0; from < rows; from += kMostPanelRows)
        body(from, rows - from < kMostPanelRows ? rows - from : kMostPanelRows);
}

constexpr std::int64_t kBlockOutputs = 48;  // output features that are multiplied with a tile while it is in the cache

// Some output features of one weight.
struct OutputBlock {
    const lluda_weight *weight;
    std::int64_t begin, end;
    const void *next = nullptr;  // what is probably multiplied with next, of the same shape; fetched into the cache
};

// Adds a block's biases, if it has any, to its sums [outputs][kTileRows].
void add_bias(const OutputBlock &block, float *sums);

// Working memory of one lane for products of blocks.
class BlockWorkspace {
public:
    BlockWorkspace(Session &session, std::int64_t rows, std::int64_t columns);

    // All rows of the panel times the blocks' features, together at most kBlockOutputs. finish(tile, sums) is given the
    // sums [outputs of all blocks][kTileRows] of each tile, biases not yet added, to do with as it likes.
    template <class Finish>
    void multiply(const OutputBlock *blocks, int count, const Panel &x, Finish &&finish) const {
        for (std::int64_t from = 0; from < x.columns; from += kChunkColumns) {
            const Chunk chunk = load(blocks, count, x, from);
            for (std::int64_t tile = 0; tile < x.tiles(); ++tile) {
                float *sums = multiply_tile(chunk, x, tile);
                if (chunk.last) finish(tile, sums);
            }
        }
    }

private:
    static constexpr std::int64_t kChunkColumns = 1024;

    // Columns from .. to-1 of the blocks as words.
    struct Chunk {
        const OutputBlock *blocks;
        int count;
        std::int64_t from, to;
        bool last;
        const void *words[2];
        const float *scales[2];
        std::int64_t stride[2];
        bool rounded;  // rows are, for one of the blocks at least
    };
    Chunk load(const OutputBlock *blocks, int count, const Panel &x, std::int64_t from) const;
    float *multiply_tile(const Chunk &chunk, const Panel &x, std::int64_t tile) const;

    const Kernels *kernels_;
    std::uint32_t *words_, *rounded_;
    float *sums_, *rounded_scales_;
};

// Products of one panel, their output blocks shared out among the lanes.
class PanelProducts {
public:
    PanelProducts(Session &session, std::int64_t rows, std::int64_t columns);

    void add(const lluda_weight &weight, const Panel &x, Store store, void *y, std::int64_t y_stride,
             const float *scale = nullptr);
    // silu(gate x) * up x, rounded to BF16.
    void add_gated(const lluda_weight &gate, const lluda_weight &up, const Panel &x, const Panel &out);
    // gelu(weight x + bias), rounded to BF16.
    void add_gelu(const lluda_weight &weight, const Panel &x, const Panel &out, bool tanh);
    void reserve(std::int64_t count) { entries_.reserve(static_cast<std::size_t>(count)); }

    // As those of Products.
    void share(int lanes);
    void run(const Lane &lane);

private:
    struct Entry {
        const lluda_weight *weight, *up;  // up: only if gated
        const Panel *x, *out;             // out: only if gated or gelu
        bool tanh;                        // of the gelu
        Store store;
        std::byte *y;
        std::int64_t y_stride;
        const float *scale;
        std::int64_t first_block, features;  // of a block
    };
    void multiply(const Entry &entry, std::int64_t block, const BlockWorkspace &workspace) const;
    void multiply_gated(const Entry &entry, std::int64_t block, const BlockWorkspace &workspace) const;
    void multiply_gelu(const Entry &entry, std::int64_t block, const BlockWorkspace &workspace) const;
    void add(Entry entry);

    const Kernels &kernels_;
    std::vector<Entry> entries_;
    std::vector<BlockWorkspace> workspaces_;
    std::int64_t blocks_ = 0;
    WorkSplit split_;
};

}  // namespace lluda
