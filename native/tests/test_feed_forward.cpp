// MLP, mixture of experts and lm_head blocks against float64 with the same roundings.
#include <algorithm>
#include <cmath>
#include <memory>
#include <numeric>

#include "numbers.hpp"
#include "testing.hpp"

namespace {

using Row = std::vector<double>;

Row swiglu(const TestWeight &gate, const TestWeight &up, const TestWeight &down, const Row &h) {
    const Row g = gate.times(h), u = up.times(h);
    Row inner;
    for (std::size_t i = 0; i < g.size(); ++i) inner.push_back(rounded(silu(g[i]) * u[i]));
    return down.times(inner);
}

std::vector<double> added(const std::vector<float> &y, const std::vector<float> &x) {
    std::vector<double> out;
    for (std::size_t i = 0; i < y.size(); ++i) out.push_back(static_cast<double>(y[i]) - x[i]);
    return out;
}

std::vector<float> norm_weights(Random &random, std::int64_t width) {
    auto weights = random.normals(width, 0.3f);
    for (float &w : weights) w += 1.0f;
    return weights;
}

struct MoeCase {
    std::int64_t hidden, experts, intermediate, shared, top_k;
    bool normalise, gated, scaled;
    std::int64_t rows;
};

void expect_moe(const MoeCase &c, int threads, int format) {
    Random random(static_cast<std::uint64_t>(c.hidden + c.experts * 7 + c.rows));
    const auto norm = norm_weights(random, c.hidden), router = random.normals(c.experts * c.hidden, 0.2f);
    const auto shared_gate = random.normals(c.hidden, 0.1f), scale = random.normals(c.hidden, 0.5f);
    std::vector<std::unique_ptr<TestWeight>> weights[3];
    std::vector<lluda_weight> descriptors[3];
    for (std::int64_t e = 0; e <= c.experts; ++e) {
        const std::int64_t width = e < c.experts ? c.intermediate : std::max<std::int64_t>(c.shared, 1);
        for (int i = 0; i < 3; ++i) {
            weights[i].push_back(
                std::make_unique<TestWeight>(random, i < 2 ? width : c.hidden, i < 2 ? c.hidden : width, 0.1f));
            descriptors[i].push_back(*weights[i].back()->in(format));
        }
    }
    lluda_moe b{};
    b.hidden = c.hidden, b.experts = c.experts, b.intermediate = c.intermediate, b.shared_intermediate = c.shared;
    b.top_k = c.top_k, b.norm = norm.data(), b.router = router.data(), b.norm_eps = 1e-6f, b.normalise = c.normalise;
    b.gate = descriptors[0].data(), b.up = descriptors[1].data(), b.down = descriptors[2].data();
    if (c.scaled) b.output_scale = scale.data();
    if (c.shared > 0) {
        b.shared_gate = &descriptors[0].back(), b.shared_up = &descriptors[1].back(),
        b.shared_down = &descriptors[2].back();
        if (c.gated) b.shared_expert_gate = shared_gate.data();
    }
    const auto x = random.normals(c.rows * c.hidden, 1.0f);
    auto y = x;
    std::vector<std::int32_t> chosen(static_cast<std::size_t>(c.rows * c.top_k), -1);
    use_threads(threads);
    check_ok(lluda_moe_block(context(), &b, c.rows, y.data(), c.hidden, chosen.data()));

    std::vector<double> truth;
    for (std::int64_t r = 0; r < c.rows; ++r) {
        const Row h = normed(x.data() + r * c.hidden, norm, 1e-6);
        Row p;
        double total = 0, top_sum = 0;
        for (std::int64_t e = 0; e < c.experts; ++e) {
            double score = 0;
            for (std::int64_t i = 0; i < c.hidden; ++i)
                score += h[static_cast<std::size_t>(i)] * router[static_cast<std::size_t>(e * c.hidden + i)];
            p.push_back(std::exp(score));
            total += p.back();
        }
        std::vector<int> order(p.size());
        std::iota(order.begin(), order.end(), 0);
        std::stable_sort(order.begin(), order.end(),
                         [&](int a, int b) { return p[static_cast<std::size_t>(a)] > p[static_cast<std::size_t>(b)]; });
        for (std::int64_t k = 0; k < c.top_k; ++k)
            top_sum += p[static_cast<std::size_t>(order[static_cast<std::size_t>(k)])];
        Row sum(static_cast<std::size_t>(c.hidden), 0.0);
        auto add = [&](std::size_t e, double weight) {
            const Row part = swiglu(*weights[0][e], *weights[1][e], *weights[2][e], h);
            for (std::size_t i = 0; i < sum.size(); ++i) sum[i] += weight * part[i];
        };
        for (std::int64_t k = 0; k < c.top_k; ++k) {
            const auto e = static_cast<std::size_t>(order[static_cast<std::size_t>(k)]);
            expect_equal(chosen[static_cast<std::size_t>(r * c.top_k + k)], e, "chosen expert");
            add(e, p[e] / (c.normalise ? top_sum : total));
        }
        if (c.shared > 0) {
            double gate = 0;
            for (std::size_t i = 0; i < h.size(); ++i) gate += h[i] * shared_gate[i];
            add(static_cast<std::size_t>(c.experts), c.gated ? 1.0 / (1.0 + std::exp(-gate)) : 1.0);
        }
        for (std::size_t i = 0; i < sum.size(); ++i) truth.push_back(sum[i] * (c.scaled ? scale[i] : 1.0f));
    }
    expect_close(added(y, x), truth, 2e-3,
                 "mixture of " + std::to_string(c.experts) + ", rows " + std::to_string(c.rows));
}

}  // namespace

