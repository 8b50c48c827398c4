// What the blocks of a decoder layer share: checks, and the norm that every block begins with.
#pragma once

#include <memory>

#include "attention_rows.hpp"
#include "failure.hpp"
#include "moe_plan.hpp"
#include "products.hpp"
#include "weight.hpp"

namespace lluda {

void check_rows(std::int64_t rows);
// And the rows themselves, unless there are none.
void check_rows(std::int64_t rows, const float *x, std::int64_t x_stride, std::int64_t width);

// Rows of `runs` streams together, of lengths[i] each.
std::int64_t total_rows(std::int64_t runs, const std::int64_t *lengths);

// Elements from one row to the next, if there is more than one.
void check_stride(const char *name, std::int64_t rows, std::int64_t stride, std::int64_t width);

// This lane's share of: RMSNorm of the rows of x, rounded to BF16 and prepared for products. `normed` F32 [rows, width]
// keeps the normalised rows, rounded to BF16.
void norm_and_prepare(const Lane &lane, int rows, const float *x, std::int64_t x_stride, const float *norm, float eps,
                      std::int64_t width, float *normed, const PreparedRows &prepared);

// One block's work on up to kFewRows rows. Made before the lanes run it; scratch memory is written to by them alone, so
// that jobs which run one after the other (with a barrier between) may share it.
class BlockJob {
public:
    virtual ~BlockJob() = default;
    virtual void run(Lane &lane) = 0;
};

std::unique_ptr<BlockJob> attention_job(Session &session, const lluda_attention &block, const AttentionRows &rows);
std::unique_ptr<BlockJob> mlp_job(Session &session, const lluda_mlp &block, std::int64_t rows, float *x,
                                  std::int64_t x_stride);
std::unique_ptr<BlockJob> moe_job(Session &session, const lluda_moe &block, const MoeRows &rows);
// logits [rows, out] = weight (RMSNorm(x) * norm).
struct Head {
    const lluda_weight &weight;
    const float *norm;
    float norm_eps;
};
std::unique_ptr<BlockJob> head_job(Session &session, const Head &head, std::int64_t rows, const float *x,
                                   std::int64_t x_stride, float *logits, std::int64_t logits_stride);

void check_attention(const lluda_attention *block);
void check_cache(const lluda_attention &block, std::int64_t rows, const lluda_cache_row *cache);
void check_mlp(const lluda_mlp *block);
void check_moe(const lluda_moe *block);

}  // namespace lluda
