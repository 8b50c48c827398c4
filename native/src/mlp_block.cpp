// lluda_mlp_block and lluda_lm_head.
#include <algorithm>

#include "blocks.hpp"
#include "panel.hpp"

using namespace lluda;

namespace {

void check(const lluda_mlp &b) {
    require(b.hidden >= 1, "hidden", b.hidden, "1 or more");
    require(b.intermediate >= 1, "intermediate", b.intermediate, "1 or more");
    require(b.norm, "norm must not be NULL");
    check_weight(b.gate, "gate", b.intermediate, b.hidden);
    check_weight(b.up, "up", b.intermediate, b.hidden);
    check_weight(b.down, "down", b.hidden, b.intermediate);
}

void run_few(const lluda_mlp &b, int64_t rows, float *x, int64_t x_stride) {
    Session session;
    const int n = static_cast<int>(rows), lanes = session.threads();
    float *normed = session.allocate<float>(rows * b.hidden);
    float *gate = session.allocate<float>(rows * b.intermediate);
    float *up = session.allocate<float>(rows * b.intermediate);
    const PreparedRows input(session, n, b.hidden), inner(session, n, b.intermediate);
    Products first(lanes), second(lanes);
    first.add(*b.gate, input, n, Store::kFloat, gate, b.intermediate);
    first.add(*b.up, input, n, Store::kFloat, up, b.intermediate);
    first.share(lanes);
    second.add(*b.down, inner, n, Store::kAdd, x, x_stride, b.output_scale);
    second.share(lanes);

    session.run([&](Lane &lane) {
        norm_and_prepare(lane, n, x, x_stride, b.norm, b.norm_eps, normed, input);
        lane.barrier();
        first.run(lane);
        lane.barrier();
        for (int r = lane.index; r < n; r += lane.count) {
            float *g = gate + r * b.intermediate;
            kernels().gated_silu(g, up + r * b.intermediate, b.intermediate, g);
            kernels().prepare_f32(g, b.intermediate, inner.row(r));
        }
        lane.barrier();
        second.run(lane);
    });
}

void run_many(const lluda_mlp &b, int64_t rows, float *x, int64_t x_stride) {
    Session session;
    const std::vector<StandingRoom> rooms = standing_rooms(session, b.hidden);
    const Panel input(session, rows, b.hidden), inner(session, rows, b.intermediate);
    PanelProducts first(session, rows, b.hidden), second(session, rows, b.intermediate);
    first.add_gated(*b.gate, *b.up, input, inner);
    first.share(session.threads());
    second.add(*b.down, inner, Store::kAdd, x, x_stride, b.output_scale);
    second.share(session.threads());
    session.run([&](Lane &lane) {
        norm_into_panel(lane, input, rooms, x, x_stride, {b.norm, nullptr, b.norm_eps});
        lane.barrier();
        first.run(lane);
        lane.barrier();
        second.run(lane);
    });
}

void run_head_few(const lluda_weight &weight, const float *norm, float norm_eps, int64_t rows, const float *x,
                  int64_t x_stride, float *logits, int64_t logits_stride) {
    Session session;
    const int n = static_cast<int>(rows), lanes = session.threads();
    float *normed = session.allocate<float>(rows * weight.in_features);
    const PreparedRows input(session, n, weight.in_features);
    Products products(lanes);
    products.add(weight, input, n, Store::kFloat, logits, logits_stride);
    products.share(lanes);
    session.run([&](Lane &lane) {
        norm_and_prepare(lane, n, x, x_stride, norm, norm_eps, normed, input);
        lane.barrier();
        products.run(lane);
    });
}

void run_head_many(const lluda_weight &weight, const float *norm, float norm_eps, int64_t rows, const float *x,
                   int64_t x_stride, float *logits, int64_t logits_stride) {
    Session session;
    const std::vector<StandingRoom> rooms = standing_rooms(session, weight.in_features);
    const Panel input(session, rows, weight.in_features);
    PanelProducts products(session, rows, weight.in_features);
    products.add(weight, input, Store::kFloat, logits, logits_stride);
    products.share(session.threads());
    session.run([&](Lane &lane) {
        norm_into_panel(lane, input, rooms, x, x_stride, {norm, nullptr, norm_eps});
        lane.barrier();
        products.run(lane);
    });
}

}  // namespace

int lluda_mlp_block(const lluda_mlp *block, int64_t rows, float *x, int64_t x_stride) {
    return guarded([&] {
        require(block, "block must not be NULL");
        const lluda_mlp &b = *block;
        check(b);
        check_rows(rows, x, x_stride, b.hidden);
        for_rows(rows, [&](int64_t from, int64_t count) {
            (count > kFewRows ? run_many : run_few)(b, count, x + from * x_stride, x_stride);
        });
    });
}

int lluda_lm_head(const lluda_weight *weight, const float *norm, float norm_eps, int64_t rows, const float *x,
                  int64_t x_stride, float *logits, int64_t logits_stride) {
    return guarded([&] {
        check_weight(weight, "lm_head");
        require(norm, "norm must not be NULL");
        check_rows(rows, x, x_stride, weight->in_features);
        if (rows == 0 || weight->out_features == 0) return;
        require(logits, "logits must not be NULL");
        require(rows == 1 || logits_stride >= weight->out_features, "logits_stride", logits_stride,
                "at least out_features");
        for_rows(rows, [&](int64_t from, int64_t count) {
            (count > kFewRows ? run_head_many : run_head_few)(*weight, norm, norm_eps, count, x + from * x_stride,
                                                              x_stride, logits + from * logits_stride, logits_stride);
        });
    });
}