TEST(mlp_block_of_several_sizes) {
    Random random(31);
    for (std::int64_t hidden : {8, 33, 256})
        for (std::int64_t inner : {5, 96, 300}) {
            const auto norm = norm_weights(random, hidden), scale = random.normals(hidden, 0.5f);
            const TestWeight gate(random, inner, hidden, 0.1f), up(random, inner, hidden, 0.1f),
                down(random, hidden, inner, 0.1f);
            for (int format : {LLUDA_FORMAT_BF16, LLUDA_FORMAT_PACKED_BF16})
                for (std::int64_t rows : {0, 1, 2, 7, 16, 17, 70}) {
                    lluda_mlp b{};
                    b.hidden = hidden, b.intermediate = inner, b.norm = norm.data(), b.norm_eps = 1e-6f;
                    b.gate = gate.in(format), b.up = up.in(format), b.down = down.in(format);
                    if (rows == 2 || rows == 70) b.output_scale = scale.data();
                    const auto x = random.normals(rows * hidden, 1.0f);
                    auto y = x;
                    use_threads(rows == 7 ? 1 : 2);
                    check_ok(lluda_mlp_block(context(), &b, rows, y.data(), hidden));
                    std::vector<double> truth;
                    for (std::int64_t r = 0; r < rows; ++r) {
                        const Row out = swiglu(gate, up, down, normed(x.data() + r * hidden, norm, 1e-6));
                        for (std::size_t i = 0; i < out.size(); ++i)
                            truth.push_back(out[i] * (b.output_scale ? scale[i] : 1.0f));
                    }
                    expect_close(added(y, x), truth, 2e-3,
                                 "mlp " + std::to_string(hidden) + ", " + std::to_string(inner) + ", rows " +
                                     std::to_string(rows));
                }
        }
}

TEST(moe_block_of_several_sizes) {
    for (int threads : {1, 3})
        for (int format : {LLUDA_FORMAT_BF16, LLUDA_FORMAT_PACKED_BF16}) {
            expect_moe({64, 8, 48, 0, 2, true, false, false, 1}, threads, format);
            expect_moe({64, 8, 48, 0, 2, false, false, true, 5}, threads, format);
            expect_moe({70, 12, 33, 57, 3, true, true, false, 16}, threads, format);
            expect_moe({40, 4, 20, 10, 4, false, false, false, 3}, threads, format);
            expect_moe({600, 1, 16, 0, 1, true, false, false, 2}, threads, format);
            expect_moe({64, 8, 48, 0, 2, true, false, true, 100}, threads, format);
            expect_moe({70, 3, 33, 57, 2, true, true, true, 17}, threads, format);
            expect_moe({40, 1, 20, 10, 1, false, false, false, 70}, threads, format);
        }
}

