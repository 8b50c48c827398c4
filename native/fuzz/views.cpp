// A packed tensor with bytes written over: lluda_packed_view refuses it, or everything that reads it stays inside.
#include <algorithm>

#include "input.hpp"

namespace {

// Packed, in memory that begins at a multiple of 64 and ends with the last byte.
struct Packed {
    Packed(lluda_context *context, Input &input) {
        out = 1 + input.number(20);
        in = 1 + input.number(300);
        std::vector<std::uint16_t> values(static_cast<std::size_t>(out * in));
        // Exponents close together, and some that become escapes.
        for (std::uint16_t &value : values) value = static_cast<std::uint16_t>(0x3c00 + (&value - values.data()) % 1500);
        for (int i = input.byte() % 8; i > 0; --i) values[static_cast<std::size_t>(input.number(out * in - 1))] = 1;
        const int size = lluda_pack_size(context, values.data(), out, in, &bytes);
        if (size != LLUDA_OK && size != LLUDA_INCOMPRESSIBLE) std::abort();
        if (posix_memalign(&memory, 64, static_cast<std::size_t>(bytes)) != 0) std::abort();
        if (lluda_pack(context, values.data(), out, in, memory, bytes) != LLUDA_OK) std::abort();
    }
    ~Packed() { std::free(memory); }
    Packed(const Packed &) = delete;

    // The rest of the input is places and what is written there; most of it into the header and behind the blocks.
    void write_over(Input &input) {
        auto *at = static_cast<std::uint8_t *>(memory);
        while (!input.empty()) {
            const std::int64_t place = input.number(0xffff);
            at[place % 3 == 0 ? place % bytes : place % 3 == 1 ? bytes - 1 - place % std::min<std::int64_t>(bytes, 512)
                                                              : place % std::min<std::int64_t>(bytes, 128)] = input.byte();
        }
    }

    void *memory = nullptr;
    std::int64_t bytes = 0, out, in;
};

void read(lluda_context *context, const lluda_weight &weight, std::int64_t rows) {
    const std::int64_t out = weight.out_features, in = weight.in_features;
    std::vector<std::uint16_t> x(static_cast<std::size_t>(rows * in), 0x3f80), values(static_cast<std::size_t>(out * in));
    std::vector<float> y(static_cast<std::size_t>(rows * out)), row(static_cast<std::size_t>(in));
    const std::int64_t last = out - 1;
    if (lluda_unpack(context, &weight, values.data()) != LLUDA_OK) std::abort();
    if (lluda_embedding(context, &weight, 1, &last, row.data(), in) != LLUDA_OK) std::abort();
    if (lluda_linear(context, &weight, rows, x.data(), in, y.data(), LLUDA_DTYPE_F32, out) != LLUDA_OK) std::abort();
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t *data, std::size_t size) {
    Input input(data, size);
    lluda_context *context = context_of(input);
    const std::int64_t rows = 1 + input.number(19);
    Packed packed(context, input);
    packed.write_over(input);
    lluda_weight weight;
    if (lluda_packed_view(packed.memory, packed.bytes, &weight) == LLUDA_OK && weight.out_features * weight.in_features < 1 << 20)
        read(context, weight, rows);
    return 0;
}
