// Convolutions and SnakeBeta against float64.
#include <algorithm>
#include <cmath>

#include "numbers.hpp"
#include "testing.hpp"

namespace {

struct ConvolutionCase {
    std::int64_t rows, channels, out, taps, dilation;
};

void convolve(const lluda_weight &weight, const ConvolutionCase &c, const std::vector<std::int64_t> &lengths,
              const std::vector<const std::uint16_t *> &x, std::uint16_t *y) {
    check_ok(lluda_conv1d(context(), &weight, c.taps, c.dilation, static_cast<std::int64_t>(lengths.size()),
                          lengths.data(), x.data(), c.channels, y, LLUDA_DTYPE_BF16, c.out));
}

// The same in float32, of which `y` is what rounding it gives.
void expect_exact(const lluda_weight &weight, const ConvolutionCase &c, const std::uint16_t *x, const std::uint16_t *y) {
    std::vector<float> exact(static_cast<std::size_t>(c.rows * c.out));
    check_ok(lluda_conv1d(context(), &weight, c.taps, c.dilation, 1, &c.rows, &x, c.channels, exact.data(),
                          LLUDA_DTYPE_F32, c.out));
    for (std::int64_t i = 0; i < c.rows * c.out; ++i)
        expect(to_bf16(exact[static_cast<std::size_t>(i)]) == y[i], "float32 and BF16 of a convolution differ");
}

void expect_convolution(const ConvolutionCase &c, int threads, int format) {
    use_threads(threads);
    Random random(static_cast<std::uint64_t>(c.rows * 7 + c.channels));
    const TestWeight weight(random, c.out, c.taps * c.channels, 0.05f, true);
    const std::int64_t inputs = c.rows + (c.taps - 1) * c.dilation;
    const Aligned memory(inputs * c.channels * 2), result(c.rows * c.out * 2);
    auto *x = static_cast<std::uint16_t *>(memory.get()), *y = static_cast<std::uint16_t *>(result.get());
    const auto values = random.bf16_normals(inputs * c.channels, 1.0f);
    std::copy(values.begin(), values.end(), x);
    convolve(*weight.in(format), c, {c.rows}, {x}, y);
    expect_exact(*weight.in(format), c, x, y);
    std::vector<double> found, truth;
    for (std::int64_t r = 0; r < c.rows; ++r) {
        std::vector<double> window;
        for (std::int64_t tap = 0; tap < c.taps; ++tap)
            for (std::int64_t i = 0; i < c.channels; ++i)
                window.push_back(from_bf16(x[(r + tap * c.dilation) * c.channels + i]));
        for (double v : weight.times(window)) truth.push_back(v);
        for (std::int64_t o = 0; o < c.out; ++o) found.push_back(from_bf16(y[r * c.out + o]));
    }
    expect_close(found, truth, 3e-3, "convolution");
}

TEST(convolutions) {
    const ConvolutionCase cases[] = {{1, 16, 9, 7, 1},  {16, 10, 33, 3, 4}, {17, 24, 60, 7, 9},
                                     {130, 5, 3, 2, 1}, {400, 8, 50, 7, 3}, {600, 6, 4, 1, 1}};
    for (const ConvolutionCase &c : cases)
        for (int threads : {1, 3})
            for (int format : {LLUDA_FORMAT_BF16, LLUDA_FORMAT_PACKED_BF16}) expect_convolution(c, threads, format);
}

// Few rows and many, runs that are made together and runs that are not.
const std::vector<std::int64_t> kLengths = {5, 9, 3, 16, 40, 17, 0, 1, 600};

TEST(convolutions_of_streams_together_are_those_of_each_alone) {
    const ConvolutionCase c{0, 24, 50, 3, 4};
    const std::int64_t before = (c.taps - 1) * c.dilation;
    for (int threads : {1, 3})
        for (int format : {LLUDA_FORMAT_BF16, LLUDA_FORMAT_PACKED_BF16}) {
            use_threads(threads);
            Random random(61);
            const TestWeight weight(random, c.out, c.taps * c.channels, 0.05f, true);
            std::vector<std::vector<std::uint16_t>> inputs;
            std::vector<const std::uint16_t *> x;
            std::vector<std::uint16_t> expected;
            for (std::int64_t rows : kLengths) {
                inputs.push_back(random.bf16_normals((rows + before) * c.channels, 1.0f));
                x.push_back(inputs.back().data());
                std::vector<std::uint16_t> y(static_cast<std::size_t>(rows * c.out));
                convolve(*weight.in(format), c, {rows}, {x.back()}, y.data());
                expected.insert(expected.end(), y.begin(), y.end());
            }
            std::vector<std::uint16_t> found(expected.size());
            convolve(*weight.in(format), c, kLengths, x, found.data());
            expect(found == expected, "a convolution depends on the others");
        }
}

TEST(convolutions_refuse) {
    Random random(3);
    const TestWeight weight(random, 4, 12);
    std::uint16_t values[64] = {}, y[64] = {};
    const auto run = [&](std::int64_t taps, std::int64_t dilation, std::int64_t rows, const std::uint16_t *x,
                         std::int64_t stride) {
        const std::int64_t lengths[2] = {0, rows};
        const std::uint16_t *const inputs[2] = {nullptr, x};
        return lluda_conv1d(context(), &weight.plain, taps, dilation, 2, lengths, inputs, stride, y, LLUDA_DTYPE_BF16, 4);
    };
    check_ok(run(3, 2, 0, nullptr, 4));
    check_ok(lluda_conv1d(context(), &weight.plain, 3, 2, 0, nullptr, nullptr, 4, nullptr, LLUDA_DTYPE_BF16, 4));
    check_code(run(5, 1, 1, values, 4), LLUDA_BAD_ARGUMENT, "taps that do not divide");
    check_code(run(3, 0, 1, values, 4), LLUDA_BAD_ARGUMENT, "no dilation");
    check_code(run(3, 1, 1, values, 3), LLUDA_BAD_ARGUMENT, "a short stride");
    check_code(run(3, 1, 1, nullptr, 4), LLUDA_BAD_ARGUMENT, "no input");
    check_code(run(3, 1, -1, values, 4), LLUDA_BAD_ARGUMENT, "a negative length");
    const std::int64_t none = 0;
    check_code(lluda_conv1d(context(), &weight.plain, 3, 1, 1, &none, nullptr, 4, y, 2, 4), LLUDA_BAD_ARGUMENT, "y_dtype 2");
    check_code(lluda_conv1d(context(), &weight.plain, 3, 1, 1, nullptr, nullptr, 4, y, LLUDA_DTYPE_BF16, 4), LLUDA_BAD_ARGUMENT, "no lengths");
    check_code(lluda_conv1d(context(), &weight.plain, 3, 1, -1, nullptr, nullptr, 4, y, LLUDA_DTYPE_BF16, 4), LLUDA_BAD_ARGUMENT, "runs");
}

TEST(snake_beta) {
    Random random(9);
    for (std::int64_t channels : {1, 15, 16, 33, 100}) {
        const std::int64_t rows = 19;
        const auto x = random.normals(rows * channels, 3.0f), frequency = random.normals(channels, 2.0f),
                   amplitude = random.normals(channels, 1.0f);
        const Aligned memory(rows * channels * 2);
        auto *y = static_cast<std::uint16_t *>(memory.get());
        check_ok(lluda_snake_beta(context(), rows, channels, x.data(), LLUDA_DTYPE_F32, channels, frequency.data(),
                                  amplitude.data(), y, channels));
        std::vector<double> found, truth;
        for (std::size_t i = 0; i < x.size(); ++i) {
            const std::size_t c = i % static_cast<std::size_t>(channels);
            const double wave = std::sin(static_cast<double>(frequency[c]) * x[i]);
            truth.push_back(x[i] + amplitude[c] * wave * wave);
            found.push_back(from_bf16(y[i]));
        }
        expect_close(found, truth, 3e-3, "SnakeBeta");
    }
    const float ones[3] = {1, 1, 1};
    check_ok(lluda_snake_beta(context(), 0, 3, nullptr, LLUDA_DTYPE_F32, 3, ones, ones, nullptr, 3));
    check_code(lluda_snake_beta(context(), 1, 3, ones, 7, 3, ones, ones, nullptr, 3), LLUDA_BAD_ARGUMENT, "another dtype");
}

struct UnitCase {
    std::int64_t rows, channels, taps, dilation;
};

double snake(double x, float frequency, float amplitude) {
    const double sine = std::sin(static_cast<double>(frequency) * x);
    return x + static_cast<double>(amplitude) * sine * sine;
}

// A unit with its weights and channels' numbers.
struct TestUnit {
    TestUnit(Random &random, const UnitCase &c, int format)
        : first(random, c.channels, c.taps * c.channels, 0.05f, true),
          second(random, c.channels, c.channels, 0.05f, true),
          f1(random.normals(c.channels, 1.0f)),
          a1(random.normals(c.channels, 0.5f)),
          f2(random.normals(c.channels, 1.0f)),
          a2(random.normals(c.channels, 0.5f)),
          unit{c.channels, c.taps,    c.dilation,       f1.data(),        a1.data(),
               f2.data(),  a2.data(), first.in(format), second.in(format)} {}

