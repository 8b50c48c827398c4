#include "products.hpp"

#include <algorithm>

#include "weight.hpp"

namespace lluda {
namespace {

// The least a lane takes at a time: small against a phase, so that lanes finish together.
constexpr std::int64_t kTileBytes = 8 * 1024;

// Whether what the rows of one were arranged to serves the other.
bool same_rows(const LinearTask &a, const LinearTask &b) {
    const bool alike = (a.weight->format == LLUDA_FORMAT_Q8_0) == (b.weight->format == LLUDA_FORMAT_Q8_0);
    return alike && a.rows == b.rows && std::equal(a.x, a.x + a.rows, b.x);
}

}  // namespace

PreparedRows::PreparedRows(Session &session, int rows, std::int64_t width, Preparation preparation)
    : kernels_(session.kernels()),
      preparation_(preparation),
      exact_bytes_(preparation.exact ? kernels_.prepared_bytes(width) : 0),
      // One line more, so that the same column of all rows does not fall into one set of the first-level cache.
      stride_(exact_bytes_ + (preparation.rounded ? kernels_.prepared_q8_bytes(width) : 0) + 64),
      memory_(session.allocate<std::byte>(stride_ * rows)) {}

void PreparedRows::prepare(int index, const float *x, std::int64_t width) const {
    std::byte *row = memory_ + index * stride_;
    if (preparation_.exact) kernels_.prepare_f32(x, width, row);
    if (preparation_.rounded) kernels_.prepare_q8_f32(x, width, row + exact_bytes_);
}

void PreparedRows::prepare(int index, const std::uint16_t *x, std::int64_t width) const {
    std::byte *row = memory_ + index * stride_;
    if (preparation_.exact) kernels_.prepare_bf16(x, width, row);
    if (preparation_.rounded) kernels_.prepare_q8_bf16(x, width, row + exact_bytes_);
}

Products::Products(Session &session, int rows, std::int64_t width)
    : kernels_(session.kernels()),
      workspace_bytes_(kernels_.linear_workspace(rows, width)),
      workspaces_(session.allocate<std::byte>(workspace_bytes_ * session.threads())) {
    split_.reset(0, session.threads());
}

LinearTask &Products::add(const lluda_weight &weight, int rows, Store store) {
    const std::int64_t step = kernels_.linear_step;
    const std::int64_t tile_rows = std::max<std::int64_t>(kTileBytes / row_bytes(weight) / step, 1) * step;
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
        task.x[r] = x.row(r, weight);
        task.y[r] = static_cast<std::byte *>(y) + r * y_stride * element;
    }
}

void Products::share(int lanes) { split_.reset(tiles_, lanes); }

void Products::run(const Lane &lane) {
    std::byte *workspace = workspaces_ + lane.index * workspace_bytes_;
    const LinearTask *arranged = nullptr;
    std::size_t at = 0;
    for (std::int64_t tile, end; split_.take(lane.index, tile, end);) {
        // Tiles mostly come in order, so the entry is the last one's or follows; after helping, search anew.
        if (tile < entries_[at].first_tile) at = 0;
        while (tile < end) {
            while (at + 1 < entries_.size() && entries_[at + 1].first_tile <= tile) ++at;
            const LinearTask &task = entries_[at].task;
            if (!arranged || !same_rows(*arranged, task)) kernels_.arrange_rows(task, workspace);
            arranged = &task;
            const std::int64_t next = at + 1 < entries_.size() ? entries_[at + 1].first_tile : tiles_;
            const std::int64_t stop = std::min(end, next);
            multiply(entries_[at], tile, stop, workspace);
            tile = stop;
        }
    }
}

void Products::multiply(const Entry &entry, std::int64_t begin, std::int64_t end, const void *workspace) const {
    const std::int64_t from = (begin - entry.first_tile) * entry.tile_rows;
    const std::int64_t to = (end - entry.first_tile) * entry.tile_rows;
    kernels_.linear(entry.task, from, std::min(to, entry.task.weight->out_features), workspace);
}

}  // namespace lluda
