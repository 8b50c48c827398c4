#include "numbers.hpp"

#include <algorithm>
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
    const int code = lluda_pack_size(context(), values.data(), plain.out_features, plain.in_features, &bytes);
    expect(code == LLUDA_OK || code == LLUDA_INCOMPRESSIBLE, "lluda_pack_size failed");
    storage_.resize(static_cast<std::size_t>(bytes) + 64);
    auto start = reinterpret_cast<std::uintptr_t>(storage_.data());
    void *buffer = storage_.data() + (64 - start % 64) % 64;
    check_ok(lluda_pack(context(), values.data(), plain.out_features, plain.in_features, buffer, bytes));
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

Q8TestWeight::Q8TestWeight(Random &random, std::int64_t out, std::int64_t in, bool with_bias, float scale) {
    const std::int64_t bytes = out * in / 32 * 34;
    memory_.reset(new std::uint8_t[static_cast<std::size_t>(bytes) + 1]);
    for (std::int64_t i = 0; i < bytes; ++i) {
        std::uint8_t *block = memory_.get() + 1 + i / 34 * 34;
        if (i % 34 >= 2) block[i % 34] = static_cast<std::uint8_t>(random.below(256));
        if (i % 34 != 0) continue;
        // Scales of both signs, now and then zero or subnormal.
        const double size = scale * (1 + random.below(100)) * std::exp2(random.below(8) == 0 ? -12 : 0);
        const std::uint16_t half = random.below(20) == 0 ? 0 : to_half(random.below(9) == 0 ? -size : size);
        std::memcpy(block, &half, 2);
    }
    exact.format = LLUDA_FORMAT_Q8_0;
    exact.out_features = out;
    exact.in_features = in;
    exact.values = memory_.get() + 1;
    if (with_bias) bias_ = random.normals(out, 0.5f);
    if (with_bias) exact.bias = bias_.data();
    rounded = exact;
    rounded.format = LLUDA_FORMAT_Q8_0_ROWS;
}

double Q8TestWeight::at(std::int64_t row, std::int64_t column) const {
    const std::uint8_t *block = memory_.get() + 1 + (row * exact.in_features + column) / 32 * 34;
    std::uint16_t half;
    std::memcpy(&half, block, 2);
    return from_half(half) * static_cast<std::int8_t>(block[2 + column % 32]);
}

std::vector<double> Q8TestWeight::times(const std::vector<double> &x) const {
    std::vector<double> y(static_cast<std::size_t>(exact.out_features));
    for (std::int64_t o = 0; o < exact.out_features; ++o) {
        double sum = exact.bias ? exact.bias[o] : 0.0;
        for (std::int64_t i = 0; i < exact.in_features; ++i) sum += at(o, i) * x[static_cast<std::size_t>(i)];
        y[static_cast<std::size_t>(o)] = sum;
    }
    return y;
}

double from_half(std::uint16_t bits) {
    const int exponent = bits >> 10 & 31, fraction = bits & 1023;
    double size = exponent == 0 ? std::ldexp(fraction, -24) : std::ldexp(1024 + fraction, exponent - 25);
    if (exponent == 31) size = fraction == 0 ? INFINITY : NAN;
    return bits & 0x8000 ? -size : size;
}

std::uint16_t to_half(double value) {
    const double size = std::fabs(value);
    const int sign = std::signbit(value) ? 0x8000 : 0;
    if (std::isnan(value)) return static_cast<std::uint16_t>(sign | 0x7e00);
    if (size >= 65520.0) return static_cast<std::uint16_t>(sign | 0x7c00);
    const int exponent = std::max(size > 0 ? std::ilogb(size) : -14, -14);
    // The bits of a number follow each other like the numbers, so that a carry into the exponent is right.
    return static_cast<std::uint16_t>(sign | (((exponent + 14) << 10) +
                                              static_cast<int>(std::nearbyint(std::ldexp(size, 10 - exponent)))));
}

std::vector<double> rounded_to_q8(const std::vector<double> &row) {
    std::vector<double> out(row.size());
    for (std::size_t block = 0; block < row.size(); block += 32) {
        float largest = 0;
        for (std::size_t i = block; i < block + 32; ++i)
            largest = std::max(largest, static_cast<float>(std::fabs(row[i])));
        const double scale = from_half(to_half(largest / 127.0f));
        const float factor = scale > 0 ? 127.0f / largest : 0.0f;
        for (std::size_t i = block; i < block + 32; ++i) {
            const float steps = static_cast<float>(row[i]) * factor;
            out[i] = scale * std::nearbyint(steps);
        }
    }
    return out;
}

namespace {

std::string isa = "auto";

struct Destroy {
    void operator()(lluda_context *context) const { lluda_context_destroy(context); }
};

std::unique_ptr<lluda_context, Destroy> current;

}  // namespace

lluda_context *context() {
    if (!current) use_threads(0);
    return current.get();
}

void use_kernels(const char *name) {
    isa = name;
    use_threads(0);
}

void use_threads(int threads) {
    lluda_context *made = nullptr;
    check_ok(lluda_context_create(isa.c_str(), threads, &made));
    current.reset(made);
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
