// A set of products that run together, their output features shared out among the lanes.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels.hpp"
#include "thread_pool.hpp"

namespace lluda {

// Rows prepared for products (kernels.hpp), side by side in scratch memory.
struct PreparedRows {
    PreparedRows(Session &session, int rows, std::int64_t width);
    std::byte *row(int index) const { return memory + index * bytes; }

    std::byte *memory;
    std::int64_t bytes;  // from one row to the next
    std::int64_t width;
};

class Products {
public:
    explicit Products(int lanes) { split_.reset(0, lanes); }

    // y[r] = weight x[r] for `rows` rows, to be filled in by the caller through the returned task.
    LinearTask &add(const lluda_weight &weight, int rows, Store store);
    // All rows of x, outputs below each other with a row stride in elements.
    void add(const lluda_weight &weight, const PreparedRows &x, int rows, Store store, void *y, std::int64_t y_stride,
             const float *scale = nullptr);
    // Room for this many, so that adding them in a job allocates nothing.
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
    std::vector<Entry> entries_;
    std::int64_t tiles_ = 0;
    WorkSplit split_;
};

}  // namespace lluda
