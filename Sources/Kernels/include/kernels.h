/* The numerical kernels of libpeftswift: C11, no allocation, no state, no I/O.
 *
 * Every kernel takes the instruction-set `level` it shall use and computes one share of its work: part `part` of
 * `parts`. The caller (Tensors/ThreadPool) runs all the shares, on as many threads as it likes. Work is divided over
 * OUTPUT elements only and every sum is taken in an order that does not depend on `parts`: results are the same bits
 * for any number of threads. Matrices are row-major; `ld` = elements from one row to the next.
 *
 * Activations are f32 or bf16 ("act" type below, PK_F32 or PK_BF16); arithmetic inside a kernel is always f32, except
 * that a product with compute PK_COMPUTE_BF16 multiplies bf16 pairs and accumulates f32.
 */
#ifndef PEFTSWIFT_KERNELS_H
#define PEFTSWIFT_KERNELS_H

#include <stddef.h>
#include <stdint.h>

/* Storage formats; the numbers are GGML's type ids, so a GGUF tensor type is a format without translation. */
#define PK_F32 0
#define PK_F16 1
#define PK_Q4_0 2
#define PK_Q4_1 3
#define PK_Q5_0 6
#define PK_Q5_1 7
#define PK_Q8_0 8
#define PK_Q2_K 10
#define PK_Q3_K 11
#define PK_Q4_K 12
#define PK_Q5_K 13
#define PK_Q6_K 14
#define PK_IQ4_NL 20
#define PK_BF16 30
#define PK_TQ1_0 34
#define PK_TQ2_0 35
/* What GGML does not have. */
#define PK_F8_E4M3 1010
#define PK_F8_E5M2 1011
/* Formats whose rows are wholes (coded.h; int8: a scale and k bytes). */
#define PK_NF4 1020
#define PK_FP4 1021
#define PK_BLOCKWISE8 1022
#define PK_INT8 1023

/* Instruction-set levels, ascending; each contains the ones before. */
#define PK_LEVEL_PORTABLE 0
#define PK_LEVEL_AVX2 1        /* AVX2 + FMA + F16C */
#define PK_LEVEL_AVX512 2      /* F, BW, DQ, VL */
#define PK_LEVEL_AVX512_BF16 3 /* + BF16, VNNI */
#define PK_LEVEL_AMX 4         /* + tiles of BF16 and INT8 */

/* The highest level this processor (and its operating system) supports. */
int32_t pk_best_level(void);
/* The level to compute at: `level`, or the best one if that is lower. Linux wants to be asked for AMX' registers; it is asked here, for the whole process
 * and for good. Refused (a thread's alternate signal stack has no room for them): AVX512_BF16. */
int32_t pk_take_level(int32_t level);
/* Whether products of bf16 pairs are faster than products in f32: not below AVX512_BF16, and on Intel's processors with FP16 only by AMX (cpu.c). */
int32_t pk_pairs_are_fast(int32_t level);

/* How many processors the scheduler lets this process use. */
int32_t pk_usable_processors(void);

/* Tells the processor that a loop is waiting for another thread. */
static inline void pk_pause(void) {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  __asm__ volatile("yield");
#endif
}

/* ---- formats.c: the table of weight formats ---- */

/* One row of the table. Values are stored in blocks along a matrix row; a row is a whole number of blocks. Of formats whose
 * rows are wholes block_values is 32 (where a row may be entered) and block_bytes 0. */
typedef struct pk_format {
  int32_t type;          /* PK_… */
  const char *name;      /* "q4_1" */
  int32_t block_values;  /* values in a block (1 for f32, f16, bf16, f8) */
  int32_t block_bytes;
  /* Decode / encode `count` values (a whole number of blocks, or a row). encode follows ggml's reference quantisers bit for
   * bit where the `gguf` package has them; NULL for coded formats, which are encoded as a whole. */
  void (*decode)(const void *blocks, float *values, size_t count);
  void (*encode)(const float *values, void *blocks, size_t count);
} pk_format;

/* The row of a type, NULL if there is none. */
const pk_format *pk_format_of(int32_t type);
/* All rows of block formats; *count receives their number. */
const pk_format *const *pk_formats(int32_t *count);

