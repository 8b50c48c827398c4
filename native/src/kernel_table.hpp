// The table of this translation unit's instruction set; included last by each isa_*.cpp.
#pragma once

#include "attend_kernel.hpp"
#include "attend_tile_kernel.hpp"
#include "linear_kernel.hpp"
#include "panel_kernel.hpp"
#include "q8_panel_kernel.hpp"
#include "row_kernels.hpp"
#if defined(__AMX_BF16__)
#include "amx_kernel.hpp"
#elif defined(__ARM_FEATURE_BF16_VECTOR_ARITHMETIC)
#include "bfmmla_kernel.hpp"
#endif

namespace lluda {
namespace {

#if defined(__AMX_BF16__)
constexpr auto kLinearWorkspace = matrix_workspace;
constexpr auto kArrangeRows = matrix_arrange;
constexpr auto kLinear = matrix_linear;
constexpr int64_t kLinearStep = kGroupOutputs;
constexpr auto kMultiplyTile = matrix_multiply_tile;
#else
// The vector kernels read prepared rows as they lie.
int64_t no_workspace(int, int64_t) { return 0; }
void arrange_nothing(const LinearTask &, void *) {}
constexpr auto kLinearWorkspace = no_workspace;
constexpr auto kArrangeRows = arrange_nothing;
constexpr auto kLinear = vector_linear;
constexpr int64_t kLinearStep = 6;  // a multiple of every tile_outputs
#if defined(__ARM_FEATURE_BF16_VECTOR_ARITHMETIC)
constexpr auto kMultiplyTile = multiply_taps<pair_multiply_tile>;
#else
constexpr auto kMultiplyTile = multiply_taps<multiply_any_tile>;
#endif
#endif

constexpr Kernels kTable = {LLUDA_ISA_NAME,
                            prepared_bytes,
                            prepare_f32,
                            prepare_bf16,
                            prepared_q8_bytes,
                            prepare_q8_f32,
                            prepare_q8_bf16,
                            kLinearWorkspace,
                            kArrangeRows,
                            kLinear,
                            kLinearStep,
                            rms_norm,
                            layer_norm,
                            rotate,
                            to_bf16,
                            round_to_bf16,
                            from_bf16,
                            gated_silu,
                            snake_beta,
                            gelu,
                            softmax,
                            dot,
                            scale,
                            add_scaled,
                            exponential_of,
                            attend_workspace,
                            attend,
                            words,
                            words_of_f32,
                            words_of_bf16,
                            pack_rows,
                            words_of_any_weight,
                            round_panel,
                            kMultiplyTile,
                            put_tile,
                            gate_tile,
                            gelu_tile,
                            snake_tile,
                            attend_tile_workspace,
                            attend_tile};

}  // namespace
}  // namespace lluda
