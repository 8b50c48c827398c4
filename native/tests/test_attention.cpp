// The attention block against a float64 evaluation of its definition with the same roundings.
#include <algorithm>
#include <cmath>

#include "numbers.hpp"
#include "testing.hpp"

namespace {

struct Case {
    std::int64_t hidden, heads, kv_heads, head_dim, window;
    bool qk_norm, bias, f32_cache, scaled;
};

struct Model {
    Model(Random &random, const Case &c)
        : c(c),
          norm(random.normals(c.hidden, 0.3f)),
          q_norm(random.normals(c.head_dim, 0.5f)),
          k_norm(random.normals(c.head_dim, 0.5f)),
          scale(random.normals(c.hidden, 0.5f)),
          q(random, c.heads * c.head_dim, c.hidden, 0.1f, c.bias),
          k(random, c.kv_heads * c.head_dim, c.hidden, 0.1f, c.bias),
          v(random, c.kv_heads * c.head_dim, c.hidden, 0.1f, c.bias),
          o(random, c.hidden, c.heads * c.head_dim, 0.1f) {
        for (float &w : norm) w += 1.0f;
    }

    lluda_attention block(int format) const {
        lluda_attention b{};
        b.hidden = c.hidden, b.heads = c.heads, b.kv_heads = c.kv_heads, b.head_dim = c.head_dim, b.window = c.window;
        b.norm = norm.data();
        if (c.qk_norm) b.q_norm = q_norm.data(), b.k_norm = k_norm.data();
        if (c.scaled) b.output_scale = scale.data();
        b.q = q.in(format), b.k = k.in(format), b.v = v.in(format), b.o = o.in(format);
        b.norm_eps = 1e-5f, b.qk_norm_eps = 1e-6f;
        b.cache_dtype = c.f32_cache ? LLUDA_DTYPE_F32 : LLUDA_DTYPE_BF16;
        return b;
    }

    Case c;
    std::vector<float> norm, q_norm, k_norm, scale;
    TestWeight q, k, v, o;
};

// One sequence's cache, in the library's form and as float64.
struct Cache {
    Cache(Random &random, const Case &c, std::int64_t capacity)
        : c(c),
          capacity(capacity),
          truth_keys(random.normals(c.kv_heads * capacity * c.head_dim, 0.7f)),
          truth_values(random.normals(c.kv_heads * capacity * c.head_dim, 0.7f)) {
        for (auto *all : {&truth_keys, &truth_values})
            for (float &v : *all) v = static_cast<float>(rounded(v));
        f32_keys = truth_keys, f32_values = truth_values;
        for (float v : truth_keys) bf16_keys.push_back(to_bf16(v));
        for (float v : truth_values) bf16_values.push_back(to_bf16(v));
    }
    lluda_cache_row row(std::int64_t position) {
        void *keys = c.f32_cache ? static_cast<void *>(f32_keys.data()) : bf16_keys.data();
        void *values = c.f32_cache ? static_cast<void *>(f32_values.data()) : bf16_values.data();
        return {keys, values, capacity * c.head_dim, capacity, position};
    }
    float &at(std::vector<float> &all, std::int64_t head, std::int64_t position, std::int64_t i) {
        return all[static_cast<std::size_t>((head * capacity + position) * c.head_dim + i)];
    }

