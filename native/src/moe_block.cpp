// lluda_moe_block: norm, router, the chosen experts (rows gathered by expert), weighted sum, residual.
#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

#include "blocks.hpp"

using namespace lluda;

namespace {

void check(const lluda_moe &b) {
    require(b.hidden >= 1, "hidden", b.hidden, "1 or more");
    require(b.experts >= 1 && b.experts <= 4096, "experts", b.experts, "1 .. 4096");
    require(b.intermediate >= 1, "intermediate", b.intermediate, "1 or more");
    require(b.shared_intermediate >= 0, "shared_intermediate", b.shared_intermediate, "0 or more");
    require(b.top_k >= 1 && b.top_k <= 64 && b.top_k <= b.experts, "top_k", b.top_k, "1 .. 64 and at most experts");
    require(b.norm && b.router, "norm and router must not be NULL");
    require(b.gate && b.up && b.down, "the experts' gate, up and down must not be NULL");
    if (b.shared_intermediate == 0) return;
    check_weight(b.shared_gate, "shared_gate", b.shared_intermediate, b.hidden);
    check_weight(b.shared_up, "shared_up", b.shared_intermediate, b.hidden);
    check_weight(b.shared_down, "shared_down", b.hidden, b.shared_intermediate);
}

// One row's use of one expert (the shared one is expert -1).
struct Use {
    int row;
    int64_t expert;
    float weight;
};

class MoeJob {
public:
    MoeJob(Session &session, const lluda_moe &b, int rows, float *x, int64_t x_stride, int32_t *chosen)
        : b_(b),
          rows_(rows),
          x_(x),
          x_stride_(x_stride),
          chosen_(chosen),
          uses_(rows * b.top_k + (b.shared_intermediate > 0 ? rows : 0)),
          widest_(std::max(b.intermediate, b.shared_intermediate)),
          input_(session, rows, b.hidden),
          inner_(session, static_cast<int>(uses_), widest_),
          first_(session.threads()),
          second_(session.threads()) {
        const int lanes = session.threads();
        normed_ = session.allocate<float>(rows * b.hidden);
        scores_ = session.allocate<float>(rows * b.experts);
        gate_ = session.allocate<float>(uses_ * widest_);
        up_ = session.allocate<float>(uses_ * widest_);
        out_ = session.allocate<float>(uses_ * b.hidden);
        order_.resize(static_cast<std::size_t>(b.experts));
        plan_.reserve(static_cast<std::size_t>(uses_));
        first_.reserve(2 * uses_);
        second_.reserve(uses_);
        router_split_.reset(rows * b.experts, lanes);
        sum_split_.reset(rows * sum_parts(), lanes);
        inner_split_.reset(uses_, lanes);
    }

    void operator()(Lane &lane) {
        norm_and_prepare(lane, rows_, x_, x_stride_, b_.norm, b_.norm_eps, normed_, input_);
        lane.barrier();
        for (int64_t item, end; router_split_.take(lane.index, item, end);)
            for (; item < end; ++item) score(item);
        lane.barrier();
        if (lane.index == 0) plan(lane.count);
        lane.barrier();
        first_.run(lane);
        lane.barrier();
        for (int64_t use, end; inner_split_.take(lane.index, use, end);)
            for (; use < end; ++use) activate(use);
        lane.barrier();
        second_.run(lane);
        lane.barrier();
        for (int64_t part, end; sum_split_.take(lane.index, part, end);)
            for (; part < end; ++part) add_up(part);
    }

private:
    static constexpr int64_t kSumPart = 512;  // elements of a row that are summed as one item
    int64_t sum_parts() const { return (b_.hidden + kSumPart - 1) / kSumPart; }

    void score(int64_t item) {
        const int64_t row = item / b_.experts, expert = item % b_.experts;
        scores_[item] = kernels().dot(normed_ + row * b_.hidden, b_.router + expert * b_.hidden, b_.hidden);
    }

    // Which rows use which experts, and the products that follow from it.
    void plan(int lanes) {
        for (int row = 0; row < rows_; ++row) choose(row);
        std::stable_sort(plan_.begin(), plan_.end(), [](const Use &a, const Use &b) { return a.expert < b.expert; });
        for (std::size_t from = 0; from < plan_.size();) {
            std::size_t to = from;
            while (to < plan_.size() && plan_[to].expert == plan_[from].expert) ++to;
            add_expert(static_cast<int64_t>(from), static_cast<int>(to - from), plan_[from].expert);
            from = to;
        }
        first_.share(lanes);
        second_.share(lanes);
    }

