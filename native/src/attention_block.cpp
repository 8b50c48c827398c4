// lluda_attention_block: norm, q/k/v, rotation and cache write, attention, o, residual: six phases of one job.
#include <algorithm>
#include <cmath>

#include "attention_rows.hpp"
#include "blocks.hpp"
#include "panel.hpp"

using namespace lluda;

namespace {

// Positions that one item of attention covers. Fixed, so that results do not depend on the number of threads.
constexpr int64_t kSplit = 512;

}  // namespace

void lluda::check_attention(const lluda_attention *block) {
    require(block, "block must not be NULL");
    const lluda_attention &b = *block;
    require_size("hidden", b.hidden);
    require_size("heads", b.heads);
    require_size("kv_heads", b.kv_heads);
    require_size("head_dim", b.head_dim, 2);
    require(b.heads % b.kv_heads == 0, "heads", b.heads, "a multiple of kv_heads");
    require(b.head_dim % 2 == 0, "head_dim", b.head_dim, "even");
    require_size("heads * head_dim", b.heads * b.head_dim);
    require(b.window >= 0, "window", b.window, "0 or more");
    require(b.norm, "norm must not be NULL");
    require(b.cache_dtype == LLUDA_DTYPE_F32 || b.cache_dtype == LLUDA_DTYPE_BF16, "cache_dtype", b.cache_dtype,
            "F32 or BF16");
    check_weight(b.q, "q", b.heads * b.head_dim, b.hidden);
    check_weight(b.k, "k", b.kv_heads * b.head_dim, b.hidden);
    check_weight(b.v, "v", b.kv_heads * b.head_dim, b.hidden);
    check_weight(b.o, "o", b.hidden, b.heads * b.head_dim);
}

void lluda::check_cache(const lluda_attention &b, int64_t rows, const lluda_cache_row *cache) {
    require(cache, "cache must not be NULL");
    for (int64_t r = 0; r < rows; ++r) {
        require(cache[r].keys && cache[r].values, "a cache row's keys and values must not be NULL");
        require_size("a cache row's capacity", cache[r].capacity);
        require(cache[r].position >= 0 && cache[r].position < cache[r].capacity, "a cache row's position",
                cache[r].position, "from 0 to its capacity - 1");
        require(cache[r].head_stride / b.head_dim >= cache[r].capacity, "a cache row's head_stride",
                cache[r].head_stride, "at least capacity * head_dim");
    }
}

namespace {

class AttentionJob : public BlockJob {
public:
    AttentionJob(Session &session, const lluda_attention &b, const AttentionRows &r)
        : kernels_(session.kernels()),
          b_(b),
          rows_(static_cast<int>(r.count)),
          x_(r.x),
          x_stride_(r.x_stride),
          cache_(r.cache),
          heads_(session.kernels(), b, r),
          group_(b.heads / b.kv_heads),
          query_width_(b.heads * b.head_dim),
          key_width_(b.kv_heads * b.head_dim),
          input_(session, rows_, b.hidden, {b.q, b.k, b.v}),
          mixed_(session, rows_, query_width_, {b.o}),
          projections_(session, rows_, b.hidden),
          output_(session, rows_, query_width_) {
        const int lanes = session.threads(), rows = rows_;
        normed_ = session.allocate<float>(rows * b.hidden);
        query_ = session.allocate<float>(rows * query_width_);
        key_ = session.allocate<float>(rows * key_width_);
        value_ = session.allocate<float>(rows * key_width_);
        workspace_floats_ = kernels_.attend_workspace(static_cast<int>(group_), b.head_dim);
        workspace_ = session.allocate<float>(workspace_floats_ * lanes);
        plan_splits();
        partial_ = session.allocate<float>(items_ * group_ * b.head_dim);
        top_ = session.allocate<float>(items_ * group_);
        total_ = session.allocate<float>(items_ * group_);

        projections_.add(*b.q, input_, rows, Store::kFloat, query_, query_width_);
        projections_.add(*b.k, input_, rows, Store::kFloat, key_, key_width_);
        projections_.add(*b.v, input_, rows, Store::kFloat, value_, key_width_);
        projections_.share(lanes);
        heads_split_.reset(rows * (b.heads + 2 * b.kv_heads), lanes);
        attend_split_.reset(items_, lanes);
        output_.add(*b.o, mixed_, rows, Store::kAdd, x_, x_stride_, b.output_scale);
        output_.share(lanes);
    }

