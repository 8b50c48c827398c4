#include "products.hpp"

#include <algorithm>

#include "weight.hpp"

namespace lluda {
namespace {

// What a lane takes at a time: small against a phase, so that lanes finish together; large against the taking.
constexpr std::int64_t kTileBytes = 12 * 1024;
constexpr std::int64_t kRowStep = 4;  // a multiple of every kernel's outputs per tile

}  // namespace

PreparedRows::PreparedRows(Session &session, int rows, std::int64_t width)
    : bytes(kernels().prepared_bytes(width)), width(width) {
    memory = session.allocate<std::byte>(bytes * rows);
}

LinearTask &Products::add(const lluda_weight &weight, int rows, Store store) {
    std::int64_t tile_rows = std::max<std::int64_t>(kTileBytes / row_bytes(weight) / kRowStep, 1) * kRowStep;
    Entry entry{};
    entry.task.weight = &weight;
    entry.task.rows = rows;
    entry.task.store = store;
    entry.first_tile = tiles_;
    entry.tile_rows = tile_rows;
    entries_.push_back(entry);
    tiles_ += (weight.out_features + tile_rows - 1) / tile_rows;
    return entries_.back().task;
}

void Products::add(const lluda_weight &weight, const PreparedRows &x, int rows, Store store, void *y,
                   std::int64_t y_stride, const float *scale) {
    LinearTask &task = add(weight, rows, store);
    task.scale = scale;
    const std::int64_t element = store == Store::kBFloat16 ? 2 : 4;
    for (int r = 0; r < rows; ++r) {
        task.x[r] = x.row(r);
        task.y[r] = static_cast<std::byte *>(y) + r * y_stride * element;
    }
}

void Products::clear() {
    entries_.clear();
    tiles_ = 0;
}

void Products::share(int lanes) { split_.reset(tiles_, lanes); }

void Products::run(const Lane &lane) {
    const auto linear = kernels().linear;
    std::size_t at = 0;
    for (std::int64_t tile; (tile = split_.take(lane.index)) >= 0;) {
        // Tiles mostly come in order, so the entry is the last one's or the next; after helping, search anew.
        if (tile < entries_[at].first_tile) at = 0;
        while (at + 1 < entries_.size() && entries_[at + 1].first_tile <= tile) ++at;
        const Entry &entry = entries_[at];
        const std::int64_t begin = (tile - entry.first_tile) * entry.tile_rows;
        linear(entry.task, begin, std::min(begin + entry.tile_rows, entry.task.weight->out_features));
    }
}

}  // namespace lluda