/* Rows of a matrix to f32 at a level (a share of the rows; of a single row, divided at block borders). */
void pk_decode(int32_t level, int32_t type, const void *w, int64_t row_bytes, int64_t rows, int64_t k, float *values, int32_t part, int32_t parts);
/* The other way round: f32 rows in any format but the coded ones; the same bytes at every level. */
void pk_encode(int32_t level, int32_t type, const float *values, int64_t rows, int64_t k, void *w, int64_t row_bytes, int32_t part, int32_t parts);
/* Copy between activation/plain types (f32, bf16, f16), round to nearest even. */
void pk_convert(int32_t level, const void *from, int32_t from_type, void *to, int32_t to_type, size_t count, int32_t part, int32_t parts);

/* ---- formats_coded.c: nf4, fp4, blockwise8 ---- */

/* A matrix as bitsandbytes has it: codes of the flattened values (of four bits two a byte, the first in the high ones), and
 * a scale for each block of them: f32 `scales`, or (nested != NULL) dynamic[scale_codes[b]]·nested[b / 256] + offset. */
typedef struct pk_coded {
  int32_t type, shift; /* log2 of the block size */
  int64_t blocks;
  const uint8_t *codes, *scale_codes;
  const float *scales, *nested;
  float offset;
} pk_coded;

/* The largest magnitude of each block of `count` values and their codes (a share of the blocks). */
void pk_coded_encode(int32_t type, const float *values, int64_t count, int64_t block, float *scales, uint8_t *codes, int32_t part, int32_t parts);
/* Bytes of a row of k values. */
int64_t pk_coded_row_bytes(int32_t type, int64_t k, int64_t block, int32_t doubled);
/* Row `row` of k values, from the parts and back into them (whose memory is then written, but for the offset). */
void pk_coded_write(const pk_coded *parts, int64_t row, int64_t k, int64_t row_bytes, void *to);
void pk_coded_read(const void *from, int64_t row, int64_t k, const pk_coded *parts);
float pk_coded_offset(const void *row);
/* The values of codes: 16, or 256 of blockwise8 and of scales that are codes. */
const float *pk_coded_values(int32_t type);

/* ---- matmul*.c: products with a weight matrix in any format ---- */

#define PK_COMPUTE_F32 0
#define PK_COMPUTE_BF16 1 /* operands rounded to bf16, f32 accumulation; falls back to f32 arithmetic on bf16-rounded operands below AVX512_BF16 */
#define PK_COMPUTE_INT8 2 /* weight blocks × activations quantised to int8 per 32 values (forward; more than 8 rows: pk_matmul_int8_serves_many); falls back to f32 where a format has no int8 form */
#define PK_COMPUTE_ROUNDED 3 /* PK_NT only: X in int8 per 192 values, W per row (matmul_rounded.c); fast on AVX512_BF16, a reference below */

#define PK_NT 0 /* Y[m,n] = X[m,k] · W[n,k]ᵀ   forward of a linear layer */
#define PK_NN 1 /* Y[m,n] = X[m,k] · W[k,n]    gradient to the input: dX = dY · W */
#define PK_TN 2 /* Y[m,n] = X[k,m]ᵀ · W[k,n]   gradient to a weight: dW = dYᵀ · X; W is f32 or bf16 */

/* A product of low rank beside the other, for some rows: y[i] += scale · B·(A·x[i]), begin ≤ i < end: what an adapter does to some samples of a batch. */
typedef struct pk_branch {
  const void *a, *b; /* [rank, k], [n, rank] */
  int64_t rank, begin, end;
  float scale;
  int32_t type; /* of both: f32 | bf16 */
  const float *factors; /* [n], what all of y[i] but the bias is multiplied with; of at most one branch of a row; NULL: 1 */
} pk_branch;

typedef struct pk_matmul {
  int32_t level, compute, mode;
  int32_t x_type, w_type, y_type; /* x, y: f32 | bf16; w: any format (rows contiguous blocks) */
  int64_t m, n, k;
  int64_t ldx, ldy;
  int64_t w_row_bytes; /* bytes from one row of W to the next */
  const void *x, *w;
  void *y;
  const float *bias;   /* [n], added after alpha; NULL: none */
  float alpha;         /* Y = alpha · product (+ bias) … */
  int32_t accumulate;  /* … + Y when 1 */
  const pk_branch *branches; /* only where pk_matmul_joins says so */
  int64_t branch_count;
  const struct pk_matmul *next; /* few rows: the product that comes after this one, whose weights begin to be fetched; NULL: nobody knows */
} pk_matmul;

