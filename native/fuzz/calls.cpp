// Calls with sizes of any kind, in memory of exactly the size that lluda_native.h asks for: sizes that are none are
// refused, and with all others nothing outside is touched.
#include "input.hpp"

namespace {

constexpr std::int64_t kMostFeatures = 150, kMostRows = 80;

// What a call must return.
void expect(int code, bool wrong) {
    if (wrong ? code != LLUDA_BAD_ARGUMENT : code != LLUDA_OK) std::abort();
}

struct Arguments {
    explicit Arguments(Input &input) : input(input) {}

    std::int64_t size(std::int64_t most = kMostFeatures) { return input.size(most, wrong); }
    std::int64_t rows() { return input.number(kMostRows); }
    // Of rows of this width.
    std::int64_t stride(std::int64_t width) { return wrong ? width : width + input.byte() % 4; }
    template <class T>
    T *array(std::int64_t rows, std::int64_t stride, std::int64_t width) {
        const std::int64_t count = wrong || rows < 1 ? 0 : (rows - 1) * stride + width;
        return memory.values<T>(count, input.byte());
    }
    template <class T>
    T *array(std::int64_t count) {
        return array<T>(1, count, count);
    }

    // BF16 or, where in_features can be, Q8_0.
    lluda_weight weight(std::int64_t out, std::int64_t in, bool may_be_q8 = true) {
        lluda_weight made{};
        made.out_features = out;
        made.in_features = in;
        const int kind = may_be_q8 && !wrong && in % 32 == 0 ? input.byte() % 3 : 0;
        made.format = kind == 0 ? LLUDA_FORMAT_BF16 : kind == 1 ? LLUDA_FORMAT_Q8_0 : LLUDA_FORMAT_Q8_0_ROWS;
        const std::int64_t numbers = wrong ? 0 : out * in;
        made.values = kind == 0 ? static_cast<void *>(array<std::uint16_t>(numbers))
                                : static_cast<void *>(array<std::uint8_t>(numbers / 32 * 34));
        if (input.byte() % 2) made.bias = array<float>(out);
        return made;
    }