    // Rows of streams below each other.
    void run(const std::vector<std::int64_t> &lengths, float *x, const std::vector<std::uint16_t *> &kept) const {
        check_ok(lluda_residual_unit_block(context(), &unit, static_cast<std::int64_t>(lengths.size()), lengths.data(), x,
                                           unit.channels, kept.data()));
    }

    const TestWeight first, second;
    const std::vector<float> f1, a1, f2, a2;
    const lluda_residual_unit unit;
};

// In calls of `at_once` rows, as a stream; BF16 rounding of what is multiplied is in the truth too.
void expect_unit(const UnitCase &c, std::int64_t at_once, int threads, int format) {
    use_threads(threads);
    Random random(static_cast<std::uint64_t>(c.rows * 5 + c.channels));
    const std::int64_t n = c.channels, earlier = (c.taps - 1) * c.dilation;
    const TestUnit unit(random, c, format);
    const auto input = random.normals(c.rows * n, 1.0f);
    std::vector<float> x = input;
    std::vector<std::uint16_t> kept(static_cast<std::size_t>(earlier * n));
    for (std::int64_t from = 0; from < c.rows; from += at_once)
        unit.run({std::min(at_once, c.rows - from)}, x.data() + from * n, {kept.data()});
    std::vector<double> acted, truth;
    for (std::int64_t i = 0; i < c.rows * n; ++i)
        acted.push_back(from_bf16(to_bf16(static_cast<float>(snake(input[i], unit.f1[i % n], unit.a1[i % n])))));
    for (std::int64_t r = 0; r < c.rows; ++r) {
        std::vector<double> window, inner;
        for (std::int64_t tap = 0; tap < c.taps; ++tap)
            for (std::int64_t i = 0; i < n; ++i) {
                const std::int64_t row = r + tap * c.dilation - earlier;
                window.push_back(row < 0 ? 0.0 : acted[static_cast<std::size_t>(row * n + i)]);
            }
        for (double v : unit.first.times(window)) {
            const std::size_t i = inner.size();
            inner.push_back(from_bf16(to_bf16(static_cast<float>(snake(v, unit.f2[i], unit.a2[i])))));
        }
        std::int64_t i = r * n;
        for (double v : unit.second.times(inner)) truth.push_back(static_cast<double>(input[i++]) + v);
    }
    expect_close({x.begin(), x.end()}, truth, 2e-3, "residual unit");
    for (std::int64_t i = 0; i < earlier * n; ++i) {
        const std::int64_t at = (c.rows - earlier) * n + i;
        const double want = at < 0 ? 0.0 : acted[static_cast<std::size_t>(at)];
        expect(std::abs(from_bf16(kept[static_cast<std::size_t>(i)]) - want) <= 0.01 * std::abs(want), "a kept row");
    }
}

TEST(residual_units) {
    const UnitCase cases[] = {{1, 6, 7, 1}, {20, 48, 7, 9}, {130, 96, 7, 3}, {70, 128, 1, 1}, {600, 10, 3, 4}};
    for (const UnitCase &c : cases)
        for (std::int64_t at_once : {c.rows, std::int64_t{17}, std::int64_t{1}})
            for (int threads : {1, 3})
                for (int format : {LLUDA_FORMAT_BF16, LLUDA_FORMAT_PACKED_BF16})
                    if (at_once > 1 || c.rows < 50) expect_unit(c, at_once, threads, format);
}

TEST(residual_units_of_streams_together_are_those_of_each_alone) {
    for (std::int64_t channels : {10, 48, 130})
        for (int threads : {1, 3})
            for (int format : {LLUDA_FORMAT_BF16, LLUDA_FORMAT_PACKED_BF16}) {
                use_threads(threads);
                Random random(67);
                const TestUnit unit(random, {0, channels, 7, 3}, format);
                std::vector<float> expected, found;
                std::vector<std::vector<std::uint16_t>> kept, kept_together;
                std::vector<std::uint16_t *> pointers;
                for (std::int64_t rows : kLengths) {
                    auto x = random.normals(rows * channels, 1.0f);
                    found.insert(found.end(), x.begin(), x.end());
                    kept.push_back(random.bf16_normals(18 * channels, 1.0f));
                    kept_together.push_back(kept.back());
                    unit.run({rows}, x.data(), {kept.back().data()});
                    expected.insert(expected.end(), x.begin(), x.end());
                }
                for (auto &rows : kept_together) pointers.push_back(rows.data());
                unit.run(kLengths, found.data(), pointers);
                expect(found == expected, "a unit's rows depend on other streams");
                expect(kept_together == kept, "kept rows depend on other streams");
            }
}

TEST(residual_units_refuse) {
    Random random(4);
    const TestWeight first(random, 4, 12), second(random, 4, 4);
    const float numbers[4] = {};
    lluda_residual_unit unit{4, 3, 2, numbers, numbers, numbers, numbers, &first.plain, &second.plain};
    float x[8] = {};
    std::uint16_t memory[16] = {};
    std::uint16_t *kept = memory;
    const auto run = [&](const lluda_residual_unit *which, std::int64_t rows, float *of, std::uint16_t *const *keep) {
        return lluda_residual_unit_block(context(), which, 1, &rows, of, 4, keep);
    };
    check_ok(run(&unit, 0, nullptr, &kept));
    check_ok(lluda_residual_unit_block(context(), &unit, 0, nullptr, nullptr, 4, nullptr));
    check_code(run(&unit, 1, x, nullptr), LLUDA_BAD_ARGUMENT, "no memory for kept rows");
    kept = nullptr;
    check_code(run(&unit, 1, x, &kept), LLUDA_BAD_ARGUMENT, "no memory for a run's kept rows");
    kept = memory;
    check_code(run(nullptr, 1, x, &kept), LLUDA_BAD_ARGUMENT, "no unit");
    check_code(run(&unit, -1, x, &kept), LLUDA_BAD_ARGUMENT, "a negative length");
    unit.taps = 2;
    check_code(run(&unit, 1, x, &kept), LLUDA_BAD_ARGUMENT, "taps that do not fit");
    unit.taps = 3;
    unit.frequency2 = nullptr;
    check_code(run(&unit, 1, x, &kept), LLUDA_BAD_ARGUMENT, "no frequency");
}

}  // namespace

