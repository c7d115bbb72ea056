/* Forward products of many rows with int8 activations (reading a prompt): the arithmetic, and the order of sums, of the few rows of decoding
 * (matmul_gemv.c): a row of the product has the same bits however many others are multiplied with it.
 *
 * Phase 0 rounds the rows of X, each once. A part unpacks 16 rows of W, up to 48 blocks of 32 at a time (a panel of 30 kB, in L1), and multiplies
 * all rows of X with it, eight at a time: 96 vector instructions for 16 × 8 × 32 multiplications. Sums of wider rows wait in memory between panels. */
#include "half.h"
#include "matmul.h"

enum { most_blocks = 48, rows_at_once = 8, wide = PK_GEMV_WIDE };

static const pk_gemv_kernel *kernel_of(const pk_matmul *op) {
  return op->level >= PK_LEVEL_AVX512_BF16 ? pk_gemv_vnni_int8(op->w_type) : NULL;
}

int32_t pk_matmul_int8_serves_many(int32_t level, int32_t w_type) {
  const pk_matmul op = {.level = level, .w_type = w_type};
  return kernel_of(&op) != NULL;
}

int32_t pk_many_serves(const pk_matmul *op) {
  return op->mode == PK_NT && op->compute == PK_COMPUTE_INT8 && op->m > rows_at_once && op->k > 0 && kernel_of(op) != NULL;
}

static int64_t padded_rows(const pk_matmul *op) { return pk_round_up(op->m, rows_at_once); }
static int64_t padded_k(const pk_matmul *op) { return pk_round_up(op->k, 128); }

/* A part's scratch. */
typedef struct pieces {
  float *row;    /* of X, zeros behind it */
  uint8_t *panel;
  float *sums;   /* [rows][16] */
} pieces;

static size_t place(const pk_matmul *op, uintptr_t base, pieces *own) {
  size_t used = 0;
  own->row = pk_take(base, &used, padded_k(op) * 4);
  own->panel = pk_take(base, &used, kernel_of(op)->panel_bytes(most_blocks));
  own->sums = pk_take(base, &used, padded_rows(op) * wide * 4);
  return used;
}

void pk_many_scratch(const pk_matmul *op, size_t *shared, size_t *each) {
  pieces own;
  *shared = (size_t)padded_rows(op) * kernel_of(op)->x_bytes(op->k);
  *each = place(op, 0, &own);
}

static void round_rows(const pk_matmul *op, const pk_gemv_kernel *kernel, pk_range rows, float *row, uint8_t *x) {
  const size_t bytes = kernel->x_bytes(op->k);
  for (int64_t i = op->k; i < padded_k(op); i++) row[i] = 0;
  for (int64_t i = rows.begin; i < rows.end; i++) {
    if (i >= op->m) {
      memset(x + (size_t)i * bytes, 0, bytes);
      continue;
    }
    pk_convert(op->level, (const uint8_t *)op->x + (size_t)(i * op->ldx) * (size_t)pk_type_bytes(op->x_type), op->x_type, row, PK_F32, (size_t)op->k, 0, 1);
    kernel->prepare(row, op->k, x + (size_t)i * bytes);
  }
}

void pk_many_run(const pk_matmul *op, int32_t phase, int32_t part, int32_t parts, void *shared, void *each) {
  const pk_gemv_kernel *kernel = kernel_of(op);
  const uint8_t *x = shared;
  const size_t bytes = kernel->x_bytes(op->k);
  pieces own;
  place(op, (uintptr_t)each, &own);
  if (phase == 0) return round_rows(op, kernel, pk_share(padded_rows(op), 1, part, parts), own.row, shared);

  const pk_range share = pk_share((op->n + wide - 1) / wide, 1, part, parts);
  for (int64_t group = share.begin; group < share.end; group++) {
    const int64_t column = group * wide, columns = pk_min(wide, op->n - column), blocks = op->k / 32;
    const uint8_t *w[wide]; /* beyond the last row: that row again, its sums unused */
    for (int64_t r = 0; r < wide; r++) w[r] = (const uint8_t *)op->w + (column + pk_min(r, columns - 1)) * op->w_row_bytes;
    memset(own.sums, 0, (size_t)(padded_rows(op) * wide) * 4);
    for (int64_t first = 0; first < blocks; first += most_blocks) {
      const int64_t count = pk_min(most_blocks, blocks - first);
      kernel->unpack(w, first, count, own.panel);
      for (int64_t i = 0; i < op->m; i += rows_at_once) kernel->add(own.panel, x + (size_t)i * bytes, bytes, first, count, own.sums + i * wide);
    }
    for (int64_t i = 0; i < op->m; i++) pk_gemv_finish(op, i, column, columns, own.sums + i * wide);
  }
}
