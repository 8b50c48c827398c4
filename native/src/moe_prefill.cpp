// Mixture blocks of many rows: each expert's rows gathered into a panel of their own.
#include <algorithm>

#include "blocks.hpp"
#include "moe_plan.hpp"
#include "panel.hpp"

namespace lluda {
namespace {

// The uses of one expert.
struct ExpertRows {
    std::size_t from, to;  // uses
    std::int64_t expert;
    Panel input, inner;
};

class MoePrefill {
public:
    MoePrefill(Session &session, const lluda_moe &b, const MoeRows &rows)
        : kernels_(session.kernels()),
          b_(b),
          r_(rows),
          normed_(session.allocate<float>(rows.count * b.hidden)),
          plan_(session, b, rows, normed_),
          packers_(panel_packers(session, b.hidden)),
          widest_(std::max(b.intermediate, b.shared_intermediate)),
          first_(session, rows.count, b.hidden) {
        const auto uses = static_cast<std::int64_t>(plan_.uses().size());
        most_experts_ = std::min(b.experts + (b.shared_intermediate > 0), uses);
        const std::int64_t panel_rows = uses + (kPanelRows - 1) * most_experts_;
        input_ = session.allocate<std::uint32_t>(panel_rows * kernels_.words(b.hidden));
        inner_ = session.allocate<std::uint32_t>(panel_rows * kernels_.words(widest_));
        experts_.reserve(static_cast<std::size_t>(most_experts_));
        first_.reserve(most_experts_);
        for (int i = 0; i < session.threads(); ++i) down_workspaces_.emplace_back(session, rows.count, widest_);
        down_split_.reset((b.hidden + kBlockOutputs - 1) / kBlockOutputs, session.threads());
        gather_split_.reset(0, session.threads());
    }

    void operator()(Lane &lane) {
        for (std::int64_t row = lane.index; row < r_.count; row += lane.count) {
            kernels_.rms_norm(r_.x + row * r_.x_stride, b_.norm, b_.hidden, b_.norm_eps, normed_ + row * b_.hidden);
            kernels_.round_to_bf16(normed_ + row * b_.hidden, b_.hidden);
        }
        lane.barrier();
        plan_.score(lane);
        lane.barrier();
        plan_.choose(lane);
        lane.barrier();
        if (lane.index == 0) add_experts(lane.count);
        lane.barrier();
        for (std::int64_t expert, end; gather_split_.take(lane.index, expert, end);)
            for (; expert < end; ++expert)
                gather(experts_[static_cast<std::size_t>(expert)], packers_[static_cast<std::size_t>(lane.index)]);
        lane.barrier();
        first_.run(lane);
        lane.barrier();
        for (std::int64_t block, end; down_split_.take(lane.index, block, end);)
            for (; block < end; ++block) add_down(block, down_workspaces_[static_cast<std::size_t>(lane.index)]);
    }

private:
    // Panels side by side in the memory for all of them.
    void add_experts(int lanes) {
        plan_.order();
        std::uint32_t *input = input_, *inner = inner_;
        for (std::size_t from = 0, to; from < plan_.uses().size(); from = to) {
            to = plan_.end_of_expert(from);
            const std::int64_t expert = plan_.uses()[from].expert, rows = static_cast<std::int64_t>(to - from);
            experts_.push_back(
                {from, to, expert, Panel(kernels_, input, rows, b_.hidden), Panel(kernels_, inner, rows, plan_.width(expert))});
            const ExpertRows &last = experts_.back();
            input += last.input.words * last.input.groups() * kPanelRows;
            inner += last.inner.words * last.inner.groups() * kPanelRows;
            first_.add_gated(plan_.gate(expert), plan_.up(expert), last.input, last.inner);
        }
        first_.share(lanes);
        gather_split_.reset(static_cast<std::int64_t>(experts_.size()), lanes);
    }

    void gather(const ExpertRows &e, const PanelPacker &packer) const {
        for (std::int64_t group = 0; group < e.input.groups(); ++group) {
            const std::size_t first = e.from + static_cast<std::size_t>(group * kPanelRows);
            const int count = static_cast<int>(std::min<std::size_t>(kPanelRows, e.to - first));
            const void *rows[kPanelRows];
            for (int i = 0; i < count; ++i) {
                const float *row = normed_ + plan_.uses()[first + static_cast<std::size_t>(i)].row * b_.hidden;
                kernels_.words_of_f32(row, b_.hidden, packer.row(i));
                rows[i] = packer.row(i);
            }
            e.input.pack_rows(group, rows, count);
        }
    }

    // Some output features of all experts, in ascending order, so that no two lanes add to the same place.
    void add_down(std::int64_t block, const BlockWorkspace &workspace) const {
        const std::int64_t begin = block * kBlockOutputs, end = std::min(begin + kBlockOutputs, b_.hidden);
        for (std::size_t i = 0; i < experts_.size(); ++i) {
            const ExpertRows &e = experts_[i];
            OutputBlock part{&plan_.down(e.expert), begin, end};
            if (i + 1 < experts_.size()) part.next = weight_row(plan_.down(experts_[i + 1].expert), begin);
            workspace.multiply(&part, 1, e.inner,
                               [&](std::int64_t tile, float *sums) { add_tile(e, tile, part, sums); });
        }
    }

    void add_tile(const ExpertRows &e, std::int64_t tile, const OutputBlock &part, const float *sums) const {
        void *y[kTileRows];
        float factors[kTileRows];
        const int rows = e.inner.tile_rows(tile);
        for (int r = 0; r < rows; ++r) {
            const Use &use = plan_.uses()[e.from + static_cast<std::size_t>(tile * kTileRows + r)];
            y[r] = r_.x + use.row * r_.x_stride + part.begin;
            factors[r] = use.weight;
        }
        const float *bias = part.weight->bias, *scale = b_.output_scale;
        kernels_.put_tile({sums, static_cast<int>(part.end - part.begin), rows, bias ? bias + part.begin : nullptr,
                            scale ? scale + part.begin : nullptr, factors, Store::kAdd, y});
    }

    const Kernels &kernels_;
    const lluda_moe &b_;
    const MoeRows r_;
    float *const normed_;
    MoePlan plan_;
    const std::vector<PanelPacker> packers_;
    const std::int64_t widest_;
    PanelProducts first_;
    std::vector<BlockWorkspace> down_workspaces_;
    std::vector<ExpertRows> experts_;
    WorkSplit gather_split_, down_split_;
    std::uint32_t *input_, *inner_;
    std::int64_t most_experts_;
};

}  // namespace

void mix_many(lluda_context &context, const lluda_moe &block, const MoeRows &rows) {
    Session session(context);
    MoePrefill job(session, block, rows);
    session.run(job);
}

}  // namespace lluda
