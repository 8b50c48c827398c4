#include "failure.hpp"

#include <exception>
#include <new>

namespace lluda {
namespace {

thread_local std::string last_error;

}  // namespace

void require(bool rule, const char *message) {
    if (!rule) throw Failure{LLUDA_BAD_ARGUMENT, message};
}

void require(bool rule, const char *name, std::int64_t value, const char *rule_text) {
    if (rule) return;
    throw Failure{LLUDA_BAD_ARGUMENT, std::string(name) + " is " + std::to_string(value) + ", must be " + rule_text};
}

int translate_current_exception() noexcept {
    try {
        throw;
    } catch (const Failure &failure) {
        last_error = failure.message;
        return failure.code;
    } catch (const std::bad_alloc &) {
        last_error = "no memory for the call's working space";
        return LLUDA_OUT_OF_MEMORY;
    } catch (const std::exception &error) {  // std::system_error: a thread could not be started
        last_error = error.what();
        return LLUDA_UNSUPPORTED;
    }
}

}  // namespace lluda

const char *lluda_last_error(void) { return lluda::last_error.c_str(); }
