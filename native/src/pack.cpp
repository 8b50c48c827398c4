// Packing: choose the 15 most frequent exponents, write blocks, keep the rest aside.
#include <algorithm>
#include <array>
#include <cstring>
#include <numeric>
#include <string>
#include <vector>

#include "context.hpp"
#include "failure.hpp"
#include "packed_layout.hpp"
#include "packed_tensor.hpp"

namespace lluda {
namespace {

constexpr double kWorthwhile = 0.85;  // of the BF16 size
constexpr std::int64_t kRowsPerItem = 64;

// How often each exponent occurs. Denormals (exponent 0, mantissa not 0) are counted apart: they are always kept aside,
// since some dot products flush them to zero.
struct Census {
    std::array<std::int64_t, 256> exponents{};
    std::int64_t denormals = 0;
};

constexpr bool is_denormal(std::uint16_t bits) { return (bits & 0x7f80) == 0 && (bits & 0x7f) != 0; }

void count(const std::uint16_t *values, std::int64_t n, Census &census) {
    // Tables in turn, so that runs of one exponent do not wait for the same counter.
    constexpr int kTables = 8;
    std::array<std::int64_t, 256> tables[kTables] = {};
    std::int64_t i = 0;
    for (; i + kTables <= n; i += kTables)
        for (int t = 0; t < kTables; ++t) ++tables[t][(values[i + t] >> 7) & 255];
    for (; i < n; ++i) ++tables[0][(values[i] >> 7) & 255];
    std::int64_t exponent_zero = 0;
    for (const auto &table : tables) {
        exponent_zero += table[0];
        for (int e = 0; e < 256; ++e) census.exponents[e] += table[e];
    }
    if (exponent_zero == 0) return;
    for (i = 0; i < n; ++i) census.denormals += is_denormal(values[i]);
}

template <class Body>
void over_rows(Session &session, std::int64_t rows, Body &&body) {
    WorkSplit split;
    split.reset((rows + kRowsPerItem - 1) / kRowsPerItem, session.threads());
    session.run([&](Lane &lane) {
        for (std::int64_t item, stop; split.take(lane.index, item, stop);)
            body(lane.index, item * kRowsPerItem, std::min(stop * kRowsPerItem, rows));
    });
}

Census take_census(Session &session, const std::uint16_t *values, std::int64_t rows, std::int64_t width) {
    std::vector<Census> parts(static_cast<std::size_t>(session.threads()));
    over_rows(session, rows, [&](int lane, std::int64_t begin, std::int64_t end) {
        count(values + begin * width, (end - begin) * width, parts[static_cast<std::size_t>(lane)]);
    });
    Census total;
    for (const Census &part : parts) {
        for (int e = 0; e < 256; ++e) total.exponents[e] += part.exponents[e];
        total.denormals += part.denormals;
    }
    total.exponents[0] -= total.denormals;  // what stays are the zeros
    return total;
}

// The coding of a tensor: which exponents have codes, and how many weights have none.
struct Coding {
    explicit Coding(const Census &census);
    std::uint8_t code_of(std::uint16_t bits) const {
        return is_denormal(bits) ? std::uint8_t{kEscapeCode} : codes[(bits >> 7) & 255];
    }

