// Geometry of the packed BF16 tensor (docs/formats.md, "Packed BF16 tensor").
#pragma once

#include <cstdint>

namespace lluda {

constexpr std::int64_t kBlockWeights = 128;  // weights in a block
constexpr std::int64_t kBlockBytes = 192;    // 128 sign-and-mantissa bytes, then 64 bytes of code pairs
constexpr std::int64_t kBlockCodes = 128;    // offset of the code pairs in a block
constexpr int kEscapeCode = 15;

constexpr std::int64_t blocks_per_row(std::int64_t in_features) {
    return (in_features + kBlockWeights - 1) / kBlockWeights;
}

// Where weight i (0 .. 127) of a block has its sign-and-mantissa byte. Within each half of 64, groups of 8 weights
// alternate between the lower and the upper 8 bytes of 16-byte lanes, so that interleaving low and high bytes lane by
// lane (the only cheap interleave of wide registers) yields 32 consecutive weights.
constexpr int byte_of_weight(int i) {
    const int half = i / 64, rest = i % 64, upper = rest / 32, lane = (rest % 32) / 8;
    return half * 64 + lane * 16 + upper * 8 + rest % 8;
}

// Code of the weight whose sign-and-mantissa byte is byte b: nibble b / 64 (0 low, 1 high) of code byte b % 64.
constexpr int code_byte(int b) { return b % 64; }
constexpr int code_shift(int b) { return b / 64 * 4; }

}  // namespace lluda
