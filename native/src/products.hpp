// A set of products that run together, their output features shared out among the lanes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <vector>

#include "context.hpp"

namespace lluda {

// In which ways rows are to be prepared, as the weights ask that they are multiplied with.
struct Preparation {
    Preparation() = default;
    Preparation(std::initializer_list<const lluda_weight *> weights) {
        for (const lluda_weight *weight : weights) serve(*weight);
    }
    void serve(const lluda_weight &weight) {
        (weight.format == LLUDA_FORMAT_Q8_0_ROWS ? rounded : exact) = true;
    }
    bool exact = false, rounded = false;
};

// Rows prepared for products (kernels.hpp), side by side in scratch memory.
class PreparedRows {
public:
    PreparedRows(Session &session, int rows, std::int64_t width, Preparation preparation);

    // Row `index` as a weight wants it.
    const void *row(int index, const lluda_weight &weight) const {
        return memory_ + index * stride_ + (weight.format == LLUDA_FORMAT_Q8_0_ROWS ? exact_bytes_ : 0);
    }
    // From `width` values, rounded to BF16.
    void prepare(int index, const float *x, std::int64_t width) const;
    void prepare(int index, const std::uint16_t *x, std::int64_t width) const;

    const Kernels &kernels() const { return kernels_; }

private:
    const Kernels &kernels_;
    const Preparation preparation_;
    const std::int64_t exact_bytes_, stride_;
    std::byte *memory_;
};

class Products {
public:
    // Of tasks of up to `rows` rows of this width.
    Products(Session &session, int rows, std::int64_t width);

    // y[r] = weight x[r] for `rows` rows, to be filled in by the caller through the returned task.
    LinearTask &add(const lluda_weight &weight, int rows, Store store);
    // All rows of x, outputs below each other with a row stride in elements.
    void add(const lluda_weight &weight, const PreparedRows &x, int rows, Store store, void *y, std::int64_t y_stride,
             const float *scale = nullptr);
    // Memory for this many, so that adding them in a job allocates nothing.
    void reserve(std::int64_t count) { entries_.reserve(static_cast<std::size_t>(count)); }

    // After the last add and before the lanes run it (or by one lane with a barrier after).
    void share(int lanes);
    // Does this lane's part.
    void run(const Lane &lane);

private:
    struct Entry {
        LinearTask task;
        std::int64_t first_tile;
        std::int64_t tile_rows;
    };
    // Tiles begin .. end-1, which are the entry's.
    void multiply(const Entry &entry, std::int64_t begin, std::int64_t end, const void *workspace) const;

    const Kernels &kernels_;
    const std::int64_t workspace_bytes_;  // of a lane
    std::byte *const workspaces_;
    std::vector<Entry> entries_;
    std::int64_t tiles_ = 0;
    WorkSplit split_;
};

}  // namespace lluda
