// lluda_convnext_block: x += gamma * pwconv2(gelu(pwconv1(norm(dwconv(x))))).
#include <algorithm>
#include <vector>

#include "blocks.hpp"

using namespace lluda;

namespace {

void check(const lluda_convnext *block) {
    require(block, "block must not be NULL");
    require_size("channels", block->channels);
    require_size("inner", block->inner);
    require_size("taps", block->taps);
    require_size("taps * channels", block->taps * block->channels);
    require(block->dwconv && block->dwconv_bias && block->norm && block->norm_bias && block->gamma,
            "dwconv, its bias, norm, its bias and gamma must not be NULL");
    check_weight(block->pwconv1, "pwconv1", block->inner, block->channels);
    check_weight(block->pwconv2, "pwconv2", block->channels, block->inner);
}

// The rows of some streams below each other.
class Streams {
public:
    Streams(const lluda_convnext &block, std::int64_t runs, const std::int64_t *lengths, float *x, std::int64_t x_stride,
            float *const *kept)
        : b_(block), context_(block.taps - 1), x_stride_(x_stride) {
        for (std::int64_t i = 0; i < runs; ++i) {
            for (std::int64_t r = 0; r < lengths[i]; ++r) places_.push_back({x, kept ? kept[i] : nullptr, r});
            x += lengths[i] * x_stride;
        }
    }

    std::int64_t rows() const { return static_cast<std::int64_t>(places_.size()); }

    // Row r of `out` [rows, channels]: norm(dwconv(x)), rounded to BF16.
    void normalise(const Kernels &kernels, std::int64_t r, float *buffer, std::uint16_t *out) const {
        const Place &place = places_[static_cast<std::size_t>(r)];
        std::copy_n(b_.dwconv_bias, b_.channels, buffer);
        for (std::int64_t tap = 0; tap < b_.taps; ++tap)
            kernels.add_scaled(buffer, input(place, place.row + tap - context_), b_.dwconv + tap * b_.channels, 1.0f,
                               b_.channels);
        kernels.layer_norm(buffer, b_.norm, b_.norm_bias, b_.channels, b_.norm_eps, buffer);
        kernels.to_bf16(buffer, b_.channels, out + r * b_.channels);
    }

    // The last rows of each stream, before they are changed.
    void keep() const {
        std::vector<float> later(static_cast<std::size_t>(context_ * b_.channels));
        for (std::size_t r = 0; r < places_.size(); ++r) {
            const bool is_last = r + 1 == places_.size() || places_[r + 1].x != places_[r].x;
            if (!is_last || context_ == 0) continue;
            for (std::int64_t i = 0; i < context_; ++i)
                std::copy_n(input(places_[r], places_[r].row + 1 + i - context_), b_.channels, later.data() + i * b_.channels);
            std::copy(later.begin(), later.end(), places_[r].kept);
        }
    }

    void add(const Kernels &kernels, const float *branch) const {
        for (std::int64_t r = 0; r < rows(); ++r) {
            const Place &place = places_[static_cast<std::size_t>(r)];
            kernels.add_scaled(place.x + place.row * x_stride_, branch + r * b_.channels, b_.gamma, 1.0f, b_.channels);
        }
    }

private:
    struct Place {
        float *x, *kept;  // of its stream
        std::int64_t row;
    };

    const float *input(const Place &place, std::int64_t row) const {
        return row < 0 ? place.kept + (context_ + row) * b_.channels : place.x + row * x_stride_;
    }

    const lluda_convnext &b_;
    const std::int64_t context_, x_stride_;
    std::vector<Place> places_;
};

// body(kernels, r, buffer) for each row by one of the threads, with a buffer of `width` floats.
template <class Body>
void for_each_row(lluda_context &context, std::int64_t rows, std::int64_t width, Body &&body) {
    Session session(context);
    std::vector<float *> buffers;
    for (int i = 0; i < session.threads(); ++i) buffers.push_back(session.allocate<float>(width));
    session.run([&](Lane &lane) {
        for (std::int64_t r = lane.index; r < rows; r += lane.count)
            body(session.kernels(), r, buffers[static_cast<std::size_t>(lane.index)]);
    });
}

// Products of the streams' rows, as those of a convolution of one tap.
int multiply(lluda_context *context, const lluda_weight &weight, std::int64_t runs, const std::int64_t *lengths,
             const std::vector<std::uint16_t> &rows, std::vector<float> &y) {
    std::vector<const std::uint16_t *> inputs;
    const std::uint16_t *x = rows.data();
    for (std::int64_t i = 0; i < runs; ++i) {
        inputs.push_back(x);
        x += lengths[i] * weight.in_features;
    }
    return lluda_conv1d(context, &weight, 1, 1, runs, lengths, inputs.data(), weight.in_features, y.data(),
                        LLUDA_DTYPE_F32, weight.out_features);
}

int run(lluda_context &context, const lluda_convnext &block, std::int64_t runs, const std::int64_t *lengths,
        const Streams &streams) {
    const auto rows = static_cast<std::size_t>(streams.rows());
    const auto channels = static_cast<std::size_t>(block.channels), inner = static_cast<std::size_t>(block.inner);
    std::vector<std::uint16_t> normed(rows * channels), activated(rows * inner);
    std::vector<float> wide(rows * inner), branch(rows * channels);
    for_each_row(context, streams.rows(), block.channels, [&](const Kernels &kernels, std::int64_t r, float *buffer) {
        streams.normalise(kernels, r, buffer, normed.data());
    });
    const int widened = multiply(&context, *block.pwconv1, runs, lengths, normed, wide);
    if (widened != LLUDA_OK) return widened;
    for_each_row(context, streams.rows(), 0, [&](const Kernels &kernels, std::int64_t r, float *) {
        kernels.gelu(wide.data() + r * block.inner, block.inner, activated.data() + r * block.inner);
    });
    const int narrowed = multiply(&context, *block.pwconv2, runs, lengths, activated, branch);
    if (narrowed != LLUDA_OK) return narrowed;
    streams.keep();
    streams.add(context.kernels, branch.data());
    return LLUDA_OK;
}

}  // namespace

int lluda_convnext_block(lluda_context *context, const lluda_convnext *block, int64_t runs, const int64_t *lengths,
                         float *x, int64_t x_stride, float *const *kept) {
    int made = LLUDA_OK;
    const int refused = guarded([&] {
        lluda_context &c = checked(context);
        check(block);
        const std::int64_t rows = total_rows(runs, lengths);
        check_rows(rows, x, x_stride, block->channels);
        require(kept || rows == 0 || block->taps == 1, "kept must not be NULL");
        for (std::int64_t i = 0; kept && i < runs; ++i)
            require(kept[i] || lengths[i] == 0 || block->taps == 1, "a run's kept must not be NULL");
        if (rows == 0) return;
        made = run(c, *block, runs, lengths, Streams(*block, runs, lengths, x, x_stride, kept));
    });
    return refused != LLUDA_OK ? refused : made;
}
