// Version, structs and memory of the library.
#include <cstdint>
#include <cstdlib>
#include <cstring>

#include "lluda_native.h"

#if defined(__unix__) || defined(__APPLE__)
#include <sys/mman.h>
#endif

int lluda_abi_version(void) { return LLUDA_ABI_VERSION; }

int64_t lluda_struct_size(const char *name) {
    struct Entry {
        const char *name;
        std::size_t size;
    };
    constexpr Entry kEntries[] = {{"lluda_weight", sizeof(lluda_weight)},
                                  {"lluda_cache_row", sizeof(lluda_cache_row)},
                                  {"lluda_attention", sizeof(lluda_attention)},
                                  {"lluda_residual_unit", sizeof(lluda_residual_unit)},
                                  {"lluda_upsample", sizeof(lluda_upsample)},
                                  {"lluda_convnext", sizeof(lluda_convnext)},
                                  {"lluda_mono_convolution", sizeof(lluda_mono_convolution)},
                                  {"lluda_mlp", sizeof(lluda_mlp)},
                                  {"lluda_encoder", sizeof(lluda_encoder)},
                                  {"lluda_moe", sizeof(lluda_moe)},
                                  {"lluda_layer", sizeof(lluda_layer)},
                                  {"lluda_code_predictor", sizeof(lluda_code_predictor)}};
    for (const Entry &entry : kEntries)
        if (name && std::strcmp(name, entry.name) == 0) return static_cast<int64_t>(entry.size);
    return 0;
}

#if defined(__unix__) || defined(__APPLE__)

void *lluda_allocate(int64_t bytes) {
    if (bytes <= 0) return nullptr;
    constexpr std::uintptr_t kHuge = std::uintptr_t{2} << 20;
    const auto size = static_cast<std::size_t>(bytes);
    // Mapped larger and trimmed, so that it starts at a huge page.
    void *raw = mmap(nullptr, size + kHuge, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (raw == MAP_FAILED) return nullptr;
    const auto start = reinterpret_cast<std::uintptr_t>(raw);
    const std::uintptr_t aligned = (start + kHuge - 1) / kHuge * kHuge;
    constexpr std::uintptr_t kPage = 4096;
    const std::uintptr_t end = start + size + kHuge, used_end = (aligned + size + kPage - 1) / kPage * kPage;
    if (aligned > start) munmap(raw, aligned - start);
    if (end > used_end) munmap(reinterpret_cast<void *>(used_end), end - used_end);
    void *memory = reinterpret_cast<void *>(aligned);
#if defined(MADV_HUGEPAGE)
    madvise(memory, size, MADV_HUGEPAGE);  // a wish; without it pages are small
#endif
    return memory;
}

void lluda_free(void *memory, int64_t bytes) {
    if (memory) munmap(memory, static_cast<std::size_t>(bytes));
}

#else

void *lluda_allocate(int64_t bytes) { return bytes > 0 ? std::calloc(1, static_cast<std::size_t>(bytes)) : nullptr; }
void lluda_free(void *memory, int64_t) { std::free(memory); }

#endif
