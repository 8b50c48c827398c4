// Products of 1 to 16 rows in both formats against float64.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "numbers.hpp"
#include "testing.hpp"

namespace {

struct Shape {
    std::int64_t out, in;
};

std::vector<double> row_of(const std::vector<std::uint16_t> &x, std::int64_t row, std::int64_t stride,
                           std::int64_t width) {
    std::vector<double> out;
    for (std::int64_t i = 0; i < width; ++i) out.push_back(from_bf16(x[static_cast<std::size_t>(row * stride + i)]));
    return out;
}

// Every output within float32 summation error of the truth: a few units of rounding of the sum of magnitudes.
void expect_product(const TestWeight &w, const std::vector<double> &x, const float *y, const std::string &what) {
    const std::vector<double> truth = w.times(x);
    for (std::int64_t o = 0; o < w.plain.out_features; ++o) {
        double size = w.bias.empty() ? 0.0 : std::fabs(w.bias[static_cast<std::size_t>(o)]);
        for (std::int64_t i = 0; i < w.plain.in_features; ++i)
            size += std::fabs(w.at(o, i) * x[static_cast<std::size_t>(i)]);
        const double error = std::fabs(y[o] - truth[static_cast<std::size_t>(o)]);
        if (!(error <= 2e-6 * size + 1e-30))
            throw std::runtime_error(what + ", output " + std::to_string(o) + ": " + std::to_string(y[o]) +
                                     ", expected " + std::to_string(truth[static_cast<std::size_t>(o)]));
    }
}

}  // namespace

TEST(products_of_all_row_counts_and_tails) {
    Random random(11);
    const Shape shapes[] = {{1, 1},   {5, 3},   {7, 31},   {4, 32},   {9, 33},
                            {6, 127}, {3, 128}, {10, 129}, {33, 500}, {64, 1024}};
    for (const Shape &s : shapes) {
        const TestWeight w(random, s.out, s.in, 0.05f, s.out % 2 == 1);
        const std::int64_t x_stride = s.in + 5, y_stride = s.out + 3;
        const auto x = random.bf16_normals(16 * x_stride, 1.0f);
        for (int threads : {1, 3})
            for (int format : {LLUDA_FORMAT_BF16, LLUDA_FORMAT_PACKED_BF16})
                for (int rows = 0; rows <= 16; ++rows) {
                    if (threads == 3 && rows % 5 != 1) continue;
                    use_threads(threads);
                    std::vector<float> y(static_cast<std::size_t>(16 * y_stride), -77.0f);
                    check_ok(lluda_linear(context(), w.in(format), rows, x.data(), x_stride, y.data(), LLUDA_DTYPE_F32, y_stride));
                    for (int r = 0; r < rows; ++r)
                        expect_product(w, row_of(x, r, x_stride, s.in), y.data() + r * y_stride,
                                       std::to_string(s.out) + " x " + std::to_string(s.in) + ", format " +
                                           std::to_string(format) + ", row " + std::to_string(r) + " of " +
                                           std::to_string(rows));
                    for (std::int64_t i = 0; i < 16 * y_stride; ++i)
                        if (i / y_stride >= rows || i % y_stride >= s.out)
                            expect(y[static_cast<std::size_t>(i)] == -77.0f, "written outside the outputs");
                }
    }
}

TEST(products_of_many_rows) {
    Random random(18);
    const Shape shapes[] = {{1, 1}, {7, 31}, {49, 130}, {97, 500}, {5, 2049}, {30, 2304}};
    for (const Shape &s : shapes) {
        const TestWeight w(random, s.out, s.in, 0.05f, s.out % 2 == 1);
        const std::int64_t x_stride = s.in + 5, y_stride = s.out + 3, most = 130;
        const auto x = random.bf16_normals(most * x_stride, 1.0f);
        for (int format : {LLUDA_FORMAT_BF16, LLUDA_FORMAT_PACKED_BF16})
            for (std::int64_t rows : {17, 33, 64, 112, 130}) {
                use_threads(rows == 33 ? 1 : 3);
                std::vector<float> y(static_cast<std::size_t>(most * y_stride), -77.0f);
                check_ok(lluda_linear(context(), w.in(format), rows, x.data(), x_stride, y.data(), LLUDA_DTYPE_F32, y_stride));
                for (std::int64_t r : {std::int64_t{0}, rows / 2, rows - 1})
                    expect_product(w, row_of(x, r, x_stride, s.in), y.data() + r * y_stride,
                                   std::to_string(s.out) + " x " + std::to_string(s.in) + ", format " +
                                       std::to_string(format) + ", row " + std::to_string(r) + " of " +
                                       std::to_string(rows));
                for (std::int64_t i = 0; i < most * y_stride; ++i)
                    if (i / y_stride >= rows || i % y_stride >= s.out)
                        expect(y[static_cast<std::size_t>(i)] == -77.0f, "written outside the outputs");
            }
    }
}

