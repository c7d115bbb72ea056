/* Products with few columns, Y[m, n ≤ 16] = X·Wᵀ or X·W: what an adapter of low rank does first (H = X·Aᵀ, dH = dY·B).
 *
 * A panel would be mostly empty lanes, so the lanes run along k: W's columns are laid out as rows of k (a few kB, each part
 * its own), and tiles of 3 rows × 8 columns keep 24 sums of a vector each; 24 multiply-adds stand against 3 loads of X and 8
 * of W, X is read once and nothing is packed. What it costs beyond that is adding up the lanes at the end, 20 % at k = 576.
 * The order of a sum depends on k only. Reaches 75–85 % of the bf16 peak at k = 576 … 1536. */
#ifndef LEVEL
#include "matmul.h"
#define BODY "matmul_dot.c"
#include "levels.h"

int32_t pk_dot_serves(const pk_matmul *op) {
  if (pk_amx_wins(op)) return 0;
  return op->mode != PK_TN && op->n <= 16 && op->k >= 64 && op->level >= PK_LEVEL_AVX2 && (op->mode == PK_NT || pk_format_of(op->w_type)->block_values == 1);
}

void pk_dot_scratch(const pk_matmul *op, size_t *each) {
  pk_dot_pieces pieces;
  *each = pk_dot_pieces_of(op, 0, &pieces);
}

void pk_dot_run(const pk_matmul *op, int32_t part, int32_t parts, void *each) {
  pk_dot_pieces pieces;
  pk_dot_pieces_of(op, (uintptr_t)each, &pieces);
  const pk_range share = pk_share(op->m, 8, part, parts);
  if (share.begin < share.end) AT_LEVEL(op->level, dot_rows)(op, &pieces, share);
}

#else

#include "matmul_thin.h"

#if LEVEL == 0
enum { dot_columns = 8, dot_box = 48, dot_lines = 32 };

typedef struct pk_dot_pieces {
  int pairs, rounds;
  int64_t columns; /* n in whole eights */
  int64_t row;     /* bytes of a column of W: k padded with zeros to whole vectors */
  uint8_t *w;      /* [columns][row] */
  float *sums;     /* [dot_box rows][columns] */
  float *lines;    /* [dot_lines][columns] rows of W */
} pk_dot_pieces;

static size_t pk_dot_pieces_of(const pk_matmul *op, uintptr_t base, pk_dot_pieces *pieces) {
  const int is_bf16 = op->compute == PK_COMPUTE_BF16;
  pieces->pairs = is_bf16 && op->level >= PK_LEVEL_AVX512_BF16;
  pieces->rounds = is_bf16 && !pieces->pairs;
  pieces->columns = pk_round_up(op->n, dot_columns);
  pieces->row = pk_round_up(op->k, 32) * (pieces->pairs ? 2 : 4);
  size_t used = 0;
  pieces->w = pk_take(base, &used, pieces->columns * pieces->row);
  pieces->sums = pk_take(base, &used, dot_box * pieces->columns * 4);
  pieces->lines = pk_take(base, &used, (dot_lines * pieces->columns + 16) * 4);
  return used;
}

#endif

#define DOT_ROWS (WIDTH == 16 ? 3 : 1)

