// lluda_encoder_block: a bidirectional layer of the audio or vision encoder, any number of rows.
//
// Products and norms go over the rows in parts, as everywhere; attention between them needs the keys and values of all
// rows at once, so these and the queries are kept in memory of the call's own.
#include <algorithm>
#include <cmath>
#include <memory>
#include <new>
#include <vector>

#include "blocks.hpp"
#include "panel.hpp"

using namespace lluda;

namespace {

constexpr std::size_t kLine = 64;

void check(const lluda_encoder &b) {
    require_size("hidden", b.hidden);
    require_size("heads", b.heads);
    require_size("head_dim", b.head_dim, 2);
    require(b.head_dim % 2 == 0, "head_dim", b.head_dim, "even");
    require_size("heads * head_dim", b.heads * b.head_dim);
    require_size("intermediate", b.intermediate);
    require(b.norm1 && b.norm1_bias && b.norm2 && b.norm2_bias, "norms and their biases must not be NULL");
    require(b.qkv_count == 1 || b.qkv_count == 3, "qkv_count", b.qkv_count, "1 or 3");
    require(b.gelu == LLUDA_GELU_ERF || b.gelu == LLUDA_GELU_TANH, "gelu", b.gelu, "ERF or TANH");
    const std::int64_t width = b.heads * b.head_dim;
    require(b.qkv, "qkv must not be NULL");
    for (std::int64_t i = 0; i < b.qkv_count; ++i)
        check_weight(b.qkv + i, "qkv", b.qkv_count == 3 ? width : 3 * width, b.hidden);
    check_weight(b.out, "out", b.hidden, width);
    check_weight(b.fc1, "fc1", b.intermediate, b.hidden);
    check_weight(b.fc2, "fc2", b.hidden, b.intermediate);
}

void check_runs(std::int64_t rows, const std::int64_t *lengths, std::int64_t runs) {
    require(runs >= 0, "runs", runs, "0 or more");
    require(runs == 0 || lengths, "lengths must not be NULL");
    std::int64_t total = 0;
    for (std::int64_t i = 0; i < runs; ++i) {
        require(lengths[i] >= 1 && lengths[i] <= rows, "a run's length", lengths[i], "from 1 to all rows");
        total += lengths[i];
    }
    require(total == rows, "the runs' rows together", total, "as many as there are rows");
}

struct Free {
    void operator()(void *memory) const { ::operator delete (memory, std::align_val_t{kLine}); }
};

template <class T>
class Array {
public:
    explicit Array(std::int64_t count)
        : memory_(static_cast<T *>(
              ::operator new (static_cast<std::size_t>(count) * sizeof(T) + kLine, std::align_val_t{kLine}))) {}
    T *data() const { return memory_.get(); }

private:
    std::unique_ptr<T, Free> memory_;
};

// Rows of one tile that belong to one run, which begins at row `first`.
struct TileRun {
    std::int64_t tile, first;
    int begin, end;  // lanes
};

struct Rows {
    std::int64_t count;
    float *x;
    std::int64_t x_stride;
    const float *cos, *sin;
};

// Queries as panels, keys and values [heads][rows][head_dim], what attention gives as a panel; of all rows of a call.
class EncoderCall {
public:
    EncoderCall(lluda_context &context, const lluda_encoder &block, const Rows &rows, const std::int64_t *lengths, std::int64_t runs)
        : context_(context),
          kernels_(context.kernels),
          b_(block),
          r_(rows),
          width_(block.heads * block.head_dim),
          query_words_(kernels_.words(block.head_dim)),
          groups_((rows.count + kPanelRows - 1) / kPanelRows),
          query_(query_words_ * block.heads * groups_ * kPanelRows),
          keys_(width_ * rows.count),
          values_(width_ * rows.count),
          mixed_(kernels_.words(width_) * groups_ * kPanelRows),
          last_(groups_ * kPanelRows) {
        plan(lengths, runs);
    }

