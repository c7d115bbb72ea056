/* Rows turned round: t[c·LANES + j] = x[first + j, c], so that each column's values lie beside each other. Included after vector.h, once per
 * level, by kernels that define LANES, a multiple of WIDTH. */
#include "pairs.h"

/* At most LANES of `count` rows (which may be negative); those that are missing are zeros. */
static void NAME(load_turned)(int32_t act, const void *x, int64_t n, int64_t first, int64_t count, float *t) {
  for (int64_t j = 0; j < LANES; j += WIDTH) {
    FOR_VECTORS(c, m, 0, n) {
      vu square[WIDTH];
#pragma clang loop unroll(disable)
      for (int64_t i = 0; i < WIDTH; i++) square[i] = j + i < count ? vbits(vload(act, x, (first + j + i) * n + c, m)) : 0;
      transpose_square(square);
      for (int64_t i = 0; i < m; i++) memcpy(t + (c + i) * LANES + j, &square[i], sizeof(vu));
    }
  }
}

/* Sums over the lanes of many vectors, WIDTH of them turned at once: to[place] += factor · Σ lanes. */
typedef struct NAME(lane_sums) {
  vf parts[WIDTH];
  int64_t places[WIDTH];
  int32_t count;
  float factor, *to;
} NAME(lane_sums);

static inline void NAME(finish_sums)(NAME(lane_sums) *s) {
  vu square[WIDTH];
  memcpy(square, s->parts, sizeof square);
  transpose_square(square);
  vf sum = vfloat(square[0]);
#pragma unroll
  for (int i = 1; i < WIDTH; i++) sum += vfloat(square[i]);
  float sums[WIDTH];
  vput(sums, sum);
  for (int32_t i = 0; i < s->count; i++) s->to[s->places[i]] += s->factor * sums[i];
  s->count = 0;
}

INLINE void NAME(add_sum)(NAME(lane_sums) *s, int64_t place, vf part) {
  s->parts[s->count] = part;
  s->places[s->count++] = place;
  if (s->count == WIDTH) NAME(finish_sums)(s);
}
