/* The blocked product around the tile kernels: divides C into panels of columns (and rows, when there are few panels),
 * decodes a panel into this part's scratch, and sweeps the rows over it. See matmul.h for the roles of A and B.
 *
 * Blocking: a panel of 48 columns is 96 bytes (bf16) per k: 55 kB at k = 576, 147 kB at 1536. It is read from L2 at 8 bytes
 * a cycle while A (a few rows at a time) stays in L1. Panels that would not stay in L2 are cut along k; the sums then wait
 * in f32 between two blocks, so the chain of additions is the same. Decoding costs once per panel and row group: its share
 * falls with 1/rows, 2–4 % at 512. With AMX and AVX2 several panels are packed together: 2048 rows of A, which L2 does not hold, took half as long
 * again when they came for each panel; with AVX2 512 rows of f32 are too many already, and a call packs 16 columns only.
 *
 * Share of the peak (Zen 4, one thread, 512 rows): see Benchmarks/LOG.md. */
#include "half.h"
#include "matmul.h"

enum {
  panel_limit = 400 << 10, /* bytes of the panels packed together, unless the kernel says more; L2 is 1 MB */
  chunk = 256,             /* values of k decoded at a time while packing columns */
  ahead = 16,              /* rows fetched in advance while packing steps */
};

typedef struct plan {
  const pk_tile_kernel *kernel;
  int64_t bytes; /* of a value of A and of the panels */
  int64_t rows, columns, k;
  int32_t swapped;
  int32_t copies_a; /* A lives in the shared scratch */
  const void *a, *b; /* source matrices */
  int32_t a_type, b_type;
  int64_t a_ld, b_row_bytes;    /* a_ld in values */
  int64_t copy_ld;              /* of the copy of A */
  int32_t rounds_a, rounds_b;   /* operands that are not of bf16 are rounded to it and multiplied as f32 */
  int32_t direct;               /* B is packed without being decoded */
  pk_decode_fn *decode_a, *decode; /* of A and of B, to the kernel's type */
  int64_t panel_columns, group; /* columns of a panel, panels packed together */
  int64_t k_block;              /* steps of k packed together */
} plan;

static int32_t is_half(const plan *p) { return p->kernel->type == PK_BF16; }

static plan make_plan(const pk_matmul *op, const pk_tile_kernel *kernel, int32_t parts) {
  plan p = {.kernel = kernel, .bytes = pk_type_bytes(kernel->type), .rows = op->m, .columns = op->n, .k = op->k};
  p.a = op->x, p.a_type = op->x_type, p.a_ld = op->ldx;
  p.b = op->w, p.b_type = op->w_type, p.b_row_bytes = op->w_row_bytes;
  if (op->mode == PK_TN && op->n < op->m) {
    p.swapped = 1, p.rows = op->n, p.columns = op->m;
    p.a = op->w, p.a_type = op->w_type, p.a_ld = op->w_row_bytes / pk_type_bytes(op->w_type);
    p.b = op->x, p.b_type = op->x_type, p.b_row_bytes = op->ldx * pk_type_bytes(op->x_type);
  }
  const int32_t rounds = op->compute == PK_COMPUTE_BF16 && kernel->type == PK_F32;
  p.rounds_a = rounds && p.a_type != PK_BF16, p.rounds_b = rounds && p.b_type != PK_BF16;
  p.direct = p.b_type == kernel->type && !rounds;
  p.decode_a = is_half(&p) ? pk_decoder_bf16(p.a_type) : pk_decoder(op->level, p.a_type);
  p.decode = is_half(&p) ? pk_decoder_bf16(p.b_type) : pk_decoder(op->level, p.b_type);
  const int32_t odd = is_half(&p) && op->k % 2;
  p.copies_a = op->mode == PK_TN || p.a_type != kernel->type || p.rounds_a || odd;
  /* Rows of the copy do not lie a multiple of 4 kB apart: those would compete for the same lines of L1. */
  p.copy_ld = pk_round_up(op->k, 32) + 32;
  p.panel_columns = (int64_t)kernel->lanes * kernel->vectors;
  const int32_t is_blocks = pk_format_of(p.b_type)->block_values > 1; /* runs of 32 */
  const int64_t least = op->mode != PK_NT && is_blocks && p.panel_columns % 32 ? 2 : 1;
  const int64_t step_bytes = p.panel_columns * p.bytes, limit = pk_max(kernel->together, panel_limit);
  const int64_t fitting = pk_max(1, kernel->together / (step_bytes * least * pk_min(pk_max(p.k, chunk), 2048))) * least;
  const int64_t whole = limit / (fitting * step_bytes), most = whole / chunk * chunk;
  const int64_t blocks = op->k <= whole ? 1 : (op->k + most - 1) / most;
  p.k_block = pk_max(chunk, pk_round_up((op->k + blocks - 1) / blocks, chunk));
  const int64_t panels = (p.columns + p.panel_columns - 1) / p.panel_columns;
  p.group = pk_min(fitting, pk_round_up((panels + parts - 1) / parts, least)); /* every part has some */
  return p;
}

