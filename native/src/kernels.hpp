// What one instruction set offers: a table of functions that work on ranges, called from the lanes of a job.
#pragma once

#include <cstdint>

#include "lluda_native.h"

namespace lluda {

constexpr int kFewRows = LLUDA_FEW_ROWS;

enum class Store : std::int32_t {
    kFloat,     // y = product
    kBFloat16,  // y = product rounded to BF16
    kAdd        // y += scale * product (F32)
};

// Several prepared rows times one weight. y[r] points at the element of output feature 0.
struct LinearTask {
    const lluda_weight *weight;
    int rows;
    Store store;
    const float *scale;  // [out] or null, for kAdd
    const void *x[kFewRows];
    void *y[kFewRows];
};

// One key-value head of one row over positions begin .. end-1.
struct AttendTask {
    const float *query;  // [group, head_dim]; rounded to BF16 where the cache is
    const void *keys;    // position 0 of this head
    const void *values;
    std::int64_t head_dim;
    std::int64_t begin, end;
    int group;
    bool cache_is_bf16;
    float scale;       // of the scores
    float *workspace;  // attend_workspace floats
    float *out;        // [group, head_dim]: sum of exp(score - top) * value
    float *top;        // [group]
    float *total;      // [group]: sum of exp(score - top)
};

// Many rows are packed into panels (panel.hpp): tiles of up to 64 rows, column after column, so that a vector holds the
// same column of several rows and one word of a weight, broadcast, is multiplied with all of them. A word has 4 bytes:
// two BF16 columns where the hardware multiplies such pairs, else one float.
constexpr int kTileRows = 64;
constexpr int kPanelRows = 16;  // tiles are as wide as a multiple of this

// out[o][lane] (+)= sum over words k of word(o, k) * panel[k][lane], lane 0 .. lanes-1.
struct TileTask {
    const void *multiplicands;  // word(o, k) is the one at o * output_stride + k * word_stride
    std::int64_t output_stride, word_stride;
    int outputs;
    const void *panel;  // [words][panel_width] words
    std::int64_t words, panel_width;
    int lanes;         // a multiple of kPanelRows
    bool floats;       // words are floats though this machine has pairs
    bool accumulate;   // add to out
    float *out;        // [outputs][kTileRows]
    const void *prefetch;  // to be fetched into the cache meanwhile, 4 bytes for each word of multiplicands; or null
    // Of Q8_0 weights as pairs, or null: their scales, a float for each 32 columns at o * output_stride; and those of a
    // rounded panel, [blocks][panel_width], or null.
    const float *scales = nullptr, *panel_scales = nullptr;
    // Taps of a convolution, added up one after the other: the words of the next are tap_words further on, its panel begins
    // tap_lanes further on.
    int taps = 1;
    std::int64_t tap_words = 0, tap_lanes = 0;
};

// A tile's sums to rows: y[r] of lane r, from the element of the first output on.
struct PutTask {
    const float *sums;  // [outputs][kTileRows]
    int outputs, rows;
    const float *bias, *scale;  // of the first output on, or null
    const float *factors;       // of the rows, or null
    Store store;
    void *const *y;
};

// The rows of one tile that belong to one sequence, one query head.
struct AttendTileTask {
    const void *query;  // panel [words of head_dim][width]; the words are floats if the cache is F32
    void *out;          // panel, from the head's first word on, of the same width
    std::int64_t width;
    int begin, end;                 // lanes
    const std::int64_t *positions;  // of the tile's lanes
    const void *keys, *values;      // position 0 of the key-value head
    std::int64_t head_dim, window;
    bool cache_is_bf16;
    float scale;
    float *workspace;  // attend_tile_workspace floats
};

struct Kernels {
    const char *name;

    // Rows are prepared once for all products: rounded to BF16, padded with zeros to a multiple of 128, in the order
    // the dot products want. prepared_bytes is that of one row (a multiple of 64).
    std::int64_t (*prepared_bytes)(std::int64_t width);
    void (*prepare_f32)(const float *x, std::int64_t width, void *prepared);
    void (*prepare_bf16)(const std::uint16_t *x, std::int64_t width, void *prepared);
    // For weights of LLUDA_FORMAT_Q8_0_ROWS: rounded to BF16, then to Q8_0.
    std::int64_t (*prepared_q8_bytes)(std::int64_t width);
    void (*prepare_q8_f32)(const float *x, std::int64_t width, void *prepared);
    void (*prepare_q8_bf16)(const std::uint16_t *x, std::int64_t width, void *prepared);