namespace {

// A convolution to one channel of 7 taps over 12 channels, of one stream.
class MonoTest {
public:
    explicit MonoTest(Random &random) {
        for (std::int64_t i = 0; i < kChannels; ++i) {
            frequency_.push_back(1.0f + random.normal(0.2f));
            amplitude_.push_back(0.5f + random.normal(0.1f));
        }
        for (std::int64_t i = 0; i < kTaps * kChannels; ++i) weight_.push_back(random.normal(0.05f));
        convolution = {kChannels, kTaps, frequency_.data(), amplitude_.data(), weight_.data(), &bias_};
    }

    std::vector<float> run(const std::vector<float> &x, std::vector<std::uint16_t> &kept) const {
        const auto rows = static_cast<std::int64_t>(x.size()) / kChannels;
        std::vector<float> y(static_cast<std::size_t>(rows));
        std::uint16_t *own = kept.data();
        check_ok(lluda_mono_convolution_block(context(), &convolution, 1, &rows, x.data(), kChannels, &own, y.data()));
        return y;
    }

    double truth(const std::vector<float> &x, std::int64_t row) const {
        double sum = bias_;
        for (std::int64_t tap = 0; tap < kTaps; ++tap)
            for (std::int64_t i = 0; i < kChannels; ++i) {
                const std::int64_t from = row + tap - (kTaps - 1);
                if (from < 0) continue;
                const auto at = static_cast<std::size_t>(i);
                const double value = x[static_cast<std::size_t>(from * kChannels + i)];
                const double wave = std::sin(static_cast<double>(static_cast<float>(value) * frequency_[at]));
                sum += weight_[static_cast<std::size_t>(tap * kChannels + i)] * (value + amplitude_[at] * wave * wave);
            }
        return std::min(1.0, std::max(-1.0, sum));
    }

