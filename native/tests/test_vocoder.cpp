// The blocks of a vocoder: against the calls they are made of, and ConvNeXt against float64.
#include <algorithm>
#include <cmath>

#include "numbers.hpp"
#include "testing.hpp"

namespace {

template <class T>
std::vector<T *> addresses(std::vector<std::vector<T>> &of) {
    std::vector<T *> found;
    for (auto &one : of) found.push_back(one.data());
    return found;
}

constexpr std::int64_t kChannels = 24, kOut = 12, kStride = 5, kTaps = 3;

// A block of one residual unit.
class UpsampleTest {
public:
    UpsampleTest(Random &random, std::int64_t taps)
        : wave_(random.normals(kChannels, 0.5f)),
          inner_wave_(random.normals(kOut, 0.5f)),
          conv_(random, kStride * kOut, taps * kChannels, 0.05f, true),
          conv1_(random, kOut, kTaps * kOut, 0.05f, true),
          conv2_(random, kOut, kOut, 0.05f, true) {
        unit = {kOut, kTaps, 1, inner_wave_.data(), inner_wave_.data(), inner_wave_.data(), inner_wave_.data(),
                &conv1_.plain, &conv2_.plain};
        block = {kChannels, kOut, taps, kStride, wave_.data(), wave_.data(), &conv_.plain, &unit, 1};
    }

    // By one call for each step, of a stream that has not begun.
    std::vector<float> expected(const std::vector<float> &x) const {
        const auto rows = static_cast<std::int64_t>(x.size()) / kChannels;
        std::int64_t made = std::max<std::int64_t>(rows - (block.taps - 1), 0);
        std::vector<std::uint16_t> activated(x.size()), kept((kTaps - 1) * kOut);
        check_ok(lluda_snake_beta(context(), rows, kChannels, x.data(), LLUDA_DTYPE_F32, kChannels, wave_.data(), wave_.data(),
                                  activated.data(), kChannels));
        std::vector<float> y(static_cast<std::size_t>(made * kStride * kOut));
        const std::uint16_t *input = activated.data();
        check_ok(lluda_conv1d(context(), &conv_.plain, block.taps, 1, 1, &made, &input, kChannels, y.data(),
                              LLUDA_DTYPE_F32, kStride * kOut));
        made *= kStride;
        std::uint16_t *own = kept.data();
        check_ok(lluda_residual_unit_block(context(), &unit, 1, &made, y.data(), kOut, &own));
        return y;
    }

    lluda_upsample block;
    lluda_residual_unit unit;

private:
    std::vector<float> wave_, inner_wave_;
    TestWeight conv_, conv1_, conv2_;
};

}  // namespace

TEST(upsampling_is_that_of_its_parts) {
    for (std::int64_t taps : {1, 2})
        for (int threads : {1, 3}) {
            use_threads(threads);
            Random random(81);
            const UpsampleTest test(random, taps);
            const std::vector<std::vector<float>> x = {random.normals(9 * kChannels, 1.0f), {},
                                                       random.normals(40 * kChannels, 1.0f)};
            std::vector<float> joined, expected;
            std::vector<std::int64_t> lengths;
            for (const auto &rows : x) {
                joined.insert(joined.end(), rows.begin(), rows.end());
                lengths.push_back(static_cast<std::int64_t>(rows.size()) / kChannels);
                const auto own = test.expected(rows);
                expected.insert(expected.end(), own.begin(), own.end());
            }
            std::vector<std::vector<std::uint16_t>> kept(6, std::vector<std::uint16_t>(kTaps * kChannels));
            const auto places = addresses(kept);
            const std::int32_t begun[3] = {};
            std::vector<float> y(expected.size());
            check_ok(lluda_upsample_block(context(), &test.block, 3, lengths.data(), joined.data(), kChannels,
                                          places.data(), begun, y.data()));
            expect(y == expected, "a block differs from its parts");
        }
}

