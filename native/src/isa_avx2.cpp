// Kernels compiled for avx2; empty where the compiler was not told so.
#include "kernels.hpp"

#if defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)
#define LLUDA_LANES 8
#define LLUDA_ISA_NAME "avx2"
#include "kernel_table.hpp"

const lluda::Kernels *lluda::avx2_kernels() { return &kTable; }
#else
const lluda::Kernels *lluda::avx2_kernels() { return nullptr; }
#endif