    // Working memory of one lane for products of up to `rows` rows of this width: bytes, 0 if none is needed.
    std::int64_t (*linear_workspace)(int rows, std::int64_t width);
    // Lays the rows of a task into that memory as `linear` wants them: before it, and again for other rows.
    void (*arrange_rows)(const LinearTask &task, void *workspace);
    // Output features begin .. end-1, begin a multiple of linear_step.
    void (*linear)(const LinearTask &task, std::int64_t begin, std::int64_t end, const void *workspace);
    std::int64_t linear_step;

    // out = x / sqrt(mean(x^2) + eps) * weight, in float32.
    void (*rms_norm)(const float *x, const float *weight, std::int64_t width, float eps, float *out);
    // out = (x - mean) / sqrt(variance + eps) * weight + bias, in float32.
    void (*layer_norm)(const float *x, const float *weight, const float *bias, std::int64_t width, float eps,
                       float *out);
    // In place: the RMSNorm if norm is not null, then the half-split rotation.
    void (*rotate)(float *x, const float *norm, float eps, const float *cos, const float *sin, std::int64_t head_dim);
    void (*to_bf16)(const float *x, std::int64_t count, std::uint16_t *out);
    void (*round_to_bf16)(float *x, std::int64_t count);
    void (*from_bf16)(const std::uint16_t *x, std::int64_t count, float *out);
    // out = silu(gate) * up
    void (*gated_silu)(const float *gate, const float *up, std::int64_t count, float *out);
    // out = x + amplitude * sin(frequency * x)^2, rounded to BF16.
    void (*snake_beta)(const float *x, const float *frequency, const float *amplitude, std::int64_t count,
                       std::uint16_t *out);
    // out = gelu(x), exact, rounded to BF16.
    void (*gelu)(const float *x, std::int64_t count, std::uint16_t *out);
    void (*softmax)(float *x, std::int64_t count);
    float (*dot)(const float *a, const float *b, std::int64_t count);
    void (*scale)(float *x, std::int64_t count, float factor);
    // y += factor * (scale ? scale * x : x)
    void (*add_scaled)(float *y, const float *x, const float *scale, float factor, std::int64_t count);
    // exp(x), for merging partial softmaxes.
    float (*exponential)(float x);

    std::int64_t (*attend_workspace)(int group, std::int64_t head_dim);
    void (*attend)(const AttendTask &task);

    // Many rows.
    std::int64_t (*words)(std::int64_t width);
    // A row as words, rounded to BF16.
    void (*words_of_f32)(const float *x, std::int64_t width, void *words);
    void (*words_of_bf16)(const std::uint16_t *x, std::int64_t width, void *words);
    // Up to kPanelRows rows of words as lanes of a panel; missing ones repeat the last.
    void (*pack_rows)(const void *const *rows, int count, std::int64_t words, void *panel, std::int64_t panel_width);
    // Words of weight rows begin .. end-1, columns from .. to-1 (from: a multiple of 128): in place if the weight lies
    // in memory as words, else in `buffer` (4 bytes for each column). *stride: words from one row to the next. *scales:
    // as in TileTask.
    const void *(*words_of_weight)(const lluda_weight &weight, std::int64_t begin, std::int64_t end, std::int64_t from,
                                   std::int64_t to, void *buffer, std::int64_t *stride, const float **scales);
    // A panel of whole blocks of 32 columns, rounded to Q8_0 for LLUDA_FORMAT_Q8_0_ROWS; scales: [blocks][panel_width].
    void (*round_panel)(const void *panel, std::int64_t words, std::int64_t panel_width, void *out, float *scales);
    void (*multiply_tile)(const TileTask &task);
    void (*put_tile)(const PutTask &task);
    // silu(gate) * up of [outputs][kTileRows] sums, rounded to BF16, as words of a panel (from an even column on).
    void (*gate_tile)(const float *gate, const float *up, int outputs, int lanes, void *panel, std::int64_t width);
    // gelu(sums + bias of the first output on, or null), likewise.
    void (*gelu_tile)(const float *sums, const float *bias, bool tanh, int outputs, int lanes, void *panel,
                      std::int64_t width);
    // x + amplitude * sin(frequency * x)^2 of x = sums + bias, likewise.
    void (*snake_tile)(const float *sums, const float *bias, const float *frequency, const float *amplitude,
                       int outputs, int lanes, void *panel, std::int64_t width);
    std::int64_t (*attend_tile_workspace)(std::int64_t head_dim);
    void (*attend_tile)(const AttendTileTask &task);
};

// Null if the build has no such kernels.
const Kernels *portable_kernels();
const Kernels *avx2_kernels();
const Kernels *avx512_kernels();
const Kernels *avx512bf16_kernels();
const Kernels *amx_kernels();
const Kernels *neondot_kernels();
const Kernels *neonbf16_kernels();

}  // namespace lluda
