/* lluda_native.h: the C interface of lluda's native CPU kernels.
 *
 * Conventions
 *   - Every function that can fail returns LLUDA_OK or one of the codes below; lluda_last_error() then says what was
 *     wrong, per calling thread.
 *   - Shapes are written [slowest, ..., fastest]. Strides count elements, not bytes.
 *   - BF16 numbers are uint16_t with the upper 16 bits of a float32. "Rounded to BF16" is round to nearest even.
 *   - Alignment: pointers need their element's own alignment only (2 bytes for BF16, 4 for float), unless stated.
 *   - Inputs and outputs must not overlap, except where one argument is both.
 *   - `rows` is 0 or more; 0 rows is a no-op that still checks its other arguments. Up to LLUDA_FEW_ROWS rows are one
 *     pass over the weights at the speed of memory; of more, up to 512 are one pass at the speed of arithmetic.
 *   - Every call that computes takes a context: the kernels, threads and working memory that it uses. Calls with one
 *     context are run one after the other; calls with different contexts at the same time. No other state is shared.
 *   - Results do not depend on the number of threads.
 *   - Sizes (features, heads, widths, counts) are at most LLUDA_MOST (2^31 - 1) each, and so are heads * head_dim and
 *     taps * channels; rows at most LLUDA_MOST. Strides of more than one row are at least its width.
 *   - Pointers inside descriptors are only read during the call that is given them; nothing is retained.
 */
#ifndef LLUDA_NATIVE_H
#define LLUDA_NATIVE_H

#include <stdint.h>

#if defined(_WIN32)
#define LLUDA_API __declspec(dllexport)
#else
#define LLUDA_API __attribute__((visibility("default")))
#endif