    static constexpr std::int64_t kChannels = 12, kTaps = 7;
    static std::vector<std::uint16_t> start() { return std::vector<std::uint16_t>((kTaps - 1) * kChannels); }
    lluda_mono_convolution convolution;

private:
    std::vector<float> frequency_, amplitude_, weight_;
    float bias_ = 0.1f;
};

}  // namespace

TEST(mono_convolutions) {
    Random random(71);
    const MonoTest test(random);
    std::vector<float> x;
    for (int i = 0; i < 300 * 12; ++i) x.push_back(random.normal(1.5f));
    auto kept = MonoTest::start();
    std::vector<double> found, truth;
    const auto whole = test.run(x, kept);
    for (std::int64_t r = 0; r < 300; ++r) {
        truth.push_back(test.truth(x, r));
        found.push_back(whole[static_cast<std::size_t>(r)]);
    }
    expect(*std::max_element(truth.begin(), truth.end()) == 1.0, "a sample is cut off");
    expect_close(found, truth, 3e-3, "convolution to one channel");
    for (int threads : {1, 3})
        for (std::size_t piece : {1, 2, 5, 130, 300}) {
            use_threads(threads);
            auto before = MonoTest::start();
            std::vector<float> pieces;
            for (std::size_t from = 0; from < 300; from += piece) {
                const std::size_t to = std::min<std::size_t>(300, from + piece);
                for (float sample : test.run({x.begin() + from * 12, x.begin() + to * 12}, before)) pieces.push_back(sample);
            }
            expect(pieces == whole && before == kept, "pieces of " + std::to_string(piece) + " rows differ from the whole");
        }
}

