// Tiles of the matrix unit (AMX): their shapes, and where sums of them go.
#pragma once

#include "linear_kernel.hpp"
#include "panel_kernel.hpp"

namespace lluda {
namespace {

constexpr int kMatrixOutputs = 16;    // weight rows of a tile
constexpr int64_t kMatrixWords = 16;  // words of a tile, at most
constexpr int kMatrixLanes = 16;      // rows of a tile

// What LDTILECFG reads.
struct alignas(64) TileShapes {
    uint8_t palette = 1, start_row = 0, reserved[14] = {};
    uint16_t row_bytes[16] = {};
    uint8_t rows[16] = {};
};

// Tiles 0 .. 3 are sums [outputs][lanes], those from 4 on rows [words][lanes], those from first_weights on weights
// [outputs][words], where a word is two columns of BF16 or four of bytes. Released when done: a thread that is switched
// out has its tiles saved until then.
class TilesInUse {
public:
    LLUDA_INLINE TilesInUse(int outputs, int lanes, int first_weights, int64_t words = kMatrixWords) {
        TileShapes shapes;
        for (int tile = 0; tile < 8; ++tile) {
            const bool rows = tile >= 4 && tile < first_weights;
            shapes.rows[tile] = static_cast<uint8_t>(rows ? words : outputs);
            shapes.row_bytes[tile] = static_cast<uint16_t>(4 * (tile < first_weights ? lanes : words));
        }
        _tile_loadconfig(&shapes);
    }
    LLUDA_INLINE ~TilesInUse() { _tile_release(); }
};

// `count` outputs from `output` on to where they belong.
LLUDA_INLINE void put_outputs(const LinearTask &task, int64_t output, int count, const float *sums) {
    void *y[kMatrixLanes];
    const int64_t at = output * (task.store == Store::kBFloat16 ? 2 : 4);
    for (int r = 0; r < task.rows; ++r) y[r] = static_cast<char *>(task.y[r]) + at;
    put_tile({sums, count, task.rows, task.weight->bias ? task.weight->bias + output : nullptr,
              task.scale ? task.scale + output : nullptr, nullptr, task.store, y});
}

}  // namespace
}  // namespace lluda