    void run() {
        for_rows(r_.count, [&](std::int64_t from, std::int64_t count) { project(from, count); });
        attend();
        for_rows(r_.count, [&](std::int64_t from, std::int64_t count) { finish(from, count); });
    }

private:
    void plan(const std::int64_t *lengths, std::int64_t runs) {
        std::int64_t row = 0;
        for (std::int64_t run = 0; run < runs; ++run) {
            const std::int64_t first = row, end = row + lengths[run];
            while (row < end) {
                const std::int64_t tile = row / kTileRows, stop = std::min(end, (tile + 1) * kTileRows);
                const std::int64_t start = tile * kTileRows;
                tiles_.push_back({tile, first, static_cast<int>(row - start), static_cast<int>(stop - start)});
                for (; row < stop; ++row) last_.data()[row] = lengths[run] - 1;
            }
        }
        std::fill(last_.data() + r_.count, last_.data() + groups_ * kPanelRows, std::int64_t{0});
    }

    int tile_width(std::int64_t tile) const {
        return static_cast<int>(std::min<std::int64_t>(kTileRows, groups_ * kPanelRows - tile * kTileRows));
    }
    std::uint32_t *query(std::int64_t tile, std::int64_t head) const {
        return query_.data() + query_words_ * (tile * kTileRows * b_.heads + head * tile_width(tile));
    }
    std::uint16_t *of_head(const Array<std::uint16_t> &kept, std::int64_t head, std::int64_t row) const {
        return kept.data() + (head * r_.count + row) * b_.head_dim;
    }
    Panel mixed(std::int64_t from, std::int64_t count) const {
        return {kernels_, mixed_.data() + from * kernels_.words(width_), count, width_};
    }

    // Norm and projections of a part; its queries, keys and values to where attention looks for them.
    void project(std::int64_t from, std::int64_t count) {
        Session session(context_);
        const std::vector<PanelPacker> packers = panel_packers(session, std::max(b_.hidden, b_.head_dim));
        const Panel input(session, count, b_.hidden);
        float *qkv = session.allocate<float>(count * 3 * width_);
        PanelProducts products(session, count, b_.hidden);
        for (std::int64_t i = 0; i < b_.qkv_count; ++i)
            products.add(b_.qkv[i], input, Store::kFloat, qkv + i * width_, 3 * width_);
        products.share(session.threads());
        WorkSplit split;
        split.reset(input.groups(), session.threads());
        session.run([&](Lane &lane) {
            norm_into_panel(lane, input, packers, r_.x + from * r_.x_stride, r_.x_stride,
                            {b_.norm1, b_.norm1_bias, b_.norm1_eps});
            lane.barrier();
            products.run(lane);
            lane.barrier();
            for (std::int64_t group, end; split.take(lane.index, group, end);)
                for (; group < end; ++group)
                    keep(from, group, count, qkv, packers[static_cast<std::size_t>(lane.index)]);
        });
    }

    void keep(std::int64_t from, std::int64_t group, std::int64_t part_rows, float *qkv,
              const PanelPacker &packer) const {
        const std::int64_t first = group * kPanelRows, dim = b_.head_dim, tile = (from + first) / kTileRows;
        const int count = static_cast<int>(std::min<std::int64_t>(kPanelRows, part_rows - first));
        for (std::int64_t head = 0; head < b_.heads; ++head) {
            const void *rows[kPanelRows];
            for (int r = 0; r < count; ++r) {
                const std::int64_t row = from + first + r;
                float *q = qkv + (first + r) * 3 * width_ + head * dim, *k = q + width_, *v = k + width_;
                turn(q, row);
                turn(k, row);
                kernels_.words_of_f32(q, dim, packer.row(r));
                rows[r] = packer.row(r);
                kernels_.to_bf16(k, dim, of_head(keys_, head, row));
                kernels_.to_bf16(v, dim, of_head(values_, head, row));
            }
            kernels_.pack_rows(rows, count, query_words_, query(tile, head) + (from + first) % kTileRows,
                            tile_width(tile));
        }
    }