    std::array<std::uint8_t, 16> exponents{};
    std::array<std::uint8_t, 256> codes{};
    std::int64_t escapes;
};

Coding::Coding(const Census &census) : escapes(census.denormals) {
    std::array<int, 256> order;
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(),
                     [&](int a, int b) { return census.exponents[a] > census.exponents[b]; });
    codes.fill(kEscapeCode);
    for (int i = 0; i < 256; ++i) {
        const std::int64_t occurrences = census.exponents[order[i]];
        if (i >= kEscapeCode) {
            escapes += occurrences;
        } else if (occurrences > 0) {
            codes[order[i]] = static_cast<std::uint8_t>(i);
            exponents[i] = static_cast<std::uint8_t>(order[i]);
        }
    }
}

// One whole block; returns how many of its weights are kept aside. An escape's byte is 0, so that it decodes to +0.
int pack_block(const std::uint16_t *values, const Coding &coding, std::uint8_t *block) {
    std::uint8_t code_at[kBlockWeights];
    int escapes = 0;
    for (int i = 0; i < kBlockWeights; i += 8) {  // eight weights have their bytes side by side
        std::uint8_t *bytes = block + byte_of_weight(i), *codes = code_at + byte_of_weight(i);
        for (int j = 0; j < 8; ++j) {
            const unsigned bits = values[i + j];
            const std::uint8_t code = coding.code_of(values[i + j]);
            const bool escape = code == kEscapeCode;
            codes[j] = code;
            bytes[j] = escape ? std::uint8_t{0} : static_cast<std::uint8_t>((bits >> 8 & 0x80) | (bits & 0x7f));
            escapes += escape;
        }
    }
    for (int i = 0; i < 64; ++i) block[kBlockCodes + i] = static_cast<std::uint8_t>(code_at[i] | code_at[i + 64] << 4);
    return escapes;
}

// A row's last block, filled up with escapes that have no entry.
int pack_part(const std::uint16_t *values, int n, const Coding &coding, std::uint8_t *block) {
    constexpr std::uint16_t kDenormal = 1;
    std::uint16_t whole[kBlockWeights];
    std::copy(values, values + n, whole);
    std::fill(whole + n, whole + kBlockWeights, kDenormal);
    return pack_block(whole, coding, block) - static_cast<int>(kBlockWeights - n);
}

void check_values(const std::uint16_t *values, std::int64_t rows, std::int64_t width) {
    require(rows >= 0 && rows <= INT32_MAX, "out_features", rows, "0 .. 2^31 - 1");
    require(width >= 1 && width <= INT32_MAX, "in_features", width, "1 .. 2^31 - 1");
    require(values || rows == 0, "values must not be NULL");
}

std::int64_t packed_bytes(std::int64_t rows, std::int64_t width, const Coding &coding) {
    return PackedSections(rows, width, coding.escapes).end;
}

void check_countable(const Coding &coding) {
    if (coding.escapes > UINT32_MAX)
        throw Failure{LLUDA_INCOMPRESSIBLE, "more than 2^32 - 1 weights have rare exponents"};
}

// Blocks of rows begin .. end-1 at their place; the number of escapes of row r goes to escape_rows[r + 1].
void pack_rows(const std::uint16_t *values, std::int64_t width, std::int64_t begin, std::int64_t end,
               const Coding &coding, std::uint8_t *blocks, std::uint32_t *escape_rows) {
    std::uint8_t *block = blocks + begin * blocks_per_row(width) * kBlockBytes;
    for (std::int64_t row = begin; row < end; ++row) {
        int escapes = 0;
        for (std::int64_t at = 0; at < width; at += kBlockWeights, block += kBlockBytes) {
            const int n = static_cast<int>(std::min(kBlockWeights, width - at));
            const std::uint16_t *from = values + row * width + at;
            escapes += n == kBlockWeights ? pack_block(from, coding, block) : pack_part(from, n, coding, block);
        }
        escape_rows[row + 1] = static_cast<std::uint32_t>(escapes);
    }
}

bool has_escapes(const std::uint8_t *block) {
    int found = 0;
    for (int i = 0; i < 64; ++i) {
        const std::uint8_t codes = block[kBlockCodes + i];
        found |= (codes & 15) == kEscapeCode || codes >> 4 == kEscapeCode;
    }
    return found != 0;
}

// Of rows whose blocks are packed: only those that have escapes are gone through.
void collect_escapes(const std::uint16_t *values, std::int64_t width, std::int64_t begin, std::int64_t end,
                     const Coding &coding, const std::uint8_t *blocks, const std::uint32_t *escape_rows,
                     std::uint32_t *columns, std::uint16_t *escape_values) {
    const std::uint8_t *block = blocks + begin * blocks_per_row(width) * kBlockBytes;
    for (std::int64_t row = begin; row < end; ++row) {
        std::uint32_t next = escape_rows[row];
        for (std::int64_t at = 0; at < width; at += kBlockWeights, block += kBlockBytes) {
            if (next == escape_rows[row + 1] || !has_escapes(block)) continue;
            for (std::int64_t column = at; column < std::min(at + kBlockWeights, width); ++column) {
                const std::uint16_t bits = values[row * width + column];
                if (coding.code_of(bits) != kEscapeCode) continue;
                columns[next] = static_cast<std::uint32_t>(column);
                escape_values[next++] = bits;
            }
        }
    }
}

}  // namespace
}  // namespace lluda

