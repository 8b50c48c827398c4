// Checks of weight descriptors.
#pragma once

#include <cstdint>

#include "kernels.hpp"

namespace lluda {

// Throws Failure unless the descriptor can be multiplied with. `name` goes into messages.
void check_weight(const lluda_weight *weight, const char *name);
// And has this shape.
void check_weight(const lluda_weight *weight, const char *name, std::int64_t out_features, std::int64_t in_features);

inline bool is_q8_0(const lluda_weight &weight) {
    return weight.format == LLUDA_FORMAT_Q8_0 || weight.format == LLUDA_FORMAT_Q8_0_ROWS;
}

// Bytes a kernel reads for one output feature: what work is measured in.
std::int64_t row_bytes(const lluda_weight &weight);
// Where those of `output` begin (or would, after the last).
const void *weight_row(const lluda_weight &weight, std::int64_t output);
// Its exact values.
void widen_row(const Kernels &kernels, const lluda_weight &weight, std::int64_t row, float *out);

}  // namespace lluda