/* Bytes of scratch for one pk_matmul_run pair of phases: `shared` once per product (written in phase 0, read in phase 1), `each` per part. */
void pk_matmul_scratch(const pk_matmul *op, size_t *shared, size_t *each);
/* Phase 0 prepares the shared scratch (packs or converts X; nothing to do when *shared is 0); phase 1 multiplies.
 * The caller puts a barrier between them. `each` is this part's own scratch, 64-byte aligned. */
void pk_matmul_run(const pk_matmul *op, int32_t phase, int32_t part, int32_t parts, void *shared, void *each);
/* Whether PK_COMPUTE_INT8 of more than 8 rows is what it is of few, and not f32, and worth it: AMX is faster in bf16. */
int32_t pk_matmul_int8_serves_many(int32_t level, int32_t w_type);
/* Whether this product (few rows) takes branches with it. */
int32_t pk_matmul_joins(const pk_matmul *op);
/* How many parts are worth running (1 for tiny products). */
int32_t pk_matmul_parts(const pk_matmul *op, int32_t threads);

/* ---- matmul_int8.c: Y = X · Wᵀ of int8 rows with activations of eight bits beside outlier columns (LLM.int8); mode PK_NT ---- */

/* As the two above; three phases with a barrier between them, each divided by itself. k is at most 2¹⁷. */
void pk_matmul_int8_scratch(const pk_matmul *op, size_t *shared, size_t *each);
void pk_matmul_int8_run(const pk_matmul *op, float threshold, int32_t phase, int32_t part, int32_t parts, void *shared, void *each);

/* out[row] = Σ_k W[row,k]² for rows of W in any format, over `rows` rows of `k` values (DoRA's norms). */
void pk_row_sumsq(int32_t level, int32_t w_type, const void *w, int64_t w_row_bytes, int64_t rows, int64_t k, float *out, int32_t part, int32_t parts);

/* ---- attention*.c: exact attention without an N×N matrix ---- */

typedef struct pk_attention {
  int32_t level, compute;           /* PK_COMPUTE_F32, or …_BF16: tensors of bf16 are multiplied in pairs from AVX512_BF16 on, in f32 otherwise */
  int32_t act;                      /* type of q and out, and of the gradients */
  int32_t kv;                       /* type of k and v: f32, bf16 or (forward only) q8_0, where each head is whole blocks, the last filled up with zeros */
  int64_t batch, q_len, k_len;
  int64_t heads, kv_heads, head_dim; /* kv_heads divides heads */
  /* element strides of token and batch; a head's values are contiguous: element (b,t,h,d) = p[b·batch + t·token + h·head_dim + d]
   * (q8_0: head_dim in whole blocks) */
  int64_t q_token, q_batch, k_token, k_batch, v_token, v_batch, o_token, o_batch;
  const void *q, *k, *v;
  void *out;        /* forward: written; backward: read */
  float *lse;       /* [batch, heads, q_len] log-sum-exp of each row; NULL in inference */
  float scale;      /* usually 1/√head_dim */
  float softcap;    /* 0: none; else s = cap·tanh(s/cap) */
  int32_t causal;   /* query t sees keys ≤ t + q_offset */
  int64_t q_offset; /* absolute position of query 0 minus that of key 0 (k_len − q_len with a cache) */
  int64_t window;   /* 0: none; else query at p sees keys > p − window */
  const uint8_t *key_mask;   /* [batch, k_len], 0 = never seen; NULL: all seen */
  const int32_t *first_key;  /* [batch, q_len] first visible key of each query (packed sequences); NULL: 0 */
  /* NULL: none; else distance_bias[h·bias_head + d] is added to the score of a query that stands d after its key, for every
   * d from −k_len to q_len + q_offset + 63 (the last 63 are read and not used) */
  const float *distance_bias;
  int64_t bias_head;
  /* backward only; same strides as q k v out */
  const void *d_out;
  void *d_q, *d_k, *d_v;     /* overwritten */
} pk_attention;

