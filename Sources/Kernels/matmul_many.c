/* Forward products of many rows with int8 activations (reading a prompt): the arithmetic, and the order of sums, of the few rows of decoding
 * (matmul_gemv.c): a row of the product has the same bits however many others are multiplied with it (but for matmul_gemv_k.c's formats).
 *
 * Phase 0 rounds the rows of X, each once. A part unpacks as many panels of 16 rows of W as L2 takes beside X, and multiplies eight rows of X at a
 * time, which stay in L1, with each of them: 96 vector instructions for 16 × 8 × 32 multiplications with AVX512-VNNI. */
#include "half.h"
#include "matmul.h"

enum { panels_limit = 192 << 10 /* bytes */, rows_at_once = 8, wide = PK_GEMV_WIDE };

static const pk_gemv_kernel *kernel_of(const pk_matmul *op) {
  return pk_gemv_int8(op->level, op->w_type);
}

int32_t pk_matmul_int8_serves_many(int32_t level, int32_t w_type) {
  const pk_matmul op = {.level = level, .w_type = w_type};
  return level < PK_LEVEL_AMX && kernel_of(&op) != NULL; /* whose tiles multiply bf16 three times as fast as this does int8 */
}

int32_t pk_many_serves(const pk_matmul *op) {
  return op->mode == PK_NT && op->compute == PK_COMPUTE_INT8 && op->m > rows_at_once && op->k > 0 && kernel_of(op) != NULL;
}

static int64_t padded_rows(const pk_matmul *op) { return pk_round_up(op->m, rows_at_once); }
static int64_t padded_k(const pk_matmul *op) { return pk_round_up(op->k, 128); }

/* Panels unpacked at once. */
static int64_t panels_of(const pk_matmul *op) { return pk_max(1, panels_limit / kernel_of(op)->panel_bytes(op->k / 32)); }

/* A part's scratch. */
typedef struct pieces {
  float *row; /* of X, zeros behind it */
  uint8_t *panels;
} pieces;

static size_t place(const pk_matmul *op, uintptr_t base, pieces *own) {
  size_t used = 0;
  own->row = pk_take(base, &used, padded_k(op) * 4);
  own->panels = pk_take(base, &used, panels_of(op) * kernel_of(op)->panel_bytes(op->k / 32));
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
  const int64_t blocks = op->k / 32, panel_bytes = kernel->panel_bytes(blocks), most = panels_of(op);
  for (int64_t first = share.begin; first < share.end; first += most) {
    const int64_t count = pk_min(most, share.end - first);
    for (int64_t p = 0; p < count; p++) {
      const uint8_t *w[wide + 1]; /* beyond the last row: that row again, its sums unused */
      for (int64_t r = 0; r < wide; r++) w[r] = (const uint8_t *)op->w + pk_min((first + p) * wide + r, op->n - 1) * op->w_row_bytes;
      w[wide] = w[wide - 1] + PK_WIDE_AHEAD;
      kernel->unpack(w, 0, blocks, own.panels + p * panel_bytes);
    }
    for (int64_t i = 0; i < op->m; i += rows_at_once) {
      for (int64_t p = 0; p < count; p++) {
        float sums[rows_at_once * wide] = {0};
        const int64_t column = (first + p) * wide;
        kernel->add_panel(own.panels + p * panel_bytes, x + (size_t)i * bytes, bytes, rows_at_once, blocks, sums);
        for (int64_t r = i; r < pk_min(i + rows_at_once, op->m); r++) pk_gemv_finish(op, r, column, pk_min(wide, op->n - column), sums + (r - i) * wide);
      }
    }
  }
}
