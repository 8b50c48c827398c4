// lluda_mlp_block and lluda_lm_head.
#include <algorithm>

#include "blocks.hpp"
#include "panel.hpp"

using namespace lluda;

void lluda::check_mlp(const lluda_mlp *block) {
    require(block, "block must not be NULL");
    const lluda_mlp &b = *block;
    require_size("hidden", b.hidden);
    require_size("intermediate", b.intermediate);
    require(b.norm, "norm must not be NULL");
    check_weight(b.gate, "gate", b.intermediate, b.hidden);
    check_weight(b.up, "up", b.intermediate, b.hidden);
    check_weight(b.down, "down", b.hidden, b.intermediate);
}

namespace {

class MlpJob : public BlockJob {
public:
    MlpJob(Session &session, const lluda_mlp &b, int64_t rows, float *x, int64_t x_stride)
        : b_(b),
          rows_(static_cast<int>(rows)),
          x_(x),
          x_stride_(x_stride),
          normed_(session.allocate<float>(rows * b.hidden)),
          gate_(session.allocate<float>(rows * b.intermediate)),
          up_(session.allocate<float>(rows * b.intermediate)),
          input_(session, rows_, b.hidden, {b.gate, b.up}),
          inner_(session, rows_, b.intermediate, {b.down}),
          first_(session, rows_, b.hidden),
          second_(session, rows_, b.intermediate) {
        first_.add(*b.gate, input_, rows_, Store::kFloat, gate_, b.intermediate);
        first_.add(*b.up, input_, rows_, Store::kFloat, up_, b.intermediate);
        first_.share(session.threads());
        second_.add(*b.down, inner_, rows_, Store::kAdd, x, x_stride, b.output_scale);
        second_.share(session.threads());
    }

    void run(Lane &lane) override {
        norm_and_prepare(lane, rows_, x_, x_stride_, b_.norm, b_.norm_eps, b_.hidden, normed_, input_);
        lane.barrier();
        first_.run(lane);
        lane.barrier();
        for (int r = lane.index; r < rows_; r += lane.count) {
            float *gate = gate_ + r * b_.intermediate;
            inner_.kernels().gated_silu(gate, up_ + r * b_.intermediate, b_.intermediate, gate);
            inner_.prepare(r, gate, b_.intermediate);
        }
        lane.barrier();
        second_.run(lane);
    }

private:
    const lluda_mlp &b_;
    const int rows_;
    float *const x_;
    const int64_t x_stride_;
    float *const normed_, *const gate_, *const up_;
    const PreparedRows input_, inner_;
    Products first_, second_;
};

void run_few(lluda_context &context, const lluda_mlp &b, int64_t rows, float *x, int64_t x_stride) {
    Session session(context);
    MlpJob job(session, b, rows, x, x_stride);
    session.run([&](Lane &lane) { job.run(lane); });
}

void run_many(lluda_context &context, const lluda_mlp &b, int64_t rows, float *x, int64_t x_stride) {
    Session session(context);
    const std::vector<PanelPacker> packers = panel_packers(session, b.hidden);
    const Panel input(session, rows, b.hidden), inner(session, rows, b.intermediate);
    PanelProducts first(session, rows, b.hidden), second(session, rows, b.intermediate);
    first.add_gated(*b.gate, *b.up, input, inner);
    first.share(session.threads());
    second.add(*b.down, inner, Store::kAdd, x, x_stride, b.output_scale);
    second.share(session.threads());
    session.run([&](Lane &lane) {
        norm_into_panel(lane, input, packers, x, x_stride, {b.norm, nullptr, b.norm_eps});
        lane.barrier();
        first.run(lane);
        lane.barrier();
        second.run(lane);
    });
}

class HeadJob : public BlockJob {
public:
    HeadJob(Session &session, const Head &head, int64_t rows, const float *x, int64_t x_stride, float *logits,
            int64_t logits_stride)
        : head_(head),
          rows_(static_cast<int>(rows)),
          x_(x),
          x_stride_(x_stride),
          normed_(session.allocate<float>(rows * head.weight.in_features)),
          input_(session, rows_, head.weight.in_features, {&head.weight}),
          products_(session, rows_, head.weight.in_features) {
        products_.add(head.weight, input_, rows_, Store::kFloat, logits, logits_stride);
        products_.share(session.threads());
    }