/* Bytes of scratch (64-byte aligned) for the forward or the backward kernel: `each` per part; `shared` once per backward,
 * written in phase 0 and read in phase 1 (partial d_k, d_v in f32; 0 forward). Depends on shapes, act, compute and level, not on the pointers. */
void pk_attention_scratch(const pk_attention *op, int32_t backward, size_t *each, size_t *shared);
/* Rows of heads (f32 or bf16, contiguous) as q8_0, each head in whole blocks. */
void pk_cache_rows(int32_t level, int32_t from, const void *x, void *q8_0, int64_t rows, int64_t heads, int64_t head_dim, int32_t part, int32_t parts);
/* A row that sees no key at all yields zeros, lse −∞ and zero gradients. */
void pk_attention_forward(const pk_attention *op, int32_t part, int32_t parts, void *each);
/* Phase 0: d_q, and partial sums of d_k, d_v for fixed chunks of queries; phase 1: their sums. The caller puts a barrier between them. */
void pk_attention_backward(const pk_attention *op, int32_t phase, int32_t part, int32_t parts, void *shared, void *each);

/* Adds the gradient of distance_bias to `gradient`, laid out as it (softcap 0; operands as for the backward kernel). */
void pk_attention_bias_gradient(const pk_attention *op, float *gradient, int32_t part, int32_t parts);

/* ---- kronecker.c ---- */

/* Rows of x [rows, m·n] times a Kronecker product W ⊗ (A·B), added to rows of y [rows, l·k]; factors and their gradients are f32. */
typedef struct pk_kronecker {
  int32_t level, x_type, y_type; /* f32 or bf16 */
  int64_t rows, l, k, m, n, r;
  const float *w, *a, *b; /* [l, m] [k, r] [r, n] */
  float scale;
  const void *x;
  void *y;                 /* forward */
  const void *d_y;         /* backward */
  void *d_x;               /* written, or added to with `accumulate`; NULL: not wanted */
  int32_t accumulate;
  float *d_w, *d_a, *d_b;  /* added to; NULL: not wanted */
} pk_kronecker;

/* Bytes of scratch: for each part, and shared by all. */
void pk_kronecker_scratch(const pk_kronecker *op, int32_t backward, size_t *each, size_t *shared);
/* y += scale · (W ⊗ A·B)·x, by rows. */
void pk_kronecker_forward(const pk_kronecker *op, int32_t part, int32_t parts, void *each);
/* Phase 0, then 1. */
void pk_kronecker_backward(const pk_kronecker *op, int32_t phase, int32_t part, int32_t parts, void *shared, void *each);

/* ---- norms.c; x, y, dx, dy of type act; weight and its gradient f32; rows × n ---- */

/* y = x / rms(x) · (weight + offset); rms = √(mean x² + eps). inv[rows] = 1/rms (may be NULL). offset: 0, Gemma 1. */
void pk_rmsnorm_forward(int32_t level, int32_t act, const void *x, const float *weight, float offset, float eps, void *y, float *inv, int64_t rows, int64_t n, int32_t part, int32_t parts);
/* dx (+)= …; needs x and inv. */
void pk_rmsnorm_backward(int32_t level, int32_t act, const void *x, const float *weight, float offset, const float *inv, const void *dy, void *dx, int32_t accumulate, int64_t rows, int64_t n, int32_t part, int32_t parts);
/* dweight[n] += Σ_rows dy · x · inv; divided over columns. */
void pk_rmsnorm_weight_backward(int32_t level, int32_t act, const void *x, const float *inv, const void *dy, float *dweight, int64_t rows, int64_t n, int32_t part, int32_t parts);
/* y = (x − mean)/√(var + eps) · weight + bias; weight, bias may be NULL; stats[2·rows] = mean, 1/std (may be NULL). */
void pk_layernorm_forward(int32_t level, int32_t act, const void *x, const float *weight, const float *bias, float eps, void *y, float *stats, int64_t rows, int64_t n, int32_t part, int32_t parts);
void pk_layernorm_backward(int32_t level, int32_t act, const void *x, const float *weight, const float *stats, const void *dy, void *dx, int32_t accumulate, int64_t rows, int64_t n, int32_t part, int32_t parts);
/* dweight[n] += …, dbias[n] += … (either may be NULL); divided over columns. */
void pk_layernorm_weight_backward(int32_t level, int32_t act, const void *x, const float *stats, const void *dy, float *dweight, float *dbias, int64_t rows, int64_t n, int32_t part, int32_t parts);

