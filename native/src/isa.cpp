// Which kernels run: the best this machine has, or those chosen by name.
#include <cstring>
#include <string>

#include "context.hpp"
#include "failure.hpp"

#if defined(__x86_64__) || defined(__i386__)
#include <cpuid.h>
#endif
#if defined(__linux__) && defined(__x86_64__)
#include <sys/syscall.h>
#include <unistd.h>
#endif
#if defined(__linux__) && defined(__aarch64__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif

namespace lluda {
namespace {

#if defined(__x86_64__) || defined(__i386__)
// A leaf of CPUID; zeros where there is none.
struct Leaf {
    unsigned a = 0, b = 0, c = 0, d = 0;
    explicit Leaf(unsigned leaf, unsigned subleaf = 0) { __get_cpuid_count(leaf, subleaf, &a, &b, &c, &d); }
};

// Each feature that CMakeLists.txt lets the compiler use is asked for, the system's saving of the registers included.
// F16C, AVX512-BF16 and AMX by their bits of CPUID: not every compiler has a name for them.
bool has_avx2() {
    constexpr unsigned kF16c = 1u << 29;
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && (Leaf(1).c & kF16c);
}
bool has_avx512() {
    return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
}
bool has_avx512bf16() {
    constexpr unsigned kAvx512Bf16 = 1u << 5;
    return has_avx512() && __builtin_cpu_supports("avx512vnni") && (Leaf(7, 1).a & kAvx512Bf16);
}
#else
bool has_avx2() { return false; }
bool has_avx512() { return false; }
bool has_avx512bf16() { return false; }
#endif

// Linux gives a process the matrix unit's registers when it asks for them. They are asked for once, for all threads.
#if defined(__linux__) && defined(__x86_64__)
bool has_amx() {
    constexpr unsigned kAmxBf16 = 1u << 22, kAmxTile = 1u << 24, kAmxInt8 = 1u << 25;
    constexpr long kRequestPermission = 0x1023, kTileData = 18;
    const unsigned has = Leaf(7).d;
    if (!has_avx512bf16() || !(has & kAmxBf16) || !(has & kAmxTile) || !(has & kAmxInt8)) return false;
    static const bool granted = syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
    return granted;
}
#else
bool has_amx() { return false; }
#endif

// Linux tells what the processor has; where another system runs, its kernels for any aarch64 do.
#if defined(__linux__) && defined(__aarch64__)
bool has_neondot() { return getauxval(AT_HWCAP) & HWCAP_ASIMDDP; }
bool has_neonbf16() {
    constexpr unsigned long kWanted = HWCAP2_BF16 | HWCAP2_I8MM;
    return has_neondot() && (getauxval(AT_HWCAP2) & kWanted) == kWanted;
}
#else
bool has_neondot() { return false; }
bool has_neonbf16() { return false; }
#endif
bool always() { return true; }

struct Choice {
    const char *name;
    const Kernels *(*table)();
    bool (*runs_here)();
};

// Best first.
constexpr Choice kChoices[] = {{"amx", amx_kernels, has_amx},
                               {"avx512bf16", avx512bf16_kernels, has_avx512bf16},
                               {"avx512", avx512_kernels, has_avx512},
                               {"avx2", avx2_kernels, has_avx2},
                               {"neonbf16", neonbf16_kernels, has_neonbf16},
                               {"neondot", neondot_kernels, has_neondot},
                               {"portable", portable_kernels, always}};

const Kernels &best() {
    for (const Choice &choice : kChoices)
        if (choice.table() && choice.runs_here()) return *choice.table();
    return *portable_kernels();
}

}  // namespace

const Kernels &kernels_named(const char *name) {
    if (!name || std::strcmp(name, "auto") == 0) return best();
    for (const Choice &choice : kChoices) {
        if (std::strcmp(name, choice.name) != 0) continue;
        if (!choice.table()) throw Failure{LLUDA_UNSUPPORTED, std::string(name) + " kernels are not in this build"};
        if (!choice.runs_here()) throw Failure{LLUDA_UNSUPPORTED, "this machine cannot run " + std::string(name)};
        return *choice.table();
    }
    throw Failure{LLUDA_BAD_ARGUMENT, "no kernels are named '" + std::string(name) +
                                          "'; there are amx, avx512bf16, avx512, avx2, neonbf16, neondot, portable and auto"};
}

}  // namespace lluda
