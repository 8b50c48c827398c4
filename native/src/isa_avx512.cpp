// Kernels compiled for avx512; empty where the compiler was not told so.
#include "kernels.hpp"

#if defined(__AVX512F__) && defined(__AVX512BW__)
#define LLUDA_LANES 16
#define LLUDA_ISA_NAME "avx512"
#include "kernel_table.hpp"

const lluda::Kernels *lluda::avx512_kernels() { return &kTable; }
#else
const lluda::Kernels *lluda::avx512_kernels() { return nullptr; }
#endif
