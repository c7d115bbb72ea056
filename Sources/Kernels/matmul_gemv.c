/* Forward products of few rows (decoding text, one token a session): as much memory traffic as arithmetic, so W is read
 * once, in order, and multiplied as it arrives, without a panel in between.
 *
 * Adapters of low rank join in (pk_branch): a part computes A·x for itself, and adds its rows of B·(A·x) to the sums, so they
 * cost no further hand-over between threads and rows may have different ones.
 *
 * There is no phase 0: every part prepares the rows of X for itself (a few kB; cheaper than a barrier). Formats without
 * a kernel of their own are decoded by the chunk and multiplied as f32. Each output is summed in one order, whichever part and
 * whatever neighbours compute it. PK_COMPUTE_BF16 is served in f32: no slower here, and more exact. */
#include "half.h"
#include "matmul.h"

enum {
  most_rows = 8, /* of X; beyond, panels win */
  w_rows = 4,    /* of the f32 kernels, and of what is written at once */
  chunk = 1024,  /* values decoded at a time */
  pad = 128      /* X is padded with zeros to a multiple of this */
};

typedef struct gemv {
  const pk_gemv_kernel *kernel;
  pk_decode_fn *decode; /* of formats without a kernel */
  int64_t padded_k;
  size_t x_bytes;       /* of a prepared row; by the chunk when decoding */
} gemv;

static const pk_gemv_kernel *kernel_f32(int32_t level, int32_t type) {
  return level >= PK_LEVEL_AVX512 ? pk_gemv_avx512_f32(type) : pk_gemv_avx2_f32(type);
}

const pk_gemv_kernel *pk_gemv_int8(int32_t level, int32_t type) {
  return level >= PK_LEVEL_AVX512_BF16 ? pk_gemv_vnni_int8(type) : level >= PK_LEVEL_AVX2 ? pk_gemv_avx2_int8(type) : NULL;
}

/* That of few rows: K formats have their own with AVX2. */
static const pk_gemv_kernel *kernel_int8(int32_t level, int32_t type) {
  const pk_gemv_kernel *kernel = level >= PK_LEVEL_AVX2 && level < PK_LEVEL_AVX512_BF16 ? pk_gemv_avx2_k(type) : NULL;
  return kernel ? kernel : pk_gemv_int8(level, type);
}

static gemv make_gemv(const pk_matmul *op) {
  gemv g = {.padded_k = (op->k + pad - 1) / pad * pad};
  if (op->compute == PK_COMPUTE_INT8) g.kernel = kernel_int8(op->level, op->w_type);
  if (!g.kernel) g.kernel = kernel_f32(op->level, op->w_type);
  if (!g.kernel) {
    g.decode = pk_decoder(op->level, op->w_type);
    g.kernel = kernel_f32(op->level, PK_F32);
  }
  if (g.kernel) g.x_bytes = g.kernel->x_bytes(g.decode ? g.padded_k : op->k);
  return g;
}

int32_t pk_gemv_serves(const pk_matmul *op) {
  return op->mode == PK_NT && op->m <= most_rows && op->k > 0 && op->level >= PK_LEVEL_AVX2 &&
         kernel_f32(op->level, PK_F32) != NULL;
}

/* Rows of X that the kernel takes next, of so many. The wide kernels take more rather than reading W again. */
static int32_t rows_at_once(const gemv *g, int64_t left) {
  if (left == 1) return 1;
  const int64_t most = g->kernel->x_rows < left || g->kernel->w_rows > w_rows ? g->kernel->x_rows : left;
  int32_t count = 1;
  while (2 * count <= most && count < left) count *= 2;
  return count;
}

static int64_t x_rows_of(const pk_matmul *op, const gemv *g) { return g->kernel->w_rows > w_rows ? rows_at_once(g, op->m) : op->m; }

/* Values that a branch keeps of a row, A·x: the f32 kernels read so many. */
static int64_t branch_width(const pk_branch *branch) { return (branch->rank + 31) / 32 * 32; }

/* A part's scratch: X prepared; a row of X as f32; four decoded chunks of W; scale·A·x of all branches. */
void pk_gemv_scratch(const pk_matmul *op, size_t *each) {
  const gemv g = make_gemv(op);
  *each = (size_t)x_rows_of(op, &g) * g.x_bytes + (size_t)g.padded_k * 4 + (g.decode ? w_rows * chunk * 4 : 0);
  for (int64_t i = 0; i < op->branch_count; i++) {
    const pk_branch *branch = op->branches + i;
    *each += (size_t)((branch->end - branch->begin) * branch_width(branch)) * 4;
  }
}

/* Four sums of a matrix [rows, k] of the kernel's format, a row `bytes` long, with a vector, from its row `first` on; beyond the last row: that row again. */
static void multiply_rows(const pk_gemv_kernel *kernel, const uint8_t *w, int64_t bytes, int64_t rows, int64_t first, int64_t k, const float *x, float sums[w_rows]) {
  const uint8_t *four[w_rows];
  for (int64_t r = 0; r < w_rows; r++) four[r] = w + pk_min(first + r, rows - 1) * bytes;
  kernel->multiply(four, (const uint8_t *)x, 0, 1, k, sums);
}