    Case c;
    std::int64_t capacity;
    std::vector<float> truth_keys, truth_values, f32_keys, f32_values;
    std::vector<std::uint16_t> bf16_keys, bf16_values;
};

using Row = std::vector<double>;

Row rotated(const Row &all, std::int64_t head, const Case &c, const std::vector<float> *norm, const float *cos,
            const float *sin) {
    const auto dim = static_cast<std::size_t>(c.head_dim), half = dim / 2;
    Row x(all.begin() + head * c.head_dim, all.begin() + (head + 1) * c.head_dim);
    if (norm) {
        double sum = 0;
        for (double v : x) sum += v * v;
        for (std::size_t i = 0; i < dim; ++i) x[i] *= (*norm)[i] / std::sqrt(sum / static_cast<double>(dim) + 1e-6);
    }
    Row out(dim);
    for (std::size_t i = 0; i < half; ++i) {
        out[i] = x[i] * cos[i] - x[i + half] * sin[i];
        out[i + half] = x[i + half] * cos[i] + x[i] * sin[i];
    }
    if (!c.f32_cache)
        for (double &v : out) v = rounded(v);
    return out;
}

Row attend(Cache &cache, const Case &c, const Row &query, std::int64_t kv_head, std::int64_t position) {
    const std::int64_t first = c.window > 0 ? std::max<std::int64_t>(0, position + 1 - c.window) : 0;
    Row out(static_cast<std::size_t>(c.head_dim), 0.0), scores;
    double top = -1e300, total = 0;
    for (std::int64_t p = first; p <= position; ++p) {
        double score = 0;
        for (std::int64_t i = 0; i < c.head_dim; ++i)
            score += query[static_cast<std::size_t>(i)] * cache.at(cache.truth_keys, kv_head, p, i);
        scores.push_back(score / std::sqrt(static_cast<double>(c.head_dim)));
        top = std::max(top, scores.back());
    }
    for (double &s : scores) total += s = std::exp(s - top);
    for (std::int64_t p = first; p <= position; ++p)
        for (std::int64_t i = 0; i < c.head_dim; ++i)
            out[static_cast<std::size_t>(i)] +=
                scores[static_cast<std::size_t>(p - first)] / total * cache.at(cache.truth_values, kv_head, p, i);
    return out;
}

struct Step {
    Cache *cache;
    std::int64_t position;
};

void run_truth(const Model &m, std::vector<float> x, const std::vector<Step> &steps, const std::vector<float> &cos,
               const std::vector<float> &sin, std::vector<double> &out) {
    const Case &c = m.c;
    std::vector<Row> queries;
    for (std::size_t r = 0; r < steps.size(); ++r) {
        const Row h = normed(x.data() + static_cast<std::int64_t>(r) * c.hidden, m.norm, 1e-5);
        const float *co = cos.data() + static_cast<std::int64_t>(r) * c.head_dim / 2;
        const float *si = sin.data() + static_cast<std::int64_t>(r) * c.head_dim / 2;
        const Row q = m.q.times(h), k = m.k.times(h), v = m.v.times(h);
        Row query;
        for (std::int64_t head = 0; head < c.heads; ++head)
            for (double value : rotated(q, head, c, c.qk_norm ? &m.q_norm : nullptr, co, si)) query.push_back(value);
        queries.push_back(query);
        Cache &cache = *steps[r].cache;
        for (std::int64_t head = 0; head < c.kv_heads; ++head) {
            const Row key = rotated(k, head, c, c.qk_norm ? &m.k_norm : nullptr, co, si);
            for (std::int64_t i = 0; i < c.head_dim; ++i) {
                const double value = v[static_cast<std::size_t>(head * c.head_dim + i)];
                cache.at(cache.truth_keys, head, steps[r].position, i) =
                    static_cast<float>(key[static_cast<std::size_t>(i)]);
                cache.at(cache.truth_values, head, steps[r].position, i) =
                    static_cast<float>(c.f32_cache ? value : rounded(value));
            }
        }
    }
    for (std::size_t r = 0; r < steps.size(); ++r) {
        Row mixed;
        for (std::int64_t head = 0; head < c.heads; ++head) {
            const Row query(queries[r].begin() + head * c.head_dim, queries[r].begin() + (head + 1) * c.head_dim);
            for (double v : attend(*steps[r].cache, c, query, head / (c.heads / c.kv_heads), steps[r].position))
                mixed.push_back(rounded(v));
        }
        const Row y = m.o.times(mixed);
        for (std::int64_t i = 0; i < c.hidden; ++i)
            out.push_back(y[static_cast<std::size_t>(i)] * (c.scaled ? m.scale[static_cast<std::size_t>(i)] : 1.0f));
    }
}

void expect_block(const Case &c, const std::vector<std::int64_t> &positions, bool one_sequence, int threads,
                  int format) {
    Random random(static_cast<std::uint64_t>(c.hidden * 31 + c.head_dim + threads));
    const Model m(random, c);
    const std::int64_t rows = static_cast<std::int64_t>(positions.size());
    const std::int64_t capacity = *std::max_element(positions.begin(), positions.end()) + 2;
    std::vector<Cache> caches;
    for (std::int64_t r = 0; r < (one_sequence ? 1 : rows); ++r) caches.emplace_back(random, c, capacity);
    std::vector<Step> steps;
    std::vector<lluda_cache_row> cache_rows;
    for (std::int64_t r = 0; r < rows; ++r) {
        Cache &cache = caches[static_cast<std::size_t>(one_sequence ? 0 : r)];
        steps.push_back({&cache, positions[static_cast<std::size_t>(r)]});
        cache_rows.push_back(cache.row(positions[static_cast<std::size_t>(r)]));
    }
    std::vector<float> cos, sin;
    for (std::int64_t i = 0; i < rows * c.head_dim / 2; ++i) {
        const double angle = random.normal(3.0f);
        cos.push_back(static_cast<float>(std::cos(angle)));
        sin.push_back(static_cast<float>(std::sin(angle)));
    }
    const std::int64_t stride = c.hidden + 3;
    const auto x = random.normals(rows * stride, 1.0f);
    std::vector<float> dense;
    for (std::int64_t r = 0; r < rows; ++r)
        dense.insert(dense.end(), x.begin() + r * stride, x.begin() + r * stride + c.hidden);

    use_threads(threads);
    auto y = x;
    const lluda_attention block = m.block(format);
    check_ok(lluda_attention_block(context(), &block, rows, y.data(), stride, cos.data(), sin.data(), cache_rows.data()));
    std::vector<double> truth, added;
    run_truth(m, dense, steps, cos, sin, truth);
    for (std::int64_t r = 0; r < rows; ++r)
        for (std::int64_t i = 0; i < stride; ++i) {
            const auto at = static_cast<std::size_t>(r * stride + i);
            if (i < c.hidden)
                added.push_back(static_cast<double>(y[at]) - x[at]);
            else
                expect(y[at] == x[at], "written beyond a row");
        }
    // Kernels with BF16 pairs round the weights of many rows' attention to BF16, as matrix inputs are.
    expect_close(added, truth, rows > LLUDA_FEW_ROWS ? 3e-3 : 2e-3,
                 "attention, head_dim " + std::to_string(c.head_dim) + ", rows " + std::to_string(rows));

    for (Cache &cache : caches) {
        std::vector<double> keys, truth_keys, values, truth_values;
        for (std::size_t i = 0; i < cache.truth_keys.size(); ++i) {
            keys.push_back(c.f32_cache ? cache.f32_keys[i] : from_bf16(cache.bf16_keys[i]));
            values.push_back(c.f32_cache ? cache.f32_values[i] : from_bf16(cache.bf16_values[i]));
            truth_keys.push_back(cache.truth_keys[i]);
            truth_values.push_back(cache.truth_values[i]);
        }
        expect_close(keys, truth_keys, 5e-4, "keys written");
        expect_close(values, truth_values, 5e-4, "values written");
    }
}

}  // namespace

