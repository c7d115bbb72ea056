/* Columns of a matrix in another order, repeated or summed. Memory movement only, so there is one version for all
 * processors. */
#include "half.h"
#include "kernels.h"
#include "share.h"

void pk_gather_columns(int32_t act, const void *x, const int32_t *from, void *y, int64_t rows, int64_t n, int64_t m,
                       int32_t part, int32_t parts) {
  const pk_range share = pk_share(rows, 1, part, parts);
  for (int64_t r = share.begin; r < share.end; r++) {
    if (act == PK_F32) {
      const float *row = (const float *)x + r * n;
      float *to = (float *)y + r * m;
      for (int64_t c = 0; c < m; c++) to[c] = row[from[c]];
    } else {
      const uint16_t *row = (const uint16_t *)x + r * n;
      uint16_t *to = (uint16_t *)y + r * m;
      for (int64_t c = 0; c < m; c++) to[c] = row[from[c]];
    }
  }
}

void pk_scatter_columns(int32_t act, const void *x, const int32_t *to, float *y, int64_t rows, int64_t n, int64_t m,
                        int32_t part, int32_t parts) {
  const pk_range share = pk_share(rows, 1, part, parts);
  for (int64_t r = share.begin; r < share.end; r++) {
    float *sums = y + r * m;
    for (int64_t c = 0; c < m; c++) sums[c] = 0;
    if (act == PK_F32) {
      const float *row = (const float *)x + r * n;
      for (int64_t c = 0; c < n; c++) sums[to[c]] += row[c];
    } else {
      const uint16_t *row = (const uint16_t *)x + r * n;
      for (int64_t c = 0; c < n; c++) sums[to[c]] += pk_bf16_to_f32(row[c]);
    }
  }
}
