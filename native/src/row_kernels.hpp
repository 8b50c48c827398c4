// What is done to single rows between the products: preparing, norms, rotation, activation, softmax.
#pragma once

#include "weight_group.hpp"

namespace lluda {
namespace {

int64_t padded_width(int64_t width) { return blocks_per_row(width) * kBlockWeights; }

int64_t prepared_bytes(int64_t width) { return padded_width(width) * static_cast<int64_t>(sizeof(Prepared)); }

// Words of 2 * kLanes values, two to a word as in memory; `count` of them are there, the rest is zero.
LLUDA_INLINE void prepare_run(const uint16_t *values, Prepared *out) {
    if constexpr (sizeof(Prepared) == 2) {
        memcpy(out, values, sizeof(uint16_t) * 2 * kLanes);
    } else {
        const Words pairs = *reinterpret_cast<const WordsInMemory *>(values);
        *reinterpret_cast<WordsInMemory *>(out) = pairs << 16;
        *reinterpret_cast<WordsInMemory *>(out + kLanes) = pairs & 0xffff0000u;
    }
}

void prepare_bf16(const uint16_t *x, int64_t width, void *prepared) {
    Prepared *out = static_cast<Prepared *>(prepared);
    const int64_t run = 2 * kLanes, padded = padded_width(width);
    int64_t i = 0;
    for (; i + run <= width; i += run) prepare_run(x + i, out + i);
    if (i < width) {
        uint16_t rest[2 * kLanes] = {};
        memcpy(rest, x + i, static_cast<size_t>(width - i) * 2);
        prepare_run(rest, out + i);
        i += run;
    }
    if (i < padded) memset(out + i, 0, static_cast<size_t>(padded - i) * sizeof(Prepared));
}

void to_bf16(const float *x, int64_t count, uint16_t *out) {
    int64_t i = 0;
    for (; i + kLanes <= count; i += kLanes) store_halves(out + i, bf16_bits(load(x + i)));
    for (; i < count; ++i) out[i] = bf16_bits_of(x[i]);
}

void from_bf16(const uint16_t *x, int64_t count, float *out) {
    int64_t i = 0;
    for (; i + kLanes <= count; i += kLanes) store(out + i, load_bf16(x + i));
    for (; i < count; ++i) out[i] = widen(x[i]);
}

void round_to_bf16(float *x, int64_t count) {
    int64_t i = 0;
    for (; i + kLanes <= count; i += kLanes) store(x + i, as_floats(bf16_bits(load(x + i)) << 16));
    for (; i < count; ++i) x[i] = widen(bf16_bits_of(x[i]));
}

void prepare_f32(const float *x, int64_t width, void *prepared) {
    Prepared *out = static_cast<Prepared *>(prepared);
    const int64_t run = 2 * kLanes, padded = padded_width(width);
    int64_t i = 0;
    for (; i < width; i += run) {
        uint16_t values[2 * kLanes] = {};
        to_bf16(x + i, width - i < run ? width - i : run, values);
        prepare_run(values, out + i);
    }
    if (i < padded) memset(out + i, 0, static_cast<size_t>(padded - i) * sizeof(Prepared));
}

float dot(const float *a, const float *b, int64_t count) {
    Floats sums[4] = {};
    int64_t i = 0;
    for (; i + 4 * kLanes <= count; i += 4 * kLanes)
        for (int c = 0; c < 4; ++c) sums[c] += load(a + i + c * kLanes) * load(b + i + c * kLanes);
    for (; i + kLanes <= count; i += kLanes) sums[0] += load(a + i) * load(b + i);
    if (i < count) sums[1] += load_part(a + i, count - i) * load_part(b + i, count - i);
    return sum((sums[0] + sums[1]) + (sums[2] + sums[3]));
}

void rms_norm(const float *x, const float *weight, int64_t width, float eps, float *out) {
    const float mean = dot(x, x, width) / static_cast<float>(width);
    const float factor = 1.0f / __builtin_sqrtf(mean + eps);
    int64_t i = 0;
    for (; i + kLanes <= width; i += kLanes) store(out + i, load(x + i) * factor * load(weight + i));
    for (; i < width; ++i) out[i] = x[i] * factor * weight[i];
}

void layer_norm(const float *x, const float *weight, const float *bias, int64_t width, float eps, float *out) {
    Floats sums[2] = {};
    int64_t i = 0;
    for (; i + 2 * kLanes <= width; i += 2 * kLanes)
        for (int c = 0; c < 2; ++c) sums[c] += load(x + i + c * kLanes);
    for (; i < width; i += kLanes) sums[0] += load_part(x + i, width - i < kLanes ? width - i : kLanes);
    const float mean = sum(sums[0] + sums[1]) / static_cast<float>(width);
    for (i = 0; i + kLanes <= width; i += kLanes) store(out + i, load(x + i) - mean);
    for (; i < width; ++i) out[i] = x[i] - mean;
    const float factor = 1.0f / __builtin_sqrtf(dot(out, out, width) / static_cast<float>(width) + eps);
    for (i = 0; i + kLanes <= width; i += kLanes)
        store(out + i, load(out + i) * factor * load(weight + i) + load(bias + i));
    for (; i < width; ++i) out[i] = out[i] * factor * weight[i] + bias[i];
}

void rotate(float *x, const float *norm, float eps, const float *cos, const float *sin, int64_t head_dim) {
    if (norm) rms_norm(x, norm, head_dim, eps, x);
    const int64_t half = head_dim / 2;
    float *first = x, *second = x + half;
    int64_t i = 0;
    for (; i < half; i += kLanes) {
        const int64_t n = half - i < kLanes ? half - i : kLanes;
        const Floats c = load_part(cos + i, n), s = load_part(sin + i, n);
        const Floats a = load_part(first + i, n), b = load_part(second + i, n);
        store_part(first + i, a * c - b * s, n);
        store_part(second + i, b * c + a * s, n);
    }
}

void gated_silu(const float *gate, const float *up, int64_t count, float *out) {
    for (int64_t i = 0; i < count; i += kLanes) {
        const int64_t n = count - i < kLanes ? count - i : kLanes;
        const Floats g = load_part(gate + i, n);
        store_part(out + i, g / (exponential(-g) + 1.0f) * load_part(up + i, n), n);
    }
}

// x * Phi(x). Phi(-|x|) is half of erfc(z), z = |x| / sqrt(2), and exp(z^2) erfc(z) a polynomial in t = 1 / (1 + 0.56 z)
// times t, fitted to a relative error of 3e-7 for z up to 9.5, behind which the result is 0 or x in float32 anyway.
LLUDA_INLINE Floats gelu_erf(Floats x) {
    constexpr float kFit[] = {0.06209976226f,  -0.34763208032f, 0.77113604546f, -0.78598952293f, 0.28223428130f,
                              -0.06666014344f, 0.18895462155f,  0.26379901171f, 0.31611633301f,  0.31594169140f};
    const Floats size = greater(x, -x), z = size * 0.70710678f;
    const Floats t = 1.0f / (z * 0.56f + 1.0f);
    Floats fit = broadcast(kFit[0]);
    for (int i = 1; i < 10; ++i) fit = fit * t + kFit[i];
    const Floats below = x * (0.5f * fit * t * exponential(-0.5f * x * x));
    return x > 0.0f ? x - below : below;
}

LLUDA_INLINE Floats gelu_tanh(Floats x) {
    const Floats inner = x * (x * x * 0.044715f + 1.0f) * 0.79788456f;
    return x / (exponential(-2.0f * inner) + 1.0f);
}

// sin(x)^2. It repeats after pi, so x is brought to [-pi/2, pi/2] (pi in three parts, Cody and Waite 1980), where an odd
// polynomial of degree 9, fitted to a relative error of 6e-9, gives the sine.
LLUDA_INLINE Floats squared_sine(Floats x) {
    constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding it rounds to a whole number
    const Floats turns = (x * 0.318309886f + kRound) - kRound;
    Floats r = ((x - turns * 3.140625f) - turns * 0.0009675026f) - turns * 1.509958e-7f;
    r = r > 1.5708f ? broadcast(1.5708f) : r < -1.5708f ? broadcast(-1.5708f) : r;  // only of angles beyond all sense
    const Floats u = r * r;
    const Floats fit = (((u * 2.60190305e-6f - 1.98074187e-4f) * u + 8.33302513e-3f) * u - 1.66666567e-1f) * u + 1.0f;
    return u * fit * fit;
}

void snake_beta(const float *x, const float *frequency, const float *amplitude, int64_t count, uint16_t *out) {
    int64_t i = 0;
    for (; i + kLanes <= count; i += kLanes) {
        const Floats v = load(x + i);
        store_halves(out + i, bf16_bits(v + load(amplitude + i) * squared_sine(load(frequency + i) * v)));
    }
    if (i == count) return;
    const int64_t rest = count - i;
    const Floats v = load_part(x + i, rest);
    const Words bits = bf16_bits(v + load_part(amplitude + i, rest) * squared_sine(load_part(frequency + i, rest) * v));
    for (int64_t j = 0; j < rest; ++j) out[i + j] = static_cast<uint16_t>(bits[j]);
}

void softmax(float *x, int64_t count) {
    float top = x[0];
    for (int64_t i = 1; i < count; ++i) top = x[i] > top ? x[i] : top;
    Floats sums{};
    for (int64_t i = 0; i < count; i += kLanes) {
        const int64_t n = count - i < kLanes ? count - i : kLanes;
        store_part(x + i, exponential(load_part(x + i, n) - top), n);
        sums += load_part(x + i, n);
    }
    const float total = sum(sums);
    for (int64_t i = 0; i < count; ++i) x[i] /= total;
}

void scale(float *x, int64_t count, float factor) {
    for (int64_t i = 0; i < count; ++i) x[i] *= factor;
}

void add_scaled(float *y, const float *x, const float *scale, float factor, int64_t count) {
    int64_t i = 0;
    for (; i + kLanes <= count; i += kLanes) {
        const Floats v = load(x + i) * factor;
        store(y + i, load(y + i) + (scale ? v * load(scale + i) : v));
    }
    for (; i < count; ++i) y[i] += x[i] * factor * (scale ? scale[i] : 1.0f);
}

float exponential_of(float x) { return exponential(broadcast(x))[0]; }

}  // namespace
}  // namespace lluda