/* W's columns as rows of k. */
INLINE void NAME(dot_prepare)(int pairs, int rounds, const pk_matmul *op, const pk_dot_pieces *pieces) {
  const uint8_t *w = op->w;
  memset(pieces->w, 0, (size_t)(pieces->columns * pieces->row));
  if (op->mode == PK_NT) {
    pk_decode_fn *decode = pairs ? pk_decoder_bf16(op->w_type) : pk_decoder(op->level, op->w_type);
    for (int64_t j = 0; j < op->n; j++) {
      float *row = (float *)(pieces->w + j * pieces->row);
      decode(w + j * op->w_row_bytes, 0, op->k, row);
      for (int64_t l = 0; rounds && l < op->k; l++) row[l] = pk_round_bf16(row[l]);
    }
    return;
  }
  /* Rows of W, a few dozen at a time, are turned in squares of WIDTH. */
  pk_decode_fn *decode = pk_decoder(op->level, op->w_type);
  const int64_t box = pairs ? 2 * WIDTH : WIDTH;
  for (int64_t l = 0; l < op->k; l += box) {
    for (int64_t i = 0; i < box; i++) {
      float *line = pieces->lines + i * pieces->columns;
      if (l + i < op->k) {
        decode(w + (l + i) * op->w_row_bytes, 0, op->n, line);
      } else {
        memset(line, 0, (size_t)pieces->columns * 4);
      }
    }
    for (int64_t j = 0; j < op->n; j += WIDTH) {
      vu square[2][WIDTH];
      for (int half = 0; half < (pairs ? 2 : 1); half++) {
        /* (a line is read beyond its end, into the next: those columns are not stored) */
        for (int i = 0; i < WIDTH; i++) square[half][i] = vbits(vget(pieces->lines + (half * WIDTH + i) * pieces->columns + j));
        transpose_square(square[half]);
      }
      for (int64_t c = 0; c < WIDTH && j + c < op->n; c++) {
        vu words = square[0][c];
#if LEVEL == 3
        if (pairs) words = __builtin_bit_cast(vu, _mm512_cvtne2ps_pbh(__builtin_bit_cast(__m512, square[1][c]), __builtin_bit_cast(__m512, square[0][c])));
#endif
        if (rounds) words = vbits(vwiden(vround(vfloat(words))));
        memcpy(pieces->w + (j + c) * pieces->row + l / box * (int64_t)sizeof words, &words, sizeof words);
      }
    }
  }
}

/* The words of a row of X from value i on; beyond `left` values zeros. */
INLINE vu NAME(dot_words)(int pairs, int rounds, int32_t act, const void *x, int64_t i, int64_t left) {
#if LEVEL == 3
  if (pairs) {
    if (act == PK_F32) {
      const vf low = vload(act, x, i, pk_min(WIDTH, left)), high = left > WIDTH ? vload(act, x, i + WIDTH, pk_min(WIDTH, left - WIDTH)) : (vf)0.0f;
      return __builtin_bit_cast(vu, _mm512_cvtne2ps_pbh(__builtin_bit_cast(__m512, high), __builtin_bit_cast(__m512, low)));
    }
    vu words = 0;
    if (left >= 2 * WIDTH) {
      memcpy(&words, (const uint16_t *)x + i, sizeof words);
    } else {
      uint16_t part[2 * WIDTH] = {0};
      memcpy(part, (const uint16_t *)x + i, (size_t)left * 2);
      memcpy(&words, part, sizeof words);
    }
    return words;
  }
#else
  (void)pairs;
#endif
  return vbits(thin_values(rounds, act, x, i, pk_min(WIDTH, left)));
}

/* The sums over the lanes of eight vectors. */
INLINE void NAME(dot_add_up)(const vf v[8], float *sums) {
#if WIDTH == 16
  /* Neighbouring vectors are interleaved and added until each holds eight sums twice. */
#define PAIRS_(a, b) (__builtin_shufflevector(a, b, 0, 16, 1, 17, 4, 20, 5, 21, 8, 24, 9, 25, 12, 28, 13, 29) + \
                      __builtin_shufflevector(a, b, 2, 18, 3, 19, 6, 22, 7, 23, 10, 26, 11, 27, 14, 30, 15, 31))
#define FOURS_(a, b) (__builtin_shufflevector(a, b, 0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29) + \
                      __builtin_shufflevector(a, b, 2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15, 30, 31))
  const vf a = FOURS_(PAIRS_(v[0], v[1]), PAIRS_(v[2], v[3])), b = FOURS_(PAIRS_(v[4], v[5]), PAIRS_(v[6], v[7]));
  const NAME(v8) left = a.lo + a.hi, right = b.lo + b.hi;
  const NAME(v4) first = left.lo + left.hi, second = right.lo + right.hi;
  memcpy(sums, &first, sizeof first);
  memcpy(sums + 4, &second, sizeof second);
#undef PAIRS_
#undef FOURS_
#else
  for (int j = 0; j < 8; j++) sums[j] = vsum(v[j]);
#endif
}

