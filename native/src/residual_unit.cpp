// lluda_residual_unit_block: x += conv2(snake2(conv1(snake1(x)))), the inner part of a vocoder's block.
//
// A row is packed into a panel once, for all taps of all outputs: row r's tap t is row r + t * dilation of the same panel, so
// a tap is the same product from some lanes further on, added to the sums of the taps before it. With few rows the
// lanes share the features out, so that each weight is read once; with many the tiles, which then stay in the cache.
// Streams of one call have panels of their own: a tile holds rows of one stream, as it would without the others.
#include <algorithm>
#include <utility>
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
          buffer_(session.allocate<std::uint32_t>(
              features_ * (rounded_up(weight.in_features, kBlockWeights) + kLineWords))) {}

    // Words of features begin .. end-1.
    const void *at(std::int64_t begin, std::int64_t end, std::int64_t *stride) {
        const bool all = features_ == weight_.out_features;
        if (!words_ || (!all && begin != begin_)) {
            begin_ = all ? 0 : begin;
            const float *scales;  // of no format that is allowed here
            words_ = kernels_.words_of_weight(weight_, begin_, all ? features_ : end, 0, weight_.in_features, buffer_,
                                               &stride_, &scales);
        }
        *stride = stride_;
        return static_cast<const std::uint32_t *>(words_) + (begin - begin_) * stride_;
    }

private:
    const Kernels &kernels_;
    const lluda_weight &weight_;
    const std::int64_t features_;
    std::uint32_t *const buffer_;
    const void *words_ = nullptr;
    std::int64_t begin_ = 0, stride_ = 0;
};

// Some rows of one stream, and what is made of them.
struct UnitRun {
    UnitRun(Session &session, const lluda_residual_unit &unit, std::int64_t count, float *first, std::uint16_t *before)
        : rows(count),
          context((unit.taps - 1) * unit.dilation),
          x(first),
          kept(before),
          width(rounded_up(context + count, kPanelRows) + kPanelRows),
          input(session.allocate<std::uint32_t>(session.kernels().words(unit.channels) * width)),
          later(session.allocate<std::uint16_t>(context * unit.channels)),
          inner(session, count, unit.channels) {}

    std::int64_t groups() const { return (context + rows + kPanelRows - 1) / kPanelRows; }

    std::int64_t rows, context;
    float *x;
    std::uint16_t *kept;
    std::int64_t width;
    std::uint32_t *input;  // [words][width]: the rows before these, then these
    std::uint16_t *later;
    Panel inner;
    std::int64_t first_group = 0, first_tile = 0;  // among those of all runs
};

// Rows of one or more streams, together at most kMostPanelRows.
class UnitPart {
public:
    UnitPart(Session &session, const lluda_residual_unit &unit, std::int64_t x_stride, std::vector<UnitRun> runs)
        : kernels_(session.kernels()),
          u_(unit),
          x_stride_(x_stride),
          words_(kernels_.words(unit.channels)),
          runs_(std::move(runs)),
          longest_(number_runs()),
          by_tiles_(tiles_ >= 2 * session.threads()),
          features_(by_tiles_ ? kBlockOutputs
                              : std::clamp(rounded_up(unit.channels / (4 * session.threads()), kFeatureStep),
                                           kFeatureStep, kBlockOutputs)),
          second_(session, longest_, unit.channels) {
        const std::int64_t conv1_bytes = 2 * unit.channels * unit.channels * unit.taps;
        for (int i = 0; i < session.threads(); ++i) {
            packers_.emplace_back(session, unit.channels);
            halves_.push_back(session.allocate<std::uint16_t>(unit.channels));
            weights_.emplace_back(session, *unit.conv1, by_tiles_ && conv1_bytes <= kKeptBytes, features_);
            sums_.push_back(session.allocate<float>(kBlockOutputs * kTileRows));
            workspaces_.emplace_back(session, kTileRows, unit.channels);
        }
        group_split_.reset(groups_, session.threads());
        item_split_.reset(by_tiles_ ? tiles_ : (unit.channels + features_ - 1) / features_, session.threads());
        second_.reserve(static_cast<std::int64_t>(runs_.size()));
        for (const UnitRun &run : runs_) second_.add(*unit.conv2, run.inner, Store::kAdd, run.x, x_stride);
        second_.share(session.threads());
    }