    void turn(float *head, std::int64_t row) const {
        const std::int64_t half = b_.head_dim / 2;
        if (r_.cos) kernels_.rotate(head, nullptr, 0.0f, r_.cos + row * half, r_.sin + row * half, b_.head_dim);
    }

    void attend() {
        Session session(context_);
        const std::int64_t floats = kernels_.attend_tile_workspace(b_.head_dim);
        float *workspace = session.allocate<float>(floats * session.threads());
        WorkSplit split;
        split.reset(static_cast<std::int64_t>(tiles_.size()) * b_.heads, session.threads());
        session.run([&](Lane &lane) {
            for (std::int64_t item, end; split.take(lane.index, item, end);)
                for (; item < end; ++item) attend(item, workspace + lane.index * floats);
        });
    }

    void attend(std::int64_t item, float *workspace) const {
        // Tiles fastest, so that one head's keys and values stay in the cache.
        const std::int64_t tiles = static_cast<std::int64_t>(tiles_.size()), head = item / tiles;
        const TileRun &run = tiles_[static_cast<std::size_t>(item % tiles)];
        AttendTileTask task;
        task.query = query(run.tile, head);
        task.width = tile_width(run.tile);
        task.out = mixed_.data() + run.tile * kTileRows * kernels_.words(width_) +
                   kernels_.words(head * b_.head_dim) * task.width;
        task.begin = run.begin;
        task.end = run.end;
        task.positions = last_.data() + run.tile * kTileRows;
        task.keys = of_head(keys_, head, run.first);
        task.values = of_head(values_, head, run.first);
        task.head_dim = b_.head_dim;
        task.window = 0;
        task.cache_is_bf16 = true;
        task.scale = 1.0f / std::sqrt(static_cast<float>(b_.head_dim));
        task.workspace = workspace;
        kernels_.attend_tile(task);
    }

    // What follows attention, for a part.
    void finish(std::int64_t from, std::int64_t count) {
        Session session(context_);
        float *x = r_.x + from * r_.x_stride;
        const std::vector<PanelPacker> packers = panel_packers(session, b_.hidden);
        const Panel attended = mixed(from, count), input(session, count, b_.hidden),
                    inner(session, count, b_.intermediate);
        PanelProducts out(session, count, width_), first(session, count, b_.hidden),
            second(session, count, b_.intermediate);
        out.add(*b_.out, attended, Store::kAdd, x, r_.x_stride);
        first.add_gelu(*b_.fc1, input, inner, b_.gelu == LLUDA_GELU_TANH);
        second.add(*b_.fc2, inner, Store::kAdd, x, r_.x_stride);
        for (PanelProducts *products : {&out, &first, &second}) products->share(session.threads());
        session.run([&](Lane &lane) {
            out.run(lane);
            lane.barrier();
            norm_into_panel(lane, input, packers, x, r_.x_stride, {b_.norm2, b_.norm2_bias, b_.norm2_eps});
            lane.barrier();
            first.run(lane);
            lane.barrier();
            second.run(lane);
        });
    }

    lluda_context &context_;
    const Kernels &kernels_;
    const lluda_encoder &b_;
    const Rows &r_;
    const std::int64_t width_, query_words_, groups_;
    const Array<std::uint32_t> query_;
    const Array<std::uint16_t> keys_, values_;
    const Array<std::uint32_t> mixed_;
    const Array<std::int64_t> last_;
    std::vector<TileRun> tiles_;
};

}  // namespace

int lluda_encoder_block(lluda_context *context, const lluda_encoder *block, int64_t rows, float *x, int64_t x_stride,
                        const float *cos, const float *sin, const int64_t *lengths, int64_t runs) {
    return guarded([&] {
        lluda_context &c = checked(context);
        require(block, "block must not be NULL");
        check(*block);
        check_rows(rows, x, x_stride, block->hidden);
        require(!cos == !sin, "cos and sin must both be given or both be NULL");
        check_runs(rows, lengths, runs);
        if (rows == 0) return;
        const Rows all{rows, x, x_stride, cos, sin};
        EncoderCall(c, *block, all, lengths, runs).run();
    });
}