/* `rows` rows of X (x_bytes apart) times eight columns. */
INLINE void NAME(dot_tile)(int pairs, int rounds, int rows, int32_t act, const uint8_t *x, int64_t x_bytes, const uint8_t *w, int64_t w_row, int64_t k,
                           float *sums, int64_t ld) {
  const int64_t step = pairs ? 2 * WIDTH : WIDTH;
  vf acc[DOT_ROWS][8];
#pragma unroll
  for (int r = 0; r < rows; r++) {
#pragma unroll
    for (int j = 0; j < 8; j++) acc[r][j] = 0;
  }
  int64_t i = 0;
  for (; i + step <= k; i += step) {
    vu a[DOT_ROWS];
#pragma unroll
    for (int r = 0; r < rows; r++) a[r] = NAME(dot_words)(pairs, rounds, act, x + r * x_bytes, i, step);
#pragma unroll
    for (int j = 0; j < 8; j++) {
      vu b;
      memcpy(&b, w + j * w_row + i / step * (int64_t)sizeof b, sizeof b);
#pragma unroll
      for (int r = 0; r < rows; r++) acc[r][j] = multiply_words(pairs, acc[r][j], a[r], b);
    }
  }
  if (i < k) {
    for (int r = 0; r < rows; r++) {
      const vu a = NAME(dot_words)(pairs, rounds, act, x + r * x_bytes, i, k - i);
      for (int j = 0; j < 8; j++) {
        vu b;
        memcpy(&b, w + j * w_row + i / step * (int64_t)sizeof b, sizeof b);
        acc[r][j] = multiply_words(pairs, acc[r][j], a, b);
      }
    }
  }
#pragma unroll
  for (int r = 0; r < rows; r++) NAME(dot_add_up)(acc[r], sums + r * ld);
}

/* Y = alpha·sums + bias (+ Y). */
INLINE void NAME(dot_finish)(const pk_matmul *op, const float *sums, int64_t ld, int64_t first, int64_t rows) {
  if (op->ldy == op->n && op->n == ld && !op->bias) { /* no gaps: one line */
    FOR_VECTORS(i, m, 0, rows * op->n) {
      vf y = op->alpha * vload(PK_F32, sums, i, m);
      if (op->accumulate) y += vload(op->y_type, op->y, first * op->n + i, m);
      vstore(op->y_type, op->y, first * op->n + i, m, y);
    }
    return;
  }
  for (int64_t r = 0; r < rows; r++) {
    FOR_VECTORS(j, m, 0, op->n) {
      vf y = op->alpha * vload(PK_F32, sums, r * ld + j, m);
      if (op->bias) y += vload(PK_F32, op->bias, j, m);
      if (op->accumulate) y += vload(op->y_type, op->y, (first + r) * op->ldy + j, m);
      vstore(op->y_type, op->y, (first + r) * op->ldy + j, m, y);
    }
  }
}

INLINE void NAME(dot_rows_as)(int pairs, int rounds, int32_t act, const pk_matmul *op, const pk_dot_pieces *pieces, pk_range share) {
  const int64_t x_bytes = op->ldx * pk_type_bytes(act);
  NAME(dot_prepare)(pairs, rounds, op, pieces);
  for (int64_t first = share.begin; first < share.end; first += dot_box) {
    const int64_t count = pk_min(dot_box, share.end - first);
    for (int64_t r = 0; r < count;) {
      const uint8_t *x = (const uint8_t *)op->x + (first + r) * x_bytes;
      const int64_t rows = count - r >= DOT_ROWS ? DOT_ROWS : 1;
      for (int64_t j = 0; j < pieces->columns; j += dot_columns) {
        float *sums = pieces->sums + r * pieces->columns + j;
        const uint8_t *w = pieces->w + j * pieces->row;
        if (rows == DOT_ROWS) {
          NAME(dot_tile)(pairs, rounds, DOT_ROWS, act, x, x_bytes, w, pieces->row, op->k, sums, pieces->columns);
        } else {
          NAME(dot_tile)(pairs, rounds, 1, act, x, x_bytes, w, pieces->row, op->k, sums, pieces->columns);
        }
      }
      r += rows;
    }
    NAME(dot_finish)(op, pieces->sums, pieces->columns, first, count);
  }
}

static void NAME(dot_rows)(const pk_matmul *op, const pk_dot_pieces *pieces, pk_range share) {
#if LEVEL == 3
  if (pieces->pairs) {
    if (op->x_type == PK_F32) {
      NAME(dot_rows_as)(1, 0, PK_F32, op, pieces, share);
    } else {
      NAME(dot_rows_as)(1, 0, PK_BF16, op, pieces, share);
    }
    return;
  }
#endif
  if (op->x_type == PK_F32) {
    NAME(dot_rows_as)(0, pieces->rounds, PK_F32, op, pieces, share);
  } else {
    NAME(dot_rows_as)(0, pieces->rounds, PK_BF16, op, pieces, share);
  }
}

#endif