TEST(a_row_gets_the_same_bits_alone_and_among_others) {
    Random random(20);
    for (const Shape &s : {Shape{53, 300}, Shape{64, 1024}}) {
        const TestWeight w(random, s.out, s.in, 0.05f, true);
        const auto x = random.bf16_normals(16 * s.in, 1.0f);
        for (int format : {LLUDA_FORMAT_BF16, LLUDA_FORMAT_PACKED_BF16}) {
            std::vector<float> alone(static_cast<std::size_t>(16 * s.out)), together(alone.size());
            for (int r = 0; r < 16; ++r)
                check_ok(lluda_linear(context(), w.in(format), 1, x.data() + r * s.in, s.in, alone.data() + r * s.out,
                                      LLUDA_DTYPE_F32, s.out));
            for (int rows = 2; rows <= 16; ++rows) {
                check_ok(lluda_linear(context(), w.in(format), rows, x.data(), s.in, together.data(), LLUDA_DTYPE_F32,
                                      s.out));
                expect(std::equal(alone.begin(), alone.begin() + rows * s.out, together.begin()),
                       std::to_string(rows) + " rows differ from each alone");
            }
        }
    }
}

TEST(packed_weights_give_the_bits_of_plain_ones_on_the_matrix_unit) {
    if (std::string(lluda_context_isa(context())) != "amx") return;  // other kernels add what is kept aside at the end
    Random random(21);
    for (const Shape &s : {Shape{53, 300}, Shape{64, 1024}}) {
        TestWeight w(random, s.out, s.in);
        expect(w.packed.escape_rows[s.out] > 0, "nothing is kept aside");
        const auto x = random.bf16_normals(40 * s.in, 1.0f);
        for (int rows : {1, 8, 40}) {
            std::vector<float> y[2];
            for (int format : {LLUDA_FORMAT_BF16, LLUDA_FORMAT_PACKED_BF16}) {
                y[format].resize(static_cast<std::size_t>(rows * s.out));
                check_ok(lluda_linear(context(), w.in(format), rows, x.data(), s.in, y[format].data(), LLUDA_DTYPE_F32,
                                      s.out));
            }
            expect(y[0] == y[1], std::to_string(rows) + " rows: packed and plain differ");
        }
    }
}

TEST(more_rows_than_one_pass_takes_equal_single_passes) {
    Random random(19);
    const TestWeight w(random, 21, 66);
    const auto x = random.bf16_normals(1100 * 66, 1.0f);
    std::vector<float> all(1100 * 21), parts(1100 * 21);
    check_ok(lluda_linear(context(), &w.plain, 1100, x.data(), 66, all.data(), LLUDA_DTYPE_F32, 21));
    for (std::int64_t from = 0; from < 1100; from += 100)
        check_ok(lluda_linear(context(), &w.plain, 100, x.data() + from * 66, 66, parts.data() + from * 21, LLUDA_DTYPE_F32, 21));
    expect(all == parts, "1100 rows and 11 times 100 differ");
}

