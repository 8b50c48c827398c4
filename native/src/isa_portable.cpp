// Kernels for any machine: four lanes, which SSE2 and NEON (of every aarch64) have as they are.
#define LLUDA_LANES 4
#define LLUDA_ISA_NAME "portable"
#include "kernel_table.hpp"

const lluda::Kernels *lluda::portable_kernels() { return &kTable; }