using namespace lluda;

int lluda_pack_size(lluda_context *context, const uint16_t *values, int64_t out_features, int64_t in_features,
                    int64_t *bytes) {
    return guarded([&] {
        lluda_context &c = checked(context);
        check_values(values, out_features, in_features);
        require(bytes, "bytes must not be NULL");
        Session session(c);
        const Coding coding(take_census(session, values, out_features, in_features));
        *bytes = packed_bytes(out_features, in_features, coding);
        check_countable(coding);
        const double plain = 2.0 * static_cast<double>(out_features) * static_cast<double>(in_features);
        if (static_cast<double>(*bytes) >= kWorthwhile * plain)
            throw Failure{LLUDA_INCOMPRESSIBLE, "packed it would take " + std::to_string(*bytes) + " bytes of " +
                                                    std::to_string(static_cast<int64_t>(plain)) + "; keep it BF16"};
    });
}

int lluda_pack(lluda_context *context, const uint16_t *values, int64_t out_features, int64_t in_features, void *buffer,
               int64_t bytes) {
    return guarded([&] {
        lluda_context &c = checked(context);
        check_values(values, out_features, in_features);
        require(buffer, "buffer must not be NULL");
        require(reinterpret_cast<std::uintptr_t>(buffer) % kSectionAlignment == 0, "buffer must be 64-byte aligned");
        Session session(c);
        const Coding coding(take_census(session, values, out_features, in_features));
        check_countable(coding);
        const int64_t expected = packed_bytes(out_features, in_features, coding);
        require(bytes == expected, "bytes", bytes, "what lluda_pack_size says of these values");

        const PackedSections sections(out_features, in_features, coding.escapes);
        auto *start = static_cast<std::uint8_t *>(buffer);
        auto *escape_rows = reinterpret_cast<std::uint32_t *>(start + sections.escape_rows);
        auto *columns = reinterpret_cast<std::uint32_t *>(start + sections.escape_columns);
        auto *escape_values = reinterpret_cast<std::uint16_t *>(start + sections.escape_values);
        std::memset(start + sections.escape_rows, 0, static_cast<std::size_t>(sections.end - sections.escape_rows));

        over_rows(session, out_features, [&](int, std::int64_t begin, std::int64_t end) {
            pack_rows(values, in_features, begin, end, coding, start + sections.blocks, escape_rows);
        });
        for (int64_t row = 0; row < out_features; ++row) escape_rows[row + 1] += escape_rows[row];
        over_rows(session, out_features, [&](int, std::int64_t begin, std::int64_t end) {
            collect_escapes(values, in_features, begin, end, coding, start + sections.blocks, escape_rows, columns,
                            escape_values);
        });

        PackedHeader header{};
        std::memcpy(header.magic, kPackedMagic, sizeof header.magic);
        header.out_features = out_features;
        header.in_features = in_features;
        header.escapes = coding.escapes;
        header.bytes = bytes;
        std::copy(coding.exponents.begin(), coding.exponents.end(), header.exponents);
        std::memcpy(buffer, &header, sizeof header);
    });
}