    void run(Lane &lane) override {
        norm_and_prepare(lane, rows_, x_, x_stride_, head_.norm, head_.norm_eps, head_.weight.in_features, normed_,
                         input_);
        lane.barrier();
        products_.run(lane);
    }

private:
    const Head head_;
    const int rows_;
    const float *const x_;
    const int64_t x_stride_;
    float *const normed_;
    const PreparedRows input_;
    Products products_;
};

void run_head_few(lluda_context &context, const Head &head, int64_t rows, const float *x, int64_t x_stride,
                  float *logits, int64_t logits_stride) {
    Session session(context);
    HeadJob job(session, head, rows, x, x_stride, logits, logits_stride);
    session.run([&](Lane &lane) { job.run(lane); });
}

void run_head_many(lluda_context &context, const Head &head, int64_t rows, const float *x, int64_t x_stride,
                   float *logits, int64_t logits_stride) {
    const lluda_weight &weight = head.weight;
    Session session(context);
    const std::vector<PanelPacker> packers = panel_packers(session, weight.in_features);
    const Panel input(session, rows, weight.in_features);
    PanelProducts products(session, rows, weight.in_features);
    products.add(weight, input, Store::kFloat, logits, logits_stride);
    products.share(session.threads());
    session.run([&](Lane &lane) {
        norm_into_panel(lane, input, packers, x, x_stride, {head.norm, nullptr, head.norm_eps});
        lane.barrier();
        products.run(lane);
    });
}

}  // namespace

std::unique_ptr<BlockJob> lluda::mlp_job(Session &session, const lluda_mlp &block, int64_t rows, float *x,
                                         int64_t x_stride) {
    return std::make_unique<MlpJob>(session, block, rows, x, x_stride);
}

std::unique_ptr<BlockJob> lluda::head_job(Session &session, const Head &head, int64_t rows, const float *x,
                                          int64_t x_stride, float *logits, int64_t logits_stride) {
    return std::make_unique<HeadJob>(session, head, rows, x, x_stride, logits, logits_stride);
}

int lluda_mlp_block(lluda_context *context, const lluda_mlp *block, int64_t rows, float *x, int64_t x_stride) {
    return guarded([&] {
        lluda_context &c = checked(context);
        check_mlp(block);
        const lluda_mlp &b = *block;
        check_rows(rows, x, x_stride, b.hidden);
        for_rows(rows, [&](int64_t from, int64_t count) {
            (count > kFewRows ? run_many : run_few)(c, b, count, x + from * x_stride, x_stride);
        });
    });
}

int lluda_lm_head(lluda_context *context, const lluda_weight *weight, const float *norm, float norm_eps, int64_t rows,
                  const float *x, int64_t x_stride, float *logits, int64_t logits_stride) {
    return guarded([&] {
        lluda_context &c = checked(context);
        check_weight(weight, "lm_head");
        require(norm, "norm must not be NULL");
        check_rows(rows, x, x_stride, weight->in_features);
        if (rows == 0 || weight->out_features == 0) return;
        require(logits, "logits must not be NULL");
        check_stride("logits_stride", rows, logits_stride, weight->out_features);
        for_rows(rows, [&](int64_t from, int64_t count) {
            (count > kFewRows ? run_head_many : run_head_few)(c, {*weight, norm, norm_eps}, count, x + from * x_stride,
                                                              x_stride, logits + from * logits_stride, logits_stride);
        });
    });
}
