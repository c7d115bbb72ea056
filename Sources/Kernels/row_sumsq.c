/* Σ W² of each row, for DoRA's norms: decoded by the boxful, eight f32 chains a box, boxes added in double. */
#include "formats.h"

void pk_row_sumsq(int32_t level, int32_t w_type, const void *w, int64_t w_row_bytes, int64_t rows, int64_t k, float *out, int32_t part, int32_t parts) {
  enum { box = 256, chains = 8 };
  pk_decode_fn *decode = pk_decoder(level, w_type);
  if (!decode) return;
  float values[box];
  const pk_range share = pk_share(rows, 1, part, parts);
  for (int64_t row = share.begin; row < share.end; row++) {
    const uint8_t *p = (const uint8_t *)w + row * w_row_bytes;
    double total = 0;
    for (int64_t at = 0; at < k; at += box) {
      const int64_t count = k - at < box ? k - at : box;
      decode(p, at, count, values);
      for (int64_t i = count; i < box; i++) values[i] = 0;
      float sum[chains] = {0};
      for (int64_t i = 0; i < box; i += chains) {
        for (int c = 0; c < chains; c++) sum[c] += values[i + c] * values[i + c];
      }
      for (int c = 0; c < chains; c++) total += sum[c];
    }
    out[row] = (float)total;
  }
}
