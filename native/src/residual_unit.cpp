// lluda_residual_unit_block: x += conv2(snake2(conv1(snake1(x)))), the inner part of a vocoder's block.
//
// A row stands in a panel once, for all taps of all outputs: row r's tap t is row r + t * dilation of the same panel, so
// a tap is the same product from some lanes further on, added to the sums of the taps before it. With few rows the
// lanes share the features out, so that each weight is read once; with many the tiles, which then stay in the cache.
#include <algorithm>
#include <vector>

#include "blocks.hpp"
#include "packed_layout.hpp"
#include "panel.hpp"

using namespace lluda;

namespace {

constexpr std::int64_t kLineWords = 16;
constexpr std::int64_t kFeatureStep = 12;       // a multiple of the outputs of a register tile, and even
constexpr std::int64_t kKeptBytes = 640 << 10;  // of conv1's words, where a lane keeps all for its tiles

std::int64_t rounded_up(std::int64_t n, std::int64_t step) { return (n + step - 1) / step * step; }

void check(const lluda_residual_unit *unit) {
    require(unit, "unit must not be NULL");
    require_size("channels", unit->channels, 2);
    require(unit->channels % 2 == 0, "channels", unit->channels, "even");
    require_size("taps", unit->taps);
    require_size("dilation", unit->dilation);
    require_size("taps * channels", unit->taps * unit->channels);
    require_size("taps * dilation", unit->taps * unit->dilation);
    require(unit->frequency1 && unit->amplitude1 && unit->frequency2 && unit->amplitude2,
            "frequencies and amplitudes must not be NULL");
    check_weight(unit->conv1, "conv1", unit->channels, unit->taps * unit->channels);
    check_weight(unit->conv2, "conv2", unit->channels, unit->channels);
    require(unit->conv1->format <= LLUDA_FORMAT_PACKED_BF16, "conv1's format", unit->conv1->format,
            "BF16 or packed BF16");
}

// One lane's words of conv1: of all features where they are few, else of the last block asked for. Rows are read whole,
// in the order of memory.
class UnitWeights {
public:
    UnitWeights(Session &session, const lluda_weight &weight, bool all, std::int64_t block)
        : kernels_(session.kernels()),
          weight_(weight),
          features_(all ? weight.out_features : block),
          room_(session.allocate<std::uint32_t>(
              features_ * (rounded_up(weight.in_features, kBlockWeights) + kLineWords))) {}

    // Words of features begin .. end-1 from column `column` on.
    const void *at(std::int64_t begin, std::int64_t end, std::int64_t column, std::int64_t *stride) {
        const bool all = features_ == weight_.out_features;
        if (!words_ || (!all && begin != begin_)) {
            begin_ = all ? 0 : begin;
            const float *scales;  // of no format that is allowed here
            words_ = kernels_.words_of_weight(weight_, begin_, all ? features_ : end, 0, weight_.in_features, room_,
                                               &stride_, &scales);
        }
        *stride = stride_;
        const std::int64_t bytes = (begin - begin_) * stride_ * 4 + column * kernels_.words(2) * 2;
        return static_cast<const std::byte *>(words_) + bytes;
    }

private:
    const Kernels &kernels_;
    const lluda_weight &weight_;
    const std::int64_t features_;
    std::uint32_t *const room_;
    const void *words_ = nullptr;
    std::int64_t begin_ = 0, stride_ = 0;
};

// Some rows of a call.
class UnitPart {
public:
    UnitPart(Session &session, const lluda_residual_unit &unit, std::int64_t rows, float *x, std::int64_t x_stride,
             std::uint16_t *kept)
        : kernels_(session.kernels()),
          u_(unit),
          rows_(rows),
          x_(x),
          x_stride_(x_stride),
          kept_(kept),
          context_((unit.taps - 1) * unit.dilation),
          words_(kernels_.words(unit.channels)),
          width_(rounded_up(context_ + rows, kStandingRows) + kStandingRows),
          by_tiles_((rows + kTileRows - 1) / kTileRows >= 2 * session.threads()),
          features_(by_tiles_ ? kBlockOutputs
                              : std::clamp(rounded_up(unit.channels / (4 * session.threads()), kFeatureStep),
                                           kFeatureStep, kBlockOutputs)),
          input_(session.allocate<std::uint32_t>(words_ * width_)),
          later_(session.allocate<std::uint16_t>(context_ * unit.channels)),
          inner_(session, rows, unit.channels),
          second_(session, rows, unit.channels) {
        const std::int64_t conv1_bytes = 2 * unit.channels * unit.channels * unit.taps;
        for (int i = 0; i < session.threads(); ++i) {
            standing_.emplace_back(session, unit.channels);
            halves_.push_back(session.allocate<std::uint16_t>(unit.channels));
            weights_.emplace_back(session, *unit.conv1, by_tiles_ && conv1_bytes <= kKeptBytes, features_);
            sums_.push_back(session.allocate<float>((by_tiles_ ? 1 : inner_.tiles()) * kBlockOutputs * kTileRows));
            rooms_.emplace_back(session, kTileRows, unit.channels);
        }
        groups_.reset((context_ + rows + kStandingRows - 1) / kStandingRows, session.threads());
        items_.reset(by_tiles_ ? inner_.tiles() : (unit.channels + features_ - 1) / features_, session.threads());
        second_.add(*unit.conv2, inner_, Store::kAdd, x, x_stride);
        second_.share(session.threads());
    }