TEST(bf16_outputs_are_rounded_once) {
    Random random(12);
    const TestWeight w(random, 37, 200, 0.05f, true);
    const auto x = random.bf16_normals(3 * 200, 1.0f);
    std::vector<float> exact(3 * 37);
    std::vector<std::uint16_t> y(3 * 37);
    check_ok(lluda_linear(context(), &w.packed, 3, x.data(), 200, exact.data(), LLUDA_DTYPE_F32, 37));
    check_ok(lluda_linear(context(), &w.packed, 3, x.data(), 200, y.data(), LLUDA_DTYPE_BF16, 37));
    for (std::size_t i = 0; i < y.size(); ++i) expect_equal(int{y[i]}, int{to_bf16(exact[i])}, "BF16 output");

    const auto many = random.bf16_normals(40 * 200, 1.0f);
    std::vector<float> exact_many(40 * 37);
    std::vector<std::uint16_t> y_many(40 * 37);
    check_ok(lluda_linear(context(), &w.packed, 40, many.data(), 200, exact_many.data(), LLUDA_DTYPE_F32, 37));
    check_ok(lluda_linear(context(), &w.packed, 40, many.data(), 200, y_many.data(), LLUDA_DTYPE_BF16, 37));
    for (std::size_t i = 0; i < y_many.size(); ++i)
        expect_equal(int{y_many[i]}, int{to_bf16(exact_many[i])}, "BF16 output of many rows");
}

TEST(results_do_not_depend_on_threads) {
    Random random(13);
    const TestWeight w(random, 301, 384);
    const auto x = random.bf16_normals(70 * 384, 1.0f);
    for (int format : {LLUDA_FORMAT_BF16, LLUDA_FORMAT_PACKED_BF16})
        for (int rows : {1, 2, 5, 8, 11, 70}) {
            std::vector<float> one(70 * 301), four(70 * 301);
            use_threads(1);
            check_ok(lluda_linear(context(), w.in(format), rows, x.data(), 384, one.data(), LLUDA_DTYPE_F32, 301));
            use_threads(4);
            check_ok(lluda_linear(context(), w.in(format), rows, x.data(), 384, four.data(), LLUDA_DTYPE_F32, 301));
            expect(one == four, "1 and 4 threads differ at " + std::to_string(rows) + " rows");
        }
}

TEST(weights_may_start_at_any_two_bytes) {
    Random random(14);
    const TestWeight w(random, 9, 140);
    std::vector<std::uint16_t> moved(w.values.size() + 1);
    std::copy(w.values.begin(), w.values.end(), moved.begin() + 1);
    lluda_weight odd = w.plain;
    odd.values = moved.data() + 1;
    const auto x = random.bf16_normals(2 * 140, 1.0f);
    std::vector<float> y(2 * 9);
    check_ok(lluda_linear(context(), &odd, 2, x.data(), 140, y.data(), LLUDA_DTYPE_F32, 9));
    for (int r = 0; r < 2; ++r) expect_product(w, row_of(x, r, 140, 140), y.data() + r * 9, "moved");
    const auto many = random.bf16_normals(20 * 140, 1.0f);
    std::vector<float> y_many(20 * 9);
    check_ok(lluda_linear(context(), &odd, 20, many.data(), 140, y_many.data(), LLUDA_DTYPE_F32, 9));
    for (int r = 0; r < 20; ++r) expect_product(w, row_of(many, r, 140, 140), y_many.data() + r * 9, "moved");
}

TEST(groups_equal_single_products) {
    Random random(15);
    const TestWeight a(random, 48, 256), b(random, 17, 256), c(random, 0, 256);
    const auto x = random.bf16_normals(5 * 256, 1.0f);
    for (int format : {LLUDA_FORMAT_BF16, LLUDA_FORMAT_PACKED_BF16}) {
        std::vector<float> ya(5 * 48), yb(5 * 17), single_a(5 * 48), single_b(5 * 17);
        const lluda_weight *weights[] = {a.in(format), b.in(format), c.in(format)};
        void *outputs[] = {ya.data(), yb.data(), nullptr};
        const std::int64_t strides[] = {48, 17, 0};
        check_ok(lluda_linear_group(context(), 3, weights, 5, x.data(), 256, outputs, LLUDA_DTYPE_F32, strides));
        check_ok(lluda_linear(context(), weights[0], 5, x.data(), 256, single_a.data(), LLUDA_DTYPE_F32, 48));
        check_ok(lluda_linear(context(), weights[1], 5, x.data(), 256, single_b.data(), LLUDA_DTYPE_F32, 17));
        expect(ya == single_a && yb == single_b, "a group differs from its members");
    }
}