/* ---- rope.c ---- */

/* Rotates heads of x [rows, heads, head_dim] (row stride `token` elements) by the angles of position[row]:
 * cos, sin are tables [positions, rotary/2]. interleaved 0: pairs (i, i+rotary/2) (HF Llama, NeoX); 1: pairs (2i, 2i+1).
 * inverse 1 rotates back (the backward pass). x and y may be the same. Values beyond `rotary` are copied. */
void pk_rope(int32_t level, int32_t act, const void *x, void *y, const float *cos, const float *sin, const int32_t *position,
             int64_t rows, int64_t heads, int64_t head_dim, int64_t rotary, int64_t token_x, int64_t token_y, int32_t interleaved, int32_t inverse, int32_t part, int32_t parts);

/* ---- activations.c; count elements ---- */

#define PK_SILU 0
#define PK_GELU 1        /* exact, erf */
#define PK_GELU_TANH 2
#define PK_RELU 3
#define PK_TANH 4
#define PK_SIGMOID 5
#define PK_QUICK_GELU 6  /* x·sigmoid(1.702x) */

void pk_activation_forward(int32_t level, int32_t act, int32_t kind, const void *x, void *y, size_t count, int32_t part, int32_t parts);
/* dx (+)= dy · f'(x) */
void pk_activation_backward(int32_t level, int32_t act, int32_t kind, const void *x, const void *dy, void *dx, int32_t accumulate, size_t count, int32_t part, int32_t parts);
/* y = f(gate) · up (SwiGLU, GeGLU) */
void pk_glu_forward(int32_t level, int32_t act, int32_t kind, const void *gate, const void *up, void *y, size_t count, int32_t part, int32_t parts);
/* d_gate, d_up overwritten; they may be the same memory as gate, up. If y is not NULL it receives f(gate)·up again (recomputation for free). */
void pk_glu_backward(int32_t level, int32_t act, int32_t kind, const void *gate, const void *up, const void *dy, void *d_gate, void *d_up, void *y, size_t count, int32_t part, int32_t parts);

/* ---- elementwise.c; y of type act unless said otherwise; y may alias an input ---- */

/* y = a·x + b·y */
void pk_axpby(int32_t level, int32_t act, float a, const void *x, float b, void *y, size_t count, int32_t part, int32_t parts);
/* y = x1 + x2 */
void pk_add(int32_t level, int32_t act, const void *x1, const void *x2, void *y, size_t count, int32_t part, int32_t parts);
/* y = x1 · x2 */
void pk_mul(int32_t level, int32_t act, const void *x1, const void *x2, void *y, size_t count, int32_t part, int32_t parts);
/* y = w ⊙ (1 + scale·p) + scale·q (q NULL: 0), y of type f32 or, rounded by chance, bf16 */
void pk_changed_weights(int32_t level, const float *w, const float *p, const float *q, float scale, int32_t type, void *y, size_t count, int32_t part, int32_t parts);
/* y[r,c] = x[r,c] · (scale ? scale[c] : 1) + (shift ? shift[c] : 0) (+ y if accumulate) */
void pk_scale_columns(int32_t level, int32_t act, const void *x, const float *scale, const float *shift, void *y, int32_t accumulate, int64_t rows, int64_t n, int32_t part, int32_t parts);
/* out[c] += Σ_r x1[r,c] · (x2 ? x2[r,c] : 1); divided over columns */
void pk_column_sums(int32_t level, int32_t act, const void *x1, const void *x2, float *out, int64_t rows, int64_t n, int32_t part, int32_t parts);
/* y[r,:] = x[r,:] · s[r] */
void pk_scale_rows(int32_t level, int32_t act, const void *x, const float *s, void *y, int64_t rows, int64_t n, int32_t part, int32_t parts);
/* Inverted dropout: y = (keep ? x/(1−p) : 0) (+ y). Element i is kept when word offset+i of the stream `seed` is ≥ p·2³²:
 * the same (seed, offset) gives the same mask, the backward pass calls it again. May run in place.
 * A stream is Philox 4x32-10: word e is word e mod 4 of the block with counter (e div 4, 0), key seed. */
