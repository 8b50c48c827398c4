// lluda_conv1d and lluda_snake_beta: what a vocoder is made of.
#include <algorithm>
#include <numeric>
#include <vector>

#include "blocks.hpp"
#include "panel.hpp"

using namespace lluda;

namespace {

constexpr std::int64_t kSnakeRows = 8;  // of one item of work

// Streams whose rows are made in turn: their numbers of rows, and their inputs.
struct Runs {
    std::int64_t count;
    const std::int64_t *lengths;
    const std::uint16_t *const *x;

    std::int64_t rows() const { return std::accumulate(lengths, lengths + count, std::int64_t{0}); }
    // Where row r's window begins.
    const std::uint16_t *at(std::int64_t r, std::int64_t stride) const {
        std::int64_t run = 0;
        for (; r >= lengths[run]; ++run) r -= lengths[run];
        return x[run] + r * stride;
    }
};

// Output row r of a run is made of the window of `taps` input rows r, r + dilation, … below each other.
struct Windows {
    Runs runs;
    std::int64_t x_stride, channels, taps, dilation;

    std::int64_t width() const { return taps * channels; }
    // Row r's window: where it lies, or put together in `buffer`.
    const std::uint16_t *at(std::int64_t r, std::uint16_t *buffer) const {
        const std::uint16_t *x = runs.at(r, x_stride);
        if (taps == 1 || (dilation == 1 && x_stride == channels)) return x;
        for (std::int64_t tap = 0; tap < taps; ++tap)
            std::copy_n(x + tap * dilation * x_stride, channels, buffer + tap * channels);
        return buffer;
    }
};

struct Output {
    std::byte *y;
    Store store;  // kFloat or kBFloat16
    std::int64_t y_stride;

    std::int64_t element() const { return store == Store::kFloat ? 4 : 2; }
    void *at(std::int64_t row, std::int64_t feature = 0) const { return y + (row * y_stride + feature) * element(); }
};

// Up to kFewRows rows: one pass over the weights at the speed of memory.
void convolve_few(lluda_context &context, const lluda_weight &weight, const Windows &windows, std::int64_t rows, const Output &out) {
    Session session(context);
    const int n = static_cast<int>(rows);
    const PreparedRows prepared(session, n, windows.width(), {&weight});
    std::vector<std::uint16_t *> buffers;
    for (int i = 0; i < session.threads(); ++i) buffers.push_back(session.allocate<std::uint16_t>(windows.width()));
    Products products(session, n, windows.width());
    products.add(weight, prepared, n, out.store, out.y, out.y_stride);
    products.share(session.threads());
    session.run([&](Lane &lane) {
        std::uint16_t *buffer = buffers[static_cast<std::size_t>(lane.index)];
        for (int r = lane.index; r < n; r += lane.count)
            prepared.prepare(r, windows.at(r, buffer), windows.width());
        lane.barrier();
        products.run(lane);
    });
}

// One lane's memory for packing windows.
struct WindowPacker {
    WindowPacker(Session &session, std::int64_t width)
        : kernels(session.kernels()), packer(session, width), window(session.allocate<std::uint16_t>(width)) {}

    void pack_rows(const Panel &panel, std::int64_t group, const Windows &windows, std::int64_t first) const {
        const void *rows[kPanelRows];
        const std::int64_t begin = group * kPanelRows;
        const int count = static_cast<int>(std::min<std::int64_t>(kPanelRows, panel.rows - begin));
        for (int r = 0; r < count; ++r) {
            kernels.words_of_bf16(windows.at(first + begin + r, window), windows.width(), packer.row(r));
            rows[r] = packer.row(r);
        }
        panel.pack_rows(group, rows, count);
    }

