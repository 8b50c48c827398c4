#include "failure.hpp"

#include <cstdio>
#include <exception>
#include <new>

namespace lluda {
namespace {

// An array, since memory may be what there is none of.
thread_local char last_error[1024] = "";

void remember(const char *message) noexcept { std::snprintf(last_error, sizeof last_error, "%s", message); }

}  // namespace

void require(bool rule, const char *message) {
    if (!rule) throw Failure{LLUDA_BAD_ARGUMENT, message};
}

void require(bool rule, const char *name, std::int64_t value, const char *rule_text) {
    if (rule) return;
    throw Failure{LLUDA_BAD_ARGUMENT, std::string(name) + " is " + std::to_string(value) + ", must be " + rule_text};
}

void require_size(const char *name, std::int64_t value, std::int64_t least) {
    if (value >= least && value <= LLUDA_MOST) return;
    require(false, name, value, ("from " + std::to_string(least) + " to 2^31 - 1").c_str());
}

int translate_current_exception() noexcept {
    try {
        throw;
    } catch (const Failure &failure) {
        remember(failure.message.c_str());
        return failure.code;
    } catch (const std::bad_alloc &) {
        remember("no memory for the call's working space");
        return LLUDA_OUT_OF_MEMORY;
    } catch (const std::exception &error) {  // std::system_error: a thread could not be started
        remember(error.what());
        return LLUDA_UNSUPPORTED;
    } catch (...) {
        remember("an unknown error");
        return LLUDA_UNSUPPORTED;
    }
}

}  // namespace lluda

const char *lluda_last_error(void) { return lluda::last_error; }
