// Kernels compiled for aarch64 with products of BF16 and of byte matrices; empty where the compiler was not told so.
#include "kernels.hpp"

#if defined(__aarch64__) && defined(__ARM_FEATURE_BF16_VECTOR_ARITHMETIC) && defined(__ARM_FEATURE_MATMUL_INT8)
#define LLUDA_LANES 4
#define LLUDA_ISA_NAME "neonbf16"
#include "kernel_table.hpp"

const lluda::Kernels *lluda::neonbf16_kernels() { return &kTable; }
#else
const lluda::Kernels *lluda::neonbf16_kernels() { return nullptr; }
#endif
