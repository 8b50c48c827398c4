// Kernels compiled for aarch64 with dot products of bytes; empty where the compiler was not told so.
#include "kernels.hpp"

#if defined(__aarch64__) && defined(__ARM_FEATURE_DOTPROD)
#define LLUDA_LANES 4
#define LLUDA_ISA_NAME "neondot"
#include "kernel_table.hpp"

const lluda::Kernels *lluda::neondot_kernels() { return &kTable; }
#else
const lluda::Kernels *lluda::neondot_kernels() { return nullptr; }
#endif
