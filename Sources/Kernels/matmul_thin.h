/* What the products with a narrow side share (matmul_dot.c, matmul_outer.c): low-rank adapters, r ≤ 16.
 * Included after vector.h, once per level: no guard. */
#include "pairs.h"

/* `n` values of type act from element i on, for a sum over columns in f32; `rounds`: rounded to bf16 first. */
#define thin_values NAME(thin_values)
INLINE vf thin_values(int rounds, int32_t act, const void *p, int64_t i, int64_t n) {
  const vf x = vload(act, p, i, n);
  return rounds ? vwiden(vround(x)) : x;
}
