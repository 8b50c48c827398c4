// lluda_linear, lluda_linear_group and lluda_embedding.
#include <string>
#include <vector>

#include "blocks.hpp"
#include "panel.hpp"

using namespace lluda;

namespace {

struct Group {
    int64_t count;
    const lluda_weight *const *weights;
    int64_t x_stride;
    Store store;
    const int64_t *y_strides;
};

void run_few(lluda_context &context, const Group &group, int64_t rows, const uint16_t *x, void *const *y) {
    Session session(context);
    const int n = static_cast<int>(rows);
    const int64_t width = group.weights[0]->in_features;
    Preparation needed;
    for (int64_t i = 0; i < group.count; ++i) needed.serve(*group.weights[i]);
    const PreparedRows prepared(session, n, width, needed);
    Products products(session, n, width);
    for (int64_t i = 0; i < group.count; ++i)
        products.add(*group.weights[i], prepared, n, group.store, y[i], group.y_strides[i]);
    products.share(session.threads());
    session.run([&](Lane &lane) {
        for (int r = lane.index; r < n; r += lane.count)
            prepared.prepare(r, x + r * group.x_stride, width);
        lane.barrier();
        products.run(lane);
    });
}

void run_many(lluda_context &context, const Group &group, int64_t rows, const uint16_t *x, void *const *y) {
    Session session(context);
    const int64_t width = group.weights[0]->in_features;
    const std::vector<PanelPacker> packers = panel_packers(session, width);
    const Panel input(session, rows, width);
    PanelProducts products(session, rows, width);
    for (int64_t i = 0; i < group.count; ++i)
        products.add(*group.weights[i], input, group.store, y[i], group.y_strides[i]);
    products.share(session.threads());
    session.run([&](Lane &lane) {
        for (int64_t part = lane.index; part < input.groups(); part += lane.count)
            packers[static_cast<std::size_t>(lane.index)].pack_bf16(input, part, x, group.x_stride);
        lane.barrier();
        products.run(lane);
    });
}

}  // namespace

int lluda_linear_group(lluda_context *context, int64_t count, const lluda_weight *const *weights, int64_t rows,
                       const uint16_t *x, int64_t x_stride, void *const *y, int32_t y_dtype, const int64_t *y_strides) {
    return guarded([&] {
        lluda_context &c = checked(context);
        require(count >= 1 && count <= 64, "count", count, "1 .. 64");
        require(weights && y && y_strides, "weights, y and y_strides must not be NULL");
        check_rows(rows);
        require(y_dtype == LLUDA_DTYPE_F32 || y_dtype == LLUDA_DTYPE_BF16, "y_dtype", y_dtype, "F32 or BF16");
        check_weight(weights[0], "0");
        const int64_t width = weights[0]->in_features;
        for (int64_t i = 0; i < count; ++i) {
            check_weight(weights[i], std::to_string(i).c_str());
            require(weights[i]->in_features == width, "in_features", weights[i]->in_features, "that of weight 0");
            require(y[i] || rows == 0 || weights[i]->out_features == 0, "an output y[i] is NULL");
            check_stride("y_stride", rows, y_strides[i], weights[i]->out_features);
        }
        if (rows == 0) return;
        require(x, "x must not be NULL");
        check_stride("x_stride", rows, x_stride, width);

        const Group group{count, weights, x_stride, y_dtype == LLUDA_DTYPE_BF16 ? Store::kBFloat16 : Store::kFloat,
                          y_strides};
        const int64_t element = y_dtype == LLUDA_DTYPE_BF16 ? 2 : 4;
        for_rows(rows, [&](int64_t from, int64_t part) {
            std::vector<void *> outputs(static_cast<std::size_t>(count));
            for (int64_t i = 0; i < count; ++i)
                if (y[i]) outputs[i] = static_cast<std::byte *>(y[i]) + from * y_strides[i] * element;
            (part > kFewRows ? run_many : run_few)(c, group, part, x + from * x_stride, outputs.data());
        });
    });
}

int lluda_linear(lluda_context *context, const lluda_weight *weight, int64_t rows, const uint16_t *x, int64_t x_stride, void *y,
                 int32_t y_dtype, int64_t y_stride) {
    return lluda_linear_group(context, 1, &weight, rows, x, x_stride, &y, y_dtype, &y_stride);
}

int lluda_embedding(lluda_context *context, const lluda_weight *table, int64_t count, const int64_t *ids, float *y,
                    int64_t y_stride) {
    return guarded([&] {
        lluda_context &c = checked(context);
        check_weight(table, "table");
        require_size("count", count, 0);
        check_stride("y_stride", count, y_stride, table->in_features);
        require(count == 0 || (ids && y), "ids and y must not be NULL");
        for (int64_t i = 0; i < count; ++i)
            require(ids[i] >= 0 && ids[i] < table->out_features, "an id", ids[i], "0 .. out_features - 1");
        for (int64_t i = 0; i < count; ++i) widen_row(c.kernels, *table, ids[i], y + i * y_stride);
    });
}
