// lluda_mono_convolution_block: y = conv(snake(x)) to one channel, cut off at one: what a vocoder's samples are made by.
//
// A lane activates its rows and those that their windows reach back into, so that no lane waits for another: the windows
// of rows side by side overlap, and a window is one dot product.
#include <algorithm>
#include <vector>

#include "blocks.hpp"

using namespace lluda;

namespace {

constexpr std::int64_t kItemRows = 128;  // of a lane at a time

void check(const lluda_mono_convolution *convolution) {
    require(convolution, "convolution must not be NULL");
    require_size("channels", convolution->channels);
    require_size("taps", convolution->taps);
    require_size("taps * channels", convolution->taps * convolution->channels);
    require(convolution->frequency && convolution->amplitude && convolution->weight && convolution->bias,
            "frequency, amplitude, weight and bias must not be NULL");
}

// Rows of one stream.
class MonoRun {
public:
    MonoRun(Session &session, const lluda_mono_convolution &convolution, std::int64_t rows, const float *x,
            std::int64_t x_stride, std::uint16_t *kept, float *y)
        : kernels_(session.kernels()),
          c_(convolution),
          rows_(rows),
          context_(convolution.taps - 1),
          x_(x),
          x_stride_(x_stride),
          kept_(kept),
          y_(y) {
        split_.reset((rows + kItemRows - 1) / kItemRows, session.threads());
        for (int i = 0; i < session.threads(); ++i) {
            halves_.push_back(session.allocate<std::uint16_t>(c_.channels));
            windows_.push_back(session.allocate<float>((context_ + kItemRows) * c_.channels));
        }
        later_ = session.allocate<std::uint16_t>(context_ * c_.channels);
    }

    // Then, behind a barrier, finish.
    void run(Lane &lane) {
        const auto index = static_cast<std::size_t>(lane.index);
        for (std::int64_t item, end; split_.take(lane.index, item, end);)
            for (; item < end; ++item)
                convolve(item * kItemRows, std::min(rows_, (item + 1) * kItemRows), halves_[index], windows_[index]);
        if (lane.index == 0)
            for (std::int64_t i = 0; i < context_; ++i) activate(rows_ - context_ + i, later_ + i * c_.channels);
    }

    void finish() const { std::copy_n(later_, context_ * c_.channels, kept_); }

private:
    // The activated row `row`; before the first, one that was kept.
    void activate(std::int64_t row, std::uint16_t *out) const {
        if (row < 0) {
            std::copy_n(kept_ + (context_ + row) * c_.channels, c_.channels, out);
        } else {
            kernels_.snake_beta(x_ + row * x_stride_, c_.frequency, c_.amplitude, c_.channels, out);
        }
    }

    void convolve(std::int64_t begin, std::int64_t end, std::uint16_t *half, float *window) const {
        for (std::int64_t row = begin - context_; row < end; ++row) {
            activate(row, half);
            kernels_.from_bf16(half, c_.channels, window + (row - begin + context_) * c_.channels);
        }
        for (std::int64_t row = begin; row < end; ++row, window += c_.channels)
            y_[row] = std::clamp(kernels_.dot(window, c_.weight, c_.taps * c_.channels) + *c_.bias, -1.0f, 1.0f);
    }

    const Kernels &kernels_;
    const lluda_mono_convolution &c_;
    const std::int64_t rows_, context_;
    const float *const x_;
    const std::int64_t x_stride_;
    std::uint16_t *const kept_;
    float *const y_;
    WorkSplit split_;
    std::vector<std::uint16_t *> halves_;
    std::vector<float *> windows_;
    std::uint16_t *later_;
};

}  // namespace

int lluda_mono_convolution_block(lluda_context *context, const lluda_mono_convolution *convolution, int64_t runs,
                                 const int64_t *lengths, const float *x, int64_t x_stride, uint16_t *const *kept,
                                 float *y) {
    return guarded([&] {
        lluda_context &c = checked(context);
        check(convolution);
        const std::int64_t rows = total_rows(runs, lengths);
        check_rows(rows, x, x_stride, convolution->channels);
        require(y || rows == 0, "y must not be NULL");
        require(kept || runs == 0 || convolution->taps == 1, "kept must not be NULL");
        for (std::int64_t i = 0; i < runs; ++i) {
            std::uint16_t *own = kept ? kept[i] : nullptr;
            require(own || lengths[i] == 0 || convolution->taps == 1, "a run's kept must not be NULL");
            if (lengths[i] == 0) continue;
            Session session(c);
            MonoRun run(session, *convolution, lengths[i], x, x_stride, own, y);
            session.run([&](Lane &lane) { run.run(lane); });
            run.finish();
            x += lengths[i] * x_stride;
            y += lengths[i];
        }
    });
}
