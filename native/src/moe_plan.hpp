// Which rows use which experts with which weights: the router's part of a mixture block.
#pragma once

#include <cstdint>
#include <vector>

#include "context.hpp"

namespace lluda {

// The rows of one call.
struct MoeRows {
    std::int64_t count;
    float *x;
    std::int64_t x_stride;
    std::int32_t *chosen;  // [count, top_k] or null
};

// One row's use of one expert (the shared one is expert -1).
struct Use {
    int row;
    std::int64_t expert;
    float weight;
};

class MoePlan {
public:
    // `normed` F32 [rows, hidden]: the normalised rows, rounded to BF16, there before the lanes score.
    MoePlan(Session &session, const lluda_moe &block, const MoeRows &rows, const float *normed);

    // This lane's part, with barriers after both; then by one lane, order: uses by expert, rows ascending within one.
    void score(const Lane &lane);
    void choose(const Lane &lane);
    void order();

    const std::vector<Use> &uses() const { return uses_; }
    // The end of the run of uses of one expert that starts at `from`.
    std::size_t end_of_expert(std::size_t from) const;

    const lluda_weight &gate(std::int64_t expert) const { return expert < 0 ? *b_.shared_gate : b_.gate[expert]; }
    const lluda_weight &up(std::int64_t expert) const { return expert < 0 ? *b_.shared_up : b_.up[expert]; }
    const lluda_weight &down(std::int64_t expert) const { return expert < 0 ? *b_.shared_down : b_.down[expert]; }
    std::int64_t width(std::int64_t expert) const { return expert < 0 ? b_.shared_intermediate : b_.intermediate; }

private:
    void choose(int row, std::vector<int> &order);
    float shared_weight(int row) const;

    const Kernels &kernels_;
    const lluda_moe &b_;
    const MoeRows r_;
    const float *const normed_;
    const std::int64_t per_row_;  // uses
    float *scores_;
    WorkSplit split_;
    std::vector<Use> uses_;
    std::vector<std::vector<int>> orders_;  // working memory of each lane
};

// More rows than kFewRows (moe_prefill.cpp).
void mix_many(lluda_context &context, const lluda_moe &block, const MoeRows &rows);

}  // namespace lluda
