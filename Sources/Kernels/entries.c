/* Weights of which some entries train: the change written into a copy of the weight, and the gradient of those entries alone, a dot product over
 * the rows of a batch each. For r·(in + out) entries, as many as a LoRA has, that is r·(1/in + 1/out) of the multiplications of the whole gradient. */
#ifndef LEVEL
#define AVX2_IS_ENOUGH
#define BODY "entries.c"

/* Rows of a batch at a time: 64 floats of each of 1536 + 576 columns are 540 kB, which L2 holds. */
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

static void NAME(entry_gradients)(int32_t act, const void *x, int64_t in, const void *dy, int64_t out, int64_t rows, pk_entries e, float scale,
                                  float *dvalues, pk_range own, float *scratch) {
  float *const u = scratch, *const v = u + in * LANES;
  for (int64_t first = 0; first < rows; first += LANES) {
    const int64_t count = pk_min(LANES, rows - first);
    NAME(load_turned)(act, x, in, first, count, u);
    NAME(load_turned)(act, dy, out, first, count, v);
    for (int64_t p = own.begin; p < own.end; p++) {
      const float *const a = u + e.columns[p] * (int64_t)LANES, *const b = v + e.rows[p] * (int64_t)LANES;
      vf sum = 0;
#pragma unroll
      for (int64_t l = 0; l < LANES; l += WIDTH) sum += vget(a + l) * vget(b + l);
      dvalues[e.order ? e.order[p] : p] += scale * vsum(sum);
    }
  }
}

#endif