void pk_dropout(int32_t level, int32_t act, const void *x, void *y, size_t count, float p, uint64_t seed, uint64_t offset, int32_t accumulate, int32_t part, int32_t parts);
/* One block of the generator (Random123's philox4x32, 10 rounds). */
void pk_philox_block(const uint32_t counter[4], const uint32_t key[2], uint32_t out[4]);
/* Words offset … offset+count−1 of the stream. */
void pk_philox(uint64_t seed, uint64_t offset, uint32_t *out, size_t count);
/* Standard normal numbers offset … offset+count−1 of the stream, two of two words (Box–Muller); offset counts words. */
void pk_normals(int32_t level, float *y, size_t count, uint64_t seed, uint64_t offset, int32_t part, int32_t parts);
/* x [rows, 2n] has means and logarithms of variances: noise = e^(½·ln σ²)·normals, y = μ + noise, both [rows, n]. */
void pk_sample(int32_t level, int32_t act, const void *x, const float *normals, void *noise, void *y, int64_t rows, int64_t n, int32_t part, int32_t parts);
/* Row gather from a table in any format: y[i,:] = decode(table[ids[i],:]) · scale; ids are validated by the caller. */
void pk_gather_rows(int32_t level, int32_t w_type, const void *w, int64_t w_row_bytes, int64_t n, const int32_t *ids, int64_t count, float scale, int32_t act, void *y, int32_t part, int32_t parts);
/* dtable[ids[i],:] += scale · dy[i,:], dtable f32 [rows, n]; divided over columns. */
void pk_scatter_add_rows(int32_t level, int32_t act, const void *dy, const int32_t *ids, int64_t count, int64_t n, float scale, float *dtable, int32_t part, int32_t parts);
/* In-place softmax of rows of f32. */
void pk_softmax_rows(int32_t level, float *x, int64_t rows, int64_t n, int64_t ld, int32_t part, int32_t parts);

/* ---- compress.c: activations in 8 bits ---- */

/* q[count] and scales[count/32] of x (act); count is a multiple of 32. */
void pk_compress(int32_t level, int32_t act, const void *x, int8_t *q, uint16_t *scales, size_t count, int32_t part, int32_t parts);
void pk_decompress(int32_t level, int32_t act, const int8_t *q, const uint16_t *scales, void *y, size_t count, int32_t part, int32_t parts);

/* ---- unfold.c: convolutions as products ---- */

/* The patches of pictures [batch, channels, in…]; 3 dimensions, unused ones first with size 1. */
typedef struct pk_patches {
  int32_t act;
  int64_t batch, channels;
  int64_t in[3], out[3], kernel[3], stride[3], padding[3], dilation[3];
  /* Elements from one sample, channel, position to the next: channels first or last. */
  int64_t batch_stride, channel_stride, position_stride;
} pk_patches;

/* rows[batch·positions, channels·taps] = what each output position sees; zeros outside. */
void pk_unfold(const pk_patches *patches, const void *picture, void *rows, int32_t part, int32_t parts);
/* The derivative: picture (+)= the sum of everything that saw it; divided over channels. */
void pk_fold(const pk_patches *patches, const void *rows, void *picture, int32_t accumulate, int32_t part, int32_t parts);

/* ---- columns.c; indices are validated by the caller ---- */

/* y[rows, m]: y[r,c] = x[r,from[c]]; x [rows, n] of type act. */
void pk_gather_columns(int32_t act, const void *x, const int32_t *from, void *y, int64_t rows, int64_t n, int64_t m, int32_t part, int32_t parts);
/* The derivative: y[rows, m] (f32) = 0, then y[r,to[c]] += x[r,c] in the order of c; x [rows, n] of type act. */
void pk_scatter_columns(int32_t act, const void *x, const int32_t *to, float *y, int64_t rows, int64_t n, int64_t m, int32_t part, int32_t parts);

/* y [m, n], rows of ldy values: x [n, m], rows of ldx, turned; f32 or bf16. */
void pk_turn(int32_t type, const void *x, int64_t ldx, void *y, int64_t ldy, int64_t n, int64_t m);