    const Kernels &kernels;
    PanelPacker packer;
    std::uint16_t *window;
};

std::vector<WindowPacker> window_packers(Session &session, std::int64_t width) {
    std::vector<WindowPacker> packers;
    for (int i = 0; i < session.threads(); ++i) packers.emplace_back(session, width);
    return packers;
}

// All rows in one panel, the output features shared out: each weight is read once.
void convolve_by_features(lluda_context &context, const lluda_weight &weight, const Windows &windows,
                          std::int64_t from, std::int64_t rows, const Output &out) {
    Session session(context);
    const auto packers = window_packers(session, windows.width());
    const Panel input(session, rows, windows.width());
    PanelProducts products(session, rows, windows.width());
    products.add(weight, input, out.store, out.at(from), out.y_stride);
    products.share(session.threads());
    session.run([&](Lane &lane) {
        for (std::int64_t group = lane.index; group < input.groups(); group += lane.count)
            packers[static_cast<std::size_t>(lane.index)].pack_rows(input, group, windows, from);
        lane.barrier();
        products.run(lane);
    });
}

// The rows shared out tile by tile, all features of a tile by one lane: its windows never leave the cache.
class ConvolutionByRows {
public:
    ConvolutionByRows(Session &session, const lluda_weight &weight, const Windows &windows, std::int64_t rows,
                      const Output &out)
        : kernels_(session.kernels()), weight_(weight), windows_(windows), rows_(rows), out_(out), packers_(window_packers(session, windows.width())) {
        for (int i = 0; i < session.threads(); ++i) {
            tiles_.push_back(session.allocate<std::uint32_t>(kernels_.words(windows.width()) * kTileRows));
            blocks_.emplace_back(session, kTileRows, windows.width());
        }
        split_.reset((rows + kTileRows - 1) / kTileRows, session.threads());
    }

    void operator()(Lane &lane) {
        const auto index = static_cast<std::size_t>(lane.index);
        for (std::int64_t tile, end; split_.take(lane.index, tile, end);)
            for (; tile < end; ++tile) {
                const std::int64_t first = tile * kTileRows;
                const Panel panel(kernels_, tiles_[index], std::min<std::int64_t>(kTileRows, rows_ - first), windows_.width());
                for (std::int64_t group = 0; group < panel.groups(); ++group)
                    packers_[index].pack_rows(panel, group, windows_, first);
                for (std::int64_t begin = 0; begin < weight_.out_features; begin += kBlockOutputs)
                    multiply(panel, first, begin, blocks_[index]);
            }
    }

private:
    void multiply(const Panel &panel, std::int64_t first, std::int64_t begin, const BlockWorkspace &workspace) const {
        const OutputBlock block{&weight_, begin, std::min(begin + kBlockOutputs, weight_.out_features)};
        workspace.multiply(&block, 1, panel, [&](std::int64_t, float *sums) {
            void *y[kTileRows];
            for (std::int64_t r = 0; r < panel.rows; ++r) y[r] = out_.at(first + r, begin);
            kernels_.put_tile({sums, static_cast<int>(block.end - begin), static_cast<int>(panel.rows),
                                weight_.bias ? weight_.bias + begin : nullptr, nullptr, nullptr, out_.store, y});
        });
    }

    const Kernels &kernels_;
    const lluda_weight &weight_;
    const Windows &windows_;
    const std::int64_t rows_;
    const Output &out_;
    const std::vector<WindowPacker> packers_;
    std::vector<std::uint32_t *> tiles_;
    std::vector<BlockWorkspace> blocks_;
    WorkSplit split_;
};

void convolve_many(lluda_context &context, const lluda_weight &weight, const Windows &windows, std::int64_t rows,
                   const Output &out) {
    {
        Session session(context);
        if ((rows + kTileRows - 1) / kTileRows >= 2 * session.threads()) {
            ConvolutionByRows job(session, weight, windows, rows, out);
            return session.run(job);
        }
    }
    for_rows(rows, [&](std::int64_t from, std::int64_t count) {
        convolve_by_features(context, weight, windows, from, count, out);
    });
}

// The first runs of these that can be made together. Sums are in another order for few rows than for many, so a run
// shares its products only with runs that would be made in the same way alone.
Runs alike(const Runs &runs) {
    const bool few = runs.lengths[0] <= kFewRows;
    std::int64_t count = 1, rows = runs.lengths[0];
    for (; count < runs.count && (runs.lengths[count] <= kFewRows) == few; ++count) {
        rows += runs.lengths[count];
        if (few && rows > kFewRows) break;
    }
    return {count, runs.lengths, runs.x};
}

void convolve(lluda_context &context, const lluda_weight &weight, const Windows &windows, Output out) {
    for (Runs left = windows.runs; left.count > 0;) {
        Windows part = windows;
        part.runs = alike(left);
        const std::int64_t rows = part.runs.rows();
        if (part.runs.lengths[0] > kFewRows) {
            convolve_many(context, weight, part, rows, out);
        } else if (rows > 0) {
            convolve_few(context, weight, part, rows, out);
        }
        left = {left.count - part.runs.count, left.lengths + part.runs.count, left.x + part.runs.count};
        out.y = static_cast<std::byte *>(out.at(rows));
    }
}

void check_inputs(const Windows &windows) {
    const std::int64_t context = (windows.taps - 1) * windows.dilation;
    for (std::int64_t i = 0; i < windows.runs.count; ++i) {
        const std::int64_t rows = windows.runs.lengths[i];
        if (rows == 0) continue;
        require(windows.runs.x[i], "a run's x must not be NULL");
        check_stride("x_stride", rows + context, windows.x_stride, windows.channels);
    }
}

}  // namespace