static const pk_gemv_kernel *kernel_of(const pk_matmul *op, const pk_branch *branch) { return kernel_f32(op->level, branch->type); }

/* h of a row of X for each branch it has. */
static void enter_branches(const pk_matmul *op, int64_t i, const float *row, float *h) {
  for (int64_t n = 0; n < op->branch_count; n++) {
    const pk_branch *branch = op->branches + n;
    const int64_t width = branch_width(branch);
    if (i >= branch->begin && i < branch->end) {
      const pk_gemv_kernel *kernel = kernel_of(op, branch);
      float *to = h + (i - branch->begin) * width;
      for (int64_t at = 0; at < width; at += w_rows) {
        float sums[w_rows];
        if (at < branch->rank) multiply_rows(kernel, branch->a, op->k * pk_type_bytes(branch->type), branch->rank, at, op->k, row, sums);
        for (int64_t r = 0; r < w_rows; r++) to[at + r] = at + r < branch->rank ? branch->scale * sums[r] : 0;
      }
    }
    h += (branch->end - branch->begin) * width;
  }
}

/* beside[row][0 … columns − 1] = Σ over the branches of a row of the rows of B, from `column` on, times h. */
static void leave_branches(const pk_matmul *op, int64_t column, int64_t columns, const float *h, float beside[][PK_GEMV_WIDE]) {
  pk_narrow_dots_fn *const narrow_dots = op->level >= PK_LEVEL_AVX512 ? pk_narrow_dots_avx512 : pk_narrow_dots_avx2;
  memset(beside, 0, (size_t)op->m * sizeof *beside);
  for (int64_t n = 0; n < op->branch_count; n++) {
    const pk_branch *branch = op->branches + n;
    const int64_t rank = branch->rank, bytes = rank * pk_type_bytes(branch->type);
    const int is_narrow = rank % 8 == 0 && rank <= 64;
    for (int64_t i = branch->begin; i < branch->end; i++, h += branch_width(branch)) {
      const uint8_t *const b = (const uint8_t *)branch->b + column * bytes;
      float sums[PK_GEMV_WIDE];
      if (is_narrow && columns == PK_GEMV_WIDE) {
        narrow_dots(branch->type, b, rank, h, sums);
      } else {
        for (int64_t c = 0; c < columns; c += w_rows) {
          if (is_narrow && c + w_rows <= columns) {
            pk_narrow_dot(branch->type, b + c * bytes, rank, h, sums + c);
          } else {
            multiply_rows(kernel_of(op, branch), branch->b, bytes, op->n, column + c, rank, h, sums + c);
          }
        }
      }
      for (int64_t c = 0; c < columns; c++) beside[i][c] += sums[c];
    }
  }
}

static void finish_one(const pk_matmul *op, int64_t at, float y) {
  if (op->y_type == PK_F32) {
    float *p = (float *)op->y + at;
    *p = op->accumulate ? y + *p : y;
  } else {
    uint16_t *p = (uint16_t *)op->y + at;
    *p = pk_f32_to_bf16(op->accumulate ? y + pk_bf16_to_f32(*p) : y);
  }
}

typedef float four __attribute__((vector_size(16)));
typedef uint32_t four_words __attribute__((vector_size(16)));
typedef uint16_t four_halves __attribute__((vector_size(8)));

static void finish(const pk_matmul *op, int64_t row, int64_t column, int64_t count, const float *sums, const float *beside, const float *factors) {
  const int64_t at = row * op->ldy + column;
  four y, more, bias = {0}, factor = {1, 1, 1, 1};
  memcpy(&y, sums, sizeof y);
  memcpy(&more, beside, sizeof more);
  if (op->bias) memcpy(&bias, op->bias + column, (size_t)count * 4);
  if (factors) memcpy(&factor, factors + column, (size_t)count * 4);
  y = (op->alpha * y + more) * factor + bias;
  if (count < w_rows || op->accumulate) {
    for (int64_t c = 0; c < count; c++) finish_one(op, at + c, y[c]);
  } else if (op->y_type == PK_F32) {
    memcpy((float *)op->y + at, &y, sizeof y);
  } else {
    const four_words bits = (four_words)y, isNaN = (four_words)(y != y);
    const four_words rounded = (bits + 0x7fff + (bits >> 16 & 1)) & ~isNaN;
    const four_halves halves = __builtin_convertvector((rounded | (isNaN & (bits | 0x400000))) >> 16, four_halves);
    memcpy((uint16_t *)op->y + at, &halves, sizeof halves);
  }
}

static void finish_row(const pk_matmul *op, int64_t row, int64_t column, int64_t columns, const float *sums, const float *beside, const float *factors) {
  if (columns == PK_GEMV_WIDE && !op->accumulate) {
    pk_finish_16_fn *const finish_16 = op->level >= PK_LEVEL_AVX512 ? pk_finish_16_avx512 : pk_finish_16_avx2;
    return finish_16(op, row * op->ldy + column, op->bias ? op->bias + column : NULL, sums, beside, factors ? factors + column : NULL);
  }
  for (int64_t c = 0; c < columns; c += w_rows) finish(op, row, column + c, columns - c < w_rows ? columns - c : w_rows, sums + c, beside + c, factors);
}

