/* Small products and rearrangements for attention, in the vectors of the level being compiled. Included after vector.h
 * by the attention kernels, once per level: no guard. `pairs` is a constant at every call: 1 = words of two bf16. */

#include "pairs.h"

/* ---- C[m,n] (+)= A[m,depth] · B[depth,n], all in words along `depth` ---- */

#define TILE_ROWS 4
#define TILE_VECTORS (WIDTH == 16 ? 4 : 2)

/* rows × vectors accumulators in registers. keep: C = C·factor[column] + … (factor NULL: 1). */
#define tile NAME(tile)
INLINE void tile(int pairs, int rows, int vectors, const uint8_t *a, int64_t a_bytes, const uint32_t *b, int64_t ldb,
                 float *c, int64_t ldc, int64_t depth, int keep, const float *factor) {
  vf acc[TILE_ROWS][TILE_VECTORS];
  for (int r = 0; r < rows; r++) {
    for (int v = 0; v < vectors; v++) {
      acc[r][v] = 0;
      if (keep) acc[r][v] = vget(c + r * ldc + v * WIDTH);
      if (keep && factor) acc[r][v] *= vget(factor + v * WIDTH);
    }
  }
  for (int64_t k = 0; k < depth; k++) {
    vu right[TILE_VECTORS];
    for (int v = 0; v < vectors; v++) memcpy(&right[v], b + k * ldb + v * WIDTH, sizeof(vu));
    for (int r = 0; r < rows; r++) {
      uint32_t word;
      memcpy(&word, a + r * a_bytes + 4 * k, 4);
      for (int v = 0; v < vectors; v++) acc[r][v] = multiply_words(pairs, acc[r][v], (vu)word, right[v]);
    }
  }
  for (int r = 0; r < rows; r++) {
    for (int v = 0; v < vectors; v++) vput(c + r * ldc + v * WIDTH, acc[r][v]);
  }
}

/* A: rows of a_bytes; B: words, row length ldb; n a multiple of WIDTH. */
#define multiply NAME(multiply)
static inline void multiply(const pk_attention *op, int pairs, const void *a, int64_t a_bytes, const uint32_t *b, int64_t ldb, float *c, int64_t ldc,
                            int64_t m, int64_t n, int64_t depth, int keep, const float *factor) {
#if LEVEL == 3
  if (pairs && op->level >= PK_LEVEL_AMX && (m | n | depth) % 16 == 0) {
    pk_amx_multiply(a, a_bytes, b, ldb, c, ldc, m, n, depth, keep, factor);
    return;
  }
#else
  (void)op;
#endif
  const uint8_t *rows = a;
  for (int64_t j = 0; j < n;) {
    const int vectors = n - j >= TILE_VECTORS * WIDTH ? TILE_VECTORS : n - j >= 2 * WIDTH ? 2 : 1;
    const float *scale = factor ? factor + j : NULL;
    for (int64_t i = 0; i < m;) {
      const int height = m - i >= TILE_ROWS ? TILE_ROWS : 1;
#define TILE_(r, v) tile(pairs, r, v, rows + i * a_bytes, a_bytes, b + j, ldb, c + i * ldc + j, ldc, depth, keep, scale)
      if (height == TILE_ROWS) {
        if (vectors == TILE_VECTORS) TILE_(TILE_ROWS, TILE_VECTORS);
        else if (vectors == 2) TILE_(TILE_ROWS, 2);
        else TILE_(TILE_ROWS, 1);
      } else {
        if (vectors == TILE_VECTORS) TILE_(1, TILE_VECTORS);
        else if (vectors == 2) TILE_(1, 2);
        else TILE_(1, 1);
      }
#undef TILE_
      i += height;
    }
    j += vectors * WIDTH;
  }
}

/* ---- rearranging ---- */

