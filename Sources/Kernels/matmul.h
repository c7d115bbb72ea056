/* Inside of the products. Every mode becomes one shape of work:
 *
 *     C[rows, columns] = A[rows, k] · B[k, columns]
 *
 * A is read row-major, a value (or a pair of bf16) broadcast at a time. B is decoded from its format, a panel of columns
 * at a time, into the order in which the kernel consumes it; so a weight is decoded once and used for all rows, and no
 * matrix ever exists in a wider type. A panel holds for each step of k `vectors`·lanes columns:
 *
 *     f32 kernels:   panel[k][column]                 a step is one k
 *     bf16 kernels:  panel[k / 2][column][k & 1]      a step is a pair of k (odd k: a zero joins)
 *
 *            A                     B
 *     NT     X                     Wᵀ: panel columns are rows of W     (transposed while packing)
 *     NN     X                     W:  panel steps are rows of W
 *     TN     Xᵀ, W                 whichever of Xᵀ and Wᵀ has fewer rows becomes A; `swapped`: it is Wᵀ, C is Yᵀ
 *
 * A product element is one chain of fused multiply-adds over k, in order, whatever tile it falls in: results do not
 * depend on the division of work. (Products with few rows go another way, matmul_gemv.c.) */
#ifndef PK_MATMUL_H
#define PK_MATMUL_H

#include "formats.h"

/* One tile of C: where its operands are and what happens to the sums. */
typedef struct pk_tile {
  const void *a; /* first row, row stride lda values */
  int64_t lda;
  const void *panel;
  int64_t steps;
  int32_t rows, columns, vectors;
  float *sums;         /* [rows][vectors·lanes] of the kernel's full tile: where the sums wait between two blocks of k */
  int32_t continues;   /* the sums so far are there */
  int32_t ends;        /* 1: the tile is finished into y; 0: the sums go back there */
  void *y; /* first element, row stride ldy values of y_type */
  int64_t ldy;
  int32_t y_type, accumulate;
  float alpha;
  const float *bias; /* of the first column, or NULL */
} pk_tile;

/* What an instruction set offers. */
typedef struct pk_tile_kernel {
  int32_t type;    /* of A's and the panel's values, PK_F32 or PK_BF16 */
  int32_t rows;    /* of a tile */
  int32_t lanes;   /* columns in a vector */
  int32_t vectors; /* in a full panel */
  /* Multiplies a tile: at most `rows` rows. */
  void (*multiply)(const pk_tile *tile);
  /* `columns` rows of `k` values (of `type`, stride ld) become columns of the panel. */
  void (*pack_columns)(const void *from, int64_t ld, int32_t columns, int64_t k, void *panel, int32_t vectors);
  /* Two rows of `columns` values (f32 kernels: one, `odd` unused; odd NULL: zeros) become a step. */
  void (*pack_step)(const void *even, const void *odd, int32_t columns, void *panel, int32_t vectors);
  /* Before and after the tiles of a part of a product of so many steps; NULL: nothing. */
  void (*begin)(int64_t steps);
  void (*end)(void);
  /* Bytes of panels packed together, so that A's rows come once for all of them. 0: one panel at a time (two where blocks need it). */
  int64_t together;
} pk_tile_kernel;

/* NULL on processors of another family. */
const pk_tile_kernel *pk_kernel_avx2_f32(void);
const pk_tile_kernel *pk_kernel_avx512_f32(void);
const pk_tile_kernel *pk_kernel_bf16(void);
const pk_tile_kernel *pk_kernel_amx(void);
/* How panels of pairs are packed, matmul_bf16.c. */
void pk_pack_pairs(const void *from, int64_t ld, int32_t columns, int64_t k, void *panel, int32_t vectors);
void pk_pack_two_rows(const void *even, const void *odd, int32_t columns, void *panel, int32_t vectors);

void pk_tiled_scratch(const pk_matmul *op, const pk_tile_kernel *kernel, size_t *shared, size_t *each);
void pk_tiled_run(const pk_matmul *op, const pk_tile_kernel *kernel, int32_t phase, int32_t part, int32_t parts, void *shared, void *each);

/* Products of few rows (forward only), matmul_gemv.c: bound by reading W once, so W is multiplied as it is read.
 * A kernel multiplies some rows of W with one, two, four or eight prepared rows of X. It reads the rows of W one after the other:
 * memory then comes in order, which the processor foresees (four rows at a time came at 8 GB/s instead of 20). */
enum {
  PK_GEMV_AHEAD = 2048, /* bytes fetched ahead: it does not foresee the next page */
  PK_GEMV_WIDE = 16,    /* rows of W at most */
  PK_WIDE_AHEAD = 28 << 10 /* bytes that kernels of so many rows fetch ahead: what lies beyond a part's own rows is another's */
};
/* Blocks of 32, `count` from `first` on, of w_rows rows of W become a panel. */
typedef void pk_unpack_fn(const uint8_t *const *w, int64_t first, int64_t count, void *panel);
/* sums[rows][w_rows] += 1, 2, 4 or 8 rows of X, from their first block on, times the `count` blocks of a panel (8 alone of formats whose few
 * rows have code of their own). */