    Input &input;
    Memory memory;
    bool wrong = false;
};

void linear(lluda_context *context, Arguments &a) {
    const std::int64_t out = a.size(), in = a.input.byte() % 2 ? a.size() : 32 + 32 * a.input.number(4), rows = a.rows();
    const lluda_weight weight = a.weight(out, in);
    const std::int64_t x_stride = a.stride(in), y_stride = a.stride(out);
    const auto *x = a.array<std::uint16_t>(rows, x_stride, in);
    const bool half = a.input.byte() % 2;
    void *y = half ? static_cast<void *>(a.array<std::uint16_t>(rows, y_stride, out)) : a.array<float>(rows, y_stride, out);
    expect(lluda_linear(context, &weight, rows, x, x_stride, y, half ? LLUDA_DTYPE_BF16 : LLUDA_DTYPE_F32, y_stride),
           a.wrong);
}

void conv1d(lluda_context *context, Arguments &a) {
    const std::int64_t taps = a.size(7), dilation = a.size(9), channels = a.size(60), out = a.size();
    const lluda_weight weight = a.weight(out, a.wrong ? channels : taps * channels);
    const std::int64_t runs = 1 + a.input.number(3), x_stride = a.stride(channels), y_stride = a.stride(out);
    std::int64_t lengths[4] = {}, total = 0;
    const std::uint16_t *x[4] = {};
    for (std::int64_t i = 0; i < runs; ++i) {
        total += lengths[i] = a.rows();
        x[i] = a.array<std::uint16_t>(a.wrong ? 0 : lengths[i] + (taps - 1) * dilation, x_stride, channels);
    }
    const bool half = a.input.byte() % 2;
    void *y = half ? static_cast<void *>(a.array<std::uint16_t>(total, y_stride, out)) : a.array<float>(total, y_stride, out);
    const int code = lluda_conv1d(context, &weight, taps, dilation, runs, lengths, x, x_stride, y,
                                  half ? LLUDA_DTYPE_BF16 : LLUDA_DTYPE_F32, y_stride);
    expect(code, a.wrong);
}

void residual_unit(lluda_context *context, Arguments &a) {
    lluda_residual_unit unit{};
    unit.taps = a.size(7), unit.dilation = a.size(9);
    const std::int64_t half = a.size(40);
    const std::int64_t channels = unit.channels = a.wrong ? half : 2 * half;
    unit.frequency1 = a.array<float>(channels), unit.amplitude1 = a.array<float>(channels);
    unit.frequency2 = a.array<float>(channels), unit.amplitude2 = a.array<float>(channels);
    const lluda_weight conv1 = a.weight(channels, a.wrong ? channels : unit.taps * channels, false);
    const lluda_weight conv2 = a.weight(channels, channels);
    unit.conv1 = &conv1, unit.conv2 = &conv2;
    const std::int64_t runs = 1 + a.input.number(3), x_stride = a.stride(channels);
    std::int64_t lengths[4] = {}, total = 0;
    std::uint16_t *kept[4] = {};
    for (std::int64_t i = 0; i < runs; ++i) {
        total += lengths[i] = a.rows();
        kept[i] = a.array<std::uint16_t>(a.wrong ? 0 : (unit.taps - 1) * unit.dilation * channels);
    }
    float *x = a.array<float>(total, x_stride, channels);
    expect(lluda_residual_unit_block(context, &unit, runs, lengths, x, x_stride, kept), a.wrong);
}

void mono_convolution(lluda_context *context, Arguments &a) {
    lluda_mono_convolution convolution{};
    const std::int64_t taps = convolution.taps = a.size(7), channels = convolution.channels = a.size(60);
    convolution.frequency = a.array<float>(channels), convolution.amplitude = a.array<float>(channels);
    convolution.weight = a.array<float>(a.wrong ? 0 : taps * channels), convolution.bias = a.array<float>(1);
    const std::int64_t runs = 1 + a.input.number(3), x_stride = a.stride(channels);
    std::int64_t lengths[4] = {}, total = 0;
    std::uint16_t *kept[4] = {};
    for (std::int64_t i = 0; i < runs; ++i) {
        total += lengths[i] = a.rows();
        kept[i] = a.array<std::uint16_t>(a.wrong ? 0 : (taps - 1) * channels);
    }
    const float *x = a.array<float>(total, x_stride, channels);
    float *y = a.array<float>(total);
    expect(lluda_mono_convolution_block(context, &convolution, runs, lengths, x, x_stride, kept, y), a.wrong);
}

void convnext(lluda_context *context, Arguments &a) {
    lluda_convnext block{};
    const std::int64_t channels = block.channels = a.size(60), taps = block.taps = a.size(7);
    block.inner = a.size(60);
    block.dwconv = a.array<float>(a.wrong ? 0 : taps * channels), block.dwconv_bias = a.array<float>(channels);
    block.norm = a.array<float>(channels), block.norm_bias = a.array<float>(channels);
    block.gamma = a.array<float>(channels), block.norm_eps = 1e-6f;
    const lluda_weight pwconv1 = a.weight(block.inner, channels), pwconv2 = a.weight(channels, block.inner);
    block.pwconv1 = &pwconv1, block.pwconv2 = &pwconv2;
    const std::int64_t rows = a.rows(), x_stride = a.stride(channels);
    float *x = a.array<float>(rows, x_stride, channels), *kept = a.array<float>(a.wrong ? 0 : (taps - 1) * channels);
    expect(lluda_convnext_block(context, &block, 1, &rows, x, x_stride, &kept), a.wrong);
}

void upsample(lluda_context *context, Arguments &a) {
    lluda_upsample block{};
    const std::int64_t channels = block.channels = a.size(60), out = block.out = a.size(60);
    block.stride = a.size(8), block.taps = a.wrong ? 3 : 1 + a.input.byte() % 2;
    block.frequency = a.array<float>(channels), block.amplitude = a.array<float>(channels);
    const lluda_weight conv = a.weight(a.wrong ? 1 : block.stride * out, a.wrong ? 1 : block.taps * channels);
    block.conv = &conv;
    const std::int64_t rows = a.rows(), x_stride = a.stride(channels);
    const std::int32_t begun = a.input.byte() % 2;
    const std::int64_t made = a.wrong ? 0 : std::max<std::int64_t>(rows + begun * (block.taps - 1) - (block.taps - 1), 0);
    const float *x = a.array<float>(rows, x_stride, channels);
    auto *kept = a.array<std::uint16_t>(channels);
    float *y = a.array<float>(made * block.stride * out);
    expect(lluda_upsample_block(context, &block, 1, &rows, x, x_stride, &kept, &begun, y), a.wrong);
}

void snake_beta(lluda_context *context, Arguments &a) {
    const std::int64_t channels = a.size(), rows = a.rows(), x_stride = a.stride(channels), y_stride = a.stride(channels);
    const bool half = a.input.byte() % 2;
    const void *x = half ? static_cast<void *>(a.array<std::uint16_t>(rows, x_stride, channels))
                         : a.array<float>(rows, x_stride, channels);
    const float *frequency = a.array<float>(channels), *amplitude = a.array<float>(channels);
    auto *y = a.array<std::uint16_t>(rows, y_stride, channels);
    expect(lluda_snake_beta(context, rows, channels, x, half ? LLUDA_DTYPE_BF16 : LLUDA_DTYPE_F32, x_stride, frequency,
                            amplitude, y, y_stride),
           a.wrong);
}

void attention(lluda_context *context, Arguments &a) {
    lluda_attention block{};
    block.hidden = a.size(), block.kv_heads = a.size(3), block.window = a.input.number(20);
    const std::int64_t group = a.size(4), half = a.size(40);
    block.heads = a.wrong ? group : group * block.kv_heads;
    block.head_dim = a.wrong ? half : 2 * half;
    block.cache_dtype = a.input.byte() % 2 ? LLUDA_DTYPE_BF16 : LLUDA_DTYPE_F32;
    block.norm = a.array<float>(block.hidden);
    if (a.input.byte() % 2) block.q_norm = a.array<float>(block.head_dim), block.k_norm = a.array<float>(block.head_dim);
    const std::int64_t wide = a.wrong ? 1 : block.heads * block.head_dim, narrow = a.wrong ? 1 : block.kv_heads * block.head_dim;
    const lluda_weight q = a.weight(wide, block.hidden), k = a.weight(narrow, block.hidden);
    const lluda_weight v = a.weight(narrow, block.hidden), o = a.weight(block.hidden, wide);
    block.q = &q, block.k = &k, block.v = &v, block.o = &o;
    const std::int64_t rows = a.rows(), capacity = rows + a.input.number(100), x_stride = a.stride(block.hidden);
    const std::int64_t bytes = block.cache_dtype == LLUDA_DTYPE_BF16 ? 2 : 4;
    const std::int64_t begin = a.input.number(capacity - rows);
    lluda_cache_row cache[kMostRows] = {};
    void *keys = a.array<std::uint8_t>(a.wrong ? 0 : narrow * capacity * bytes);
    void *values = a.array<std::uint8_t>(a.wrong ? 0 : narrow * capacity * bytes);
    for (std::int64_t r = 0; r < rows; ++r)
        cache[r] = {keys, values, a.wrong ? 1 : capacity * block.head_dim, capacity, begin + r};
    float *x = a.array<float>(rows, x_stride, block.hidden);
    const float *cos = a.array<float>(a.wrong ? 0 : rows * half), *sin = a.array<float>(a.wrong ? 0 : rows * half);
    expect(lluda_attention_block(context, &block, rows, x, x_stride, cos, sin, cache), a.wrong);
}

void mlp(lluda_context *context, Arguments &a) {
    lluda_mlp block{};
    block.hidden = a.size(), block.intermediate = a.size();
    block.norm = a.array<float>(block.hidden);
    const lluda_weight gate = a.weight(block.intermediate, block.hidden), up = a.weight(block.intermediate, block.hidden);
    const lluda_weight down = a.weight(block.hidden, block.intermediate);
    block.gate = &gate, block.up = &up, block.down = &down;
    const std::int64_t rows = a.rows(), x_stride = a.stride(block.hidden);
    expect(lluda_mlp_block(context, &block, rows, a.array<float>(rows, x_stride, block.hidden), x_stride), a.wrong);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t *data, std::size_t size) {
    Input input(data, size);
    lluda_context *context = context_of(input);
    constexpr void (*kCalls[])(lluda_context *, Arguments &) = {
        linear, conv1d, residual_unit, snake_beta, mono_convolution, convnext, upsample, attention, mlp};
    const auto call = kCalls[input.byte() % std::size(kCalls)];
    Arguments arguments(input);
    call(context, arguments);
    return 0;
}
