/* The blocked product around the tile kernels: divides C into panels of columns (and rows, when there are few panels),
 * decodes a panel into this part's scratch, and sweeps the rows over it. See matmul.h for the roles of A and B.
 *
 * Blocking: a panel keeps all of k. At 48 columns it is 96 bytes (bf16) per k: 55 kB at k = 576, 147 kB at 1536, read
 * from L2 at 8 bytes a cycle while A (a few rows at a time) stays in L1; so k needs no blocking and sums need no
 * memory. Decoding costs once per panel and row group: its share falls with 1/rows. */
#include "half.h"
#include "matmul.h"

enum {
  chunk = 256,       /* values of k decoded at a time while packing columns: a multiple of every block size */
  padded_chunk = 256 /* … and of 32, as pack_columns wants */
};

typedef struct plan {
  const pk_tile_kernel *kernel;
  int64_t rows, columns, k;
  int64_t padded_k; /* k rounded up to whole steps */
  int32_t swapped;
  int32_t copies_a;               /* A lives in the shared scratch */
  const void *a, *b;              /* source matrices */
  int32_t a_type, b_type;
  int64_t a_ld, b_row_bytes;      /* a_ld in values */
  int32_t rounds;                 /* operands are rounded to bf16 and multiplied as f32 */
  int64_t panel_columns, group;   /* columns of a panel, panels decoded together */
  size_t panel_bytes;
} plan;

static int32_t is_half(const plan *p) { return p->kernel->type == PK_BF16; }

static plan make_plan(const pk_matmul *op, const pk_tile_kernel *kernel) {
  plan p = {.kernel = kernel, .rows = op->m, .columns = op->n, .k = op->k};
  p.a = op->x, p.a_type = op->x_type, p.a_ld = op->ldx;
  p.b = op->w, p.b_type = op->w_type, p.b_row_bytes = op->w_row_bytes;
  if (op->mode == PK_TN && op->n < op->m) {
    p.swapped = 1, p.rows = op->n, p.columns = op->m;
    p.a = op->w, p.a_type = op->w_type, p.a_ld = op->w_row_bytes / (int64_t)pk_type_bytes(op->w_type);
    p.b = op->x, p.b_type = op->x_type, p.b_row_bytes = op->ldx * (int64_t)pk_type_bytes(op->x_type);
  }
  p.rounds = op->compute == PK_COMPUTE_BF16 && kernel->type == PK_F32;
  p.padded_k = is_half(&p) ? (op->k + 1) / 2 * 2 : op->k;
  p.copies_a = op->mode == PK_TN || p.a_type != kernel->type || p.rounds || p.padded_k != op->k;
  p.panel_columns = (int64_t)kernel->lanes * kernel->vectors;
  const int32_t block = pk_format_of(p.b_type)->block_values;
  p.group = op->mode != PK_NT && block > 1 && p.panel_columns % block ? 2 : 1;
  p.panel_bytes = (size_t)(p.padded_k * p.panel_columns) * pk_type_bytes(kernel->type);
  return p;
}

/* Values decoded at a time: `lanes` columns of a chunk (NT), or two rows across the group widened to whole blocks. */
static size_t decoded_values(const pk_matmul *op, const plan *p) {
  if (op->mode == PK_NT) return (size_t)p->kernel->lanes * padded_chunk;
  const int64_t block = pk_format_of(p->b_type)->block_values;
  return 2 * (size_t)(p->group * p->panel_columns + 2 * block);
}

void pk_tiled_scratch(const pk_matmul *op, const pk_tile_kernel *kernel, size_t *shared, size_t *each) {
  const plan p = make_plan(op, kernel);
  *shared = p.copies_a ? pk_round_up((size_t)(p.rows * p.padded_k) * pk_type_bytes(kernel->type), 64) : 0;
  const size_t tile = (size_t)kernel->rows * (size_t)p.panel_columns * 4;
  *each = (size_t)p.group * pk_round_up(p.panel_bytes, 64) + pk_round_up(decoded_values(op, &p) * 4, 64) + tile;
}