static int64_t panel_bytes(const plan *p) { return pk_min(p->k_block, pk_round_up(p->k, 2)) * p->panel_columns * p->bytes; }

/* Values decoded at a time: `lanes` columns of a chunk (NT), or two rows across the group. */
static int64_t decoded_bytes(const pk_matmul *op, const plan *p) {
  if (p->direct) return 0;
  return (op->mode == PK_NT ? (int64_t)p->kernel->lanes * chunk : 2 * p->group * p->panel_columns) * p->bytes;
}

static int64_t tile_values(const plan *p) { return p->kernel->rows * p->panel_columns; }
static int64_t tiles_of(const plan *p) { return (p->rows + p->kernel->rows - 1) / p->kernel->rows; }

/* A part's scratch. */
typedef struct pieces {
  uint8_t *panels;
  void *decoded;
  float *transposed; /* a tile of Cᵀ */
  float *sums;       /* [tiles][group] tiles between two blocks of k */
} pieces;

static int64_t cut(const pk_matmul *op, const plan *p, uint8_t *base, pieces *out) {
  const int64_t panels = pk_round_up(p->group * panel_bytes(p), 64), decoded = pk_round_up(decoded_bytes(op, p), 64);
  const int64_t transposed = p->swapped ? tile_values(p) * 4 : 0, sums = p->k > p->k_block ? tiles_of(p) * p->group * tile_values(p) * 4 : 0;
  if (out) {
    *out = (pieces){base, base + panels, (float *)(base + panels + decoded), (float *)(base + panels + decoded + transposed)};
  }
  return panels + decoded + transposed + sums;
}

void pk_tiled_scratch(const pk_matmul *op, const pk_tile_kernel *kernel, size_t *shared, size_t *each) {
  const plan p = make_plan(op, kernel, 1); /* more parts need less */
  *shared = p.copies_a ? (size_t)(p.rows * p.copy_ld * p.bytes) : 0;
  *each = (size_t)cut(op, &p, NULL, NULL);
}

/* ---- phase 0: A as the kernel reads it ---- */

static void round_all(float *values, int64_t count) {
  for (int64_t i = 0; i < count; i++) values[i] = pk_round_bf16(values[i]);
}

static void copy_rows(const plan *p, uint8_t *out, pk_range share) {
  for (int64_t i = share.begin; i < share.end; i++) {
    const uint8_t *from = (const uint8_t *)p->a + i * p->a_ld * pk_type_bytes(p->a_type);
    uint8_t *to = out + i * p->copy_ld * p->bytes;
    p->decode_a(from, 0, p->k, to);
    if (p->rounds_a) round_all((float *)to, p->k);
    if (is_half(p) && p->k % 2) ((uint16_t *)to)[p->k] = 0;
  }
}

static float load(const void *p, int32_t type, int64_t i) {
  return type == PK_F32 ? ((const float *)p)[i] : pk_bf16_to_f32(((const uint16_t *)p)[i]);
}

/* A = the transpose of a [k, rows] matrix; in pieces, so that both sides stay in L1. */
static void transpose_rows(const plan *p, uint8_t *out, pk_range share) {
  enum { height = 32, width = 64 };
  float piece[height * width]; /* of whichever type */
  const int32_t type = p->kernel->type, is_ready = p->a_type == type && !p->rounds_a;
  const int64_t a_bytes = pk_type_bytes(p->a_type);
  for (int64_t i = share.begin; i < share.end; i += width) {
    const int64_t columns = pk_min(width, share.end - i);
    for (int64_t l = 0; l < p->k; l += height) {
      const int64_t rows = pk_min(height, p->k - l);
      const uint8_t *a = (const uint8_t *)p->a + (l * p->a_ld + i) * a_bytes;
      for (int64_t r = 0; !is_ready && r < rows; r++) {
        uint8_t *to = (uint8_t *)piece + r * width * p->bytes;
        p->decode_a(a + r * p->a_ld * a_bytes, 0, columns, to);
        if (p->rounds_a) round_all((float *)to, columns);
      }
      pk_turn(type, is_ready ? (const void *)a : piece, is_ready ? p->a_ld : width, out + (i * p->copy_ld + l) * p->bytes, p->copy_ld, rows, columns);
    }
    for (int64_t c = i; is_half(p) && p->k % 2 && c < i + columns; c++) ((uint16_t *)out)[c * p->copy_ld + p->k] = 0;
  }
}