#ifdef __cplusplus
extern "C" {
#endif

#define LLUDA_ABI_VERSION 6
#define LLUDA_FEW_ROWS 16
#define LLUDA_MOST 2147483647

enum {
    LLUDA_OK = 0,
    LLUDA_BAD_ARGUMENT = 1, /* a shape, pointer, dtype or descriptor breaks a rule of this header */
    LLUDA_UNSUPPORTED = 2,  /* this machine or build cannot do it (an instruction set, for example) */
    LLUDA_OUT_OF_MEMORY = 3,
    LLUDA_INCOMPRESSIBLE = 4, /* packing would save too little; keep the tensor BF16 */
    LLUDA_CORRUPT = 5,        /* a packed buffer contradicts itself */
    LLUDA_STOPPED = 6         /* the caller's own function ended the call */
};

/* Weight formats. Q8_0_ROWS: the values of Q8_0, and the rows that are multiplied with them are rounded to Q8_0 too
 * (from BF16, as llama.cpp does), which turns the products of a block into integers. */
enum { LLUDA_FORMAT_BF16 = 0, LLUDA_FORMAT_PACKED_BF16 = 1, LLUDA_FORMAT_Q8_0 = 2, LLUDA_FORMAT_Q8_0_ROWS = 3 };

/* Element types of outputs and caches. */
enum { LLUDA_DTYPE_F32 = 0, LLUDA_DTYPE_BF16 = 1 };

/* A matrix [out_features, in_features] that rows are multiplied with: y = x W^T + bias. */
typedef struct lluda_weight {
    int32_t format;   /* LLUDA_FORMAT_* */
    int32_t reserved; /* 0 */
    int64_t out_features;
    int64_t in_features;         /* >= 1; Q8_0: a multiple of 32 */
    const void *values;          /* BF16: row-major [out, in]. Packed: the blocks (see docs/formats.md). Q8_0: GGUF's
                                    blocks, [out, in / 32] of a float16 and 32 int8, at any address */
    const float *bias;           /* F32 [out], added to the product, or NULL */
    const uint8_t *exponents;    /* packed: 16 bytes, exponent of each code, [15] = 0. Else NULL, as the following */
    const uint32_t *escape_rows; /* packed: [out + 1] */
    const uint32_t *escape_columns; /* packed: [escape_rows[out]], ascending within a row */
    const uint16_t *escape_values;  /* packed: [escape_rows[out]], the exact BF16 bits */
} lluda_weight;

/* ---- Library ---------------------------------------------------------------------------------------------------- */

/* LLUDA_ABI_VERSION of the library; differs from the header's when they do not fit together. */
LLUDA_API int lluda_abi_version(void);

/* sizeof of a struct of this header by name ("lluda_weight", ...), for bindings to check their mirror; 0 if unknown. */
LLUDA_API int64_t lluda_struct_size(const char *name);

/* Message of this thread's last failed call. Valid until its next failing call. */
LLUDA_API const char *lluda_last_error(void);

/* What calls compute with. A forked child may use its parent's contexts: they start threads of their own there. */
typedef struct lluda_context lluda_context;

/* A context with kernels by name ("amx", "avx512bf16", "avx512", "avx2", "neonbf16", "neondot", "portable"), or the best
 * this machine has with NULL or "auto"; LLUDA_UNSUPPORTED if this build or machine lacks them. threads: those that
 * compute, the calling one included, 1 .. 256; 0: as many as CPUs that this process may run on, at most 256. They start
 * with the first call.
 * "amx" and "auto" ask Linux for the matrix unit's registers, for the whole process: where it refuses, "auto" is the next
 * best kernels, and lluda_context_isa says so. */
LLUDA_API int lluda_context_create(const char *isa, int threads, lluda_context **context);

/* No call may be using the context. NULL is a no-op. */
LLUDA_API void lluda_context_destroy(lluda_context *context);

/* Name of its kernels, and its threads. "" and 0 of NULL. */
LLUDA_API const char *lluda_context_isa(const lluda_context *context);
LLUDA_API int lluda_context_threads(const lluda_context *context);

/* Page-aligned memory, in huge pages where the system grants them (fewer TLB misses when weights stream through). The
 * bytes are zero. NULL if there is none. Free with the same byte count. */
LLUDA_API void *lluda_allocate(int64_t bytes);
LLUDA_API void lluda_free(void *memory, int64_t bytes);

/* Until lluda_unwatch_mapped_file: a bus error in the mapped file [begin, begin + bytes), which another program has
 * shortened or whose disk fails, writes `line` (4096 bytes at most, copied) to stderr and ends the process with
 * `exit_code`. Bus errors elsewhere meet the handler that was there before. NULL where it cannot be done. No context. */
LLUDA_API void *lluda_watch_mapped_file(const void *begin, int64_t bytes, const char *line, int exit_code);
LLUDA_API void lluda_unwatch_mapped_file(void *watch);

/* ---- Packed BF16 ------------------------------------------------------------------------------------------------ */

/* Bytes of the packed form of BF16 values [out, in] in *bytes. LLUDA_INCOMPRESSIBLE (with *bytes set) if that is 0.85
 * or more of 2 * out * in: keep such a tensor BF16. Reads the tensor once, in parallel. */
LLUDA_API int lluda_pack_size(lluda_context *context, const uint16_t *values, int64_t out_features, int64_t in_features,
                              int64_t *bytes);

/* Pack BF16 values [out, in] into buffer (64-byte aligned, `bytes` as lluda_pack_size said; LLUDA_BAD_ARGUMENT if they
 * differ). Does pack a tensor that lluda_pack_size calls incompressible. Parallel over rows. */
LLUDA_API int lluda_pack(lluda_context *context, const uint16_t *values, int64_t out_features, int64_t in_features,
                         void *buffer, int64_t bytes);

/* Fill *weight with pointers into a packed buffer (64-byte aligned, for example mmapped from a file). Everything a
 * kernel relies on is checked: sizes, row offsets, columns; LLUDA_CORRUPT otherwise. bias is set to NULL. */
LLUDA_API int lluda_packed_view(const void *buffer, int64_t bytes, lluda_weight *weight);

/* The exact BF16 values [out, in] of a BF16 or packed weight. Parallel over rows. */
LLUDA_API int lluda_unpack(lluda_context *context, const lluda_weight *weight, uint16_t *values);

/* ---- Products --------------------------------------------------------------------------------------------------- */

/* Rows `ids` [count] (any count) of a table, widened to F32: y [count, in_features], row stride y_stride. */
LLUDA_API int lluda_embedding(lluda_context *context, const lluda_weight *table, int64_t count, const int64_t *ids,
                              float *y, int64_t y_stride);

/* y = x W^T + bias, summed in float32 or better (of exact values: a Q8_0 block's scale multiplies its sum; "amx" takes a
 * block of x as whole numbers, to 2^-30 of its largest, and gives no number where one of them is not finite). x BF16 [rows, in],
 * y [rows, out] of y_dtype (rounded once if BF16). */
LLUDA_API int lluda_linear(lluda_context *context, const lluda_weight *weight, int64_t rows, const uint16_t *x,
                           int64_t x_stride, void *y, int32_t y_dtype, int64_t y_stride);

/* Several products of the same rows (q, k and v; gate and up) in one pass over the threads: y[i] [rows, out of
 * weights[i]], row stride y_strides[i]; all weights have the same in_features. count <= 64. */
LLUDA_API int lluda_linear_group(lluda_context *context, int64_t count, const lluda_weight *const *weights,
                                 int64_t rows, const uint16_t *x, int64_t x_stride, void *const *y, int32_t y_dtype,
                                 const int64_t *y_strides);

/* ---- Blocks of a decoder layer ---------------------------------------------------------------------------------- *
 * Each takes the residual stream x F32 [rows, hidden] (row stride x_stride) and adds its result to it:
 *   x += scale * block(RMSNorm(x) * norm)
 * with scale = output_scale F32 [hidden], or 1 if NULL. Matrix inputs are rounded to BF16, all else is float32. */

/* Where one row's keys and values live: [kv_heads, capacity, head_dim] each, in cache_dtype, heads head_stride elements
 * apart. The row's own are written at `position`; it attends to 0 .. position (or the last `window` of those). Rows of one call may share a cache (then
 * at different positions; a row sees what earlier positions' rows of this call wrote) or have different ones. */
typedef struct lluda_cache_row {
    void *keys;
    void *values;
    int64_t head_stride; /* at least capacity * head_dim */
    int64_t capacity;    /* positions there is memory for */
    int64_t position;    /* 0 .. capacity - 1 */
} lluda_cache_row;

typedef struct lluda_attention {
    int64_t hidden;
    int64_t heads; /* a multiple of kv_heads */
    int64_t kv_heads;
    int64_t head_dim;          /* even */
    int64_t window;            /* positions a row sees, itself included; 0: all */
    const float *norm;         /* F32 [hidden]: RMSNorm weight before the block */
    const float *q_norm;       /* F32 [head_dim] or NULL: per-head RMSNorm of queries */
    const float *k_norm;       /* the same for keys */
    const float *output_scale; /* F32 [hidden] or NULL */
    const lluda_weight *q;     /* [heads * head_dim, hidden] */
    const lluda_weight *k;     /* [kv_heads * head_dim, hidden] */
    const lluda_weight *v;     /* the same */
    const lluda_weight *o;     /* [hidden, heads * head_dim] */
    float norm_eps;
    float qk_norm_eps;
    int32_t cache_dtype; /* BF16: queries, keys and values are rounded to it once, and with many rows on machines that
                            multiply BF16 pairs also the softmax weights. F32: none of them is rounded */
    int32_t reserved;    /* 0 */
} lluda_attention;

/* Causal grouped-query attention with scale 1/sqrt(head_dim). cos and sin: F32 [rows, head_dim / 2], contiguous, for
 * the half-split rotation of the pairs (i, i + head_dim/2). cache: [rows]. */
LLUDA_API int lluda_attention_block(lluda_context *context, const lluda_attention *block, int64_t rows, float *x,
                                    int64_t x_stride, const float *cos, const float *sin, const lluda_cache_row *cache);

/* Convolutions of `runs` streams along their rows: y[r] = W [x[r]; x[r + dilation]; …; x[r + (taps - 1) * dilation]] +
 * bias, of y_dtype, for r = 0 .. lengths[i]-1 (0 or more); x[i] BF16 [lengths[i] + (taps - 1) * dilation,
 * in_features / taps]. y: the runs' rows below each other. A run's results do not depend on the others. */
LLUDA_API int lluda_conv1d(lluda_context *context, const lluda_weight *weight, int64_t taps, int64_t dilation,
                           int64_t runs, const int64_t *lengths, const uint16_t *const *x, int64_t x_stride, void *y,
                           int32_t y_dtype, int64_t y_stride);

/* y = x + amplitude * sin(frequency * x)^2, rounded to BF16; x F32 or BF16 [rows, channels], frequency and amplitude
 * F32 [channels]. Angles of a magnitude up to 10^5 are exact to float32's own rounding of them. */
LLUDA_API int lluda_snake_beta(lluda_context *context, int64_t rows, int64_t channels, const void *x, int32_t x_dtype,
                               int64_t x_stride, const float *frequency, const float *amplitude, uint16_t *y,
                               int64_t y_stride);

/* Two convolutions of a vocoder, each behind a SnakeBeta: x += conv2(snake2(conv1(snake1(x)))). */
typedef struct lluda_residual_unit {
    int64_t channels; /* even */
    int64_t taps;     /* of conv1 */
    int64_t dilation;
    const float *frequency1, *amplitude1; /* F32 [channels] */
    const float *frequency2, *amplitude2;
    const lluda_weight *conv1; /* [channels, taps * channels] */
    const lluda_weight *conv2; /* [channels, channels] */
} lluda_residual_unit;

/* x F32, changed: the rows [lengths[i], channels] of `runs` streams below each other; kept[i] BF16 [(taps - 1) * dilation,
 * channels]: the last rows of snake1 that came before in that stream (zeros at its start), replaced by those of this
 * call. Inputs of products are rounded to BF16 once. A run's results do not depend on the others. */
LLUDA_API int lluda_residual_unit_block(lluda_context *context, const lluda_residual_unit *unit, int64_t runs,
                                        const int64_t *lengths, float *x, int64_t x_stride, uint16_t *const *kept);

/* A vocoder's block: SnakeBeta, a transposed convolution that makes `stride` rows of each (of it and the one before, with
 * two taps), residual units. */
typedef struct lluda_upsample {
    int64_t channels;
    int64_t out;    /* channels behind the convolution */
    int64_t taps;   /* 1 or 2 */
    int64_t stride;
    const float *frequency, *amplitude; /* F32 [channels] */
    const lluda_weight *conv;           /* [stride * out, taps * channels] */
    const lluda_residual_unit *units;   /* array */
    int64_t unit_count;
} lluda_upsample;

/* x F32: the rows [lengths[i], channels] of `runs` streams below each other. y F32: stride rows [out] for each of them,
 * but with two taps none for the first of a stream. kept [1 + unit_count][runs]: of each stream the last row of SnakeBeta,
 * BF16 [channels], which counts where begun[i] is not 0, and what the units keep; all replaced. A run's results do not
 * depend on the others. */
LLUDA_API int lluda_upsample_block(lluda_context *context, const lluda_upsample *block, int64_t runs,
                                   const int64_t *lengths, const float *x, int64_t x_stride, uint16_t *const *kept,
                                   const int32_t *begun, float *y);

/* x += gamma * pwconv2(gelu(pwconv1(layernorm(dwconv(x))))), dwconv causal and of each channel by itself. */
typedef struct lluda_convnext {
    int64_t channels;
    int64_t inner; /* channels between pwconv1 and pwconv2 */
    int64_t taps;
    const float *dwconv, *dwconv_bias;  /* F32 [taps, channels], [channels] */
    const float *norm, *norm_bias;      /* F32 [channels] */
    const float *gamma;                 /* F32 [channels] */
    const lluda_weight *pwconv1;        /* [inner, channels] */
    const lluda_weight *pwconv2;        /* [channels, inner] */
    float norm_eps;
    int32_t reserved; /* 0 */
} lluda_convnext;

/* x F32, changed: the rows [lengths[i], channels] of `runs` streams below each other; kept[i] F32 [taps - 1, channels]: the
 * last rows that came before in that stream (zeros at its start), replaced by those of this call. Inputs of products are
 * rounded to BF16 once. A run's results do not depend on the others. */
LLUDA_API int lluda_convnext_block(lluda_context *context, const lluda_convnext *block, int64_t runs,
                                   const int64_t *lengths, float *x, int64_t x_stride, float *const *kept);

/* A convolution to one channel behind a SnakeBeta, cut off at one: clamp(conv(snake(x)), -1, 1). */
typedef struct lluda_mono_convolution {
    int64_t channels;
    int64_t taps;
    const float *frequency, *amplitude; /* F32 [channels] */
    const float *weight;                /* F32 [taps, channels] */
    const float *bias;                  /* F32, one */
} lluda_mono_convolution;

/* y F32, one for each of the rows x [lengths[i], channels] of `runs` streams below each other; kept[i] BF16 [taps - 1,
 * channels]: the last rows of snake that came before in that stream (zeros at its start), replaced by those of this call.
 * What snake gives is rounded to BF16, the products and sums are float32. A run's results do not depend on the others,
 * nor on how a stream is cut into calls. */
LLUDA_API int lluda_mono_convolution_block(lluda_context *context, const lluda_mono_convolution *convolution,
                                           int64_t runs, const int64_t *lengths, const float *x, int64_t x_stride,
                                           uint16_t *const *kept, float *y);

typedef struct lluda_mlp {
    int64_t hidden;
    int64_t intermediate;
    const float *norm;         /* F32 [hidden] */
    const float *output_scale; /* F32 [hidden] or NULL */
    const lluda_weight *gate;  /* [intermediate, hidden] */
    const lluda_weight *up;    /* the same */
    const lluda_weight *down;  /* [hidden, intermediate] */
    float norm_eps;
    int32_t reserved; /* 0 */
} lluda_mlp;

/* down(silu(gate) * up), the product rounded once to BF16. */
LLUDA_API int lluda_mlp_block(lluda_context *context, const lluda_mlp *block, int64_t rows, float *x, int64_t x_stride);

enum { LLUDA_GELU_ERF = 0, LLUDA_GELU_TANH = 1 };

/* A layer of an encoder: x += out(attention(qkv(layernorm1(x)))), then x += fc2(gelu(fc1(layernorm2(x)))). Queries,
 * keys, values, what attention gives and the inner rows are each rounded once to BF16. */
typedef struct lluda_encoder {
    int64_t hidden;
    int64_t heads;
    int64_t head_dim; /* even */
    int64_t intermediate;
    const float *norm1, *norm1_bias; /* F32 [hidden] */
    const float *norm2, *norm2_bias;
    const lluda_weight *qkv; /* array: q, k and v, [heads * head_dim, hidden] each; or one, the three below each other */
    int64_t qkv_count;       /* 3 or 1 */
    const lluda_weight *out; /* [hidden, heads * head_dim] */
    const lluda_weight *fc1; /* [intermediate, hidden] */
    const lluda_weight *fc2; /* [hidden, intermediate] */
    float norm1_eps, norm2_eps;
    int32_t gelu;     /* LLUDA_GELU_*: exact, or by its tanh approximation */
    int32_t reserved; /* 0 */
} lluda_encoder;

/* Consecutive runs of lengths[i] >= 1 rows, together `rows`; each row attends to all rows of its run. cos and sin
 * F32 [rows, head_dim / 2] turn queries and keys, or are both NULL. */
LLUDA_API int lluda_encoder_block(lluda_context *context, const lluda_encoder *block, int64_t rows, float *x,
                                  int64_t x_stride, const float *cos, const float *sin, const int64_t *lengths,
                                  int64_t runs);

typedef struct lluda_moe {
    int64_t hidden;
    int64_t experts;                 /* 1 .. 4096 */
    int64_t intermediate;            /* of every routed expert */
    int64_t shared_intermediate;     /* of the shared expert; 0 if there is none */
    int64_t top_k;                   /* 1 .. 64, <= experts */
    const float *norm;               /* F32 [hidden] */
    const float *output_scale;       /* F32 [hidden] or NULL */
    const float *router;             /* F32 [experts, hidden]; multiplied with the rows rounded to BF16 */
    const lluda_weight *gate;        /* array [experts] of [intermediate, hidden] */
    const lluda_weight *up;          /* the same */
    const lluda_weight *down;        /* array [experts] of [hidden, intermediate] */
    const lluda_weight *shared_gate; /* one weight each, or NULL */
    const lluda_weight *shared_up;
    const lluda_weight *shared_down;
    const float
        *shared_expert_gate; /* F32 [hidden]: the shared expert is weighted by sigmoid(row . this); or NULL: 1 */
    float norm_eps;
    int32_t normalise; /* not 0: the chosen weights are divided by their sum */
} lluda_moe;

/* Softmax over all experts in float32, the top_k largest of each row (the lower index first among equals), sum of
 * weight * expert(row) in float32. Only the chosen experts' weights are read, once for all rows that chose them.
 * chosen: int32 [rows, top_k], the experts in descending order of weight, or NULL. */
LLUDA_API int lluda_moe_block(lluda_context *context, const lluda_moe *block, int64_t rows, float *x, int64_t x_stride,
                              int32_t *chosen);

/* logits F32 [rows, out] = (RMSNorm(x) * norm, rounded to BF16) W^T + bias. x F32 [rows, in] is only read. */
LLUDA_API int lluda_lm_head(lluda_context *context, const lluda_weight *weight, const float *norm, float norm_eps,
                            int64_t rows, const float *x, int64_t x_stride, float *logits, int64_t logits_stride);

/* ---- Whole stacks ----------------------------------------------------------------------------------------------- */

/* One decoder layer: attention, then either mlp or moe (the other is NULL). All layers of a call are of one hidden. */
typedef struct lluda_layer {
    const lluda_attention *attention;
    const lluda_mlp *mlp;
    const lluda_moe *moe;
} lluda_layer;

/* A decode step through `count` layers: what lluda_attention_block and lluda_mlp_block or lluda_moe_block do, one after
 * the other. rows at most LLUDA_FEW_ROWS; cache: [count, rows]; the rest as there. */
LLUDA_API int lluda_decoder_layers(lluda_context *context, const lluda_layer *layers, int64_t count, int64_t rows,
                                   float *x, int64_t x_stride, const float *cos, const float *sin,
                                   const lluda_cache_row *cache);

/* Passes over the same layers, each with a head and a table of its own: pass g chooses a code of its head's logits, and
 * the code's row of its table is the row of pass g + 1. */
typedef struct lluda_code_predictor {
    int64_t layer_count;
    int64_t passes;
    const lluda_layer *layers;
    const float *norm;              /* F32 [hidden]: RMSNorm weight before the heads */
    const lluda_weight *heads;      /* array [passes] of [codes, hidden] */
    const lluda_weight *embeddings; /* the same */
    float norm_eps;
    int32_t reserved; /* 0 */
} lluda_code_predictor;

/* Writes a code of each frame's logits of `pass` into the call's codes; called on the calling thread, must not use the
 * call's context. A result other than 0, or what is no code, ends the call with LLUDA_STOPPED. */
typedef int (*lluda_choose)(void *chooser, int64_t pass);

/* The frames of `count` sequences, at most LLUDA_FEW_ROWS / 2. By position: x F32 [2, count, hidden], changed, the rows
 * of pass 0, positions 0 and 1 (pass g takes position g + 1); cos and sin [passes + 1, count, head_dim / 2]; cache
 * [layer_count, passes + 1, count]. Written: logits F32 [passes, count, codes] (those of a pass before they are chosen
 * from); total F32 [count, hidden] += each code's row of its table. codes [passes, count]: `choose` writes them. */
LLUDA_API int lluda_predict_codes(lluda_context *context, const lluda_code_predictor *predictor, int64_t count, float *x,
                                  const float *cos, const float *sin, const lluda_cache_row *cache, lluda_choose choose,
                                  void *chooser, float *logits, int64_t *codes, float *total);

/* ---- Launches of a GPU ------------------------------------------------------------------------------------------- */

/* Puts launches into a compute pass of WebGPU by the functions at three addresses: wgpuComputePassEncoderSetPipeline,
 * wgpuComputePassEncoderSetBindGroup (group 0) and wgpuComputePassEncoderDispatchWorkgroups. launches [count, 5]: handles
 * of pipeline and bind group, and the workgroups along x, y and z. */
LLUDA_API void lluda_record_launches(void *pass, const uint64_t *launches, int64_t count, void *set_pipeline,
                                     void *set_bind_group, void *dispatch);

#ifdef __cplusplus
}
#endif
#endif