/* ---- phase 0: A as the kernel reads it ---- */

static void copy_rows(const plan *p, int32_t level, uint8_t *out, int64_t first, int64_t end) {
  const size_t bytes = pk_type_bytes(p->kernel->type);
  for (int64_t i = first; i < end; i++) {
    const uint8_t *from = (const uint8_t *)p->a + (size_t)(i * p->a_ld) * pk_type_bytes(p->a_type);
    uint8_t *to = out + (size_t)(i * p->padded_k) * bytes;
    pk_convert(level, from, p->a_type, to, p->kernel->type, (size_t)p->k, 0, 1);
    if (p->rounds) {
      float *values = (float *)to;
      for (int64_t l = 0; l < p->k; l++) values[l] = pk_round_bf16(values[l]);
    }
    if (p->padded_k > p->k) memset(to + (size_t)p->k * bytes, 0, bytes);
  }
}

static float load(const void *p, int32_t type, int64_t i) {
  return type == PK_F32 ? ((const float *)p)[i] : pk_bf16_to_f32(((const uint16_t *)p)[i]);
}

/* A = the transpose of a [k, rows] matrix; in squares, so that both sides stay in L1. */
static void transpose_rows(const plan *p, uint8_t *out, int64_t first, int64_t end) {
  enum { side = 32 };
  for (int64_t i0 = first; i0 < end; i0 += side) {
    const int64_t i1 = i0 + side < end ? i0 + side : end;
    for (int64_t l0 = 0; l0 < p->padded_k; l0 += side) {
      const int64_t l1 = l0 + side < p->padded_k ? l0 + side : p->padded_k;
      for (int64_t l = l0; l < l1; l++) {
        for (int64_t i = i0; i < i1; i++) {
          const float x = l < p->k ? load(p->a, p->a_type, l * p->a_ld + i) : 0;
          const int64_t at = i * p->padded_k + l;
          if (is_half(p)) {
            ((uint16_t *)out)[at] = pk_f32_to_bf16(x);
          } else {
            ((float *)out)[at] = p->rounds ? pk_round_bf16(x) : x;
          }
        }
      }
    }
  }
}

/* ---- phase 1: panels ---- */

static void round_all(float *values, int64_t count) {
  for (int64_t i = 0; i < count; i++) values[i] = pk_round_bf16(values[i]);
}

/* Vectors of the panel that starts at `column`: fewer at the right edge. */
static int32_t vectors_at(const plan *p, int64_t column) {
  const int64_t left = p->columns - column;
  return left >= p->panel_columns ? p->kernel->vectors : (int32_t)((left + p->kernel->lanes - 1) / p->kernel->lanes);
}

static uint8_t *step_at(const plan *p, uint8_t *panel, int32_t vectors, int64_t k) {
  return panel + (size_t)(k * vectors * p->kernel->lanes) * pk_type_bytes(p->kernel->type);
}

/* NT: rows of W become the columns of one panel. */
static void pack_columns(const plan *p, pk_decode_fn *decode, int64_t column, uint8_t *panel, float *decoded) {
  const pk_format *format = pk_format_of(p->b_type);
  const int32_t lanes = p->kernel->lanes, vectors = vectors_at(p, column);
  const size_t vector_bytes = (size_t)lanes * 4; /* a lane is one f32 or a pair of bf16 */
  for (int32_t v = 0; v < vectors; v++) {
    const int64_t first = column + v * lanes, left = p->columns - first;
    const int32_t count = left < lanes ? (int32_t)left : lanes;
    const uint8_t *rows = (const uint8_t *)p->b + first * p->b_row_bytes;
    uint8_t *to = panel + (size_t)v * vector_bytes;
    if (p->b_type == PK_BF16 && p->kernel->pack_columns_bf16) {
      p->kernel->pack_columns_bf16((const uint16_t *)rows, p->b_row_bytes / 2, count, p->k, to, vectors);
      continue;
    }
    for (int64_t k = 0; k < p->k; k += chunk) {
      const int64_t values = p->k - k < chunk ? p->k - k : chunk;
      const int64_t padded = (values + 31) / 32 * 32;
      for (int32_t r = 0; r < count; r++) {
        float *row = decoded + r * padded_chunk;
        decode(rows + r * p->b_row_bytes + k / format->block_values * format->block_bytes, row, (size_t)values);
        if (p->rounds) round_all(row, values);
        for (int64_t i = values; i < padded; i++) row[i] = 0;
      }
      p->kernel->pack_columns(decoded, padded_chunk, count, values, step_at(p, to, vectors, k), vectors);
    }
  }
}

