// What libFuzzer gives, as numbers; and memory of exactly the size asked for, so that AddressSanitizer sees every byte too
// many.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <vector>

#include "lluda_native.h"

class Input {
public:
    Input(const std::uint8_t *data, std::size_t size) : data_(data), left_(size) {}

    bool empty() const { return left_ == 0; }

    std::uint8_t byte() {
        if (left_ == 0) return 0;
        --left_;
        return *data_++;
    }
    // 0 .. most
    std::int64_t number(std::int64_t most) { return (byte() << 8 | byte()) % (most + 1); }
    bool rarely() { return byte() == 0xff; }

    // 1 .. most; rarely what no size is (0 is one of outputs), which `wrong` is then told.
    std::int64_t size(std::int64_t most, bool &wrong) {
        if (!rarely()) return 1 + number(most - 1);
        wrong = true;
        constexpr std::int64_t kWrong[] = {-1, INT64_MIN, INT64_MAX, std::int64_t{LLUDA_MOST} + 1};
        return kWrong[byte() % 4];
    }

private:
    const std::uint8_t *data_;
    std::size_t left_;
};

// Memory as malloc gives it, filled with bytes of the input.
class Memory {
public:
    template <class T>
    T *values(std::int64_t count, std::uint8_t fill) {
        const std::size_t bytes = static_cast<std::size_t>(count > 0 ? count : 0) * sizeof(T);
        void *made = std::malloc(bytes ? bytes : 1);
        std::memset(made, fill, bytes);
        blocks_.emplace_back(made, &std::free);
        return static_cast<T *>(made);
    }

private:
    std::vector<std::unique_ptr<void, void (*)(void *)>> blocks_;
};

// Of the best kernels of this machine and of any machine's.
inline lluda_context *context_of(Input &input) {
    static lluda_context *contexts[2] = {};
    lluda_context *&context = contexts[input.byte() % 2];
    const char *const isa = &context == contexts ? "auto" : "portable";
    if (!context && lluda_context_create(isa, 2, &context) != LLUDA_OK) std::abort();
    return context;
}