/* Each row holds a matrix [n, m]; y: the same turned, [m, n]. */
void pk_turn_rows(int32_t act, const void *x, void *y, int64_t rows, int64_t n, int64_t m, int32_t part, int32_t parts);

/* ---- inverses.c ---- */

/* The inverses of n matrices [b, b]; scratch: 2·b² of the part's own. 0: one of the part's has none (its y is not written). */
int32_t pk_inverses(const float *x, float *y, int64_t n, int64_t b, double *scratch, int32_t part, int32_t parts);

/* ---- spectrum.c: sparse matrices between transforms ---- */

enum { PK_IDENTITY = 0, PK_FOURIER = 1, PK_WAVELETS = 2 };

/* A linear map of the vector of one side to its spectrum of `size` places (of re and im where it is Fourier's). */
typedef struct pk_transform {
  int32_t kind;
  int64_t n, size;
  /* Fourier: blocks of this length, Σ_i x_i·e^(+2πi·k·i/block); tables of the block's angles; factors of the length. */
  int64_t block;
  const float *cosines, *sines;
  int32_t factors[64], factor_count;
  /* Wavelets: size = 2·half; u[b·half + k] = Σ_j filter_b[j]·x[2k + j − shift]. */
  int64_t half, length, shift;
  const float *low, *high;
} pk_transform;

/* Some entries of a matrix, by rows; entry p has the value number order[p] (NULL: p). */
typedef struct pk_entries {
  const int32_t *rows, *columns, *order;
  int64_t count;
} pk_entries;

/* y += alpha·Re Vᵀ·S·U·x for each of `rows` rows; S has values at `entries`. Both sides have the same kind. values: re, and im behind
 * it if has_imaginary. Places are validated by the caller. */
typedef struct pk_spectral {
  int32_t act;
  int64_t rows;
  pk_transform in, out;
  pk_entries entries;
  /* Of each entry's row and column the opposite frequency's in its block (without Fourier transforms: the same). */
  const int32_t *opposite_rows, *opposite_columns;
  const float *values;
  int32_t has_imaginary;
  /* dx is computed from dy turned round in each block, dy[−p mod block]. */
  int32_t turns_gradient;
} pk_spectral;

/* Bytes of scratch for one part. */
size_t pk_spectral_scratch(const pk_spectral *op);
/* Most parts there can be. */
int32_t pk_spectral_tiles(const pk_spectral *op);
void pk_spectral_forward(int32_t level, const pk_spectral *op, const void *x, void *y, float alpha, int32_t part, int32_t parts, float *scratch);
/* dx += alpha·Uᵀ·Sᵀ·V·dy, dvalues += the values' gradient; either may be NULL. dvalues is the part's own. */
void pk_spectral_backward(int32_t level, const pk_spectral *op, const void *x, const void *dy, void *dx, float *dvalues, float alpha, int32_t part, int32_t parts, float *scratch);

/* ---- entries.c ---- */

/* y[row·row_step + column·column_step] += scale · value, y of type f32 or, rounded by chance, bf16. An entry may occur more than once. */
void pk_add_entries(int32_t type, void *y, int64_t row_step, int64_t column_step, pk_entries e, const float *values, float scale, int32_t part, int32_t parts);
/* The values' gradients: += scale · Σ over `rows` rows of dy[·, an entry's row]·x[·, its column]; x [rows, in], dy [rows, out]. */
void pk_entry_gradients(int32_t level, int32_t act, const void *x, int64_t in, const void *dy, int64_t out, int64_t rows, pk_entries e, float scale, float *dvalues, int32_t part, int32_t parts, float *scratch);
/* Bytes of scratch for one part. */
size_t pk_entries_scratch(int64_t in, int64_t out);

/* ---- spectrogram.c ---- */

#define PK_LONGEST_FRAME 2048

/* `count` samples of a recording that is `length` long (the rest is silence), in frames of `size` (even, at most PK_LONGEST_FRAME) every
 * `hop`: length / hop of them, the first around the first sample. Tables in double: of the window times cos and sin of 2π·n·k/size,
 * [size/2 + 1 (n), size/2 + 1 (k)], and filters [bins, size/2 + 1]. */
typedef struct pk_log_mel {
  const float *samples;
  int64_t count, length, size, hop, bins;
  const double *cosines, *sines, *filters;
} pk_log_mel;