/* The square at `from` (rows row_bytes apart), turned, to `to`. All of it in registers. */
#define transpose_whole NAME(transpose_whole)
INLINE void transpose_whole(const uint8_t *from, int64_t row_bytes, uint32_t *to, int64_t ldt) {
  vu square[WIDTH];
#pragma unroll
  for (int i = 0; i < WIDTH; i++) memcpy(&square[i], from + i * row_bytes, sizeof(vu));
  transpose_square(square);
#pragma unroll
  for (int i = 0; i < WIDTH; i++) memcpy(to + i * ldt, &square[i], sizeof(vu));
}

/* to[word][row] = word `word` of row `row`; columns count … BLOCK−1 become 0. Rows are row_bytes apart. */
#define transpose_words NAME(transpose_words)
static inline void transpose_words(const void *rows, int64_t row_bytes, int64_t count, int64_t words, uint32_t *to, int64_t ldt) {
  const uint8_t *from = rows;
  for (int64_t r = 0; r < BLOCK; r += WIDTH) {
    for (int64_t w = 0; w < words; w += WIDTH) {
      if (r + WIDTH <= count && w + WIDTH <= words) {
        transpose_whole(from + r * row_bytes + 4 * w, row_bytes, to + w * ldt + r, ldt);
        continue;
      }
      uint32_t edge[WIDTH * WIDTH] = {0}, turned[WIDTH * WIDTH];
      const int64_t use = pk_min(WIDTH, words - w);
      for (int64_t i = 0; i < WIDTH && r + i < count; i++) memcpy(edge + i * WIDTH, from + (r + i) * row_bytes + 4 * w, 4 * (size_t)use);
      transpose_whole((const uint8_t *)edge, 4 * WIDTH, turned, WIDTH);
      for (int64_t i = 0; i < use; i++) memcpy(to + (w + i) * ldt + r, turned + i * WIDTH, sizeof(vu));
    }
  }
}

/* to[d][key] for one key block, single elements: the left operand of a sum over keys. `words`: scratch, [words][BLOCK]. */
#define transpose_elements NAME(transpose_elements)
static inline void transpose_elements(int pairs, const void *rows, int64_t row_bytes, int64_t count, int64_t head_dim, uint32_t *words,
                                      void *to, int64_t ldt) {
  if (!pairs) {
    transpose_words(rows, row_bytes, count, head_dim, to, ldt);
    return;
  }
  transpose_words(rows, row_bytes, count, head_dim / 2, words, BLOCK);
  for (int64_t w = 0; w < head_dim / 2; w++) {
    uint16_t *even = (uint16_t *)to + 2 * w * ldt, *odd = even + ldt;
    for (int64_t k = 0; k < BLOCK; k++) {
      even[k] = (uint16_t)words[w * BLOCK + k];
      odd[k] = (uint16_t)(words[w * BLOCK + k] >> 16);
    }
  }
}

/* The right operand of a sum over rows: to[row][d] in f32, or to[row / 2][d] in pairs of rows. Zeros beyond head_dim
 * (up to ldt) and, in the last pair, beyond count. */
#define panel_of_rows NAME(panel_of_rows)
static inline void panel_of_rows(int pairs, const void *rows, int64_t row_bytes, int64_t count, int64_t head_dim, uint32_t *to, int64_t ldt) {
  const uint8_t *from = rows;
  for (int64_t r = 0; r < count; r += pairs ? 2 : 1) {
    uint32_t *line = pairs ? to + r / 2 * ldt : to + r * ldt;
    if (!pairs) {
      memcpy(line, from + r * row_bytes, 4 * (size_t)head_dim);
    } else {
      const uint16_t *low = (const uint16_t *)(from + r * row_bytes), *high = (const uint16_t *)(from + (r + 1) * row_bytes);
      if (r + 1 < count) {
        for (int64_t d = 0; d < head_dim; d++) line[d] = low[d] | (uint32_t)high[d] << 16;
      } else {
        for (int64_t d = 0; d < head_dim; d++) line[d] = low[d];
      }
    }
    memset(line + head_dim, 0, 4 * (size_t)(ldt - head_dim));
  }
}

