// Products with Q8_0 weights, exact and with rounded rows, against float64.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "numbers.hpp"
#include "testing.hpp"

namespace {

constexpr int kBoth[] = {LLUDA_FORMAT_Q8_0, LLUDA_FORMAT_Q8_0_ROWS};

// Row `row` as weights of the format are multiplied with it.
std::vector<double> row_for(int format, const std::vector<std::uint16_t> &x, std::int64_t row, std::int64_t stride,
                            std::int64_t width) {
    std::vector<double> out;
    for (std::int64_t i = 0; i < width; ++i) out.push_back(from_bf16(x[static_cast<std::size_t>(row * stride + i)]));
    return format == LLUDA_FORMAT_Q8_0_ROWS ? rounded_to_q8(out) : out;
}

// Within float32 summation error: a few units of rounding of the sum of magnitudes.
void expect_product(const Q8TestWeight &w, const std::vector<double> &x, const float *y, const std::string &what) {
    const std::vector<double> truth = w.times(x);
    for (std::int64_t o = 0; o < w.exact.out_features; ++o) {
        double size = w.exact.bias ? std::fabs(w.exact.bias[o]) : 0.0;
        for (std::int64_t i = 0; i < w.exact.in_features; ++i)
            size += std::fabs(w.at(o, i) * x[static_cast<std::size_t>(i)]);
        if (!(std::fabs(y[o] - truth[static_cast<std::size_t>(o)]) <= 1e-6 * size + 1e-30))
            throw std::runtime_error(what + ", output " + std::to_string(o) + ": " + std::to_string(y[o]) +
                                     ", expected " + std::to_string(truth[static_cast<std::size_t>(o)]));
    }
}

void test_products(std::int64_t out, std::int64_t in, const std::vector<int> &row_counts, Random &random) {
    const Q8TestWeight w(random, out, in, out % 2 == 1);
    const std::int64_t x_stride = in + 5, y_stride = out + 3, most = row_counts.back();
    const auto x = random.bf16_normals(most * x_stride, 1.0f);
    for (int format : kBoth)
        for (int rows : row_counts) {
            use_threads(1 + rows % 3);
            std::vector<float> y(static_cast<std::size_t>(most * y_stride), -77.0f);
            check_ok(lluda_linear(context(), w.in(format), rows, x.data(), x_stride, y.data(), LLUDA_DTYPE_F32, y_stride));
            for (int r = 0; r < rows; ++r)
                expect_product(w, row_for(format, x, r, x_stride, in), y.data() + r * y_stride,
                               std::to_string(out) + " x " + std::to_string(in) + ", format " +
                                   std::to_string(format) + ", row " + std::to_string(r) + " of " +
                                   std::to_string(rows));
            for (std::int64_t i = 0; i < most * y_stride; ++i)
                if (i / y_stride >= rows || i % y_stride >= out)
                    expect(y[static_cast<std::size_t>(i)] == -77.0f, "written outside the outputs");
        }
}

}  // namespace

TEST(q8_products_of_all_row_counts_and_tails) {
    Random random(31);
    const std::vector<int> rows = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16};
    for (std::int64_t in : {32, 64, 224, 256, 288, 1024}) test_products(in % 7 + 1, in, rows, random);
    test_products(33, 512, rows, random);
    test_products(0, 32, rows, random);
}

TEST(q8_products_of_many_rows) {
    Random random(32);
    const std::vector<int> rows = {17, 33, 64, 100, 130};
    test_products(1, 32, rows, random);
    test_products(49, 160, rows, random);
    test_products(97, 512, rows, random);
    test_products(5, 2080, rows, random);
    test_products(30, 2304, rows, random);
}