/* NN and TN: rows of the [k, columns] matrix become the steps of `group` panels. */
static void pack_steps(const plan *p, pk_decode_fn *decode, int64_t column, uint8_t *panels, float *decoded) {
  const pk_format *format = pk_format_of(p->b_type);
  const int64_t block = format->block_values, width = p->group * p->panel_columns;
  const int64_t end = column + width < p->columns ? column + width : p->columns;
  const int64_t from = column / block * block, to = (end + block - 1) / block * block;
  const int32_t per_step = is_half(p) ? 2 : 1;
  const size_t stride = pk_round_up(p->panel_bytes, 64);
  const int direct = p->b_type == PK_BF16 && p->kernel->pack_step_bf16;

  for (int64_t k = 0; k < p->k; k += per_step) {
    const uint8_t *row[2];
    float *values[2];
    const int32_t have = p->k - k < per_step ? 1 : per_step;
    for (int32_t r = 0; r < have; r++) {
      row[r] = (const uint8_t *)p->b + (k + r) * p->b_row_bytes + from / block * format->block_bytes;
      values[r] = decoded + r * (width + 2 * block);
      if (direct) continue;
      decode(row[r], values[r], (size_t)(to - from));
      if (p->rounds) round_all(values[r], to - from);
    }
    for (int64_t g = 0; g < p->group && column + g * p->panel_columns < end; g++) {
      const int64_t at = column + g * p->panel_columns;
      const int32_t vectors = vectors_at(p, at);
      const int32_t count = (int32_t)(end - at < p->panel_columns ? end - at : p->panel_columns);
      uint8_t *step = step_at(p, panels + (size_t)g * stride, vectors, k);
      if (direct) {
        const uint16_t *even = (const uint16_t *)row[0] + (at - from);
        p->kernel->pack_step_bf16(even, have == 2 ? (const uint16_t *)row[1] + (at - from) : NULL, count, step, vectors);
      } else {
        p->kernel->pack_step(values[0] + (at - from), have == 2 ? values[1] + (at - from) : NULL, count, step, vectors);
      }
    }
  }
}

/* ---- phase 1: tiles ---- */

/* A tile of Cᵀ, computed into `from`, is Y's. */
static void store_transposed(const pk_matmul *op, const float *from, int64_t ld, int64_t row, int64_t column, int32_t rows, int32_t columns) {
  for (int32_t c = 0; c < columns; c++) {
    for (int32_t r = 0; r < rows; r++) {
      const int64_t at = (column + c) * op->ldy + row + r;
      float y = op->alpha * from[r * ld + c] + (op->bias ? op->bias[row + r] : 0);
      if (op->accumulate) y += load(op->y, op->y_type, at);
      if (op->y_type == PK_F32) {
        ((float *)op->y)[at] = y;
      } else {
        ((uint16_t *)op->y)[at] = pk_f32_to_bf16(y);
      }
    }
  }
}