TEST(upsampling_goes_on_where_it_was) {
    Random random(82);
    const UpsampleTest test(random, 2);
    // Few rows each, so that all are multiplied in the same way.
    const auto x = random.normals(3 * kChannels, 1.0f);
    std::vector<std::vector<std::uint16_t>> kept(2, std::vector<std::uint16_t>(kTaps * kChannels));
    const auto places = addresses(kept);
    std::vector<float> found;
    for (std::int64_t row = 0; row < 3; ++row) {
        const std::int64_t one = 1;
        const std::int32_t begun = row > 0;
        std::vector<float> y(kStride * kOut);
        check_ok(lluda_upsample_block(context(), &test.block, 1, &one, x.data() + row * kChannels, kChannels,
                                      places.data(), &begun, begun ? y.data() : nullptr));
        if (begun) found.insert(found.end(), y.begin(), y.end());
    }
    expect(found == test.expected(x), "rows one by one differ from all at once");
}

TEST(upsampling_refuses) {
    Random random(83);
    const UpsampleTest test(random, 2);
    const auto x = random.normals(kChannels, 1.0f);
    std::vector<std::uint16_t> kept(kTaps * kChannels);
    std::uint16_t *places[2] = {kept.data(), kept.data()};
    std::vector<float> y(kStride * kOut);
    const std::int32_t begun = 1;
    const auto run = [&](const lluda_upsample *block, std::int64_t rows, std::int64_t stride, std::uint16_t *const *keep,
                         const std::int32_t *flags, float *out) {
        return lluda_upsample_block(context(), block, 1, &rows, x.data(), stride, keep, flags, out);
    };
    check_ok(run(&test.block, 1, kChannels, places, &begun, y.data()));
    check_ok(run(&test.block, 0, kChannels, nullptr, nullptr, nullptr));
    check_code(run(&test.block, 1, kChannels, nullptr, &begun, y.data()), LLUDA_BAD_ARGUMENT, "no kept rows");
    check_code(run(&test.block, 1, kChannels, places, nullptr, y.data()), LLUDA_BAD_ARGUMENT, "no begun");
    check_code(run(&test.block, 1, kChannels, places, &begun, nullptr), LLUDA_BAD_ARGUMENT, "no y");
    lluda_upsample other = test.block;
    other.taps = 3;
    check_code(run(&other, 1, kChannels, places, &begun, y.data()), LLUDA_BAD_ARGUMENT, "three taps");
    other = test.block;
    other.out = kOut + 1;
    check_code(run(&other, 1, kChannels, places, &begun, y.data()), LLUDA_BAD_ARGUMENT, "a unit of other channels");
}

namespace {

class ConvNeXtTest {
public:
    static constexpr std::int64_t kInner = 40;

    explicit ConvNeXtTest(Random &random)
        : dwconv_(random.normals(kTaps * kChannels, 0.5f)),
          vectors_(random.normals(4 * kChannels, 0.5f)),
          pwconv1_(random, kInner, kChannels, 0.2f, true),
          pwconv2_(random, kChannels, kInner, 0.2f, true) {
        const float *v = vectors_.data();
        block = {kChannels,         kInner,           kTaps, dwconv_.data(), v, v + kChannels, v + 2 * kChannels,
                 v + 3 * kChannels, &pwconv1_.plain, &pwconv2_.plain, 1e-6f, 0};
    }

    std::vector<double> truth(const std::vector<float> &x, std::int64_t row) const {
        std::vector<double> inner, out;
        for (std::int64_t c = 0; c < kChannels; ++c) {
            double sum = block.dwconv_bias[c];
            for (std::int64_t tap = 0; tap < kTaps; ++tap) {
                const std::int64_t from = row + tap - (kTaps - 1);
                if (from >= 0) sum += block.dwconv[tap * kChannels + c] * static_cast<double>(x[at(from, c)]);
            }
            inner.push_back(sum);
        }
        double mean = 0, variance = 0;
        for (double v : inner) mean += v / kChannels;
        for (double v : inner) variance += (v - mean) * (v - mean) / kChannels;
        for (std::int64_t c = 0; c < kChannels; ++c) {
            const auto i = static_cast<std::size_t>(c);
            inner[i] = (inner[i] - mean) / std::sqrt(variance + 1e-6) * block.norm[c] + block.norm_bias[c];
        }
        std::vector<double> wide = pwconv1_.times(inner);
        for (double &v : wide) v *= 0.5 * (1.0 + std::erf(v / std::sqrt(2.0)));
        const std::vector<double> branch = pwconv2_.times(wide);
        for (std::int64_t c = 0; c < kChannels; ++c)
            out.push_back(x[at(row, c)] + block.gamma[c] * branch[static_cast<std::size_t>(c)]);
        return out;
    }

