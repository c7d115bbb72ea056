/* Chooses how a product is computed. */
#include "matmul.h"

/* The tile kernel of an operation; NULL: the portable reference. */
static const pk_tile_kernel *kernel_of(const pk_matmul *op) {
  if (op->level >= PK_LEVEL_AMX && op->compute == PK_COMPUTE_BF16) return pk_kernel_amx();
  if (op->level >= PK_LEVEL_AVX512_BF16 && op->compute == PK_COMPUTE_BF16) return pk_kernel_bf16();
  if (op->level >= PK_LEVEL_AVX512) return pk_kernel_avx512_f32();
  if (op->level >= PK_LEVEL_AVX2) return pk_kernel_avx2_f32();
  return NULL;
}

int32_t pk_matmul_joins(const pk_matmul *op) { return pk_gemv_serves(op); }

void pk_matmul_scratch(const pk_matmul *op, size_t *shared, size_t *each) {
  const pk_tile_kernel *kernel = kernel_of(op);
  *shared = *each = 0;
  if (op->m <= 0 || op->n <= 0 || !pk_format_of(op->w_type)) return;
  if (pk_rounded_serves(op)) {
    pk_rounded_scratch(op, shared, each);
  } else if (pk_many_serves(op)) {
    pk_many_scratch(op, shared, each);
  } else if (pk_gemv_serves(op)) {
    pk_gemv_scratch(op, each);
  } else if (pk_dot_serves(op)) {
    pk_dot_scratch(op, each);
  } else if (pk_outer_serves(op)) {
    pk_outer_scratch(op, each);
  } else if (kernel) {
    pk_tiled_scratch(op, kernel, shared, each);
  } else {
    pk_reference_scratch(op, shared, each);
  }
}

void pk_matmul_run(const pk_matmul *op, int32_t phase, int32_t part, int32_t parts, void *shared, void *each) {
  const pk_tile_kernel *kernel = kernel_of(op);
  if (op->m <= 0 || op->n <= 0 || !pk_format_of(op->w_type)) return;
  if (pk_rounded_serves(op)) return pk_rounded_run(op, phase, part, parts, shared, each);
  if (pk_many_serves(op)) return pk_many_run(op, phase, part, parts, shared, each);
  const int32_t is_few = pk_gemv_serves(op), is_dot = pk_dot_serves(op), is_outer = pk_outer_serves(op);
  if (kernel && !is_few && !is_dot && !is_outer) { /* the only one of these with a phase 0 */
    pk_tiled_run(op, kernel, phase, part, parts, shared, each);
  } else if (phase == 0) {
    return;
  } else if (is_few) {
    pk_gemv_run(op, part, parts, each);
  } else if (is_dot) {
    pk_dot_run(op, part, parts, each);
  } else if (is_outer) {
    pk_outer_run(op, part, parts, each);
  } else {
    pk_reference_run(op, part, parts, each);
  }
}

/* A thread is woken for some microseconds of work at least: 64 k multiplications, or 32 kB of weights to stream. */
int32_t pk_matmul_parts(const pk_matmul *op, int32_t threads) {
  const double work = (double)op->m * (double)op->n * (double)op->k;
  const double useful = work / 65536;
  return useful < 2 ? 1 : useful < threads ? (int32_t)useful : threads;
}