    void choose(int row) {
        float *scores = scores_ + row * b_.experts;
        kernels().softmax(scores, b_.experts);
        std::iota(order_.begin(), order_.end(), 0);
        std::partial_sort(order_.begin(), order_.begin() + b_.top_k, order_.end(),
                          [&](int a, int b) { return scores[a] > scores[b] || (scores[a] == scores[b] && a < b); });
        float sum = 0.0f;
        for (int64_t k = 0; k < b_.top_k; ++k) sum += scores[order_[k]];
        for (int64_t k = 0; k < b_.top_k; ++k) {
            const float weight = scores[order_[k]];
            plan_.push_back({row, order_[k], b_.normalise ? weight / sum : weight});
            if (chosen_) chosen_[row * b_.top_k + k] = order_[k];
        }
        if (b_.shared_intermediate > 0) plan_.push_back({row, -1, shared_weight(row)});
    }

    float shared_weight(int row) const {
        if (!b_.shared_expert_gate) return 1.0f;
        return 1.0f / (1.0f + std::exp(-kernels().dot(normed_ + row * b_.hidden, b_.shared_expert_gate, b_.hidden)));
    }

    int64_t width_of(int64_t expert) const { return expert < 0 ? b_.shared_intermediate : b_.intermediate; }

    // Uses from .. from+count-1 are rows of one expert.
    void add_expert(int64_t from, int count, int64_t expert) {
        const lluda_weight &gate = expert < 0 ? *b_.shared_gate : b_.gate[expert];
        const lluda_weight &up = expert < 0 ? *b_.shared_up : b_.up[expert];
        const lluda_weight &down = expert < 0 ? *b_.shared_down : b_.down[expert];
        LinearTask *tasks[3] = {&first_.add(gate, count, Store::kFloat), &first_.add(up, count, Store::kFloat),
                                &second_.add(down, count, Store::kFloat)};
        for (int i = 0; i < count; ++i) {
            const int64_t use = from + i;
            tasks[0]->x[i] = tasks[1]->x[i] = input_.row(plan_[static_cast<std::size_t>(use)].row);
            tasks[0]->y[i] = gate_ + use * widest_;
            tasks[1]->y[i] = up_ + use * widest_;
            tasks[2]->x[i] = inner_.row(static_cast<int>(use));
            tasks[2]->y[i] = out_ + use * b_.hidden;
        }
    }

    void activate(int64_t use) {
        const int64_t width = width_of(plan_[static_cast<std::size_t>(use)].expert);
        float *gate = gate_ + use * widest_;
        kernels().gated_silu(gate, up_ + use * widest_, width, gate);
        kernels().prepare_f32(gate, width, inner_.row(static_cast<int>(use)));
    }

    // x += scale * sum of weight * expert's result, for a part of one row; experts in ascending order.
    void add_up(int64_t part) {
        const int row = static_cast<int>(part / sum_parts());
        const int64_t begin = part % sum_parts() * kSumPart, count = std::min(kSumPart, b_.hidden - begin);
        float sum[kSumPart] = {};
        for (int64_t use = 0; use < uses_; ++use) {
            const Use &u = plan_[static_cast<std::size_t>(use)];
            if (u.row == row) kernels().add_scaled(sum, out_ + use * b_.hidden + begin, nullptr, u.weight, count);
        }
        kernels().add_scaled(x_ + row * x_stride_ + begin, sum, b_.output_scale ? b_.output_scale + begin : nullptr,
                             1.0f, count);
    }

    const lluda_moe &b_;
    const int rows_;
    float *const x_;
    const int64_t x_stride_;
    int32_t *const chosen_;
    const int64_t uses_, widest_;
    const PreparedRows input_, inner_;
    Products first_, second_;
    WorkSplit router_split_, inner_split_, sum_split_;
    std::vector<int> order_;
    std::vector<Use> plan_;
    float *normed_, *scores_, *gate_, *up_, *out_;
};

}  // namespace

int lluda_moe_block(const lluda_moe *block, int64_t rows, float *x, int64_t x_stride, int32_t *chosen) {
    return guarded([&] {
        require(block, "block must not be NULL");
        check(*block);
        for (int64_t e = 0; e < block->experts; ++e) {
            check_weight(block->gate + e, "of an expert's gate", block->intermediate, block->hidden);
            check_weight(block->up + e, "of an expert's up", block->intermediate, block->hidden);
            check_weight(block->down + e, "of an expert's down", block->hidden, block->intermediate);
        }
        check_rows(rows, x, x_stride, block->hidden);
        if (rows == 0) return;
        Session session;
        MoeJob job(session, *block, static_cast<int>(rows), x, x_stride, chosen);
        session.run(job);
    });
}
