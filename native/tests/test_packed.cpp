// Packing and back, and what a corrupt packed tensor is answered with.
#include <cstring>

#include "numbers.hpp"
#include "testing.hpp"

namespace {

void expect_round_trip(const std::vector<std::uint16_t> &values, std::int64_t out, std::int64_t in,
                       const std::string &what) {
    std::int64_t bytes = 0;
    const int code = lluda_pack_size(context(), values.data(), out, in, &bytes);
    expect(code == LLUDA_OK || code == LLUDA_INCOMPRESSIBLE, what + ": lluda_pack_size");
    const Aligned buffer(bytes);
    check_ok(lluda_pack(context(), values.data(), out, in, buffer.get(), bytes));
    lluda_weight weight;
    check_ok(lluda_packed_view(buffer.get(), bytes, &weight));
    std::vector<std::uint16_t> back(values.size(), 0xdead);
    check_ok(lluda_unpack(context(), &weight, back.data()));
    expect(back == values, what + ": the values differ after packing and unpacking");
}

std::vector<std::uint16_t> any_bits(Random &random, std::int64_t count) {
    std::vector<std::uint16_t> values(static_cast<std::size_t>(count));
    for (auto &v : values) v = static_cast<std::uint16_t>(random.bits() >> 40);
    return values;
}

}  // namespace

TEST(every_bit_pattern_round_trips) {
    std::vector<std::uint16_t> values(65536);
    for (std::size_t i = 0; i < values.size(); ++i) values[i] = static_cast<std::uint16_t>(i);
    expect_round_trip(values, 256, 256, "all 65,536 patterns");
    expect_round_trip(values, 1, 65536, "all patterns in one row");
}

TEST(shapes_round_trip) {
    Random random(1);
    for (std::int64_t out : {0, 1, 3, 65})
        for (std::int64_t in : {1, 7, 31, 32, 127, 128, 129, 300}) {
            const std::string shape = std::to_string(out) + " x " + std::to_string(in);
            expect_round_trip(random.bf16_normals(out * in, 0.02f), out, in, "normal " + shape);
            expect_round_trip(any_bits(random, out * in), out, in, "random bits " + shape);
        }
}

TEST(special_tensors_round_trip) {
    for (int bits : {0x0000, 0x8000, 0x3f80, 0x7f80, 0xff80, 0x7fc1, 0x7f81, 0xffff, 0x0001, 0x807f})
        expect_round_trip(std::vector<std::uint16_t>(40 * 200, static_cast<std::uint16_t>(bits)), 40, 200,
                          "all equal " + std::to_string(bits));
    Random random(2);
    std::vector<std::uint16_t> mixed = random.bf16_normals(64 * 256, 0.02f);
    const std::uint16_t special[] = {0x7fc0, 0xff81, 0x7f80, 0xff80, 0x0000, 0x8000, 0x0001, 0x8040};
    for (std::size_t i = 0; i < mixed.size(); i += 97) mixed[i] = special[i / 97 % 8];
    expect_round_trip(mixed, 64, 256, "specials among normals");
}

TEST(normal_weights_take_three_quarters) {
    Random random(3);
    const auto values = random.bf16_normals(512 * 1024, 0.02f);
    std::int64_t bytes = 0;
    check_ok(lluda_pack_size(context(), values.data(), 512, 1024, &bytes));
    const double share = static_cast<double>(bytes) / (2.0 * 512 * 1024);
    expect(share > 0.75 && share < 0.76, "packed share " + std::to_string(share));
}

TEST(zeros_compress_and_random_bits_do_not) {
    std::int64_t bytes = 0;
    const std::vector<std::uint16_t> zeros(64 * 1024, 0);
    check_ok(lluda_pack_size(context(), zeros.data(), 64, 1024, &bytes));
    Random random(4);
    const auto values = any_bits(random, 64 * 1024);
    check_code(lluda_pack_size(context(), values.data(), 64, 1024, &bytes), LLUDA_INCOMPRESSIBLE, "random bits");
    expect(bytes > 64 * 1024 * 2, "the size is told also for what does not compress");
}

TEST(packing_does_not_depend_on_threads) {
    Random random(5);
    const auto values = random.bf16_normals(300 * 200, 0.02f);
    std::int64_t bytes = 0;
    lluda_pack_size(context(), values.data(), 300, 200, &bytes);
    const Aligned one(bytes), three(bytes);
    use_threads(1);
    check_ok(lluda_pack(context(), values.data(), 300, 200, one.get(), bytes));
    use_threads(3);
    check_ok(lluda_pack(context(), values.data(), 300, 200, three.get(), bytes));
    expect(std::memcmp(one.get(), three.get(), static_cast<std::size_t>(bytes)) == 0, "packed bytes differ");
}

TEST(corrupt_buffers_are_refused) {
    Random random(6);
    auto values = random.bf16_normals(20 * 300, 0.02f);
    for (std::size_t i = 0; i < values.size(); i += 111) values[i] = 0x0001;
    std::int64_t bytes = 0;
    lluda_pack_size(context(), values.data(), 20, 300, &bytes);
    const Aligned buffer(bytes);
    auto *start = static_cast<unsigned char *>(buffer.get());
    lluda_weight weight;
    auto refused = [&](std::int64_t offset, std::vector<unsigned char> with, const char *what) {
        check_ok(lluda_pack(context(), values.data(), 20, 300, buffer.get(), bytes));
        std::memcpy(start + offset, with.data(), with.size());
        check_code(lluda_packed_view(buffer.get(), bytes, &weight), LLUDA_CORRUPT, what);
    };
    check_ok(lluda_pack(context(), values.data(), 20, 300, buffer.get(), bytes));
    check_ok(lluda_packed_view(buffer.get(), bytes, &weight));
    const auto rows_at = reinterpret_cast<const unsigned char *>(weight.escape_rows) - start;
    const auto columns_at = reinterpret_cast<const unsigned char *>(weight.escape_columns) - start;
    refused(0, {'X'}, "magic");
    refused(8, {21}, "out_features");
    refused(8, {0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f}, "huge out_features");
    refused(16, {0, 0}, "in_features of 0");
    refused(24, {1, 2, 3}, "escapes");
    refused(32, {1}, "bytes");
    refused(55, {9}, "an exponent for code 15");
    refused(rows_at, {1}, "first row offset");
    refused(rows_at + 8, {0xff, 0xff}, "descending row offsets");
    refused(columns_at, {0xff, 0xff, 0, 0}, "column beyond the row");
    check_code(lluda_packed_view(buffer.get(), 63, &weight), LLUDA_CORRUPT, "63 bytes");
    check_code(lluda_packed_view(start + 1, bytes - 1, &weight), LLUDA_BAD_ARGUMENT, "misaligned");
    check_code(lluda_pack(context(), values.data(), 20, 300, buffer.get(), bytes - 64), LLUDA_BAD_ARGUMENT, "wrong size");
}
