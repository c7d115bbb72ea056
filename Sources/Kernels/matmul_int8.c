/* Products of int8 rows with activations of eight bits (LLM.int8, Dettmers et al., arXiv:2208.07339): columns of X in which a
 * magnitude reaches the threshold are multiplied as they are, all others as whole numbers.
 *
 *   q[i,c] = round(x[i,c] · 127 / s[i]),  s[i] the largest magnitude of row i below the threshold;  0 in columns with an outlier
 *   y[i,j] = s[i]·t[j]/127² · Σ_c q[i,c]·w[j,c]  +  t[j]/127 · Σ_{c outlier} x[i,c]·w[j,c]
 *
 * t[j] is the largest magnitude of row j of the weights. As in bitsandbytes s sees the small values of outlier columns too. */
#ifndef LEVEL
#define AVX2_IS_ENOUGH
#define BODY "matmul_int8.c"
#include "levels.h"

void pk_matmul_int8_scratch(const pk_matmul *op, size_t *shared, size_t *each) {
  pk_int8_pieces pieces;
  *shared = pk_int8_pieces_of(op, 0, &pieces);
  *each = (size_t)(pk_round_up(4 * op->k, 64) + PADDED(op->k));
}

void pk_matmul_int8_run(const pk_matmul *op, float threshold, int32_t phase, int32_t part, int32_t parts, void *shared, void *each) {
  pk_int8_pieces pieces;
  pk_int8_pieces_of(op, (uintptr_t)shared, &pieces);
  if (phase == 0) {
    const pk_range share = pk_share(op->k, PK_GRAIN, part, parts);
    if (share.begin < share.end) AT_LEVEL(op->level, mark)(op, threshold, share, pieces.is_outlier);
  } else if (phase == 1) {
    const pk_range share = pk_share(op->m, 1, part, parts);
    for (int64_t i = share.begin; i < share.end; i++) {
      pieces.stats[i] = AT_LEVEL(op->level, round_row)(op, threshold, i, pieces.is_outlier, pieces.codes + i * PADDED(op->k));
    }
  } else {
    int32_t *columns = each;
    int64_t count = 0;
    for (int64_t c = 0; c < op->k; c++) {
      if (pieces.is_outlier[c]) columns[count++] = (int32_t)c;
    }
    int8_t *row = (int8_t *)each + pk_round_up(4 * op->k, 64);
    memset(row, 0, (size_t)PADDED(op->k));
    const pk_range share = pk_share(op->n, 16, part, parts);
    for (int64_t j = share.begin; j < share.end; j++) {
      const uint8_t *w = (const uint8_t *)op->w + j * op->w_row_bytes;
      memcpy(row, w + 4, (size_t)op->k);
      AT_LEVEL(op->level, multiply_row)(op, j, pk_float(pk_load32(w)), row, &pieces, columns, count);
    }
  }
}

#else

#if LEVEL == 0
#define PADDED(k) pk_round_up(k, 64)

typedef struct pk_int8_pieces {
  uint8_t *is_outlier; /* [k] */
  float *stats;        /* [m] */
  int8_t *codes;       /* [m][padded k], zeros beyond k */
} pk_int8_pieces;

static size_t pk_int8_pieces_of(const pk_matmul *op, uintptr_t base, pk_int8_pieces *pieces) {
  size_t used = 0;
  pieces->is_outlier = pk_take(base, &used, op->k);
  pieces->stats = pk_take(base, &used, 4 * op->m);
  pieces->codes = pk_take(base, &used, op->m * PADDED(op->k));
  return used;
}
#endif

static void NAME(mark)(const pk_matmul *op, float threshold, pk_range share, uint8_t *is_outlier) {
  memset(is_outlier + share.begin, 0, (size_t)(share.end - share.begin));
  for (int64_t i = 0; i < op->m; i++) {
    FOR_VECTORS(c, n, share.begin, share.end) {
      const vf x = vload(op->x_type, op->x, i * op->ldx + c, n);
      for (int64_t lane = 0; lane < n; lane++) is_outlier[c + lane] |= x[lane] >= threshold || x[lane] <= -threshold;
    }
  }
}