int lluda_conv1d(lluda_context *context, const lluda_weight *weight, int64_t taps, int64_t dilation, int64_t runs,
                 const int64_t *lengths, const uint16_t *const *x, int64_t x_stride, void *y, int32_t y_dtype,
                 int64_t y_stride) {
    return guarded([&] {
        lluda_context &c = checked(context);
        check_weight(weight, "weight");
        require_size("taps", taps);
        require_size("dilation", dilation);
        require_size("taps * dilation", taps * dilation);
        require(weight->in_features % taps == 0, "in_features", weight->in_features, "a multiple of taps");
        require(y_dtype == LLUDA_DTYPE_F32 || y_dtype == LLUDA_DTYPE_BF16, "y_dtype", y_dtype, "F32 or BF16");
        const int64_t rows = total_rows(runs, lengths);
        if (rows == 0) return;
        require(x && y, "x and y must not be NULL");
        const Windows windows{{runs, lengths, x}, x_stride, weight->in_features / taps, taps, dilation};
        check_inputs(windows);
        check_stride("y_stride", rows, y_stride, weight->out_features);
        const Store store = y_dtype == LLUDA_DTYPE_F32 ? Store::kFloat : Store::kBFloat16;
        convolve(c, *weight, windows, {static_cast<std::byte *>(y), store, y_stride});
    });
}

int lluda_snake_beta(lluda_context *context, int64_t rows, int64_t channels, const void *x, int32_t x_dtype,
                     int64_t x_stride, const float *frequency, const float *amplitude, uint16_t *y, int64_t y_stride) {
    return guarded([&] {
        lluda_context &c = checked(context);
        check_rows(rows);
        require_size("channels", channels);
        require(x_dtype == LLUDA_DTYPE_F32 || x_dtype == LLUDA_DTYPE_BF16, "x_dtype", x_dtype, "F32 or BF16");
        require(frequency && amplitude, "frequency and amplitude must not be NULL");
        if (rows == 0) return;
        require(x && y, "x and y must not be NULL");
        check_stride("x_stride", rows, x_stride, channels);
        check_stride("y_stride", rows, y_stride, channels);
        Session session(c);
        std::vector<float *> buffers;
        for (int i = 0; i < session.threads(); ++i) buffers.push_back(session.allocate<float>(channels));
        WorkSplit split;
        split.reset((rows + kSnakeRows - 1) / kSnakeRows, session.threads());
        session.run([&](Lane &lane) {
            float *buffer = buffers[static_cast<std::size_t>(lane.index)];
            for (std::int64_t item, end; split.take(lane.index, item, end);)
                for (std::int64_t r = item * kSnakeRows; r < std::min(end * kSnakeRows, rows); ++r) {
                    const float *row = static_cast<const float *>(x) + r * x_stride;
                    if (x_dtype == LLUDA_DTYPE_BF16) {
                        c.kernels.from_bf16(static_cast<const std::uint16_t *>(x) + r * x_stride, channels, buffer);
                        row = buffer;
                    }
                    c.kernels.snake_beta(row, frequency, amplitude, channels, y + r * y_stride);
                }
        });
    });
}
