/* Keys and values on their way into a cache of blocks. */
#include "formats.h"

void pk_cache_rows(int32_t level, int32_t from, const void *x, void *q8_0, int64_t rows, int64_t heads, int64_t head_dim, int32_t part, int32_t parts) {
  pk_decode_fn *decode = pk_decoder(level, from);
  if (!decode) return;
  const pk_range share = pk_share(rows * heads, 1, part, parts);
  uint8_t *to = (uint8_t *)q8_0 + share.begin * ((head_dim + 31) / 32) * 34;
  for (int64_t head = share.begin; head < share.end; head++) {
    for (int64_t d = 0; d < head_dim; d += 32, to += 34) {
      float values[32] = {0};
      decode(x, head * head_dim + d, pk_min(32, head_dim - d), values);
      pk_encode_q8_0(values, to, 32);
    }
  }
}
