#include "blocks.hpp"

namespace lluda {

void check_rows(std::int64_t rows) { require(rows >= 0, "rows", rows, "0 or more"); }

void check_rows(std::int64_t rows, const float *x, std::int64_t x_stride, std::int64_t width) {
    check_rows(rows);
    if (rows == 0) return;
    require(x, "x must not be NULL");
    require(rows == 1 || x_stride >= width, "x_stride", x_stride, "at least the width of a row");
}

void norm_and_prepare(const Lane &lane, int rows, const float *x, std::int64_t x_stride, const float *norm, float eps,
                      std::int64_t width, float *normed, const PreparedRows &prepared) {
    for (int r = lane.index; r < rows; r += lane.count) {
        float *row = normed + r * width;
        kernels().rms_norm(x + r * x_stride, norm, width, eps, row);
        kernels().round_to_bf16(row, width);
        prepared.prepare(r, row, width);
    }
}

}  // namespace lluda