    void operator()(Lane &lane) {
        for (std::int64_t group, end; group_split_.take(lane.index, group, end);)
            for (; group < end; ++group) {
                const UnitRun &run = run_of(group, &UnitRun::first_group);
                pack_rows(lane.index, run, group - run.first_group);
            }
        lane.barrier();
        if (lane.index == 0)
            for (const UnitRun &run : runs_) std::copy_n(run.later, run.context * u_.channels, run.kept);
        for (std::int64_t item, end; item_split_.take(lane.index, item, end);)
            for (; item < end; ++item) by_tiles_ ? finish_tile(lane.index, item) : convolve_all(lane.index, item);
        if (by_tiles_) return;
        lane.barrier();
        second_.run(lane);
    }

private:
    // Counts groups and tiles; the rows of the longest run.
    std::int64_t number_runs() {
        std::int64_t longest = 0;
        for (UnitRun &run : runs_) {
            run.first_group = groups_, run.first_tile = tiles_;
            groups_ += run.groups(), tiles_ += run.inner.tiles();
            longest = std::max(longest, run.rows);
        }
        return longest;
    }

    const UnitRun &run_of(std::int64_t index, std::int64_t UnitRun::*first) const {
        std::size_t i = runs_.size() - 1;
        while (runs_[i].*first > index) --i;
        return runs_[i];
    }

    // Rows before the call's own are kept ones; the last of all are kept in turn.
    void pack_rows(int lane, const UnitRun &run, std::int64_t group) {
        const PanelPacker &packer = packers_[static_cast<std::size_t>(lane)];
        const std::int64_t first = group * kPanelRows, channels = u_.channels;
        const int count = static_cast<int>(std::min<std::int64_t>(kPanelRows, run.context + run.rows - first));
        const void *rows[kPanelRows];
        for (int i = 0; i < count; ++i) {
            const std::int64_t row = first + i;
            const std::uint16_t *values = run.kept + row * channels;
            if (row >= run.context) {
                std::uint16_t *made = halves_[static_cast<std::size_t>(lane)];
                kernels_.snake_beta(run.x + (row - run.context) * x_stride_, u_.frequency1, u_.amplitude1, channels,
                                    made);
                values = made;
            }
            if (row >= run.rows) std::copy_n(values, channels, run.later + (row - run.rows) * channels);
            kernels_.words_of_bf16(values, channels, packer.row(i));
            rows[i] = packer.row(i);
        }
        kernels_.pack_rows(rows, count, words_, run.input + first, run.width);
    }

    void convolve_all(int lane, std::int64_t block) {
        const std::int64_t begin = block * features_, end = std::min(begin + features_, u_.channels);
        for (const UnitRun &run : runs_) convolve(lane, begin, end, run, 0, run.inner.tiles());
    }

    void finish_tile(int lane, std::int64_t number) {
        const UnitRun &run = run_of(number, &UnitRun::first_tile);
        const std::int64_t tile = number - run.first_tile;
        for (std::int64_t begin = 0; begin < u_.channels; begin += features_)
            convolve(lane, begin, std::min(begin + features_, u_.channels), run, tile, tile + 1);
        const Panel inner(kernels_, run.inner.at(tile, 0), run.inner.tile_rows(tile), u_.channels);
        float *x = run.x + tile * kTileRows * x_stride_;
        for (std::int64_t begin = 0; begin < u_.channels; begin += kBlockOutputs) {
            const OutputBlock block{u_.conv2, begin, std::min(begin + kBlockOutputs, u_.channels)};
            workspaces_[static_cast<std::size_t>(lane)].multiply(&block, 1, inner, [&](std::int64_t, float *sums) {
                void *y[kTileRows];
                for (std::int64_t r = 0; r < inner.rows; ++r) y[r] = x + r * x_stride_ + begin;
                kernels_.put_tile({sums, static_cast<int>(block.end - begin), static_cast<int>(inner.rows),
                                    u_.conv2->bias ? u_.conv2->bias + begin : nullptr, nullptr, nullptr, Store::kAdd,
                                    y});
            });
        }
    }

