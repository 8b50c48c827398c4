#include "weight.hpp"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstring>
#include <string>

#include "failure.hpp"
#include "kernels.hpp"
#include "packed_layout.hpp"
#include "packed_tensor.hpp"
#include "q8_layout.hpp"

namespace lluda {
namespace {

[[noreturn]] void refuse(const char *name, const std::string &what) {
    throw Failure{LLUDA_BAD_ARGUMENT, std::string("weight ") + name + ' ' + what};
}

std::string shape(std::int64_t out, std::int64_t in) {
    return '[' + std::to_string(out) + ", " + std::to_string(in) + ']';
}

// The float16 at `p`.
float half_value(const std::uint8_t *p) {
    std::uint16_t half;
    std::memcpy(&half, p, 2);
    const int exponent = half >> 10 & 31, fraction = half & 1023;
    float size = std::ldexp(static_cast<float>(exponent == 0 ? fraction : fraction + 1024), std::max(exponent, 1) - 25);
    if (exponent == 31) size = fraction == 0 ? INFINITY : NAN;
    return half & 0x8000u ? -size : size;
}

}  // namespace

void check_weight(const lluda_weight *weight, const char *name) {
    if (!weight) refuse(name, "is NULL");
    const lluda_weight &w = *weight;
    const bool packed = w.format == LLUDA_FORMAT_PACKED_BF16;
    if (w.format < LLUDA_FORMAT_BF16 || w.format > LLUDA_FORMAT_Q8_0_ROWS)
        refuse(name, "has unknown format " + std::to_string(w.format));
    if (w.out_features < 0 || w.in_features < 1 || w.in_features > INT32_MAX || w.out_features > INT32_MAX)
        refuse(name, "has shape " + shape(w.out_features, w.in_features) + ", must be 0 .. 2^31 - 1 by 1 .. 2^31 - 1");
    if (is_q8_0(w) && w.in_features % kQ8Weights != 0)
        refuse(name, "is Q8_0 of " + std::to_string(w.in_features) + " in_features, must be a multiple of 32");
    if (!w.values && w.out_features > 0) refuse(name, "has no values");
    if (packed && (!w.exponents || !w.escape_rows)) refuse(name, "is packed but has no exponents or escape_rows");
    if (packed && w.escape_rows[w.out_features] > 0 && (!w.escape_columns || !w.escape_values))
        refuse(name, "has escapes but no columns or values of them");
}

void check_weight(const lluda_weight *weight, const char *name, std::int64_t out_features, std::int64_t in_features) {
    check_weight(weight, name);
    if (weight->out_features != out_features || weight->in_features != in_features)
        refuse(name, "has shape " + shape(weight->out_features, weight->in_features) + ", must be " +
                         shape(out_features, in_features));
}

std::int64_t row_bytes(const lluda_weight &weight) {
    if (is_q8_0(weight)) return weight.in_features / kQ8Weights * kQ8Bytes;
    return weight.format == LLUDA_FORMAT_PACKED_BF16 ? blocks_per_row(weight.in_features) * kBlockBytes
                                                     : weight.in_features * 2;
}

const void *weight_row(const lluda_weight &weight, std::int64_t output) {
    return static_cast<const std::byte *>(weight.values) + output * row_bytes(weight);
}

void widen_row(const Kernels &kernels, const lluda_weight &weight, std::int64_t row, float *out) {
    if (!is_q8_0(weight)) {
        // The values come to the end of the output and are widened from its front.
        auto *halves = reinterpret_cast<std::uint16_t *>(out) + weight.in_features;
        unpack_rows(weight, row, row + 1, halves);
        return kernels.from_bf16(halves, weight.in_features, out);
    }
    const auto *block = static_cast<const std::uint8_t *>(weight_row(weight, row));
    for (std::int64_t at = 0; at < weight.in_features; at += kQ8Weights, block += kQ8Bytes) {
        const auto *q = reinterpret_cast<const std::int8_t *>(block + kQ8Values);
        const float scale = half_value(block);
        for (int i = 0; i < kQ8Weights; ++i) out[at + i] = scale * static_cast<float>(q[i]);
    }
}

}  // namespace lluda