/* ---- phase 1: panels ---- */

/* Vectors of the panel that starts at `column`: fewer at the right edge. */
static int32_t vectors_at(const plan *p, int64_t column) {
  const int64_t left = p->columns - column;
  return left >= p->panel_columns ? p->kernel->vectors : (int32_t)((left + p->kernel->lanes - 1) / p->kernel->lanes);
}

/* A run of row `row` of B in the kernel's type: where it is, or decoded to `out`. */
static const void *run_of(const plan *p, int64_t row, int64_t first, int64_t count, void *out) {
  const uint8_t *from = (const uint8_t *)p->b + row * p->b_row_bytes;
  if (p->direct) return from + first * p->bytes;
  p->decode(from, first, count, out);
  if (p->rounds_b) round_all(out, count);
  return out;
}

/* NT: rows of W, from k to k_end, become the columns of one panel. */
static void pack_columns(const plan *p, int64_t column, int64_t k, int64_t k_end, uint8_t *panel, uint8_t *decoded) {
  const int32_t lanes = p->kernel->lanes, vectors = vectors_at(p, column);
  for (int32_t v = 0; v < vectors; v++) {
    const int64_t first = column + v * lanes;
    const int32_t count = (int32_t)pk_min(lanes, p->columns - first);
    uint8_t *to = panel + v * lanes * 4; /* a lane is one f32 or a pair of bf16 */
    if (p->direct) {
      p->kernel->pack_columns(run_of(p, first, k, k_end - k, NULL), p->b_row_bytes / p->bytes, count, k_end - k, to, vectors);
      continue;
    }
    for (int64_t at = k; at < k_end; at += chunk) {
      const int64_t values = pk_min(chunk, k_end - at);
      for (int32_t r = 0; r < count; r++) run_of(p, first + r, at, values, decoded + r * chunk * p->bytes);
      p->kernel->pack_columns(decoded, chunk, count, values, to + (at - k) * vectors * lanes * p->bytes, vectors);
    }
  }
}

/* NN and TN: rows k to k_end of the [k, columns] matrix become the steps of `group` panels. */
static void pack_steps(const plan *p, int64_t column, int64_t k, int64_t k_end, uint8_t *panels, uint8_t *decoded) {
  const int64_t width = pk_min(p->group * p->panel_columns, p->columns - column), per_step = is_half(p) ? 2 : 1;
  const pk_format *format = pk_format_of(p->b_type);
  const int64_t run = column / format->block_values * format->block_bytes, run_bytes = width * format->block_bytes / format->block_values;
  uint8_t *other = decoded + p->group * p->panel_columns * p->bytes;
  for (int64_t row = k; row < k_end; row += per_step) {
    for (int64_t r = row + ahead; r < row + ahead + per_step && r < k_end; r++) { /* each row is another page or nearly so */
      for (int64_t at = 0; at < run_bytes + 63; at += 64) __builtin_prefetch((const uint8_t *)p->b + r * p->b_row_bytes + run + at);
    }
    const uint8_t *even = run_of(p, row, column, width, decoded);
    const uint8_t *odd = row + 1 < k_end && per_step == 2 ? run_of(p, row + 1, column, width, other) : NULL;
    for (int64_t at = 0; at < width; at += p->panel_columns) {
      const int32_t vectors = vectors_at(p, column + at);
      uint8_t *step = panels + at / p->panel_columns * panel_bytes(p) + (row - k) * vectors * p->kernel->lanes * p->bytes;
      p->kernel->pack_step(even + at * p->bytes, odd ? odd + at * p->bytes : NULL, (int32_t)pk_min(p->panel_columns, width - at), step, vectors);
    }
  }
}

/* ---- phase 1: tiles ---- */

/* A tile of Cᵀ, computed into `from`, is Y's. */
static void store_transposed(const pk_matmul *op, const float *from, int64_t ld, int64_t row, int64_t column, int32_t rows, int32_t columns) {
  for (int32_t c = 0; c < columns; c++) {
    const int64_t at = (column + c) * op->ldy + row;
    if (op->y_type == PK_F32 && op->accumulate && !op->bias) { /* gradients */
      float *y = (float *)op->y + at;
      for (int32_t r = 0; r < rows; r++) y[r] += op->alpha * from[r * ld + c];
      continue;
    }
    for (int32_t r = 0; r < rows; r++) {
      float y = op->alpha * from[r * ld + c] + (op->bias ? op->bias[row + r] : 0);
      if (op->accumulate) y += load(op->y, op->y_type, at + r);
      if (op->y_type == PK_F32) {
        ((float *)op->y)[at + r] = y;
      } else {
        ((uint16_t *)op->y)[at + r] = pk_f32_to_bf16(y);
      }
    }
  }
}