/* Codes of row i, and its largest magnitude below the threshold; NaN where one is in it. */
static float NAME(round_row)(const pk_matmul *op, float threshold, int64_t i, const uint8_t *is_outlier, int8_t *codes) {
  vf largest = 0, wrong = 0;
  FOR_VECTORS(c, n, 0, op->k) {
    const vf x = vload(op->x_type, op->x, i * op->ldx + c, n), magnitude = x < 0.0f ? -x : x;
    largest = vmax(largest, magnitude < threshold ? magnitude : 0.0f);
    wrong = x == x ? wrong : x;
  }
  const float top = vtop(largest), factor = top > 0 ? 1 / top * 127 : 0; /* as torch reckons 127 / top */
  memset(codes + op->k, 0, (size_t)(PADDED(op->k) - op->k));
  FOR_VECTORS(c, n, 0, op->k) {
    const vf x = vload(op->x_type, op->x, i * op->ldx + c, n) * factor;
    const vf whole = (x + VMAGIC) - VMAGIC; /* to nearest, halves to even; what is beyond ±127 is in an outlier column */
    for (int64_t lane = 0; lane < n; lane++) codes[c + lane] = is_outlier[c + lane] || !(whole[lane] >= -127 && whole[lane] <= 127) ? 0 : (int8_t)whole[lane];
  }
  float nan = 0;
  for (int lane = 0; lane < WIDTH; lane++) nan = wrong[lane] == wrong[lane] ? nan : wrong[lane];
  return nan == nan ? top : nan;
}

/* Σ a·b over whole blocks of 64. */
INLINE int32_t NAME(dot)(const int8_t *a, const int8_t *b, int64_t count) {
#if LEVEL >= 2
  __m512i sum = _mm512_setzero_si512();
  for (int64_t c = 0; c < count; c += 32) {
    const __m512i x = _mm512_cvtepi8_epi16(_mm256_loadu_si256((const __m256i *)(a + c)));
    const __m512i y = _mm512_cvtepi8_epi16(_mm256_loadu_si256((const __m256i *)(b + c)));
    sum = _mm512_add_epi32(sum, _mm512_madd_epi16(x, y));
  }
  return _mm512_reduce_add_epi32(sum);
#elif LEVEL == 1
  __m256i sum = _mm256_setzero_si256();
  for (int64_t c = 0; c < count; c += 16) {
    const __m256i x = _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)(a + c)));
    const __m256i y = _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)(b + c)));
    sum = _mm256_add_epi32(sum, _mm256_madd_epi16(x, y));
  }
  int32_t lanes[8], total = 0;
  _mm256_storeu_si256((__m256i *)lanes, sum);
  for (int lane = 0; lane < 8; lane++) total += lanes[lane];
  return total;
#else
  int32_t sum = 0;
  for (int64_t c = 0; c < count; c++) sum += a[c] * b[c];
  return sum;
#endif
}

/* Column j of Y. */
static void NAME(multiply_row)(const pk_matmul *op, int64_t j, float scale, const int8_t *row, const pk_int8_pieces *pieces, const int32_t *columns, int64_t count) {
  const int64_t padded = PADDED(op->k);
  for (int64_t i = 0; i < op->m; i++) {
    float y = (float)NAME(dot)(pieces->codes + i * padded, row, padded) * (pieces->stats[i] * scale / (127.0f * 127.0f)), rest = 0;
    for (int64_t c = 0; c < count; c++) rest += vload(op->x_type, op->x, i * op->ldx + columns[c], 1)[0] * (float)row[columns[c]];
    y = op->alpha * (y + rest * (scale / 127.0f));
    if (op->bias) y += op->bias[j];
    vf all = y;
    if (op->accumulate) all += vload(op->y_type, op->y, i * op->ldy + j, 1);
    vstore(op->y_type, op->y, i * op->ldy + j, 1, all);
  }
}

#endif