TEST(denormals_are_negligible_and_not_finite_ones_propagate) {
    std::vector<std::uint16_t> values(4 * 256, to_bf16(0.5f));
    values[3] = 0x0001;        // row 0: a denormal
    values[256 + 7] = 0x7f80;  // row 1: infinity
    values[512 + 9] = 0x7fc0;  // row 2: NaN
    const TestWeight w(values, 4, 256);
    const std::vector<std::uint16_t> x(256, 0x3f80);
    for (int format : {LLUDA_FORMAT_BF16, LLUDA_FORMAT_PACKED_BF16}) {
        float y[4];
        check_ok(lluda_linear(context(), w.in(format), 1, x.data(), 256, y, LLUDA_DTYPE_F32, 4));
        expect(std::fabs(y[0] - 127.5f) < 1e-4f, "row with a denormal");
        expect(std::isinf(y[1]), "row with an infinity");
        expect(std::isnan(y[2]), "row with a NaN");
        expect(y[3] == 128.0f, "ordinary row");
    }
}

TEST(embedding_rows_are_exact) {
    Random random(16);
    const TestWeight w(random, 50, 130);
    const std::int64_t ids[] = {49, 0, 7, 7};
    for (int format : {LLUDA_FORMAT_BF16, LLUDA_FORMAT_PACKED_BF16}) {
        std::vector<float> y(4 * 131);
        check_ok(lluda_embedding(context(), w.in(format), 4, ids, y.data(), 131));
        for (int r = 0; r < 4; ++r)
            for (int i = 0; i < 130; ++i)
                expect(y[static_cast<std::size_t>(r * 131 + i)] == static_cast<float>(w.at(ids[r], i)), "an embedding");
    }
    const std::int64_t beyond[] = {50};
    float y[130];
    check_code(lluda_embedding(context(), &w.plain, 1, beyond, y, 130), LLUDA_BAD_ARGUMENT, "id beyond the table");
}

TEST(bad_products_are_refused) {
    Random random(17);
    const TestWeight w(random, 8, 16), other(random, 8, 17);
    std::uint16_t x[17 * 16] = {};
    float y[17 * 8];
    check_code(lluda_linear(context(), &w.plain, -1, x, 16, y, LLUDA_DTYPE_F32, 8), LLUDA_BAD_ARGUMENT, "-1 rows");
    check_code(lluda_linear(context(), nullptr, 1, x, 16, y, LLUDA_DTYPE_F32, 8), LLUDA_BAD_ARGUMENT, "no weight");
    check_code(lluda_linear(context(), &w.plain, 1, nullptr, 16, y, LLUDA_DTYPE_F32, 8), LLUDA_BAD_ARGUMENT, "no x");
    check_code(lluda_linear(context(), &w.plain, 1, x, 16, y, 7, 8), LLUDA_BAD_ARGUMENT, "dtype 7");
    lluda_weight strange = w.plain;
    strange.format = 9;
    check_code(lluda_linear(context(), &strange, 1, x, 16, y, LLUDA_DTYPE_F32, 8), LLUDA_BAD_ARGUMENT, "format 9");
    const lluda_weight *weights[] = {&w.plain, &other.plain};
    void *outputs[] = {y, y};
    const std::int64_t strides[] = {8, 8};
    check_code(lluda_linear_group(context(), 2, weights, 1, x, 16, outputs, LLUDA_DTYPE_F32, strides), LLUDA_BAD_ARGUMENT,
               "different in_features");
    expect(std::strlen(lluda_last_error()) > 0, "a failed call leaves a message");
    const std::int64_t rows = LLUDA_MOST;
    check_code(lluda_linear(context(), &w.plain, rows + 1, x, 16, y, LLUDA_DTYPE_F32, 8), LLUDA_BAD_ARGUMENT,
               "2^31 rows");
    check_code(lluda_linear(context(), &w.plain, 2, x, 15, y, LLUDA_DTYPE_F32, 8), LLUDA_BAD_ARGUMENT, "x_stride");
    check_code(lluda_linear(context(), &w.plain, 2, x, 16, y, LLUDA_DTYPE_F32, 7), LLUDA_BAD_ARGUMENT, "y_stride");
    check_code(lluda_linear(nullptr, &w.plain, 1, x, 16, y, LLUDA_DTYPE_F32, 8), LLUDA_BAD_ARGUMENT, "no context");
}