    lluda_convnext block;

private:
    static std::size_t at(std::int64_t row, std::int64_t channel) {
        return static_cast<std::size_t>(row * kChannels + channel);
    }

    std::vector<float> dwconv_, vectors_;
    TestWeight pwconv1_, pwconv2_;
};

}  // namespace

TEST(convnext_blocks) {
    Random random(84);
    const ConvNeXtTest test(random);
    const std::vector<std::int64_t> lengths = {5, 0, 1, 30};
    const auto x = random.normals(36 * kChannels, 1.0f);
    for (int threads : {1, 3}) {
        use_threads(threads);
        std::vector<std::vector<float>> kept(4, std::vector<float>((kTaps - 1) * kChannels));
        const auto places = addresses(kept);
        auto together = x;
        check_ok(lluda_convnext_block(context(), &test.block, 4, lengths.data(), together.data(), kChannels, places.data()));
        std::vector<double> found(together.begin(), together.end()), truth;
        std::int64_t first = 0;
        for (std::int64_t rows : lengths) {
            const std::vector<float> own(x.begin() + first * kChannels, x.begin() + (first + rows) * kChannels);
            std::vector<float> alone = own, own_kept((kTaps - 1) * kChannels);
            float *place = own_kept.data();
            check_ok(lluda_convnext_block(context(), &test.block, 1, &rows, alone.data(), kChannels, &place));
            expect(std::equal(alone.begin(), alone.end(), together.begin() + first * kChannels), "a stream depends on others");
            for (std::int64_t r = 0; r < rows; ++r)
                for (double value : test.truth(own, r)) truth.push_back(value);
            first += rows;
        }
        expect_close(found, truth, 4e-3, "ConvNeXt block");
        for (std::int64_t i = 0; i < (kTaps - 1) * kChannels; ++i)
            expect(kept[3][static_cast<std::size_t>(i)] == x[static_cast<std::size_t>((36 - kTaps + 1) * kChannels + i)],
                   "the rows that are kept are not the last that came in");
    }
}

TEST(convnext_blocks_go_on_where_they_were_and_refuse) {
    Random random(85);
    const ConvNeXtTest test(random);
    const auto x = random.normals(6 * kChannels, 1.0f);
    std::vector<float> a((kTaps - 1) * kChannels), b = a, whole = x, pieces = x;
    float *place = a.data();
    const std::int64_t six = 6, one = 1, four = 4;
    check_ok(lluda_convnext_block(context(), &test.block, 1, &six, whole.data(), kChannels, &place));
    place = b.data();
    for (const auto &[from, rows] : {std::pair{0, &one}, {1, &four}, {5, &one}})
        check_ok(lluda_convnext_block(context(), &test.block, 1, rows, pieces.data() + from * kChannels, kChannels, &place));
    expect(whole == pieces && a == b, "pieces differ from the whole");
    check_ok(lluda_convnext_block(context(), &test.block, 0, nullptr, nullptr, kChannels, nullptr));
    check_code(lluda_convnext_block(context(), &test.block, 1, &one, pieces.data(), kChannels, nullptr), LLUDA_BAD_ARGUMENT,
               "no kept rows");
    check_code(lluda_convnext_block(context(), &test.block, 1, &six, pieces.data(), kChannels - 1, &place),
               LLUDA_BAD_ARGUMENT, "a short stride");
    lluda_convnext other = test.block;
    other.inner = ConvNeXtTest::kInner + 1;
    check_code(lluda_convnext_block(context(), &other, 1, &one, pieces.data(), kChannels, &place), LLUDA_BAD_ARGUMENT,
               "another inner width");
}
