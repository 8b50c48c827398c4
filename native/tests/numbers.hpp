// Random numbers, BF16 and float64 truths for the tests.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <string>
#include <vector>

#include "lluda_native.h"

class Random {
public:
    explicit Random(std::uint64_t seed) : state_(seed * 2654435761u + 88172645463325252ull) {}
    std::uint64_t bits();
    int below(int limit) { return static_cast<int>(bits() >> 33) % limit; }
    float normal(float deviation);
    std::vector<float> normals(std::int64_t count, float deviation);
    std::vector<std::uint16_t> bf16_normals(std::int64_t count, float deviation);

private:
    std::uint64_t state_;
};

std::uint16_t to_bf16(float value);
float from_bf16(std::uint16_t bits);
double rounded(double value);  // to BF16 (through float32)

// 64-byte aligned bytes that end exactly where they are said to, so that the address sanitizer sees the first one
// beyond.
class Aligned {
public:
    explicit Aligned(std::int64_t bytes);
    ~Aligned() { std::free(memory_); }
    Aligned(const Aligned &) = delete;
    void *get() const { return memory_; }

private:
    void *memory_;
};

// A weight in both formats.
struct TestWeight {
    TestWeight(Random &random, std::int64_t out, std::int64_t in, float deviation = 0.05f, bool bias = false);
    explicit TestWeight(std::vector<std::uint16_t> values, std::int64_t out, std::int64_t in);
    double at(std::int64_t row, std::int64_t column) const {
        return from_bf16(values[static_cast<std::size_t>(row * plain.in_features + column)]);
    }
    // What a linear layer of float64 makes of a row.
    std::vector<double> times(const std::vector<double> &x) const;
    const lluda_weight *in(int format) const { return format == LLUDA_FORMAT_BF16 ? &plain : &packed; }

    std::vector<std::uint16_t> values;
    std::vector<float> bias;
    lluda_weight plain{}, packed{};

private:
    void pack();
    std::vector<std::byte> storage_;
};

// A Q8_0 weight that ends exactly at the end of its memory, and starts at an odd address.
struct Q8TestWeight {
    Q8TestWeight(Random &random, std::int64_t out, std::int64_t in, bool bias = false, float scale = 0.01f);
    // q * d, exact.
    double at(std::int64_t row, std::int64_t column) const;
    // What a linear layer of float64 makes of a row.
    std::vector<double> times(const std::vector<double> &x) const;
    const lluda_weight *in(int format) const { return format == LLUDA_FORMAT_Q8_0 ? &exact : &rounded; }

    lluda_weight exact{}, rounded{};

private:
    std::unique_ptr<std::uint8_t[]> memory_;
    std::vector<float> bias_;
};

double from_half(std::uint16_t bits);
std::uint16_t to_half(double value);  // nearest, ties to even
// A row of BF16 values rounded to Q8_0, as rows are that are multiplied with LLUDA_FORMAT_Q8_0_ROWS.
std::vector<double> rounded_to_q8(const std::vector<double> &row);

// What the tests compute with: the kernels that this program was started with, and so many threads.
lluda_context *context();
void use_kernels(const char *isa);  // throws if they cannot be had
void use_threads(int threads);

void check_code(int code, int expected, const std::string &what);
inline void check_ok(int code) { check_code(code, LLUDA_OK, "call"); }

// sqrt(sum (a-b)^2 / sum b^2), NaN if any is.
double relative_error(const std::vector<double> &actual, const std::vector<double> &truth);
void expect_close(const std::vector<double> &actual, const std::vector<double> &truth, double limit,
                  const std::string &what);

// RMSNorm in float64, rounded to BF16.
std::vector<double> normed(const float *x, const std::vector<float> &weight, double eps);
double silu(double x);
