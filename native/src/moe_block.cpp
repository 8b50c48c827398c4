// lluda_moe_block: norm, router, the chosen experts (rows gathered by expert), weighted sum, residual.
#include <algorithm>

#include "blocks.hpp"
#include "moe_plan.hpp"
#include "panel.hpp"

using namespace lluda;

void lluda::check_moe(const lluda_moe *block) {
    require(block, "block must not be NULL");
    const lluda_moe &b = *block;
    require_size("hidden", b.hidden);
    require(b.experts >= 1 && b.experts <= 4096, "experts", b.experts, "1 .. 4096");
    require_size("intermediate", b.intermediate);
    require_size("shared_intermediate", b.shared_intermediate, 0);
    require(b.top_k >= 1 && b.top_k <= 64 && b.top_k <= b.experts, "top_k", b.top_k, "1 .. 64 and at most experts");
    require(b.norm && b.router, "norm and router must not be NULL");
    require(b.gate && b.up && b.down, "the experts' gate, up and down must not be NULL");
    for (int64_t e = 0; e < b.experts; ++e) {
        check_weight(b.gate + e, "of an expert's gate", b.intermediate, b.hidden);
        check_weight(b.up + e, "of an expert's up", b.intermediate, b.hidden);
        check_weight(b.down + e, "of an expert's down", b.hidden, b.intermediate);
    }
    if (b.shared_intermediate == 0) return;
    check_weight(b.shared_gate, "shared_gate", b.shared_intermediate, b.hidden);
    check_weight(b.shared_up, "shared_up", b.shared_intermediate, b.hidden);
    check_weight(b.shared_down, "shared_down", b.hidden, b.shared_intermediate);
}

namespace {

class MoeJob : public BlockJob {
public:
    MoeJob(Session &session, const lluda_moe &b, const MoeRows &rows)
        : kernels_(session.kernels()),
          b_(b),
          r_(rows),
          normed_(session.allocate<float>(rows.count * b.hidden)),
          plan_(session, b, rows, normed_),
          uses_(static_cast<int64_t>(plan_.uses().size())),
          widest_(std::max(b.intermediate, b.shared_intermediate)),
          input_(session, static_cast<int>(rows.count), b.hidden, for_input(b)),
          inner_(session, static_cast<int>(uses_), widest_, for_inner(b)),
          first_(session, static_cast<int>(rows.count), b.hidden),
          second_(session, static_cast<int>(rows.count), widest_) {
        const int lanes = session.threads();
        gate_ = session.allocate<float>(uses_ * widest_);
        up_ = session.allocate<float>(uses_ * widest_);
        out_ = session.allocate<float>(uses_ * b.hidden);
        first_.reserve(2 * uses_);
        second_.reserve(uses_);
        sum_split_.reset(rows.count * sum_parts(), lanes);
        inner_split_.reset(uses_, lanes);
    }