typedef void pk_add_panel_fn(const void *panel, const uint8_t *x, size_t x_bytes, int32_t rows, int64_t count, float *sums);
typedef struct pk_gemv_kernel {
  size_t (*x_bytes)(int64_t k);                                /* of a prepared row of X, a multiple of 64 */
  void (*prepare)(const float *x, int64_t k, void *prepared);  /* x is zero-padded to a multiple of 128 */
  /* Kernels of PK_GEMV_WIDE rows take one pointer more: where to fetch from what comes after these rows.
   * sums[i·w_rows + r] = W row r · X row i, for `count` rows of X, x_bytes apart: a power of two up to x_rows */
  void (*multiply)(const uint8_t *const *w, const uint8_t *x, size_t x_bytes, int32_t count, int64_t k, float *sums);
  int32_t w_rows, x_rows;
  /* More rows of X, NULL where a format has no such kernel; w_rows is PK_GEMV_WIDE then. */
  int64_t (*panel_bytes)(int64_t blocks);
  pk_unpack_fn *unpack;
  pk_add_panel_fn *add_panel;
} pk_gemv_kernel;

/* Kernels of a format; NULL: there is none (a caller then decodes to f32 first). */
const pk_gemv_kernel *pk_gemv_avx2_f32(int32_t w_type);
const pk_gemv_kernel *pk_gemv_avx2_int8(int32_t w_type);
const pk_gemv_kernel *pk_gemv_avx512_f32(int32_t w_type);
const pk_gemv_kernel *pk_gemv_vnni_int8(int32_t w_type);
const pk_gemv_kernel *pk_gemv_int8(int32_t level, int32_t w_type);
/* Of q5_K and q6_K, for few rows alone (matmul_gemv_k.c). */
const pk_gemv_kernel *pk_gemv_avx2_k(int32_t w_type);

/* sums[r] = row r of b [4, rank] · h, b in f32 or bf16, of AVX2 and beyond; rank is a multiple of 8. */
void pk_narrow_dot(int32_t type, const void *b, int64_t rank, const float *h, float sums[4]);
/* The same of 16 rows. */
typedef void pk_narrow_dots_fn(int32_t type, const void *b, int64_t rank, const float *h, float sums[16]);
pk_narrow_dots_fn pk_narrow_dots_avx2, pk_narrow_dots_avx512;
/* 16 outputs on from value `at` of y: (alpha · sums + beside) · factors (+ bias); NULL: 1, 0. */
typedef void pk_finish_16_fn(const pk_matmul *op, int64_t at, const float *bias, const float *sums, const float *beside, const float *factors);
pk_finish_16_fn pk_finish_16_avx2, pk_finish_16_avx512;

int32_t pk_gemv_serves(const pk_matmul *op);
void pk_gemv_scratch(const pk_matmul *op, size_t *each);
void pk_gemv_run(const pk_matmul *op, int32_t part, int32_t parts, void *each);

/* Writes `columns` (at most 16) outputs of a row from their sums, on from `column`: alpha, bias, accumulation, type. */
void pk_gemv_finish(const pk_matmul *op, int64_t row, int64_t column, int64_t columns, const float *sums);

/* Forward products of many rows with int8 activations by blocks of 32, matmul_many.c. */
int32_t pk_many_serves(const pk_matmul *op);
void pk_many_scratch(const pk_matmul *op, size_t *shared, size_t *each);
void pk_many_run(const pk_matmul *op, int32_t phase, int32_t part, int32_t parts, void *shared, void *each);

/* AMX' tiles win over the kernels for a narrow side, from some rows on. */
static inline int32_t pk_amx_wins(const pk_matmul *op) {
  return op->level >= PK_LEVEL_AMX && op->compute == PK_COMPUTE_BF16 && op->x_type == PK_BF16 && (op->mode == PK_TN ? op->k : op->m) >= 32;
}

/* Products with a narrow side: matmul_dot.c (few columns), matmul_outer.c (gradients of low-rank factors). */
int32_t pk_dot_serves(const pk_matmul *op);
void pk_dot_scratch(const pk_matmul *op, size_t *each);
void pk_dot_run(const pk_matmul *op, int32_t part, int32_t parts, void *each);
int32_t pk_outer_serves(const pk_matmul *op);
void pk_outer_scratch(const pk_matmul *op, size_t *each);
void pk_outer_run(const pk_matmul *op, int32_t part, int32_t parts, void *each);

/* Forward products of many rows in eight bits, matmul_rounded.c. */
int32_t pk_rounded_serves(const pk_matmul *op);
void pk_rounded_scratch(const pk_matmul *op, size_t *shared, size_t *each);
void pk_rounded_run(const pk_matmul *op, int32_t phase, int32_t part, int32_t parts, void *shared, void *each);

void pk_reference_scratch(const pk_matmul *op, size_t *shared, size_t *each);
void pk_reference_run(const pk_matmul *op, int32_t part, int32_t parts, void *each);

static inline int64_t pk_type_bytes(int32_t type) { return type == PK_F32 ? 4 : 2; }

#endif
