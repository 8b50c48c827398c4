// Kernels compiled for amx; empty where the compiler was not told so.
#include "kernels.hpp"

#if defined(__AMX_TILE__) && defined(__AMX_BF16__) && defined(__AMX_INT8__) && defined(__AVX512BF16__)
#define LLUDA_LANES 16
#define LLUDA_ISA_NAME "amx"
#include "kernel_table.hpp"

const lluda::Kernels *lluda::amx_kernels() { return &kTable; }
#else
const lluda::Kernels *lluda::amx_kernels() { return nullptr; }
#endif