TEST(rows_are_rounded_as_defined) {
    // Ties, blocks of zeros, scales that float16 rounds to zero, has only subnormally or cannot hold.
    Random random(33);
    const std::int64_t in = 32 * 12;
    std::vector<std::uint16_t> x(static_cast<std::size_t>(in));
    for (std::int64_t i = 0; i < in; ++i) {
        const int block = static_cast<int>(i / 32);
        const float sizes[] = {1.0f, 0.0f, 1e-9f, 2e-6f, 4e-5f, 6e4f, 1e-38f, 127.0f};
        float value = random.normal(sizes[block % 8]);
        if (block % 8 == 7) value = i % 32 == 0 ? 127.0f : static_cast<float>(random.below(254) - 127) * 0.5f;
        x[static_cast<std::size_t>(i)] = to_bf16(value);
    }
    const auto row = row_for(LLUDA_FORMAT_Q8_0_ROWS, x, 0, in, in);
    // Single weights of one block each, so that a value that is rounded otherwise shows.
    std::vector<std::uint8_t> blocks(static_cast<std::size_t>(in * in / 32 * 34));
    for (std::int64_t o = 0; o < in; ++o) {
        std::uint8_t *block = blocks.data() + (o * in + o) / 32 * 34;
        const std::uint16_t one = to_half(1.0);
        std::memcpy(block, &one, 2);
        block[2 + o % 32] = 1;
    }
    lluda_weight w{};
    w.format = LLUDA_FORMAT_Q8_0_ROWS;
    w.out_features = w.in_features = in;
    w.values = blocks.data();
    for (std::int64_t rows : {1, 20}) {
        std::vector<std::uint16_t> all;
        for (std::int64_t r = 0; r < rows; ++r) all.insert(all.end(), x.begin(), x.end());
        std::vector<float> y(static_cast<std::size_t>(rows * in));
        check_ok(lluda_linear(context(), &w, rows, all.data(), in, y.data(), LLUDA_DTYPE_F32, in));
        for (std::int64_t i = 0; i < rows * in; ++i)
            if (y[static_cast<std::size_t>(i)] != static_cast<float>(row[static_cast<std::size_t>(i % in)]))
                throw std::runtime_error("value " + std::to_string(i) + " is rounded to " +
                                         std::to_string(y[static_cast<std::size_t>(i)]) + ", expected " +
                                         std::to_string(row[static_cast<std::size_t>(i % in)]));
    }
}

TEST(q8_results_do_not_depend_on_threads) {
    Random random(34);
    const Q8TestWeight w(random, 301, 384);
    const auto x = random.bf16_normals(70 * 384, 1.0f);
    for (int format : kBoth)
        for (int rows : {1, 2, 5, 8, 11, 70}) {
            std::vector<float> one(70 * 301), four(70 * 301);
            use_threads(1);
            check_ok(lluda_linear(context(), w.in(format), rows, x.data(), 384, one.data(), LLUDA_DTYPE_F32, 301));
            use_threads(4);
            check_ok(lluda_linear(context(), w.in(format), rows, x.data(), 384, four.data(), LLUDA_DTYPE_F32, 301));
            expect(one == four, "1 and 4 threads differ at " + std::to_string(rows) + " rows");
        }
}

TEST(a_row_gets_the_same_bits_alone_and_among_others_in_q8_0) {
    Random random(57);
    const std::int64_t out = 53, in = 608;
    const Q8TestWeight w(random, out, in, true);
    const auto x = random.bf16_normals(16 * in, 1.0f);
    for (int format : {LLUDA_FORMAT_Q8_0, LLUDA_FORMAT_Q8_0_ROWS}) {
        std::vector<float> alone(16 * out), together(16 * out);
        for (int r = 0; r < 16; ++r)
            check_ok(lluda_linear(context(), w.in(format), 1, x.data() + r * in, in, alone.data() + r * out,
                                  LLUDA_DTYPE_F32, out));
        for (int rows = 2; rows <= 16; ++rows) {
            check_ok(lluda_linear(context(), w.in(format), rows, x.data(), in, together.data(), LLUDA_DTYPE_F32, out));
            expect(std::equal(alone.begin(), alone.begin() + rows * out, together.begin()),
                   std::to_string(rows) + " rows differ from each alone");
        }
    }
}

