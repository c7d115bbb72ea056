/* Weights of which some entries train: the change written into a copy of the weight, and the gradient of those entries alone, a dot product over
 * the rows of a batch each. For r·(in + out) entries, as many as a LoRA has, that is r·(1/in + 1/out) of the multiplications of the whole gradient. */
#ifndef LEVEL
#define AVX2_IS_ENOUGH
#define BODY "entries.c"

/* Rows of a batch at a time (of bf16 twice as many): 64 floats of each of 1536 + 576 columns are 540 kB, which L2 holds. */
#define LANES 64

#include "levels.h"

size_t pk_entries_scratch(int64_t in, int64_t out) { return (size_t)(in + out) * LANES * sizeof(float); }

/* A part's entries: whole rows, so that no two parts write to one place. */
static pk_range own_rows(pk_entries e, int32_t part, int32_t parts) {
  pk_range share = pk_share(e.count, 1, part, parts);
  while (share.begin > 0 && share.begin < e.count && e.rows[share.begin] == e.rows[share.begin - 1]) share.begin++;
  while (share.end > 0 && share.end < e.count && e.rows[share.end] == e.rows[share.end - 1]) share.end++;
  return share;
}

void pk_add_entries(int32_t type, void *y, int64_t row_step, int64_t column_step, pk_entries e, const float *values, float scale, int32_t part,
                    int32_t parts) {
  const pk_range own = own_rows(e, part, parts);
  for (int64_t p = own.begin; p < own.end; p++) {
    const int64_t at = e.rows[p] * row_step + e.columns[p] * column_step;
    const float value = scale * values[e.order ? e.order[p] : p];
    if (type == PK_F32) {
      ((float *)y)[at] += value;
    } else {
      uint16_t *const place = (uint16_t *)y + at;
      const float sum = pk_bf16_to_f32(*place) + value;
      uint32_t chance = (uint32_t)at;
      PK_DRAW(chance);
      const uint32_t bits = pk_bits(sum);
      *place = (bits & 0x7f800000) == 0x7f800000 ? pk_f32_to_bf16(sum) : (uint16_t)((bits + chance) >> 16);
    }
  }
}

void pk_entry_gradients(int32_t level, int32_t act, const void *x, int64_t in, const void *dy, int64_t out, int64_t rows, pk_entries e, float scale,
                        float *dvalues, int32_t part, int32_t parts, float *scratch) {
  AT_LEVEL(level, entry_gradients)(act, x, in, dy, out, rows, e, scale, dvalues, pk_share(e.count, 1, part, parts), scratch);
}

#else

#include "turned.h"

static void NAME(dots_f32)(const float *u, const float *v, pk_entries e, pk_range own, NAME(lane_sums) *sums) {
  for (int64_t p = own.begin; p < own.end; p++) {
    const float *const a = u + e.columns[p] * (int64_t)LANES, *const b = v + e.rows[p] * (int64_t)LANES;
    vf sum = 0;
#pragma unroll
    for (int64_t l = 0; l < LANES; l += WIDTH) sum += vget(a + l) * vget(b + l);
    NAME(add_sum)(sums, e.order ? e.order[p] : p, sum);
  }
  NAME(finish_sums)(sums);
}

#if LEVEL == 3
/* The same of bf16, two rows in a word: 2·LANES rows at a time. */
static void NAME(load_pairs)(const uint16_t *x, int64_t n, int64_t first, int64_t count, float *t) {
  for (int64_t j = 0; j < LANES; j += WIDTH) {
    FOR_VECTORS(c, m, 0, n) {
      vu square[WIDTH];
      const __mmask16 use = (__mmask16)((1u << m) - 1);
#pragma clang loop unroll(disable)
      for (int64_t i = 0; i < WIDTH; i++) {
        const int64_t row = 2 * (j + i);
        const uint16_t *const at = x + (first + row) * n + c;
        const __m256i low = _mm256_maskz_loadu_epi16(row < count ? use : 0, at), high = _mm256_maskz_loadu_epi16(row + 1 < count ? use : 0, at + n);
        square[i] = (vu)_mm512_cvtepu16_epi32(low) | (vu)_mm512_cvtepu16_epi32(high) << 16;
      }
      transpose_square(square);
      for (int64_t i = 0; i < m; i++) memcpy(t + (c + i) * LANES + j, &square[i], sizeof(vu));
    }
  }
}

static void NAME(dots_bf16)(const float *u, const float *v, pk_entries e, pk_range own, NAME(lane_sums) *sums) {
  for (int64_t p = own.begin; p < own.end; p++) {
    const float *const a = u + e.columns[p] * (int64_t)LANES, *const b = v + e.rows[p] * (int64_t)LANES;
    __m512 sum = _mm512_setzero_ps();
#pragma unroll
    for (int64_t l = 0; l < LANES; l += WIDTH) sum = _mm512_dpbf16_ps(sum, (__m512bh)_mm512_loadu_ps(a + l), (__m512bh)_mm512_loadu_ps(b + l));
    NAME(add_sum)(sums, e.order ? e.order[p] : p, (vf)sum);
  }
  NAME(finish_sums)(sums);
}
#endif

static void NAME(entry_gradients)(int32_t act, const void *x, int64_t in, const void *dy, int64_t out, int64_t rows, pk_entries e, float scale,
                                  float *dvalues, pk_range own, float *scratch) {
  float *const u = scratch, *const v = u + in * LANES;
  NAME(lane_sums) sums = {.to = dvalues, .factor = scale};
#if LEVEL == 3
  for (int64_t first = 0; act == PK_BF16 && first < rows; first += 2 * LANES) {
    NAME(load_pairs)(x, in, first, rows - first, u);
    NAME(load_pairs)(dy, out, first, rows - first, v);
    NAME(dots_bf16)(u, v, e, own, &sums);
  }
  if (act == PK_BF16) return;
#endif
  for (int64_t first = 0; first < rows; first += LANES) {
    NAME(load_turned)(act, x, in, first, rows - first, u);
    NAME(load_turned)(act, dy, out, first, rows - first, v);
    NAME(dots_f32)(u, v, e, own, &sums);
  }
}

#endif
