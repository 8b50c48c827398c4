// Which kernels run: the best this machine has, or those chosen by name.
#include <atomic>
#include <cstring>
#include <string>

#include "failure.hpp"
#include "kernels.hpp"

namespace lluda {
namespace {

#if defined(__x86_64__) || defined(__i386__)
// F16C, which the kernels use too, came before AVX2.
bool has_avx2() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }
bool has_avx512() {
    return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
}
// The kernels use VNNI too, which came before BF16.
bool has_avx512bf16() { return has_avx512() && __builtin_cpu_supports("avx512bf16"); }
#else
bool has_avx2() { return false; }
bool has_avx512() { return false; }
bool has_avx512bf16() { return false; }
#endif
bool always() { return true; }

struct Choice {
    const char *name;
    const Kernels *(*table)();
    bool (*runs_here)();
};

// Best first.
constexpr Choice kChoices[] = {{"avx512bf16", avx512bf16_kernels, has_avx512bf16},
                               {"avx512", avx512_kernels, has_avx512},
                               {"avx2", avx2_kernels, has_avx2},
                               {"portable", portable_kernels, always}};

const Kernels *best() {
    for (const Choice &choice : kChoices)
        if (choice.table() && choice.runs_here()) return choice.table();
    return portable_kernels();
}

std::atomic<const Kernels *> chosen{nullptr};

}  // namespace

const Kernels &kernels() {
    const Kernels *table = chosen.load(std::memory_order_acquire);
    if (!table) {
        table = best();
        chosen.store(table, std::memory_order_release);
    }
    return *table;
}

}  // namespace lluda

const char *lluda_isa(void) { return lluda::kernels().name; }

int lluda_select_isa(const char *name) {
    using namespace lluda;
    return guarded([&] {
        if (!name || std::strcmp(name, "auto") == 0) {
            chosen.store(best(), std::memory_order_release);
            return;
        }
        for (const Choice &choice : kChoices) {
            if (std::strcmp(name, choice.name) != 0) continue;
            if (!choice.table()) throw Failure{LLUDA_UNSUPPORTED, std::string(name) + " kernels are not in this build"};
            if (!choice.runs_here()) throw Failure{LLUDA_UNSUPPORTED, "this machine cannot run " + std::string(name)};
            chosen.store(choice.table(), std::memory_order_release);
            return;
        }
        throw Failure{LLUDA_BAD_ARGUMENT, "no kernels are named '" + std::string(name) +
                                              "'; there are avx512bf16, avx512, avx2, portable and auto"};
    });
}
