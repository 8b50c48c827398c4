#include "panel.hpp"

#include <algorithm>

#include "packed_layout.hpp"
#include "q8_layout.hpp"
#include "weight.hpp"

namespace lluda {
namespace {

constexpr std::int64_t kLineWords = 16;

std::int64_t rounded_up(std::int64_t n, std::int64_t step) { return (n + step - 1) / step * step; }

}  // namespace

Panel::Panel(const Kernels &kernels, std::uint32_t *memory, std::int64_t rows, std::int64_t columns)
    : kernels(&kernels), rows(rows), columns(columns), words(kernels.words(columns)), memory(memory) {}

Panel::Panel(Session &session, std::int64_t rows, std::int64_t columns)
    : Panel(session.kernels(), nullptr, rows, columns) {
    memory = session.allocate<std::uint32_t>(words * rounded_up(rows, kPanelRows));
}

int Panel::tile_rows(std::int64_t tile) const {
    return static_cast<int>(std::min<std::int64_t>(kTileRows, rows - tile * kTileRows));
}

int Panel::tile_width(std::int64_t tile) const { return static_cast<int>(rounded_up(tile_rows(tile), kPanelRows)); }

std::uint32_t *Panel::at(std::int64_t tile, std::int64_t word) const {
    return memory + tile * kTileRows * words + word * tile_width(tile);
}

void Panel::pack_rows(std::int64_t group, const void *const *rows_of_words, int count) const {
    const std::int64_t row = group * kPanelRows, tile = row / kTileRows;
    kernels->pack_rows(rows_of_words, count, words, at(tile, 0) + row % kTileRows, tile_width(tile));
}

PanelPacker::PanelPacker(Session &session, std::int64_t columns)
    : kernels_(&session.kernels()),
      words_(session.allocate<std::uint32_t>((columns + kLineWords) * kPanelRows)),
      normed_(session.allocate<float>(columns)),
      stride_(columns + kLineWords) {}

void RowNorm::apply(const Kernels &kernels, const float *x, std::int64_t width, float *out) const {
    if (bias) {
        kernels.layer_norm(x, weight, bias, width, eps, out);
    } else {
        kernels.rms_norm(x, weight, width, eps, out);
    }
}

void PanelPacker::norm(const Panel &panel, std::int64_t group, const float *x, std::int64_t x_stride,
                        const RowNorm &norm) const {
    const std::int64_t first = group * kPanelRows;
    const int count = static_cast<int>(std::min<std::int64_t>(kPanelRows, panel.rows - first));
    const void *rows[kPanelRows];
    for (int r = 0; r < count; ++r) {
        norm.apply(*kernels_, x + (first + r) * x_stride, panel.columns, normed_);
        kernels_->words_of_f32(normed_, panel.columns, row(r));
        rows[r] = row(r);
    }
    panel.pack_rows(group, rows, count);
}

void PanelPacker::pack_bf16(const Panel &panel, std::int64_t group, const std::uint16_t *x,
                              std::int64_t x_stride) const {
    const std::int64_t first = group * kPanelRows;
    const int count = static_cast<int>(std::min<std::int64_t>(kPanelRows, panel.rows - first));
    const void *rows[kPanelRows];
    for (int r = 0; r < count; ++r) {
        kernels_->words_of_bf16(x + (first + r) * x_stride, panel.columns, row(r));
        rows[r] = row(r);
    }
    panel.pack_rows(group, rows, count);
}

std::vector<PanelPacker> panel_packers(Session &session, std::int64_t columns) {
    std::vector<PanelPacker> packers;
    for (int i = 0; i < session.threads(); ++i) packers.emplace_back(session, columns);
    return packers;
}

void norm_into_panel(const Lane &lane, const Panel &panel, const std::vector<PanelPacker> &packers, const float *x,
                     std::int64_t x_stride, const RowNorm &norm) {
    for (std::int64_t group = lane.index; group < panel.groups(); group += lane.count)
        packers[static_cast<std::size_t>(lane.index)].norm(panel, group, x, x_stride, norm);
}

void add_bias(const OutputBlock &block, float *sums) {
    if (!block.weight->bias) return;
    for (std::int64_t output = block.begin; output < block.end; ++output)
        for (int r = 0; r < kTileRows; ++r) *sums++ += block.weight->bias[output];
}

BlockWorkspace::BlockWorkspace(Session &session, std::int64_t rows, std::int64_t columns)
    : kernels_(&session.kernels()) {
    const std::int64_t chunk = std::min(rounded_up(columns, kBlockWeights), kChunkColumns);
    const std::int64_t tiles = columns > kChunkColumns ? (rows + kTileRows - 1) / kTileRows : 1;
    words_ = session.allocate<std::uint32_t>(kBlockOutputs * (chunk + kLineWords));
    sums_ = session.allocate<float>(tiles * kBlockOutputs * kTileRows);
    rounded_ = session.allocate<std::uint32_t>(kernels_->words(chunk) * kTileRows);
    rounded_scales_ = session.allocate<float>(chunk / kQ8Weights * kTileRows);
}

BlockWorkspace::Chunk BlockWorkspace::load(const OutputBlock *blocks, int count, const Panel &x,
                                           std::int64_t from) const {
    const std::int64_t to = std::min(from + kChunkColumns, x.columns);
    Chunk chunk{blocks, count, from, to, to == x.columns, {}, {}, {}, false};
    std::uint32_t *buffer = words_;
    for (int i = 0; i < count; ++i) {
        const OutputBlock &b = blocks[i];
        chunk.words[i] = kernels_->words_of_weight(*b.weight, b.begin, b.end, from, to, buffer, &chunk.stride[i],
                                                   &chunk.scales[i]);
        chunk.rounded |= b.weight->format == LLUDA_FORMAT_Q8_0_ROWS;
        buffer += (b.end - b.begin) * (rounded_up(to - from, kBlockWeights) + kLineWords);
    }
    return chunk;
}

float *BlockWorkspace::multiply_tile(const Chunk &chunk, const Panel &x, std::int64_t tile) const {
    float *sums = x.columns > kChunkColumns ? sums_ + tile * kBlockOutputs * kTileRows : sums_;
    const std::int64_t first_word = kernels_->words(chunk.from);
    const std::uint32_t *panel = x.at(tile, first_word);
    TileTask task{};
    task.word_stride = 1;
    task.words = kernels_->words(chunk.to - chunk.from);
    task.panel_width = task.lanes = x.tile_width(tile);
    task.accumulate = chunk.from > 0;
    task.out = sums;
    if (chunk.rounded) kernels_->round_panel(panel, task.words, task.panel_width, rounded_, rounded_scales_);
    for (int i = 0; i < chunk.count; ++i) {
        const OutputBlock &b = chunk.blocks[i];
        const bool rounded = b.weight->format == LLUDA_FORMAT_Q8_0_ROWS;
        task.panel = rounded ? rounded_ : panel;
        task.panel_scales = rounded ? rounded_scales_ : nullptr;
        task.multiplicands = chunk.words[i];
        task.scales = chunk.scales[i];
        task.output_stride = chunk.stride[i];
        task.outputs = static_cast<int>(b.end - b.begin);
        // This chunk's part of what comes next, with the first tile.
        const std::int64_t part = row_bytes(*b.weight) * chunk.from / x.columns * (b.end - b.begin);
        task.prefetch = b.next && tile == 0 ? static_cast<const std::byte *>(b.next) + part : nullptr;
        kernels_->multiply_tile(task);
        task.out += task.outputs * kTileRows;
    }
    return sums;
}

PanelProducts::PanelProducts(Session &session, std::int64_t rows, std::int64_t columns) : kernels_(session.kernels()) {
    for (int i = 0; i < session.threads(); ++i) workspaces_.emplace_back(session, rows, columns);
    split_.reset(0, session.threads());
}

void PanelProducts::add(Entry entry) {
    entry.first_block = blocks_;
    entries_.push_back(entry);
    blocks_ += (entry.weight->out_features + entry.features - 1) / entry.features;
}

void PanelProducts::add(const lluda_weight &weight, const Panel &x, Store store, void *y, std::int64_t y_stride,
                        const float *scale) {
    add({&weight, nullptr, &x, nullptr, false, store, static_cast<std::byte *>(y), y_stride, scale, 0, kBlockOutputs});
}

void PanelProducts::add_gated(const lluda_weight &gate, const lluda_weight &up, const Panel &x, const Panel &out) {
    add({&gate, &up, &x, &out, false, Store::kBFloat16, nullptr, 0, nullptr, 0, kBlockOutputs / 2});
}

void PanelProducts::add_gelu(const lluda_weight &weight, const Panel &x, const Panel &out, bool tanh) {
    add({&weight, nullptr, &x, &out, tanh, Store::kBFloat16, nullptr, 0, nullptr, 0, kBlockOutputs});
}

void PanelProducts::share(int lanes) { split_.reset(blocks_, lanes); }

void PanelProducts::run(const Lane &lane) {
    const BlockWorkspace &workspace = workspaces_[static_cast<std::size_t>(lane.index)];
    std::size_t at = 0;
    for (std::int64_t block, end; split_.take(lane.index, block, end);) {
        if (block < entries_[at].first_block) at = 0;
        for (; block < end; ++block) {
            while (at + 1 < entries_.size() && entries_[at + 1].first_block <= block) ++at;
            const Entry &entry = entries_[at];
            if (entry.up) {
                multiply_gated(entry, block - entry.first_block, workspace);
            } else if (entry.out) {
                multiply_gelu(entry, block - entry.first_block, workspace);
            } else {
                multiply(entry, block - entry.first_block, workspace);
            }
        }
    }
}

void PanelProducts::multiply(const Entry &entry, std::int64_t block, const BlockWorkspace &workspace) const {
    const lluda_weight &w = *entry.weight;
    const std::int64_t begin = block * entry.features, end = std::min(begin + entry.features, w.out_features);
    const OutputBlock part{&w, begin, end, weight_row(w, end)};
    const std::int64_t element = entry.store == Store::kBFloat16 ? 2 : 4;
    workspace.multiply(&part, 1, *entry.x, [&](std::int64_t tile, float *sums) {
        void *y[kTileRows];
        const int rows = entry.x->tile_rows(tile);
        for (int r = 0; r < rows; ++r) y[r] = entry.y + ((tile * kTileRows + r) * entry.y_stride + begin) * element;
        kernels_.put_tile({sums, static_cast<int>(end - begin), rows, w.bias ? w.bias + begin : nullptr,
                            entry.scale ? entry.scale + begin : nullptr, nullptr, entry.store, y});
    });
}

void PanelProducts::multiply_gated(const Entry &entry, std::int64_t block, const BlockWorkspace &workspace) const {
    const std::int64_t begin = block * entry.features;
    const std::int64_t end = std::min(begin + entry.features, entry.weight->out_features);
    const lluda_weight &gate = *entry.weight, &up = *entry.up;
    const OutputBlock parts[] = {{&gate, begin, end, weight_row(gate, end)}, {&up, begin, end, weight_row(up, end)}};
    const Panel &out = *entry.out;
    workspace.multiply(parts, 2, *entry.x, [&](std::int64_t tile, float *sums) {
        add_bias(parts[0], sums);
        add_bias(parts[1], sums + (end - begin) * kTileRows);
        kernels_.gate_tile(sums, sums + (end - begin) * kTileRows, static_cast<int>(end - begin), out.tile_width(tile),
                            out.at(tile, kernels_.words(begin)), out.tile_width(tile));
    });
}

void PanelProducts::multiply_gelu(const Entry &entry, std::int64_t block, const BlockWorkspace &workspace) const {
    const lluda_weight &w = *entry.weight;
    const std::int64_t begin = block * entry.features, end = std::min(begin + entry.features, w.out_features);
    const OutputBlock part{&w, begin, end, weight_row(w, end)};
    const Panel &out = *entry.out;
    workspace.multiply(&part, 1, *entry.x, [&](std::int64_t tile, float *sums) {
        kernels_.gelu_tile(sums, w.bias ? w.bias + begin : nullptr, entry.tanh, static_cast<int>(end - begin),
                            out.tile_width(tile), out.at(tile, kernels_.words(begin)), out.tile_width(tile));
    });
}

}  // namespace lluda
