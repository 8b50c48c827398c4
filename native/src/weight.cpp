#include "weight.hpp"

#include <cstddef>
#include <string>

#include "failure.hpp"
#include "packed_layout.hpp"

namespace lluda {
namespace {

[[noreturn]] void refuse(const char *name, const std::string &what) {
    throw Failure{LLUDA_BAD_ARGUMENT, std::string("weight ") + name + ' ' + what};
}

std::string shape(std::int64_t out, std::int64_t in) {
    return '[' + std::to_string(out) + ", " + std::to_string(in) + ']';
}

}  // namespace

void check_weight(const lluda_weight *weight, const char *name) {
    if (!weight) refuse(name, "is NULL");
    const lluda_weight &w = *weight;
    const bool packed = w.format == LLUDA_FORMAT_PACKED_BF16;
    if (!packed && w.format != LLUDA_FORMAT_BF16) refuse(name, "has unknown format " + std::to_string(w.format));
    if (w.out_features < 0 || w.in_features < 1 || w.in_features > INT32_MAX || w.out_features > INT32_MAX)
        refuse(name, "has shape " + shape(w.out_features, w.in_features) + ", must be 0 .. 2^31 - 1 by 1 .. 2^31 - 1");
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
    return weight.format == LLUDA_FORMAT_PACKED_BF16 ? blocks_per_row(weight.in_features) * kBlockBytes
                                                     : weight.in_features * 2;
}

const void *weight_row(const lluda_weight &weight, std::int64_t output) {
    return static_cast<const std::byte *>(weight.values) + output * row_bytes(weight);
}

}  // namespace lluda
