// Kernels compiled for avx512bf16; empty where the compiler was not told so.
#include "kernels.hpp"

#if defined(__AVX512BF16__) && defined(__AVX512VNNI__)
#define LLUDA_LANES 16
#define LLUDA_ISA_NAME "avx512bf16"
#include "kernel_table.hpp"

const lluda::Kernels *lluda::avx512bf16_kernels() { return &kTable; }
#else
const lluda::Kernels *lluda::avx512bf16_kernels() { return nullptr; }
#endif