TEST(mono_convolutions_of_streams_together_and_refusals) {
    Random random(72);
    const MonoTest test(random);
    const lluda_mono_convolution &c = test.convolution;
    std::vector<float> x, expected;
    for (int i = 0; i < 40 * 12; ++i) x.push_back(random.normal(1.0f));
    auto first = MonoTest::start(), second = MonoTest::start();
    for (float sample : test.run({x.begin(), x.begin() + 9 * 12}, first)) expected.push_back(sample);
    for (float sample : test.run({x.begin() + 9 * 12, x.end()}, second)) expected.push_back(sample);
    auto a = MonoTest::start(), b = MonoTest::start();
    std::uint16_t *kept[3] = {a.data(), nullptr, b.data()};
    const std::int64_t lengths[3] = {9, 0, 31};
    std::vector<float> y(40);
    check_ok(lluda_mono_convolution_block(context(), &c, 3, lengths, x.data(), 12, kept, y.data()));
    expect(y == expected && a == first && b == second, "a stream depends on the others");
    check_ok(lluda_mono_convolution_block(context(), &c, 0, nullptr, nullptr, 12, nullptr, nullptr));
    kept[0] = nullptr;
    check_code(lluda_mono_convolution_block(context(), &c, 3, lengths, x.data(), 12, kept, y.data()), LLUDA_BAD_ARGUMENT,
               "no kept rows");
    kept[0] = a.data();
    check_code(lluda_mono_convolution_block(context(), &c, 3, lengths, x.data(), 11, kept, y.data()), LLUDA_BAD_ARGUMENT,
               "a short stride");
    check_code(lluda_mono_convolution_block(context(), &c, 3, lengths, x.data(), 12, kept, nullptr), LLUDA_BAD_ARGUMENT,
               "no y");
    lluda_mono_convolution none = c;
    none.taps = 0;
    check_code(lluda_mono_convolution_block(context(), &none, 3, lengths, x.data(), 12, kept, y.data()),
               LLUDA_BAD_ARGUMENT, "no taps");
}