/* Rows [first, end) of C against one panel. */
static void sweep(const pk_matmul *op, const plan *p, const void *a, int64_t lda, int64_t column, const void *panel,
                  int64_t first, int64_t end, float *transposed) {
  const int64_t left = p->columns - column;
  pk_tile tile = {
      .lda = lda,
      .panel = panel,
      .steps = p->padded_k / (is_half(p) ? 2 : 1),
      .columns = (int32_t)(left < p->panel_columns ? left : p->panel_columns),
      .vectors = vectors_at(p, column),
      .ldy = op->ldy,
      .y_type = op->y_type,
      .accumulate = op->accumulate,
      .alpha = op->alpha,
      .bias = op->bias ? op->bias + column : NULL,
  };
  if (p->swapped) {
    tile.ldy = p->panel_columns, tile.y_type = PK_F32, tile.accumulate = 0, tile.alpha = 1, tile.bias = NULL;
  }
  for (int64_t i = first; i < end; i += p->kernel->rows) {
    tile.rows = (int32_t)(end - i < p->kernel->rows ? end - i : p->kernel->rows);
    tile.a = (const uint8_t *)a + (size_t)(i * lda) * pk_type_bytes(p->kernel->type);
    tile.y = p->swapped ? (void *)transposed
                        : (void *)((uint8_t *)op->y + (size_t)(i * op->ldy + column) * pk_type_bytes(op->y_type));
    p->kernel->multiply(&tile);
    if (p->swapped) store_transposed(op, transposed, p->panel_columns, i, column, tile.rows, tile.columns);
  }
}

/* Into how many row groups the sweep of a panel is cut so that the parts have equal shares. */
static int64_t row_groups(const plan *p, int64_t units, int32_t parts) {
  const int64_t tiles = (p->rows + p->kernel->rows - 1) / p->kernel->rows;
  int64_t groups = 1;
  while (groups < tiles && groups < parts && units * groups % parts != 0 && units * groups < 8 * (int64_t)parts) groups++;
  return groups;
}

void pk_tiled_run(const pk_matmul *op, const pk_tile_kernel *kernel, int32_t phase, int32_t part, int32_t parts, void *shared, void *each) {
  const plan p = make_plan(op, kernel);
  int64_t first, end;
  if (phase == 0) {
    if (!p.copies_a) return;
    pk_share(p.rows, part, parts, &first, &end);
    if (op->mode == PK_TN) {
      transpose_rows(&p, shared, first, end);
    } else {
      copy_rows(&p, op->level, shared, first, end);
    }
    return;
  }

  const void *a = p.copies_a ? shared : p.a;
  const int64_t lda = p.copies_a ? p.padded_k : p.a_ld;
  const size_t stride = pk_round_up(p.panel_bytes, 64);
  uint8_t *panels = each;
  float *decoded = (float *)(panels + (size_t)p.group * stride);
  float *transposed = decoded + pk_round_up(decoded_values(op, &p) * 4, 64) / 4;
  pk_decode_fn *decode = pk_decoder(op->level, p.b_type);

  const int64_t width = p.group * p.panel_columns, units = (p.columns + width - 1) / width;
  const int64_t groups = row_groups(&p, units, parts), tiles = (p.rows + kernel->rows - 1) / kernel->rows;
  int64_t packed = -1;
  pk_share(units * groups, part, parts, &first, &end);
  for (int64_t item = first; item < end; item++) {
    const int64_t unit = item / groups, group = item % groups, column = unit * width;
    if (unit != packed) {
      if (op->mode == PK_NT) {
        pack_columns(&p, decode, column, panels, decoded);
      } else {
        pack_steps(&p, decode, column, panels, decoded);
      }
      packed = unit;
    }
    const int64_t from = tiles * group / groups * kernel->rows, to = tiles * (group + 1) / groups * kernel->rows;
    for (int64_t g = 0; g < p.group && column + g * p.panel_columns < p.columns; g++) {
      sweep(op, &p, a, lda, column + g * p.panel_columns, panels + (size_t)g * stride, from, to < p.rows ? to : p.rows, transposed);
    }
  }
}
