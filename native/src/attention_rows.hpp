// The rows of one attention call, and what is done to each of their heads before attention.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "context.hpp"

namespace lluda {

struct AttentionRows {
    std::int64_t count;
    float *x;
    std::int64_t x_stride;
    const float *cos, *sin;  // [count, head_dim / 2]
    const lluda_cache_row *cache;
};

class HeadRotation {
public:
    HeadRotation(const Kernels &kernels, const lluda_attention &b, const AttentionRows &rows)
        : kernels_(kernels), b_(b), rows_(rows) {}

    std::int64_t per_row() const { return b_.heads + 2 * b_.kv_heads; }

    void *in_cache(void *base, std::int64_t row, std::int64_t kv_head, std::int64_t position) const {
        const std::int64_t element = b_.cache_dtype == LLUDA_DTYPE_BF16 ? 2 : 4;
        const std::int64_t at = kv_head * rows_.cache[row].head_stride + position * b_.head_dim;
        return static_cast<std::byte *>(base) + at * element;
    }

    // Head 0 .. per_row - 1 of a row: queries are rotated and rounded in place; keys are rotated into the cache; values
    // go there as they are. query, key and value are those of the row.
    void rotate_or_store(std::int64_t row, std::int64_t head, float *query, float *key, float *value) const {
        const float *cos = rows_.cos + row * (b_.head_dim / 2), *sin = rows_.sin + row * (b_.head_dim / 2);
        const lluda_cache_row &place = rows_.cache[row];
        if (head < b_.heads) {
            query += head * b_.head_dim;
            kernels_.rotate(query, b_.q_norm, b_.qk_norm_eps, cos, sin, b_.head_dim);
            if (b_.cache_dtype == LLUDA_DTYPE_BF16) kernels_.round_to_bf16(query, b_.head_dim);
        } else if ((head -= b_.heads) < b_.kv_heads) {
            key += head * b_.head_dim;
            kernels_.rotate(key, b_.k_norm, b_.qk_norm_eps, cos, sin, b_.head_dim);
            write(key, in_cache(place.keys, row, head, place.position));
        } else {
            head -= b_.kv_heads;
            write(value + head * b_.head_dim, in_cache(place.values, row, head, place.position));
        }
    }

private:
    void write(const float *head, void *target) const {
        if (b_.cache_dtype == LLUDA_DTYPE_BF16) {
            kernels_.to_bf16(head, b_.head_dim, static_cast<std::uint16_t *>(target));
        } else {
            std::copy(head, head + b_.head_dim, static_cast<float *>(target));
        }
    }

    const Kernels &kernels_;
    const lluda_attention &b_;
    const AttentionRows rows_;
};

// More rows than kFewRows (attention_prefill.cpp).
void attend_many(Session &session, const lluda_attention &block, const AttentionRows &rows);

}  // namespace lluda
