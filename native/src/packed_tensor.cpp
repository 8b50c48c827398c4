// Reading packed tensors: the checked view, and the way back to BF16.
#include "packed_tensor.hpp"

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <string>

#include "context.hpp"
#include "failure.hpp"
#include "packed_layout.hpp"
#include "weight.hpp"

namespace lluda {
namespace {

std::int64_t align(std::int64_t offset) {
    return (offset + kSectionAlignment - 1) / kSectionAlignment * kSectionAlignment;
}

void intact(bool rule, const char *what) {
    if (!rule) throw Failure{LLUDA_CORRUPT, std::string("packed tensor: ") + what};
}

void check_escapes(const lluda_weight &w, std::int64_t escapes) {
    intact(w.escape_rows[0] == 0 && w.escape_rows[w.out_features] == escapes,
           "the escape row offsets do not run from 0 to the number of escapes");
    for (std::int64_t row = 0; row < w.out_features; ++row) {
        const std::uint32_t begin = w.escape_rows[row], end = w.escape_rows[row + 1];
        intact(begin <= end && end <= escapes, "the escape row offsets are not ascending");
        for (std::uint32_t i = begin; i < end; ++i) {
            intact(w.escape_columns[i] < w.in_features, "an escape's column is beyond the row");
            intact(i == begin || w.escape_columns[i - 1] < w.escape_columns[i], "escape columns are not ascending");
        }
    }
}

void unpack_block(const std::uint8_t *block, const std::uint8_t *exponents, std::uint16_t *values) {
    for (int i = 0; i < kBlockWeights; i += 8) {  // eight weights have their bytes side by side
        const int at = byte_of_weight(i), shift = code_shift(at);
        const std::uint8_t *bytes = block + at, *codes = block + kBlockCodes + code_byte(at);
        for (int j = 0; j < 8; ++j) {
            const unsigned exponent = exponents[codes[j] >> shift & 15];
            values[i + j] = static_cast<std::uint16_t>((bytes[j] & 0x80u) << 8 | exponent << 7 | (bytes[j] & 0x7fu));
        }
    }
}

}  // namespace

PackedSections::PackedSections(std::int64_t out_features, std::int64_t in_features, std::int64_t escapes) {
    blocks = static_cast<std::int64_t>(sizeof(PackedHeader));
    escape_rows = blocks + out_features * blocks_per_row(in_features) * kBlockBytes;
    escape_columns = align(escape_rows + (out_features + 1) * 4);
    escape_values = align(escape_columns + escapes * 4);
    end = align(escape_values + escapes * 2);
}

void unpack_rows(const lluda_weight &w, std::int64_t begin, std::int64_t end, std::uint16_t *values) {
    const std::int64_t width = w.in_features;
    if (w.format == LLUDA_FORMAT_BF16) {
        const auto *source = static_cast<const std::uint16_t *>(w.values) + begin * width;
        std::memcpy(values, source, static_cast<std::size_t>((end - begin) * width) * 2);
        return;
    }
    const auto *block = static_cast<const std::uint8_t *>(w.values) + begin * row_bytes(w);
    for (std::int64_t row = begin; row < end; ++row, values += width) {
        for (std::int64_t at = 0; at < width; at += kBlockWeights, block += kBlockBytes) {
            std::uint16_t whole[kBlockWeights];
            unpack_block(block, w.exponents, whole);
            std::copy(whole, whole + std::min(kBlockWeights, width - at), values + at);
        }
        for (std::uint32_t i = w.escape_rows[row]; i < w.escape_rows[row + 1]; ++i)
            values[w.escape_columns[i]] = w.escape_values[i];
    }
}

}  // namespace lluda

using namespace lluda;

int lluda_packed_view(const void *buffer, int64_t bytes, lluda_weight *weight) {
    return guarded([&] {
        require(buffer && weight, "buffer and weight must not be NULL");
        require(reinterpret_cast<std::uintptr_t>(buffer) % kSectionAlignment == 0, "buffer must be 64-byte aligned");
        intact(bytes >= static_cast<int64_t>(sizeof(PackedHeader)), "shorter than its header");
        PackedHeader header;
        std::memcpy(&header, buffer, sizeof header);
        intact(std::memcmp(header.magic, kPackedMagic, sizeof header.magic) == 0, "does not start with LLUDAPB1");
        // Bounds first, so that no size computed from them overflows.
        intact(header.out_features >= 0 && header.out_features <= INT32_MAX, "out_features out of range");
        intact(header.in_features >= 1 && header.in_features <= INT32_MAX, "in_features out of range");
        intact(header.escapes >= 0 && header.escapes <= UINT32_MAX, "number of escapes out of range");
        intact(header.bytes == bytes, "its length is not what the header says");
        const PackedSections sections(header.out_features, header.in_features, header.escapes);
        intact(sections.end == bytes, "its length does not fit its shape");

        const auto *start = static_cast<const std::uint8_t *>(buffer);
        lluda_weight w{};
        w.format = LLUDA_FORMAT_PACKED_BF16;
        w.out_features = header.out_features;
        w.in_features = header.in_features;
        w.values = start + sections.blocks;
        w.exponents = start + offsetof(PackedHeader, exponents);
        w.escape_rows = reinterpret_cast<const std::uint32_t *>(start + sections.escape_rows);
        w.escape_columns = reinterpret_cast<const std::uint32_t *>(start + sections.escape_columns);
        w.escape_values = reinterpret_cast<const std::uint16_t *>(start + sections.escape_values);
        intact(header.exponents[15] == 0, "code 15 stands for an exponent");
        check_escapes(w, header.escapes);
        *weight = w;
    });
}

int lluda_unpack(lluda_context *context, const lluda_weight *weight, uint16_t *values) {
    return guarded([&] {
        lluda_context &c = checked(context);
        check_weight(weight, "to unpack");
        require(!is_q8_0(*weight), "a Q8_0 weight has values that BF16 has not");
        if (weight->out_features == 0) return;
        require(values, "values must not be NULL");
        Session session(c);
        WorkSplit split;
        constexpr int64_t kRows = 64;
        split.reset((weight->out_features + kRows - 1) / kRows, session.threads());
        session.run([&](Lane &lane) {
            for (int64_t part, stop; split.take(lane.index, part, stop);) {
                const int64_t begin = part * kRows, limit = stop * kRows;
                const int64_t end = limit < weight->out_features ? limit : weight->out_features;
                unpack_rows(*weight, begin, end, values + begin * weight->in_features);
            }
        });
    });
}