    void run(Lane &lane) override {
        norm_and_prepare(lane, static_cast<int>(r_.count), r_.x, r_.x_stride, b_.norm, b_.norm_eps, b_.hidden, normed_,
                         input_);
        lane.barrier();
        plan_.score(lane);
        lane.barrier();
        plan_.choose(lane);
        lane.barrier();
        if (lane.index == 0) add_products(lane.count);
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

    const Use &use_at(int64_t index) const { return plan_.uses()[static_cast<std::size_t>(index)]; }

    static Preparation for_input(const lluda_moe &b) {
        Preparation needed;
        for (int64_t e = 0; e < b.experts; ++e) needed.serve(b.gate[e]), needed.serve(b.up[e]);
        if (b.shared_intermediate > 0) needed.serve(*b.shared_gate), needed.serve(*b.shared_up);
        return needed;
    }

    static Preparation for_inner(const lluda_moe &b) {
        Preparation needed;
        for (int64_t e = 0; e < b.experts; ++e) needed.serve(b.down[e]);
        if (b.shared_intermediate > 0) needed.serve(*b.shared_down);
        return needed;
    }

    void add_products(int lanes) {
        plan_.order();
        for (std::size_t from = 0, to; from < plan_.uses().size(); from = to) {
            to = plan_.end_of_expert(from);
            add_expert(static_cast<int64_t>(from), static_cast<int>(to - from), plan_.uses()[from].expert);
        }
        first_.share(lanes);
        second_.share(lanes);
    }

    // Uses from .. from+count-1 are rows of one expert.
    void add_expert(int64_t from, int count, int64_t expert) {
        LinearTask *tasks[3] = {&first_.add(plan_.gate(expert), count, Store::kFloat),
                                &first_.add(plan_.up(expert), count, Store::kFloat),
                                &second_.add(plan_.down(expert), count, Store::kFloat)};
        for (int i = 0; i < count; ++i) {
            const int64_t use = from + i;
            tasks[0]->x[i] = input_.row(use_at(use).row, *tasks[0]->weight);
            tasks[1]->x[i] = input_.row(use_at(use).row, *tasks[1]->weight);
            tasks[0]->y[i] = gate_ + use * widest_;
            tasks[1]->y[i] = up_ + use * widest_;
            tasks[2]->x[i] = inner_.row(static_cast<int>(use), *tasks[2]->weight);
            tasks[2]->y[i] = out_ + use * b_.hidden;
        }
    }

    void activate(int64_t use) {
        const int64_t width = plan_.width(use_at(use).expert);
        float *gate = gate_ + use * widest_;
        kernels_.gated_silu(gate, up_ + use * widest_, width, gate);
        inner_.prepare(static_cast<int>(use), gate, width);
    }

    // x += scale * sum of weight * expert's result, for a part of one row; experts in ascending order.
    void add_up(int64_t part) {
        const int row = static_cast<int>(part / sum_parts());
        const int64_t begin = part % sum_parts() * kSumPart, count = std::min(kSumPart, b_.hidden - begin);
        float sum[kSumPart] = {};
        for (int64_t use = 0; use < uses_; ++use) {
            const Use &u = use_at(use);
            if (u.row == row) kernels_.add_scaled(sum, out_ + use * b_.hidden + begin, nullptr, u.weight, count);
        }
        kernels_.add_scaled(r_.x + row * r_.x_stride + begin, sum, b_.output_scale ? b_.output_scale + begin : nullptr,
                             1.0f, count);
    }

    const Kernels &kernels_;
    const lluda_moe &b_;
    const MoeRows r_;
    float *const normed_;
    MoePlan plan_;
    const int64_t uses_, widest_;
    const PreparedRows input_, inner_;
    Products first_, second_;
    WorkSplit inner_split_, sum_split_;
    float *gate_, *up_, *out_;
};

void mix_few(lluda_context &context, const lluda_moe &block, const MoeRows &rows) {
    Session session(context);
    MoeJob job(session, block, rows);
    session.run([&](Lane &lane) { job.run(lane); });
}

}  // namespace

std::unique_ptr<BlockJob> lluda::moe_job(Session &session, const lluda_moe &block, const MoeRows &rows) {
    return std::make_unique<MoeJob>(session, block, rows);
}

int lluda_moe_block(lluda_context *context, const lluda_moe *block, int64_t rows, float *x, int64_t x_stride,
                    int32_t *chosen) {
    return guarded([&] {
        lluda_context &c = checked(context);
        check_moe(block);
        check_rows(rows, x, x_stride, block->hidden);
        for_rows(rows, [&](int64_t from, int64_t count) {
            int32_t *chosen_here = chosen ? chosen + from * block->top_k : nullptr;
            const MoeRows part{count, x + from * x_stride, x_stride, chosen_here};
            (count > kFewRows ? mix_many : mix_few)(c, *block, part);
        });
    });
}
