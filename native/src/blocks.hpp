// What the blocks of a decoder layer share: checks, and the norm that every block begins with.
#pragma once

#include "failure.hpp"
#include "products.hpp"
#include "thread_pool.hpp"
#include "weight.hpp"

namespace lluda {

void check_rows(std::int64_t rows);
// And the rows themselves, unless there are none.
void check_rows(std::int64_t rows, const float *x, std::int64_t x_stride, std::int64_t width);

// This lane's share of: RMSNorm of the rows of x, rounded to BF16 and prepared for products. `normed` F32 [rows, width]
// keeps the normalised rows, rounded to BF16.
void norm_and_prepare(const Lane &lane, int rows, const float *x, std::int64_t x_stride, const float *norm, float eps,
                      float *normed, const PreparedRows &prepared);

}  // namespace lluda
