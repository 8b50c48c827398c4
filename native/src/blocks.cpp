#include "blocks.hpp"

namespace lluda {

void check_rows(std::int64_t rows) { require_size("rows", rows, 0); }

void check_rows(std::int64_t rows, const float *x, std::int64_t x_stride, std::int64_t width) {
    check_rows(rows);
    if (rows == 0) return;
    require(x, "x must not be NULL");
    check_stride("x_stride", rows, x_stride, width);
}

std::int64_t total_rows(std::int64_t runs, const std::int64_t *lengths) {
    require(runs >= 0, "runs", runs, "0 or more");
    require(runs == 0 || lengths, "lengths must not be NULL");
    std::int64_t total = 0;
    for (std::int64_t i = 0; i < runs; ++i) {
        check_rows(lengths[i]);
        total += lengths[i];
        check_rows(total);
    }
    return total;
}

void check_stride(const char *name, std::int64_t rows, std::int64_t stride, std::int64_t width) {
    require(rows <= 1 || (stride >= width && stride <= LLUDA_MOST), name, stride, "from the width of a row to 2^31 - 1");
}

void norm_and_prepare(const Lane &lane, int rows, const float *x, std::int64_t x_stride, const float *norm, float eps,
                      std::int64_t width, float *normed, const PreparedRows &prepared) {
    const Kernels &kernels = prepared.kernels();
    for (int r = lane.index; r < rows; r += lane.count) {
        float *row = normed + r * width;
        kernels.rms_norm(x + r * x_stride, norm, width, eps, row);
        kernels.round_to_bf16(row, width);
        prepared.prepare(r, row, width);
    }
}

}  // namespace lluda
