// What one instruction set offers: a table of functions that work on ranges, called from the lanes of a job.
#pragma once

#include <cstdint>

#include "lluda_native.h"

namespace lluda {

constexpr int kMaxRows = LLUDA_MAX_ROWS;

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
    const void *x[kMaxRows];
    void *y[kMaxRows];
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

struct Kernels {
    const char *name;

    // Rows are prepared once for all products: rounded to BF16, padded with zeros to a multiple of 128, in the order
    // the dot products want. prepared_bytes is that of one row (a multiple of 64).
    std::int64_t (*prepared_bytes)(std::int64_t width);
    void (*prepare_f32)(const float *x, std::int64_t width, void *prepared);
    void (*prepare_bf16)(const std::uint16_t *x, std::int64_t width, void *prepared);

    // Output features begin .. end-1.
    void (*linear)(const LinearTask &task, std::int64_t begin, std::int64_t end);

    // out = x / sqrt(mean(x^2) + eps) * weight, in float32.
    void (*rms_norm)(const float *x, const float *weight, std::int64_t width, float eps, float *out);
    // In place: the RMSNorm if norm is not null, then the half-split rotation.
    void (*rotate)(float *x, const float *norm, float eps, const float *cos, const float *sin, std::int64_t head_dim);
    void (*to_bf16)(const float *x, std::int64_t count, std::uint16_t *out);
    void (*round_to_bf16)(float *x, std::int64_t count);
    void (*from_bf16)(const std::uint16_t *x, std::int64_t count, float *out);
    // out = silu(gate) * up
    void (*gated_silu)(const float *gate, const float *up, std::int64_t count, float *out);
    void (*softmax)(float *x, std::int64_t count);
    float (*dot)(const float *a, const float *b, std::int64_t count);
    void (*scale)(float *x, std::int64_t count, float factor);
    // y += factor * (scale ? scale * x : x)
    void (*add_scaled)(float *y, const float *x, const float *scale, float factor, std::int64_t count);
    // exp(x), for merging partial softmaxes.
    float (*exponential)(float x);

    std::int64_t (*attend_workspace)(int group, std::int64_t head_dim);
    void (*attend)(const AttendTask &task);
};

// Null if the build has no such kernels.
const Kernels *portable_kernels();
const Kernels *avx2_kernels();
const Kernels *avx512_kernels();
const Kernels *avx512bf16_kernels();

// The kernels in use.
const Kernels &kernels();

}  // namespace lluda