void pk_gemv_finish(const pk_matmul *op, int64_t row, int64_t column, int64_t columns, const float *sums) {
  static const float nothing[PK_GEMV_WIDE] = {0};
  finish_row(op, row, column, columns, sums, nothing, NULL);
}

/* sums[m][4] of four rows of W in a format without a kernel: chunk after chunk. */
static void multiply_decoded(const pk_matmul *op, const gemv *g, const uint8_t *const w[w_rows], const uint8_t *x, int32_t count, float *decoded, float *sums) {
  for (int32_t i = 0; i < count * w_rows; i++) sums[i] = 0;
  for (int64_t k = 0; k < op->k; k += chunk) {
    const int64_t values = op->k - k < chunk ? op->k - k : chunk;
    const uint8_t *rows[w_rows];
    float part[most_rows * w_rows];
    for (int32_t r = 0; r < w_rows; r++) {
      g->decode(w[r], k, values, decoded + r * chunk);
      rows[r] = (const uint8_t *)(decoded + r * chunk);
    }
    g->kernel->multiply(rows, x + (size_t)k * 4, g->x_bytes, count, values, part);
    for (int32_t i = 0; i < count * w_rows; i++) sums[i] += part[i];
  }
}

/* A part's runs of rows of W, and where the first of them lies. */
static pk_range share_of(const pk_matmul *op, int64_t wide, int32_t part, int32_t parts, const uint8_t **first) {
  const pk_range share = pk_share((op->n + wide - 1) / wide, 1, part, parts);
  *first = (const uint8_t *)op->w + share.begin * wide * op->w_row_bytes;
  return share;
}

void pk_gemv_run(const pk_matmul *op, int32_t part, int32_t parts, void *each) {
  const gemv g = make_gemv(op);
  uint8_t *x = each;
  float *row = (float *)(x + (size_t)x_rows_of(op, &g) * g.x_bytes), *decoded = row + g.padded_k, *h = decoded + (g.decode ? w_rows * chunk : 0);
  const int64_t wide = g.kernel->w_rows;
  const uint8_t *first, *then = NULL;
  const pk_range share = share_of(op, wide, part, parts, &first);
  if (share.begin == share.end) return;
  if (op->next) share_of(op->next, make_gemv(op->next).kernel->w_rows, part, parts, &then);

  for (int64_t i = op->k; i < g.padded_k; i++) row[i] = 0;
  for (int64_t i = 0; i < op->m; i++) {
    const uint8_t *from = (const uint8_t *)op->x + (size_t)(i * op->ldx) * pk_type_bytes(op->x_type);
    pk_convert(op->level, from, op->x_type, row, PK_F32, (size_t)op->k, 0, 1);
    g.kernel->prepare(row, g.decode ? g.padded_k : op->k, x + (size_t)i * g.x_bytes);
    enter_branches(op, i, row, h);
  }
  memset(x + (size_t)op->m * g.x_bytes, 0, (size_t)(x_rows_of(op, &g) - op->m) * g.x_bytes);

  const uint8_t *const end = first + (share.end - share.begin) * wide * op->w_row_bytes;
  const float *factors[most_rows] = {NULL};
  for (int64_t n = 0; n < op->branch_count; n++) {
    for (int64_t i = op->branches[n].begin; op->branches[n].factors && i < op->branches[n].end; i++) factors[i] = op->branches[n].factors;
  }
  float beside[most_rows][PK_GEMV_WIDE] = {{0}};
  for (int64_t group = share.begin; group < share.end; group++) {
    const int64_t column = group * wide, columns = op->n - column < wide ? op->n - column : wide;
    const uint8_t *w[PK_GEMV_WIDE + 1]; /* beyond the last row: that row again, its sums unused */
    w[0] = (const uint8_t *)op->w + column * op->w_row_bytes;
    for (int64_t r = 1; r < wide; r++) w[r] = w[r - 1] + (r < columns ? op->w_row_bytes : 0);
    const int64_t beyond = w[0] + (wide - 1) * op->w_row_bytes + PK_WIDE_AHEAD - end; /* counted from the last row: they are read side by side */
    w[wide] = beyond < 0 ? end + beyond : then ? then + beyond : w[0];
    if (op->branch_count) leave_branches(op, column, columns, h, beside);
    for (int64_t i = 0; i < op->m;) {
      float sums[most_rows * PK_GEMV_WIDE];
      const int32_t count = rows_at_once(&g, op->m - i);
      const uint8_t *rows = x + (size_t)i * g.x_bytes;
      if (g.decode) {
        multiply_decoded(op, &g, w, rows, count, decoded, sums);
      } else {
        g.kernel->multiply(w, rows, g.x_bytes, count, op->k, sums);
      }
      for (int32_t r = 0; r < count && i + r < op->m; r++) finish_row(op, i + r, column, columns, sums + r * wide, beside[i + r], factors[i + r]);
      i += count;
    }
  }
}