/* Tile rows [first, end) of C against the `panels` of one group and one block of k. */
static void sweep(const pk_matmul *op, const plan *p, const void *a, int64_t lda, int64_t column, int64_t k, int64_t k_end, int64_t first, int64_t end,
                  const pieces *own) {
  const int64_t height = p->kernel->rows;
  for (int64_t t = first; t < end; t++) {
    const int64_t row = t * height;
    for (int64_t g = 0; g < p->group && column + g * p->panel_columns < p->columns; g++) {
      const int64_t at = column + g * p->panel_columns;
      pk_tile tile = {
          .a = (const uint8_t *)a + (row * lda + k) * p->bytes,
          .lda = lda,
          .panel = own->panels + g * panel_bytes(p),
          .steps = is_half(p) ? (k_end - k + 1) / 2 : k_end - k,
          .rows = (int32_t)pk_min(height, p->rows - row),
          .columns = (int32_t)pk_min(p->panel_columns, p->columns - at),
          .vectors = vectors_at(p, at),
          .sums = own->sums + (t * p->group + g) * tile_values(p),
          .continues = k > 0,
          .ends = k_end == p->k,
          .ldy = op->ldy,
          .y_type = op->y_type,
          .accumulate = op->accumulate,
          .alpha = op->alpha,
          .bias = op->bias ? op->bias + at : NULL,
      };
      if (p->swapped) {
        tile.y = own->transposed, tile.ldy = p->panel_columns, tile.y_type = PK_F32, tile.accumulate = 0, tile.alpha = 1, tile.bias = NULL;
      } else {
        tile.y = (uint8_t *)op->y + (row * op->ldy + at) * pk_type_bytes(op->y_type);
      }
      p->kernel->multiply(&tile);
      if (p->swapped && tile.ends) store_transposed(op, own->transposed, p->panel_columns, row, at, tile.rows, tile.columns);
    }
  }
}

/* Into how many row groups the sweep of a panel is cut so that the parts have equal shares. */
static int64_t row_groups(const plan *p, int64_t units, int32_t parts) {
  const int64_t tiles = tiles_of(p);
  int64_t groups = 1;
  while (groups < tiles && groups < parts && units * groups % parts != 0 && units * groups < 8 * (int64_t)parts) groups++;
  return groups;
}

void pk_tiled_run(const pk_matmul *op, const pk_tile_kernel *kernel, int32_t phase, int32_t part, int32_t parts, void *shared, void *each) {
  const plan p = make_plan(op, kernel, parts);
  if (phase == 0) {
    const pk_range share = pk_share(p.rows, 1, part, parts);
    if (!p.copies_a) return;
    if (op->mode == PK_TN) {
      transpose_rows(&p, shared, share);
    } else {
      copy_rows(&p, shared, share);
    }
    return;
  }

  const void *a = p.copies_a ? shared : p.a;
  const int64_t lda = p.copies_a ? p.copy_ld : p.a_ld;
  pieces own;
  cut(op, &p, each, &own);

  const int64_t width = p.group * p.panel_columns, units = (p.columns + width - 1) / width;
  const int64_t groups = row_groups(&p, units, parts), tiles = tiles_of(&p);
  if (kernel->begin) kernel->begin(is_half(&p) ? (p.k + 1) / 2 : p.k);
  int64_t packed = -1; /* the unit whose only block of k is packed */
  const pk_range share = pk_share(units * groups, 1, part, parts);
  for (int64_t item = share.begin; item < share.end; item++) {
    const int64_t unit = item / groups, group = item % groups, column = unit * width;
    for (int64_t k = 0; k == 0 || k < p.k; k += p.k_block) {
      const int64_t k_end = pk_min(k + p.k_block, p.k);
      if (unit != packed) {
        if (op->mode == PK_NT) {
          for (int64_t g = 0; g < p.group && column + g * p.panel_columns < p.columns; g++) {
            pack_columns(&p, column + g * p.panel_columns, k, k_end, own.panels + g * panel_bytes(&p), own.decoded);
          }
        } else {
          pack_steps(&p, column, k, k_end, own.panels, own.decoded);
        }
      }
      sweep(op, &p, a, lda, column, k, k_end, tiles * group / groups, tiles * (group + 1) / groups, &own);
    }
    packed = p.k <= p.k_block ? unit : -1;
  }
  if (kernel->end) kernel->end();
}
