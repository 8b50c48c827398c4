// lluda_upsample_block: SnakeBeta, a transposed convolution and residual units, a vocoder's block in one call. Between
// kernels that stream weights every step of the caller's begins with empty caches, so that few calls count.
#include <algorithm>
#include <vector>

#include "blocks.hpp"

using namespace lluda;

namespace {

constexpr std::int64_t kActRows = 8;  // of one item of work

void check(const lluda_upsample *block) {
    require(block, "block must not be NULL");
    require_size("channels", block->channels);
    require_size("out", block->out);
    require(block->taps == 1 || block->taps == 2, "taps", block->taps, "1 or 2");
    require_size("stride", block->stride);
    require_size("stride * out", block->stride * block->out);
    require(block->frequency && block->amplitude, "frequency and amplitude must not be NULL");
    check_weight(block->conv, "conv", block->stride * block->out, block->taps * block->channels);
    require_size("unit_count", block->unit_count, 0);
    require(block->units || block->unit_count == 0, "units must not be NULL");
    for (std::int64_t i = 0; i < block->unit_count; ++i)
        require(block->units[i].channels == block->out, "a unit's channels", block->units[i].channels, "out");
}

// The activated rows of all streams below each other, each stream's behind the one before them where there is one.
class Activated {
public:
    Activated(const lluda_upsample &block, std::int64_t runs, const std::int64_t *lengths, std::uint16_t *const *kept,
              const std::int32_t *begun)
        : block_(block), runs_(runs), lengths_(lengths), kept_(kept) {
        std::int64_t rows = 0;
        for (std::int64_t i = 0; i < runs; ++i) {
            const bool joined = block.taps == 2 && begun[i];
            first_.push_back(rows);
            joined_.push_back(joined);
            rows += lengths[i] + (joined ? 1 : 0);
        }
        rows_.resize(static_cast<std::size_t>(rows * block.channels));
    }

    void fill(lluda_context &context, const float *x, std::int64_t x_stride) {
        Session session(context);
        std::vector<std::uint16_t *> out;
        for (std::int64_t i = 0; i < runs_; ++i) {
            std::uint16_t *own = row(first_[static_cast<std::size_t>(i)]);
            if (joined_[static_cast<std::size_t>(i)]) {
                std::copy_n(kept_[i], block_.channels, own);
                own += block_.channels;
            }
            for (std::int64_t r = 0; r < lengths_[i]; ++r) out.push_back(own + r * block_.channels);
        }
        const auto rows = static_cast<std::int64_t>(out.size());
        WorkSplit split;
        split.reset((rows + kActRows - 1) / kActRows, session.threads());
        session.run([&](Lane &lane) {
            for (std::int64_t item, end; split.take(lane.index, item, end);)
                for (std::int64_t r = item * kActRows; r < std::min(end * kActRows, rows); ++r)
                    session.kernels().snake_beta(x + r * x_stride, block_.frequency, block_.amplitude, block_.channels,
                                                 out[static_cast<std::size_t>(r)]);
        });
    }

    // Rows that the convolution makes of each stream's, and where it finds them.
    std::vector<std::int64_t> outputs() const {
        std::vector<std::int64_t> made;
        for (std::int64_t i = 0; i < runs_; ++i) {
            const std::int64_t rows = lengths_[i] + (joined_[static_cast<std::size_t>(i)] ? 1 : 0);
            made.push_back(std::max<std::int64_t>(rows - (block_.taps - 1), 0));
        }
        return made;
    }
    std::vector<const std::uint16_t *> inputs() {
        std::vector<const std::uint16_t *> found;
        for (const std::int64_t first : first_) found.push_back(row(first));
        return found;
    }

    void keep() {
        for (std::int64_t i = 0; block_.taps == 2 && i < runs_; ++i) {
            if (lengths_[i] == 0) continue;
            const auto at = static_cast<std::size_t>(i);
            const std::int64_t last = first_[at] + lengths_[i] - (joined_[at] ? 0 : 1);
            std::copy_n(row(last), block_.channels, kept_[i]);
        }
    }

private:
    std::uint16_t *row(std::int64_t index) { return rows_.data() + index * block_.channels; }

    const lluda_upsample &block_;
    const std::int64_t runs_;
    const std::int64_t *const lengths_;
    std::uint16_t *const *const kept_;
    std::vector<std::int64_t> first_;
    std::vector<bool> joined_;
    std::vector<std::uint16_t> rows_;
};

int run(lluda_context *context, const lluda_upsample &block, std::int64_t runs, Activated &activated,
        std::uint16_t *const *kept, float *y) {
    std::vector<std::int64_t> lengths = activated.outputs();
    const auto inputs = activated.inputs();
    const int convolved = lluda_conv1d(context, block.conv, block.taps, 1, runs, lengths.data(), inputs.data(),
                                       block.channels, y, LLUDA_DTYPE_F32, block.stride * block.out);
    if (convolved != LLUDA_OK) return convolved;
    activated.keep();
    for (std::int64_t &rows : lengths) rows *= block.stride;
    for (std::int64_t i = 0; i < block.unit_count; ++i) {
        const int made = lluda_residual_unit_block(context, block.units + i, runs, lengths.data(), y, block.out,
                                                   kept + (i + 1) * runs);
        if (made != LLUDA_OK) return made;
    }
    return LLUDA_OK;
}

}  // namespace

int lluda_upsample_block(lluda_context *context, const lluda_upsample *block, int64_t runs, const int64_t *lengths,
                         const float *x, int64_t x_stride, uint16_t *const *kept, const int32_t *begun, float *y) {
    int made = LLUDA_OK;
    const int refused = guarded([&] {
        lluda_context &c = checked(context);
        check(block);
        const std::int64_t rows = total_rows(runs, lengths);
        check_rows(rows, x, x_stride, block->channels);
        if (rows == 0) return;
        require(kept && begun, "kept and begun must not be NULL");
        for (std::int64_t i = 0; i < runs; ++i)
            require(kept[i] || lengths[i] == 0 || block->taps == 1, "a run's kept must not be NULL");
        Activated activated(*block, runs, lengths, kept, begun);
        const std::vector<std::int64_t> made_rows = activated.outputs();
        require(y || std::count(made_rows.begin(), made_rows.end(), 0) == runs, "y must not be NULL");
        activated.fill(c, x, x_stride);
        made = run(context, *block, runs, activated, kept, y);
    });
    return refused != LLUDA_OK ? refused : made;
}
