/* Products in plain C: the portable level, and the meaning of all the others. Nothing is clever here beyond decoding a
 * row of W once for all rows of X, and summing in eight interleaved chains so that the compiler may use vectors. */
#include "half.h"
#include "matmul.h"

enum { chains = 8 };

static float load(const void *p, int32_t type, int64_t i) {
  return type == PK_F32 ? ((const float *)p)[i] : pk_bf16_to_f32(((const uint16_t *)p)[i]);
}

/* The tail of every product: Y = alpha·sum + bias (+ Y). */
static void finish(const pk_matmul *op, int64_t row, int64_t column, float sum) {
  const int64_t at = row * op->ldy + column;
  float y = op->alpha * sum + (op->bias ? op->bias[column] : 0);
  if (op->accumulate) y += load(op->y, op->y_type, at);
  if (op->y_type == PK_F32) {
    ((float *)op->y)[at] = y;
  } else {
    ((uint16_t *)op->y)[at] = pk_f32_to_bf16(y);
  }
}

/* `count` values of a row of X from column `at`, as f32 (rounded to bf16 first if the product is to be one of bf16). */
static void load_x(const pk_matmul *op, int64_t row, int64_t at, int64_t stride, int64_t count, float *out) {
  for (int64_t i = 0; i < count; i++) {
    const float x = load(op->x, op->x_type, row * op->ldx + at + i * stride);
    out[i] = op->compute == PK_COMPUTE_BF16 ? pk_round_bf16(x) : x;
  }
}

/* A whole row of W. */
static void load_w(const pk_matmul *op, int64_t row, int64_t count, float *out) {
  const pk_format *format = pk_format_of(op->w_type);
  format->decode((const uint8_t *)op->w + row * op->w_row_bytes, out, (size_t)count);
  if (op->compute == PK_COMPUTE_BF16) {
    for (int64_t i = 0; i < count; i++) out[i] = pk_round_bf16(out[i]);
  }
}

static float dot(const float *x, const float *w, int64_t count) {
  float sum[chains] = {0};
  int64_t i = 0;
  for (; i + chains <= count; i += chains) {
    for (int c = 0; c < chains; c++) sum[c] += x[i + c] * w[i + c];
  }
  for (int c = 0; i < count; i++, c++) sum[c] += x[i] * w[i];
  for (int half = chains / 2; half; half /= 2) {
    for (int c = 0; c < half; c++) sum[c] += sum[c + half];
  }
  return sum[0];
}

static void add_scaled(float *y, float a, const float *x, int64_t count) {
  for (int64_t i = 0; i < count; i++) y[i] += a * x[i];
}

/* Scratch of a part: a row of W, and a row of X (NT) or of sums (NN, TN). */
void pk_reference_scratch(const pk_matmul *op, size_t *shared, size_t *each) {
  const int64_t w_row = op->mode == PK_NT ? op->k : op->n;
  *shared = 0;
  *each = (size_t)(2 * pk_round_up(w_row * 4, 64));
}

/* Rows of W (NT) or rows of Y (NN, TN) are divided over the parts. */
void pk_reference_run(const pk_matmul *op, int32_t part, int32_t parts, void *each) {
  const int64_t w_row = op->mode == PK_NT ? op->k : op->n;
  float *w = each, *other = w + pk_round_up(w_row * 4, 64) / 4;

  if (op->mode == PK_NT) {
    const pk_range share = pk_share(op->n, 1, part, parts);
    for (int64_t j = share.begin; j < share.end; j++) {
      load_w(op, j, op->k, w);
      for (int64_t i = 0; i < op->m; i++) {
        load_x(op, i, 0, 1, op->k, other);
        finish(op, i, j, dot(other, w, op->k));
      }
    }
    return;
  }

  const pk_range share = pk_share(op->m, 1, part, parts);
  for (int64_t i = share.begin; i < share.end; i++) {
    for (int64_t j = 0; j < op->n; j++) other[j] = 0;
    for (int64_t l = 0; l < op->k; l++) {
      float x;
      if (op->mode == PK_NN) {
        load_x(op, i, l, 1, 1, &x);
      } else {
        load_x(op, l, i, 1, 1, &x);
      }
      load_w(op, l, op->n, w);
      add_scaled(other, x, w, op->n);
    }
    for (int64_t j = 0; j < op->n; j++) finish(op, i, j, other[j]);
  }
}