/* Values i … i + n − 1 of k or v; a vector never crosses the border of a block, which is filled up with zeros. */
#define load_cached NAME(load_cached)
INLINE vf load_cached(int32_t type, const void *p, int64_t i, int64_t n) {
  if (type != PK_Q8_0) return vload(type, p, i, n);
  typedef int8_t bytes __attribute__((ext_vector_type(WIDTH)));
  const uint8_t *block = (const uint8_t *)p + i / 32 * 34;
  bytes q;
  memcpy(&q, block + 2 + i % 32, sizeof q);
#if LEVEL >= 1
  return __builtin_convertvector(q, vf) * _cvtsh_ss(pk_load16(block));
#else
  return __builtin_convertvector(q, vf) * pk_f16_to_f32(pk_load16(block));
#endif
}

/* Rows of one head as operands: the tensor itself, or a copy in f32 (bf16 in pairs) where it has another type. */
#define rows_view NAME(rows_view)
typedef struct rows_view {
  const void *rows;
  int64_t row_bytes;
} rows_view;

#define operand_rows NAME(operand_rows)
INLINE rows_view operand_rows(int pairs, int32_t type, const void *tensor, int64_t element, int64_t token, int64_t count, int64_t head_dim,
                              float *copy) {
  const int32_t wanted = pairs ? PK_BF16 : PK_F32;
  const int64_t bytes = pairs ? 2 : 4;
  if (type == wanted) return (rows_view){(const uint8_t *)tensor + element * bytes, token * bytes};
  for (int64_t r = 0; r < count; r++) {
    FOR_VECTORS(d, n, 0, head_dim) vstore(wanted, copy, r * head_dim + d, n, load_cached(type, tensor, element + r * token + d, n));
  }
  return (rows_view){copy, bytes * head_dim};
}

/* Stores sums[d][query] (f32, row length BLOCK), each query times scale[query], as rows of a tensor. rows: scratch [BLOCK][whole blocks]. */
#define store_transposed NAME(store_transposed)
static inline void store_transposed(const float *sums, int64_t head_dim, const float *scale, float *rows, int32_t act, void *tensor,
                                    int64_t element, int64_t token, int64_t count) {
  const int64_t ld = pk_blocks(head_dim) * BLOCK; /* transpose_words writes whole blocks */
  for (int64_t d = 0; d < head_dim; d += BLOCK) {
    transpose_words(sums + d * BLOCK, 4 * BLOCK, pk_min(BLOCK, head_dim - d), BLOCK, (uint32_t *)rows + d, ld);
  }
  for (int64_t q = 0; q < count; q++) {
    FOR_VECTORS(d, n, 0, head_dim) {
      vstore(act, tensor, element + q * token + d, n, vload(PK_F32, rows, q * ld + d, n) * scale[q]);
    }
  }
}

/* ---- scores ---- */

/* The score of a key for the WIDTH queries from `lane` on: scaled, capped, biased, −∞ where invisible. slope: d score / d (q·k) / scale. */
#define score_of NAME(score_of)
INLINE vf score_of(const pk_attention *op, vf product, const pk_queries *queries, const float *bias, int64_t lane, int64_t key, int kept, vf *slope) {
  vf s = product * op->scale;
  *slope = 1;
  if (op->softcap > 0) {
    const vf t = vtanh(s / op->softcap);
    s = op->softcap * t;
    *slope = 1.0f - t * t;
  }
  if (bias) s += vget(bias - key + lane);
  vi begin, end;
  memcpy(&begin, queries->begin + lane, sizeof begin);
  memcpy(&end, queries->end + lane, sizeof end);
  const vi k = (int32_t)key;
  return (((begin <= k) & (k < end)) & (vi)(kept ? -1 : 0)) ? s : -INFINITY;
}

/* Exponents are in powers of 2 where probabilities are rounded to bf16 anyway: a coarser function does. */
#define EXPONENT_UNIT(pairs) ((pairs) ? 1.44269504f : 1.0f)

/* e^(s·factor − shift) ≤ 1; factor and shift in that unit. */
#define probability NAME(probability)
INLINE vf probability(int pairs, vf s, float factor, vf shift) {
  const vf t = s * factor - shift;
  return pairs ? vexp2_coarse(t) : vexp(t);
}