TEST(groups_of_all_formats_equal_single_products) {
    Random random(35);
    const TestWeight a(random, 48, 256);
    const Q8TestWeight b(random, 17, 256), c(random, 20, 256);
    for (std::int64_t rows : {5, 40}) {
        const auto x = random.bf16_normals(rows * 256, 1.0f);
        const lluda_weight *weights[] = {&a.packed, &b.exact, &c.rounded, &a.plain};
        std::vector<std::vector<float>> y, single;
        std::vector<void *> outputs;
        std::vector<std::int64_t> strides;
        for (const lluda_weight *w : weights) {
            strides.push_back(w->out_features);
            y.emplace_back(static_cast<std::size_t>(rows * w->out_features));
            single.push_back(y.back());
            check_ok(lluda_linear(context(), w, rows, x.data(), 256, single.back().data(), LLUDA_DTYPE_F32, strides.back()));
        }
        for (auto &one : y) outputs.push_back(one.data());
        check_ok(lluda_linear_group(context(), 4, weights, rows, x.data(), 256, outputs.data(), LLUDA_DTYPE_F32, strides.data()));
        expect(y == single, "a group differs from its members");
    }
}

TEST(q8_scales_and_rows_that_are_not_finite_propagate) {
    Random random(36);
    Q8TestWeight w(random, 4, 64);
    auto *block = static_cast<std::uint8_t *>(const_cast<void *>(w.exact.values));
    const std::uint16_t infinite = 0x7c00, nan = 0x7e00;
    std::memcpy(block, &infinite, 2);
    std::memcpy(block + 68, &nan, 2);
    std::vector<std::uint16_t> x(64, 0x3f80);
    for (int format : kBoth)
        for (std::int64_t rows : {1, 20}) {
            std::vector<std::uint16_t> all;
            for (std::int64_t r = 0; r < rows; ++r) all.insert(all.end(), x.begin(), x.end());
            std::vector<float> y(static_cast<std::size_t>(4 * rows));
            check_ok(lluda_linear(context(), w.in(format), rows, all.data(), 64, y.data(), LLUDA_DTYPE_F32, 4));
            expect(!std::isfinite(y[0]), "row with an infinite scale");
            expect(std::isnan(y[1]), "row with a scale that is no number");
            expect(std::isfinite(y[2]) && std::isfinite(y[3]), "ordinary rows");
            for (std::uint16_t bad : {std::uint16_t{0x7f80}, std::uint16_t{0x7fc0}}) {
                all[40] = bad;
                check_ok(lluda_linear(context(), w.in(format), rows, all.data(), 64, y.data(), LLUDA_DTYPE_F32, 4));
                expect(!std::isfinite(y[2]), "a row's value that is not finite");
                all[40] = 0x3f80;
            }
        }
}

TEST(q8_embedding_rows_are_exact) {
    Random random(37);
    const Q8TestWeight w(random, 50, 96);
    const std::int64_t ids[] = {49, 0, 7, 7};
    for (int format : kBoth) {
        std::vector<float> y(4 * 97);
        check_ok(lluda_embedding(context(), w.in(format), 4, ids, y.data(), 97));
        for (int r = 0; r < 4; ++r)
            for (int i = 0; i < 96; ++i)
                expect(y[static_cast<std::size_t>(r * 97 + i)] == static_cast<float>(w.at(ids[r], i)), "an embedding");
    }
}

TEST(bad_q8_weights_are_refused) {
    Random random(38);
    Q8TestWeight w(random, 4, 64);
    std::uint16_t x[64] = {};
    float y[64];
    std::uint16_t values[4 * 64];
    check_code(lluda_unpack(context(), &w.exact, values), LLUDA_BAD_ARGUMENT, "unpacking Q8_0");
    w.exact.in_features = 48;
    check_code(lluda_linear(context(), &w.exact, 1, x, 64, y, LLUDA_DTYPE_F32, 4), LLUDA_BAD_ARGUMENT, "48 columns");
    w.exact.in_features = 64;
    w.exact.format = 4;
    check_code(lluda_linear(context(), &w.exact, 1, x, 64, y, LLUDA_DTYPE_F32, 4), LLUDA_BAD_ARGUMENT, "format 4");
}