    void operator()(Lane &lane) {
        for (std::int64_t group, end; groups_.take(lane.index, group, end);)
            for (; group < end; ++group) stand(lane.index, group);
        lane.barrier();
        if (lane.index == 0) std::copy_n(later_, context_ * u_.channels, kept_);
        for (std::int64_t item, end; items_.take(lane.index, item, end);)
            for (; item < end; ++item) by_tiles_ ? finish_tile(lane.index, item) : convolve_all(lane.index, item);
        if (by_tiles_) return;
        lane.barrier();
        second_.run(lane);
    }

private:
    // Rows before the call's own are kept ones; the last of all are kept in turn.
    void stand(int lane, std::int64_t group) {
        const StandingRoom &room = standing_[static_cast<std::size_t>(lane)];
        const std::int64_t first = group * kStandingRows, channels = u_.channels;
        const int count = static_cast<int>(std::min<std::int64_t>(kStandingRows, context_ + rows_ - first));
        const void *rows[kStandingRows];
        for (int i = 0; i < count; ++i) {
            const std::int64_t row = first + i;
            const std::uint16_t *values = kept_ + row * channels;
            if (row >= context_) {
                std::uint16_t *made = halves_[static_cast<std::size_t>(lane)];
                kernels_.snake_beta(x_ + (row - context_) * x_stride_, u_.frequency1, u_.amplitude1, channels, made);
                values = made;
            }
            if (row >= rows_) std::copy_n(values, channels, later_ + (row - rows_) * channels);
            kernels_.words_of_bf16(values, channels, room.row(i));
            rows[i] = room.row(i);
        }
        kernels_.stand(rows, count, words_, input_ + first, width_);
    }

    void convolve_all(int lane, std::int64_t block) {
        const std::int64_t begin = block * features_;
        convolve(lane, begin, std::min(begin + features_, u_.channels), 0, inner_.tiles());
    }

    void finish_tile(int lane, std::int64_t tile) {
        for (std::int64_t begin = 0; begin < u_.channels; begin += features_)
            convolve(lane, begin, std::min(begin + features_, u_.channels), tile, tile + 1);
        const Panel inner(kernels_, inner_.at(tile, 0), inner_.tile_rows(tile), u_.channels);
        for (std::int64_t begin = 0; begin < u_.channels; begin += kBlockOutputs) {
            const OutputBlock block{u_.conv2, begin, std::min(begin + kBlockOutputs, u_.channels)};
            rooms_[static_cast<std::size_t>(lane)].multiply(&block, 1, inner, [&](std::int64_t, float *sums) {
                void *y[kTileRows];
                for (std::int64_t r = 0; r < inner.rows; ++r) y[r] = x_ + (tile * kTileRows + r) * x_stride_ + begin;
                kernels_.put_tile({sums, static_cast<int>(block.end - begin), static_cast<int>(inner.rows),
                                    u_.conv2->bias ? u_.conv2->bias + begin : nullptr, nullptr, nullptr, Store::kAdd,
                                    y});
            });
        }
    }

    // Some features of conv1 of some tiles, activated, into the inner panel.
    void convolve(int lane, std::int64_t begin, std::int64_t end, std::int64_t tile, std::int64_t last) {
        float *sums = sums_[static_cast<std::size_t>(lane)];
        for (std::int64_t tap = 0; tap < u_.taps; ++tap) {
            TileTask task{};
            task.multiplicands = weights_[static_cast<std::size_t>(lane)].at(begin, end, tap * u_.channels,
                                                                             &task.output_stride);
            task.outputs = static_cast<int>(end - begin);
            task.accumulate = tap > 0;
            multiply(task, tap * u_.dilation, tile, last, sums);
        }
        const float *bias = u_.conv1->bias ? u_.conv1->bias + begin : nullptr;
        for (; tile < last; ++tile, sums += kBlockOutputs * kTileRows)
            kernels_.snake_tile(sums, bias, u_.frequency2 + begin, u_.amplitude2 + begin,
                                 static_cast<int>(end - begin), inner_.tile_width(tile),
                                 inner_.at(tile, kernels_.words(begin)), inner_.tile_width(tile));
    }

    // With the standing rows from `shift` on.
    void multiply(TileTask &task, std::int64_t shift, std::int64_t tile, std::int64_t last, float *sums) const {
        task.word_stride = 1;
        task.words = words_;
        task.panel_width = width_;
        for (; tile < last; ++tile, sums += kBlockOutputs * kTileRows) {
            task.panel = input_ + tile * kTileRows + shift;
            task.lanes = inner_.tile_width(tile);
            task.out = sums;
            kernels_.multiply_tile(task);
        }
    }

    const Kernels &kernels_;
    const lluda_residual_unit &u_;
    const std::int64_t rows_;
    float *const x_;
    const std::int64_t x_stride_;
    std::uint16_t *const kept_;
    const std::int64_t context_, words_, width_;
    const bool by_tiles_;
    const std::int64_t features_;  // of a block of conv1
    std::uint32_t *const input_;  // [words_][width_]
    std::uint16_t *const later_;
    const Panel inner_;
    PanelProducts second_;
    std::vector<StandingRoom> standing_;
    std::vector<std::uint16_t *> halves_;
    std::vector<UnitWeights> weights_;
    std::vector<float *> sums_;
    std::vector<BlockRoom> rooms_;
    WorkSplit groups_, items_;
};

}  // namespace

int lluda_residual_unit_block(lluda_context *context, const lluda_residual_unit *unit, int64_t rows, float *x,
                              int64_t x_stride, uint16_t *kept) {
    return guarded([&] {
        lluda_context &c = checked(context);
        check(unit);
        check_rows(rows, x, x_stride, unit->channels);
        require(kept || unit->taps == 1, "kept must not be NULL");
        for_rows(rows, [&](std::int64_t from, std::int64_t count) {
            Session session(c);
            UnitPart part(session, *unit, count, x + from * x_stride, x_stride, kept);
            session.run(part);
        });
    });
}
