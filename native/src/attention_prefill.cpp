// Attention blocks of many rows: products of panels, and attention tile by tile with queries as lanes.
#include <cmath>

#include "attention_rows.hpp"
#include "panel.hpp"

namespace lluda {
namespace {

// Rows of one tile that belong to one sequence.
struct TileRows {
    std::int64_t tile;
    int begin, end;  // lanes
};

class AttentionPrefill {
public:
    AttentionPrefill(Session &session, const lluda_attention &b, const AttentionRows &rows)
        : kernels_(session.kernels()),
          b_(b),
          r_(rows),
          heads_(session.kernels(), b, rows),
          query_width_(b.heads * b.head_dim),
          key_width_(b.kv_heads * b.head_dim),
          rounded_(b.cache_dtype == LLUDA_DTYPE_BF16),
          query_words_(rounded_ ? kernels_.words(b.head_dim) : b.head_dim),
          packers_(panel_packers(session, std::max(b.hidden, b.head_dim))),
          input_(session, rows.count, b.hidden),
          mixed_(session, rows.count, query_width_),
          projections_(session, rows.count, b.hidden),
          output_(session, rows.count, query_width_) {
        query_ = session.allocate<float>(rows.count * query_width_);
        key_ = session.allocate<float>(rows.count * key_width_);
        value_ = session.allocate<float>(rows.count * key_width_);
        packed_query_ = session.allocate<std::uint32_t>(query_words_ * b.heads * input_.groups() * kPanelRows);
        positions_ = session.allocate<std::int64_t>(input_.groups() * kPanelRows);
        workspace_floats_ = kernels_.attend_tile_workspace(b.head_dim);
        workspace_ = session.allocate<float>(workspace_floats_ * session.threads());
        plan_tiles();
        projections_.add(*b.q, input_, Store::kFloat, query_, query_width_);
        projections_.add(*b.k, input_, Store::kFloat, key_, key_width_);
        projections_.add(*b.v, input_, Store::kFloat, value_, key_width_);
        projections_.share(session.threads());
        groups_.reset(input_.groups(), session.threads());
        attend_split_.reset(static_cast<std::int64_t>(tiles_.size()) * b.heads, session.threads());
        output_.add(*b.o, mixed_, Store::kAdd, rows.x, rows.x_stride, b.output_scale);
        output_.share(session.threads());
    }

    void operator()(Lane &lane) {
        norm_into_panel(lane, input_, packers_, r_.x, r_.x_stride, {b_.norm, nullptr, b_.norm_eps});
        lane.barrier();
        projections_.run(lane);
        lane.barrier();
        for (std::int64_t group, end; groups_.take(lane.index, group, end);)
            for (; group < end; ++group) rotate(group, packers_[static_cast<std::size_t>(lane.index)]);
        lane.barrier();
        for (std::int64_t item, end; attend_split_.take(lane.index, item, end);)
            for (; item < end; ++item) attend(item, workspace_ + lane.index * workspace_floats_);
        lane.barrier();
        output_.run(lane);
    }

private:
    bool follows(std::int64_t row) const {
        const lluda_cache_row &a = r_.cache[row - 1], &b = r_.cache[row];
        return a.keys == b.keys && a.values == b.values && a.head_stride == b.head_stride;
    }

    // Tiles cut where another sequence begins. The last come first: they see the most positions.
    void plan_tiles() {
        for (std::int64_t row = 0; row < r_.count; ++row) {
            positions_[row] = r_.cache[row].position;
            const std::int64_t tile = row / kTileRows;
            const int lane = static_cast<int>(row % kTileRows);
            if (lane == 0 || !follows(row)) tiles_.insert(tiles_.begin(), {tile, lane, lane});
            tiles_.front().end = lane + 1;
        }
        for (std::int64_t row = r_.count; row < input_.groups() * kPanelRows; ++row) positions_[row] = 0;
    }

    std::uint32_t *packed_query(std::int64_t tile, std::int64_t head) const {
        return packed_query_ + query_words_ * (tile * kTileRows * b_.heads + head * input_.tile_width(tile));
    }

    // Rows of a group: their queries to panels, their keys and values to the cache.
    void rotate(std::int64_t group, const PanelPacker &packer) const {
        const std::int64_t first = group * kPanelRows, tile = first / kTileRows;
        const int count = static_cast<int>(std::min<std::int64_t>(kPanelRows, r_.count - first));
        for (std::int64_t row = first; row < first + count; ++row)
            for (std::int64_t head = 0; head < heads_.per_row(); ++head)
                heads_.rotate_or_store(row, head, query_ + row * query_width_, key_ + row * key_width_,
                                       value_ + row * key_width_);
        for (std::int64_t head = 0; head < b_.heads; ++head) {
            const void *rows[kPanelRows];
            for (int r = 0; r < count; ++r) {
                float *query = query_ + (first + r) * query_width_ + head * b_.head_dim;
                if (rounded_) kernels_.words_of_f32(query, b_.head_dim, packer.row(r));
                rows[r] = rounded_ ? static_cast<const void *>(packer.row(r)) : query;
            }
            kernels_.pack_rows(rows, count, query_words_, packed_query(tile, head) + first % kTileRows,
                            input_.tile_width(tile));
        }
    }

    void attend(std::int64_t item, float *workspace) const {
        const TileRows &rows = tiles_[static_cast<std::size_t>(item / b_.heads)];
        const std::int64_t head = item % b_.heads, kv_head = head / (b_.heads / b_.kv_heads);
        const std::int64_t first = rows.tile * kTileRows + rows.begin;
        AttendTileTask task;
        task.query = packed_query(rows.tile, head);
        task.out = mixed_.at(rows.tile, kernels_.words(head * b_.head_dim));
        task.width = mixed_.tile_width(rows.tile);
        task.begin = rows.begin;
        task.end = rows.end;
        task.positions = positions_ + rows.tile * kTileRows;
        task.keys = heads_.in_cache(r_.cache[first].keys, first, kv_head, 0);
        task.values = heads_.in_cache(r_.cache[first].values, first, kv_head, 0);
        task.head_dim = b_.head_dim;
        task.window = b_.window;
        task.cache_is_bf16 = b_.cache_dtype == LLUDA_DTYPE_BF16;
        task.scale = 1.0f / std::sqrt(static_cast<float>(b_.head_dim));
        task.workspace = workspace;
        kernels_.attend_tile(task);
    }

    const Kernels &kernels_;
    const lluda_attention &b_;
    const AttentionRows &r_;
    const HeadRotation heads_;
    const std::int64_t query_width_, key_width_;
    const bool rounded_;  // queries are, to BF16
    const std::int64_t query_words_;
    const std::vector<PanelPacker> packers_;
    const Panel input_, mixed_;
    PanelProducts projections_, output_;
    WorkSplit groups_, attend_split_;
    std::vector<TileRows> tiles_;
    float *query_, *key_, *value_, *workspace_;
    std::uint32_t *packed_query_;
    std::int64_t *positions_;
    std::int64_t workspace_floats_;
};

}  // namespace

void attend_many(Session &session, const lluda_attention &block, const AttentionRows &rows) {
    AttentionPrefill job(session, block, rows);
    session.run(job);
}

}  // namespace lluda