TEST(attention_block_of_one_row) {
    for (int format : {LLUDA_FORMAT_BF16, LLUDA_FORMAT_PACKED_BF16})
        for (int threads : {1, 2}) {
            expect_block({256, 4, 2, 64, 0, true, false, false, false}, {0}, true, threads, format);
            expect_block({256, 4, 2, 64, 0, true, false, false, false}, {100}, true, threads, format);
            expect_block({200, 8, 1, 32, 0, false, true, true, false}, {37}, true, threads, format);
        }
}

TEST(attention_block_of_odd_sizes) {
    expect_block({33, 3, 3, 6, 0, true, true, false, true}, {5, 1, 0}, false, 2, LLUDA_FORMAT_BF16);
    expect_block({130, 10, 2, 18, 0, true, false, true, false}, {40, 3}, false, 2, LLUDA_FORMAT_PACKED_BF16);
    expect_block({64, 7, 1, 72, 0, false, false, false, false}, {70}, true, 3, LLUDA_FORMAT_BF16);
    expect_block({48, 6, 2, 80, 0, false, false, false, false}, {20}, true, 1, LLUDA_FORMAT_BF16);
}

TEST(attention_block_over_several_splits) {
    expect_block({64, 4, 2, 32, 0, true, false, false, false}, {1300}, true, 3, LLUDA_FORMAT_BF16);
    expect_block({64, 4, 2, 32, 0, true, false, true, false}, {1300, 512, 511, 2}, false, 2, LLUDA_FORMAT_BF16);
}