/* out[bin, frame] = log10 of the power that the filter lets through, at least 1e-10. */
void pk_log_mel_frames(const pk_log_mel *m, float *out, int32_t part, int32_t parts);

/* ---- loss.c ---- */

/* Softmax cross-entropy of a chunk of logits (f32, rows × n, ld): row_loss[r] = logsumexp − logit[label], 0 where label == ignore (-100);
 * then logits become their gradient times grad_scale in place (zeros in ignored rows). `softcap` 0: none (applied to the logits first, gradient included).
 * grad_scale 0: losses only, logits untouched. Labels are validated by the caller. */
void pk_cross_entropy(int32_t level, float *logits, int64_t rows, int64_t n, int64_t ld, const int32_t *labels, float softcap, float grad_scale, float *row_loss, int32_t part, int32_t parts);

/* The same loss without the logits in f32: they are computed by blocks of columns, observed and kept as f16. Per row: top = the
 * largest logit so far, sum = Σ e^(logit − top) so far (−∞ and 0 at first), target = the logit of the label, once it was seen.
 * logits: rows × n, columns first … first+n−1 of all; softcap as above. halves: [rows, ld_halves] f16, or NULL. */
void pk_softmax_observe(int32_t level, const float *logits, int64_t rows, int64_t n, int64_t first, const int32_t *labels, float softcap, float *top, float *sum,
                        float *target, uint16_t *halves, int64_t ld_halves, int32_t part, int32_t parts);
/* row_loss as above; then halves (rows × n, NULL: losses only) become the gradient in bf16, in place. */
void pk_softmax_gradient(int32_t level, uint16_t *halves, int64_t rows, int64_t n, const int32_t *labels, const float *top, const float *sum, const float *target,
                         float softcap, float grad_scale, float *row_loss, int32_t part, int32_t parts);

/* ---- sampling.c; all f32 ---- */

/* Where the first of the largest values stands; −1 if none is larger than −∞, −2 − i for a NaN at i. */
int64_t pk_largest(int32_t level, const float *x, int64_t n);
/* weights[i] = e^((logits[i] − largest) · scale), 0 below e⁻³⁰; their sum. */
float pk_weigh_tokens(int32_t level, const float *logits, int64_t n, float largest, float scale, float *weights);
/* Where values of at least `least` stand, ascending, and how many they are; `found` has room for n. */
int64_t pk_at_least(const float *x, int64_t n, float least, int32_t *found);

/* ---- optimizer.c; all f32 ---- */

/* AdamW as torch: decoupled decay, bias correction by step (1, 2, …). */
void pk_adamw(int32_t level, float *w, const float *g, float *m, float *v, size_t count, float grad_scale, float lr, float beta1, float beta2, float eps, float weight_decay, int64_t step, int32_t part, int32_t parts);
/* SGD as torch: g += decay·w; buf = momentum·buf + g (buf = g at step 1); w −= lr·buf. buf NULL when momentum is 0. */
void pk_sgd(int32_t level, float *w, const float *g, float *buf, size_t count, float grad_scale, float lr, float momentum, float weight_decay, int64_t step, int32_t part, int32_t parts);
/* optimizer_more.c: Lion; Adafactor of matrices [count, rows, columns] (column NULL: of vectors; a whole parameter at once); AdamW
 * with moments of eight bits and a scale for 256. */
void pk_lion(float *w, const float *g, float *m, size_t count, float grad_scale, float lr, float beta1, float beta2, float weight_decay, int32_t part, int32_t parts);
void pk_adafactor(float *w, const float *g, float *row, float *column, int64_t count, int64_t rows, int64_t columns, float grad_scale, float lr, float beta2, float eps, float threshold, float weight_decay);
void pk_adamw8(float *w, const float *g, uint8_t *m, uint8_t *v, float *m_scales, float *v_scales, size_t count, float grad_scale, float lr, float beta1, float beta2, float eps, float weight_decay, int64_t step, int32_t part, int32_t parts);
/* Σ x² in double, fixed order. */
double pk_sumsq(int32_t level, const float *x, size_t count);
/* 1 if every value of x (f32, bf16, f16) is finite. */
int32_t pk_all_finite(int32_t level, int32_t type, const void *x, size_t count);

#endif
