// The packed BF16 tensor in memory and on disk (docs/formats.md, "Packed BF16 tensor").
#pragma once

#include <cstdint>

#include "lluda_native.h"

namespace lluda {

constexpr std::int64_t kSectionAlignment = 64;

// First 64 bytes of a packed tensor; little-endian.
struct PackedHeader {
    char magic[8];  // "LLUDAPB1"
    std::int64_t out_features;
    std::int64_t in_features;
    std::int64_t escapes;
    std::int64_t bytes;  // of the whole packed tensor
    std::uint8_t exponents[16];
    std::uint8_t reserved[8];  // 0
};
static_assert(sizeof(PackedHeader) == 64, "the header is one cache line");

constexpr char kPackedMagic[8] = {'L', 'L', 'U', 'D', 'A', 'P', 'B', '1'};

// Where the sections of a packed tensor start, from its start.
struct PackedSections {
    PackedSections(std::int64_t out_features, std::int64_t in_features, std::int64_t escapes);
    std::int64_t blocks, escape_rows, escape_columns, escape_values, end;
};

// BF16 values of rows begin .. end-1, in either format.
void unpack_rows(const lluda_weight &weight, std::int64_t begin, std::int64_t end, std::uint16_t *values);

}  // namespace lluda