    // Some features of conv1 of some tiles, activated, into the inner panel.
    void convolve(int lane, std::int64_t begin, std::int64_t end, const UnitRun &run, std::int64_t tile,
                  std::int64_t last) {
        float *sums = sums_[static_cast<std::size_t>(lane)];
        TileTask task{};
        task.multiplicands = weights_[static_cast<std::size_t>(lane)].at(begin, end, &task.output_stride);
        task.outputs = static_cast<int>(end - begin);
        task.word_stride = 1;
        task.words = task.tap_words = words_;
        task.taps = static_cast<int>(u_.taps);
        task.tap_lanes = u_.dilation;
        task.panel_width = run.width;
        const float *bias = u_.conv1->bias ? u_.conv1->bias + begin : nullptr;
        const Panel &inner = run.inner;
        for (; tile < last; ++tile) {
            task.panel = run.input + tile * kTileRows;
            task.lanes = inner.tile_width(tile);
            task.out = sums;
            kernels_.multiply_tile(task);
            kernels_.snake_tile(sums, bias, u_.frequency2 + begin, u_.amplitude2 + begin, task.outputs, task.lanes,
                                inner.at(tile, kernels_.words(begin)), task.lanes);
        }
    }

    const Kernels &kernels_;
    const lluda_residual_unit &u_;
    const std::int64_t x_stride_, words_;
    std::vector<UnitRun> runs_;
    std::int64_t groups_ = 0, tiles_ = 0;
    const std::int64_t longest_;
    const bool by_tiles_;
    const std::int64_t features_;  // of a block of conv1
    PanelProducts second_;
    std::vector<PanelPacker> packers_;
    std::vector<std::uint16_t *> halves_;
    std::vector<UnitWeights> weights_;
    std::vector<float *> sums_;
    std::vector<BlockWorkspace> workspaces_;
    WorkSplit group_split_, item_split_;
};

// The runs of a call as far as they are done.
class UnitCall {
public:
    UnitCall(lluda_context &context, const lluda_residual_unit &unit, std::int64_t runs, const std::int64_t *lengths,
             float *x, std::int64_t x_stride, std::uint16_t *const *kept)
        : context_(context), unit_(unit), runs_(runs), lengths_(lengths), x_(x), x_stride_(x_stride), kept_(kept) {}

    // As many rows at once as fit into scratch memory; a stream's later rows need what the earlier ones leave.
    void run() {
        while (skip_done()) {
            Session session(context_);
            UnitPart part(session, unit_, x_stride_, take(session));
            session.run(part);
        }
    }

private:
    bool skip_done() {
        for (; run_ < runs_ && done_ == lengths_[run_]; ++run_) done_ = 0;
        return run_ < runs_;
    }

    std::vector<UnitRun> take(Session &session) {
        std::vector<UnitRun> taken;
        std::int64_t left = kMostPanelRows;
        while (left > 0 && skip_done()) {
            const std::int64_t count = std::min(left, lengths_[run_] - done_);
            taken.emplace_back(session, unit_, count, x_, kept_ ? kept_[run_] : nullptr);
            x_ += count * x_stride_;
            done_ += count;
            left -= count;
        }
        return taken;
    }

    lluda_context &context_;
    const lluda_residual_unit &unit_;
    const std::int64_t runs_;
    const std::int64_t *const lengths_;
    float *x_;
    const std::int64_t x_stride_;
    std::uint16_t *const *const kept_;
    std::int64_t run_ = 0, done_ = 0;
};

}  // namespace

int lluda_residual_unit_block(lluda_context *context, const lluda_residual_unit *unit, int64_t runs,
                              const int64_t *lengths, float *x, int64_t x_stride, uint16_t *const *kept) {
    return guarded([&] {
        lluda_context &c = checked(context);
        check(unit);
        check_rows(total_rows(runs, lengths), x, x_stride, unit->channels);
        require(runs == 0 || kept || unit->taps == 1, "kept must not be NULL");
        for (std::int64_t i = 0; kept && i < runs; ++i)
            require(kept[i] || lengths[i] == 0 || unit->taps == 1, "a run's kept must not be NULL");
        UnitCall(c, *unit, runs, lengths, x, x_stride, kept).run();
    });
}
