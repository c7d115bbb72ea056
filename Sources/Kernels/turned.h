/* Rows turned round: t[c·LANES + j] = x[first + j, c], so that each column's values lie beside each other. Included after vector.h, once per
 * level, by kernels that define LANES, a multiple of WIDTH. */
#include "pairs.h"

/* `count` rows; those up to LANES are zeros. */
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