    void run(Lane &lane) override {
        norm_and_prepare(lane, rows_, x_, x_stride_, b_.norm, b_.norm_eps, b_.hidden, normed_, input_);
        lane.barrier();
        projections_.run(lane);
        lane.barrier();
        for (int64_t head, end; heads_split_.take(lane.index, head, end);)
            for (; head < end; ++head) {
                const int64_t row = head / heads_.per_row();
                heads_.rotate_or_store(row, head % heads_.per_row(), query_ + row * query_width_,
                                       key_ + row * key_width_, value_ + row * key_width_);
            }
        lane.barrier();
        for (int64_t item, end; attend_split_.take(lane.index, item, end);)
            for (; item < end; ++item) attend(item, workspace_ + lane.index * workspace_floats_);
        lane.barrier();
        for (int r = lane.index; r < rows_; r += lane.count) {
            float *row = query_ + r * query_width_;  // the queries are done with
            for (int64_t kv_head = 0; kv_head < b_.kv_heads; ++kv_head)
                for (int64_t q = 0; q < group_; ++q) merge(r, kv_head, q, row + (kv_head * group_ + q) * b_.head_dim);
            mixed_.prepare(r, row, query_width_);
        }
        lane.barrier();
        output_.run(lane);
    }

private:
    int64_t first_position(int row) const {
        const int64_t position = cache_[row].position;
        return b_.window > 0 ? std::max<int64_t>(0, position + 1 - b_.window) : 0;
    }

    // Items of row r: splits x kv heads from first_item_[r] on, kv heads fastest, so that lanes share them evenly.
    void plan_splits() {
        items_ = 0;
        for (int r = 0; r < rows_; ++r) {
            const int64_t positions = cache_[r].position + 1 - first_position(r);
            splits_[r] = (positions + kSplit - 1) / kSplit;
            first_item_[r] = items_;
            items_ += splits_[r] * b_.kv_heads;
        }
        first_item_[rows_] = items_;
    }

    void attend(int64_t item, float *workspace) {
        int row = 0;
        while (first_item_[row + 1] <= item) ++row;
        const int64_t within = item - first_item_[row], split = within / b_.kv_heads, kv_head = within % b_.kv_heads;
        const int64_t begin = first_position(row) + split * kSplit;
        AttendTask task;
        task.query = query_ + row * query_width_ + kv_head * group_ * b_.head_dim;
        task.keys = heads_.in_cache(cache_[row].keys, row, kv_head, 0);
        task.values = heads_.in_cache(cache_[row].values, row, kv_head, 0);
        task.head_dim = b_.head_dim;
        task.begin = begin;
        task.end = std::min(begin + kSplit, cache_[row].position + 1);
        task.group = static_cast<int>(group_);
        task.cache_is_bf16 = b_.cache_dtype == LLUDA_DTYPE_BF16;
        task.scale = 1.0f / std::sqrt(static_cast<float>(b_.head_dim));
        task.workspace = workspace;
        task.out = partial_ + item * group_ * b_.head_dim;
        task.top = top_ + item * group_;
        task.total = total_ + item * group_;
        kernels_.attend(task);
    }

    // One head's result from its splits: sums under different maxima are brought under the largest.
    void merge(int row, int64_t kv_head, int64_t q, float *out) const {
        const auto at = [&](int64_t split) { return (first_item_[row] + split * b_.kv_heads + kv_head) * group_ + q; };
        float top = top_[at(0)], total = 0.0f;
        for (int64_t s = 1; s < splits_[row]; ++s) top = std::max(top, top_[at(s)]);
        std::fill(out, out + b_.head_dim, 0.0f);
        for (int64_t s = 0; s < splits_[row]; ++s) {
            const float factor = top_[at(s)] == top ? 1.0f : kernels_.exponential(top_[at(s)] - top);
            total += factor * total_[at(s)];
            kernels_.add_scaled(out, partial_ + at(s) * b_.head_dim, nullptr, factor, b_.head_dim);
        }
        kernels_.scale(out, b_.head_dim, 1.0f / total);
    }

    const Kernels &kernels_;
    const lluda_attention &b_;
    const int rows_;
    float *const x_;
    const int64_t x_stride_;
    const lluda_cache_row *const cache_;
    const HeadRotation heads_;
    const int64_t group_, query_width_, key_width_;
    const PreparedRows input_, mixed_;
    Products projections_, output_;
    WorkSplit heads_split_, attend_split_;
    float *normed_, *query_, *key_, *value_, *workspace_, *partial_, *top_, *total_;
    int64_t workspace_floats_, items_;
    int64_t splits_[kFewRows], first_item_[kFewRows + 1];
};

}  // namespace

std::unique_ptr<BlockJob> lluda::attention_job(Session &session, const lluda_attention &block,
                                               const AttentionRows &rows) {
    return std::make_unique<AttentionJob>(session, block, rows);
}

int lluda_attention_block(lluda_context *context, const lluda_attention *block, int64_t rows, float *x,
                          int64_t x_stride, const float *cos, const float *sin, const lluda_cache_row *cache) {
    return guarded([&] {
        lluda_context &c = checked(context);
        check_attention(block);
        check_rows(rows, x, x_stride, block->hidden);
        if (rows == 0) return;
        require(cos && sin, "cos and sin must not be NULL");
        check_cache(*block, rows, cache);
        for_rows(rows, [&](int64_t from, int64_t count) {
            const int64_t angles = from * (block->head_dim / 2);
            const AttentionRows part{count, x + from * x_stride, x_stride, cos + angles, sin + angles, cache + from};
            Session session(c);
            if (count > kFewRows) return attend_many(session, *block, part);
            AttentionJob job(session, *block, part);
            session.run([&](Lane &lane) { job.run(lane); });
        });
    });
}
