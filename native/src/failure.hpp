// Errors inside the library, turned into codes at the C boundary.
#pragma once

#include <cstdint>
#include <string>

#include "lluda_native.h"

namespace lluda {

struct Failure {
    int code;
    std::string message;
};

// Throws Failure{LLUDA_BAD_ARGUMENT, message} unless the rule holds.
void require(bool rule, const char *message);
// With the value that breaks the rule: "name is 3, must be ...".
void require(bool rule, const char *name, std::int64_t value, const char *rule_text);
// A size from `least` to LLUDA_MOST.
void require_size(const char *name, std::int64_t value, std::int64_t least = 1);

int translate_current_exception() noexcept;

// Runs a call's body; what it throws becomes a code and this thread's last error.
template <class Body>
int guarded(Body &&body) noexcept {
    try {
        body();
        return LLUDA_OK;
    } catch (...) {
        return translate_current_exception();
    }
}

}  // namespace lluda
