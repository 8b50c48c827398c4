#include "moe_plan.hpp"

#include <algorithm>
#include <cmath>
#include <numeric>

namespace lluda {

MoePlan::MoePlan(Session &session, const lluda_moe &block, const MoeRows &rows, const float *normed)
    : kernels_(session.kernels()),
      b_(block),
      r_(rows),
      normed_(normed),
      per_row_(block.top_k + (block.shared_intermediate > 0)),
      scores_(session.allocate<float>(rows.count * block.experts)),
      uses_(static_cast<std::size_t>(rows.count * per_row_)),
      orders_(static_cast<std::size_t>(session.threads()), std::vector<int>(static_cast<std::size_t>(block.experts))) {
    split_.reset(rows.count * block.experts, session.threads());
}

void MoePlan::score(const Lane &lane) {
    for (std::int64_t item, end; split_.take(lane.index, item, end);)
        for (; item < end; ++item) {
            const std::int64_t row = item / b_.experts, expert = item % b_.experts;
            scores_[item] = kernels_.dot(normed_ + row * b_.hidden, b_.router + expert * b_.hidden, b_.hidden);
        }
}

void MoePlan::choose(const Lane &lane) {
    for (std::int64_t row = lane.index; row < r_.count; row += lane.count)
        choose(static_cast<int>(row), orders_[static_cast<std::size_t>(lane.index)]);
}

void MoePlan::choose(int row, std::vector<int> &order) {
    float *scores = scores_ + row * b_.experts;
    Use *uses = uses_.data() + row * per_row_;
    kernels_.softmax(scores, b_.experts);
    std::iota(order.begin(), order.end(), 0);
    std::partial_sort(order.begin(), order.begin() + b_.top_k, order.end(),
                      [&](int a, int b) { return scores[a] > scores[b] || (scores[a] == scores[b] && a < b); });
    float sum = 0.0f;
    for (std::int64_t k = 0; k < b_.top_k; ++k) sum += scores[order[static_cast<std::size_t>(k)]];
    for (std::int64_t k = 0; k < b_.top_k; ++k) {
        const int expert = order[static_cast<std::size_t>(k)];
        uses[k] = {row, expert, b_.normalise ? scores[expert] / sum : scores[expert]};
        if (r_.chosen) r_.chosen[row * b_.top_k + k] = expert;
    }
    if (b_.shared_intermediate > 0) uses[b_.top_k] = {row, -1, shared_weight(row)};
}

float MoePlan::shared_weight(int row) const {
    if (!b_.shared_expert_gate) return 1.0f;
    return 1.0f / (1.0f + std::exp(-kernels_.dot(normed_ + row * b_.hidden, b_.shared_expert_gate, b_.hidden)));
}

void MoePlan::order() {
    std::sort(uses_.begin(), uses_.end(), [](const Use &a, const Use &b) {
        return a.expert < b.expert || (a.expert == b.expert && a.row < b.row);
    });
}

std::size_t MoePlan::end_of_expert(std::size_t from) const {
    std::size_t to = from;
    while (to < uses_.size() && uses_[to].expert == uses_[from].expert) ++to;
    return to;
}

}  // namespace lluda