TEST(attention_block_with_a_window) {
    for (std::int64_t window : {1, 2, 17, 64, 600, 5000})
        expect_block({64, 4, 2, 32, window, true, false, false, true}, {1000, 63, 0}, false, 2, LLUDA_FORMAT_BF16);
}

TEST(attention_block_of_consecutive_positions) {
    std::vector<std::int64_t> positions;
    for (int i = 0; i < 16; ++i) positions.push_back(50 + i);
    expect_block({128, 8, 2, 32, 0, true, false, false, false}, positions, true, 3, LLUDA_FORMAT_PACKED_BF16);
    expect_block({128, 8, 2, 32, 9, true, false, true, false}, positions, true, 2, LLUDA_FORMAT_BF16);
}

TEST(attention_block_of_many_rows) {
    const auto run_of = [](std::int64_t from, std::int64_t count) {
        std::vector<std::int64_t> positions;
        for (std::int64_t i = 0; i < count; ++i) positions.push_back(from + i);
        return positions;
    };
    expect_block({96, 4, 2, 32, 0, true, false, false, false}, run_of(0, 130), true, 3, LLUDA_FORMAT_PACKED_BF16);
    expect_block({64, 3, 3, 6, 0, false, true, false, true}, run_of(95, 17), true, 2, LLUDA_FORMAT_BF16);
    expect_block({64, 5, 1, 18, 0, true, false, true, false}, run_of(200, 65), true, 2, LLUDA_FORMAT_BF16);
    for (std::int64_t window : {1, 7, 96, 1000})
        expect_block({64, 2, 1, 32, window, true, false, window == 7, false}, run_of(150, 81), true, 2,
                     LLUDA_FORMAT_BF16);
    // Every row of a sequence of its own.
    std::vector<std::int64_t> positions;
    for (int i = 0; i < 20; ++i) positions.push_back(i * 11);
    expect_block({64, 4, 2, 32, 0, true, false, false, false}, positions, false, 2, LLUDA_FORMAT_BF16);
}

TEST(bad_attention_blocks_are_refused) {
    Random random(21);
    const Case c{64, 4, 2, 32, 0, true, false, false, false};
    const Model m(random, c);
    Cache cache(random, c, 8);
    std::vector<float> x(64), cos(16), sin(16);
    const lluda_cache_row row = cache.row(3);
    auto refused = [&](void (*change)(lluda_attention &), lluda_cache_row at, const char *what) {
        lluda_attention block = m.block(LLUDA_FORMAT_BF16);
        if (change) change(block);
        check_code(lluda_attention_block(context(), &block, 1, x.data(), 64, cos.data(), sin.data(), &at), LLUDA_BAD_ARGUMENT,
                   what);
    };
    refused([](lluda_attention &b) { b.heads = 3; }, row, "heads not a multiple");
    refused([](lluda_attention &b) { b.head_dim = 31; }, row, "odd head_dim");
    refused([](lluda_attention &b) { b.hidden = 65; }, row, "hidden of other weights");
    refused([](lluda_attention &b) { b.cache_dtype = 5; }, row, "cache dtype");
    refused([](lluda_attention &b) { b.v = nullptr; }, row, "no v");
    refused([](lluda_attention &b) { b.heads = std::int64_t{1} << 40; }, row, "more heads than there can be");
    refused([](lluda_attention &b) { b.head_dim = std::int64_t{1} << 62; }, row, "a head_dim that overflows");
    refused(nullptr, {row.keys, row.values, row.head_stride, 8, 8}, "position beyond the capacity");
    refused(nullptr, {row.keys, row.values, row.head_stride, 8, -1}, "position before the first");
    refused(nullptr, {row.keys, row.values, row.head_stride, 9, 3}, "head_stride below the capacity");
    refused(nullptr, {row.keys, row.values, row.head_stride, 0, 0}, "no capacity");
    refused(nullptr, {nullptr, row.values, row.head_stride, 8, 1}, "no keys");
    const lluda_attention block = m.block(LLUDA_FORMAT_BF16);
    check_ok(lluda_attention_block(context(), &block, 0, nullptr, 0, nullptr, nullptr, nullptr));
}