TEST(moe_reads_only_chosen_experts) {
    Random random(33);
    const TestWeight wide(random, 16, 32), narrow(random, 32, 16);
    std::vector<lluda_weight> gate(4, wide.plain), up(4, wide.plain), down(4, narrow.plain);
    // Experts 2 and 3 point nowhere; the router never chooses them.
    for (auto *all : {&gate, &up, &down}) (*all)[2].values = (*all)[3].values = reinterpret_cast<const void *>(16);
    std::vector<float> router(4 * 32, 0.0f), norm(32, 1.0f), x(32, 1.0f);
    for (int i = 0; i < 32; ++i) router[static_cast<std::size_t>(i)] = router[static_cast<std::size_t>(32 + i)] = 1.0f;
    lluda_moe b{};
    b.hidden = 32, b.experts = 4, b.intermediate = 16, b.top_k = 2, b.norm = norm.data(), b.router = router.data();
    b.gate = gate.data(), b.up = up.data(), b.down = down.data(), b.norm_eps = 1e-6f;
    std::int32_t chosen[2];
    check_ok(lluda_moe_block(context(), &b, 1, x.data(), 32, chosen));
    expect(chosen[0] == 0 && chosen[1] == 1, "the lower index comes first among equals");
}

TEST(lm_head_is_norm_and_product) {
    Random random(34);
    const TestWeight w(random, 301, 96);
    const auto norm = norm_weights(random, 96), x = random.normals(33 * 96, 2.0f);
    for (int format : {LLUDA_FORMAT_BF16, LLUDA_FORMAT_PACKED_BF16})
        for (std::int64_t rows : {1, 9, 16, 33}) {
            std::vector<float> logits(static_cast<std::size_t>(rows * 301));
            check_ok(lluda_lm_head(context(), w.in(format), norm.data(), 1e-6f, rows, x.data(), 96, logits.data(), 301));
            std::vector<double> truth;
            for (std::int64_t r = 0; r < rows; ++r)
                for (double v : w.times(normed(x.data() + r * 96, norm, 1e-6))) truth.push_back(v);
            expect_close({logits.begin(), logits.end()}, truth, 5e-4, "logits");
        }
}

TEST(not_a_number_stays_visible) {
    Random random(35);
    const TestWeight gate(random, 24, 32), up(random, 24, 32), down(random, 32, 24);
    std::vector<float> norm(32, 1.0f), x(32, 1.0f);
    x[5] = std::nanf("");
    lluda_mlp b{};
    b.hidden = 32, b.intermediate = 24, b.norm = norm.data(), b.norm_eps = 1e-6f;
    b.gate = &gate.plain, b.up = &up.plain, b.down = &down.plain;
    check_ok(lluda_mlp_block(context(), &b, 1, x.data(), 32));
    for (float v : x) expect(std::isnan(v), "a NaN in the residual vanished");
}

TEST(bad_feed_forward_blocks_are_refused) {
    Random random(36);
    const TestWeight wide(random, 16, 32), narrow(random, 32, 16);
    std::vector<float> norm(32, 1.0f), x(17 * 32, 1.0f), router(2 * 32, 0.0f);
    lluda_mlp m{};
    m.hidden = 32, m.intermediate = 16, m.norm = norm.data();
    m.gate = m.up = &wide.plain, m.down = &wide.plain;
    check_code(lluda_mlp_block(context(), &m, 1, x.data(), 32), LLUDA_BAD_ARGUMENT, "down of the wrong shape");
    m.down = &narrow.plain;
    check_code(lluda_mlp_block(context(), &m, 2, x.data(), 31), LLUDA_BAD_ARGUMENT, "overlapping rows");
    check_code(lluda_mlp_block(context(), nullptr, 1, x.data(), 32), LLUDA_BAD_ARGUMENT, "no block");
    const lluda_weight gates[] = {wide.plain, wide.plain}, downs[] = {narrow.plain, narrow.plain};
    lluda_moe e{};
    e.hidden = 32, e.experts = 2, e.intermediate = 16, e.top_k = 3, e.norm = norm.data(), e.router = router.data();
    e.gate = e.up = gates, e.down = downs;
    check_code(lluda_moe_block(context(), &e, 1, x.data(), 32, nullptr), LLUDA_BAD_ARGUMENT, "top_k beyond experts");
    e.top_k = 1, e.shared_intermediate = 8;
    check_code(lluda_moe_block(context(), &e, 1, x.data(), 32, nullptr), LLUDA_BAD_ARGUMENT, "no shared expert");
    check_code(lluda_lm_head(context(), &wide.plain, nullptr, 1e-6f, 1, x.data(), 32, x.data(), 16), LLUDA_BAD_ARGUMENT,
               "no norm");
}
