#include "numbers.hpp"

#include <cmath>
#include <cstring>

#include "testing.hpp"

std::uint64_t Random::bits() {
    state_ ^= state_ << 13, state_ ^= state_ >> 7, state_ ^= state_ << 17;
    return state_ * 0x2545f4914f6cdd1dull;
}

float Random::normal(float deviation) {
    float sum = -6.0f;
    for (int i = 0; i < 12; ++i) sum += static_cast<float>(bits() >> 40) / 16777216.0f;
    return sum * deviation;
}

std::vector<float> Random::normals(std::int64_t count, float deviation) {
    std::vector<float> out(static_cast<std::size_t>(count));
    for (float &v : out) v = normal(deviation);
    return out;
}

std::vector<std::uint16_t> Random::bf16_normals(std::int64_t count, float deviation) {
    std::vector<std::uint16_t> out(static_cast<std::size_t>(count));
    for (auto &v : out) v = to_bf16(normal(deviation));
    return out;
}

std::uint16_t to_bf16(float value) {
    std::uint32_t bits;
    std::memcpy(&bits, &value, 4);
    if (std::isnan(value)) return static_cast<std::uint16_t>((bits >> 16) | 0x40);
    return static_cast<std::uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

float from_bf16(std::uint16_t half) {
    const std::uint32_t bits = static_cast<std::uint32_t>(half) << 16;
    float value;
    std::memcpy(&value, &bits, 4);
    return value;
}

double rounded(double value) { return from_bf16(to_bf16(static_cast<float>(value))); }

Aligned::Aligned(std::int64_t bytes) : memory_(nullptr) {
    if (posix_memalign(&memory_, 64, static_cast<std::size_t>(bytes > 0 ? bytes : 1)) != 0) std::abort();
    std::memset(memory_, 0xee, static_cast<std::size_t>(bytes));
}

TestWeight::TestWeight(Random &random, std::int64_t out, std::int64_t in, float deviation, bool with_bias)
    : values(random.bf16_normals(out * in, deviation)) {
    // A few weights with rare exponents, for the side table.
    for (std::size_t i = 0; i < values.size(); ++i)
        if (random.below(50) == 0)
            values[i] = to_bf16(random.normal(1.0f) * std::exp2(static_cast<float>(random.below(40) - 36)));
    plain.out_features = out;
    plain.in_features = in;
    if (with_bias) bias = random.normals(out, 0.5f);
    pack();
}

TestWeight::TestWeight(std::vector<std::uint16_t> all, std::int64_t out, std::int64_t in) : values(std::move(all)) {
    plain.out_features = out;
    plain.in_features = in;
    pack();
}

void TestWeight::pack() {
    plain.format = LLUDA_FORMAT_BF16;
    plain.values = values.data();
    std::int64_t bytes = 0;
    const int code = lluda_pack_size(values.data(), plain.out_features, plain.in_features, &bytes);
    expect(code == LLUDA_OK || code == LLUDA_INCOMPRESSIBLE, "lluda_pack_size failed");
    storage_.resize(static_cast<std::size_t>(bytes) + 64);
    auto start = reinterpret_cast<std::uintptr_t>(storage_.data());
    void *buffer = storage_.data() + (64 - start % 64) % 64;
    check_ok(lluda_pack(values.data(), plain.out_features, plain.in_features, buffer, bytes));
    check_ok(lluda_packed_view(buffer, bytes, &packed));
    if (!bias.empty()) plain.bias = packed.bias = bias.data();
}

std::vector<double> TestWeight::times(const std::vector<double> &x) const {
    std::vector<double> y(static_cast<std::size_t>(plain.out_features));
    for (std::int64_t o = 0; o < plain.out_features; ++o) {
        double sum = bias.empty() ? 0.0 : bias[static_cast<std::size_t>(o)];
        for (std::int64_t i = 0; i < plain.in_features; ++i) sum += at(o, i) * x[static_cast<std::size_t>(i)];
        y[static_cast<std::size_t>(o)] = sum;
    }
    return y;
}

void check_code(int code, int expected, const std::string &what) {
    if (code != expected)
        throw std::runtime_error(what + " returned " + std::to_string(code) + " (" + lluda_last_error() +
                                 "), expected " + std::to_string(expected));
}

double relative_error(const std::vector<double> &actual, const std::vector<double> &truth) {
    double error = 0, size = 0;
    for (std::size_t i = 0; i < truth.size(); ++i) {
        error += (actual[i] - truth[i]) * (actual[i] - truth[i]);
        size += truth[i] * truth[i];
    }
    return size == 0 ? std::sqrt(error) : std::sqrt(error / size);
}

void expect_close(const std::vector<double> &actual, const std::vector<double> &truth, double limit,
                  const std::string &what) {
    expect(actual.size() == truth.size(), what + ": sizes differ");
    const double error = relative_error(actual, truth);
    if (!(error <= limit))
        throw std::runtime_error(what + ": relative error " + std::to_string(error) + ", limit " +
                                 std::to_string(limit));
}

std::vector<double> normed(const float *x, const std::vector<float> &weight, double eps) {
    double sum = 0;
    for (std::size_t i = 0; i < weight.size(); ++i) sum += static_cast<double>(x[i]) * x[i];
    const double factor = 1.0 / std::sqrt(sum / static_cast<double>(weight.size()) + eps);
    std::vector<double> out(weight.size());
    for (std::size_t i = 0; i < weight.size(); ++i) out[i] = rounded(x[i] * factor * weight[i]);
    return out;
}

double silu(double x) { return x / (1.0 + std::exp(-x)); }
