/* Rotary position embedding. */
#ifndef LEVEL
#define AVX2_IS_ENOUGH
#define BODY "rope.c"
#include "levels.h"

void pk_rope(int32_t level, int32_t act, const void *x, void *y, const float *cos, const float *sin,
             const int32_t *position, int64_t rows, int64_t heads, int64_t head_dim, int64_t rotary, int64_t token_x,
             int64_t token_y, int32_t interleaved, int32_t inverse, int32_t part, int32_t parts) {
  const pk_range share = pk_share(rows, 1, part, parts);
  for (int64_t r = share.begin; r < share.end; r++) {
    const float *c = cos + position[r] * (rotary / 2), *s = sin + position[r] * (rotary / 2);
    for (int64_t h = 0; h < heads; h++) {
      const int64_t from = r * token_x + h * head_dim, to = r * token_y + h * head_dim;
      if (interleaved) {
        AT_LEVEL(level, rotate_neighbours)(act, x, from, y, to, c, s, rotary / 2, inverse ? -1.0f : 1.0f);
      } else {
        AT_LEVEL(level, rotate_halves)(act, x, from, y, to, c, s, rotary / 2, inverse ? -1.0f : 1.0f);
      }
      if (x != y || from != to) AT_LEVEL(level, copy)(act, x, from + rotary, y, to + rotary, head_dim - rotary);
    }
  }
}

#else

/* (a, b) → (a cos − b sin, b cos + a sin) for a = x[i], b = x[i + half]. */
static void NAME(rotate_halves)(int32_t act, const void *x, int64_t from, void *y, int64_t to, const float *cos,
                                const float *sin, int64_t half, float sign) {
  FOR_VECTORS(i, n, 0, half) {
    const vf c = vload(PK_F32, cos, i, n), s = sign * vload(PK_F32, sin, i, n);
    const vf a = vload(act, x, from + i, n), b = vload(act, x, from + half + i, n);
    vstore(act, y, to + i, n, a * c - b * s);
    vstore(act, y, to + half + i, n, b * c + a * s);
  }
}

/* The same for a = x[2i], b = x[2i + 1]; pairs lie in neighbouring lanes: y = x · c + swap(x) · (−s, +s). */
static void NAME(rotate_neighbours)(int32_t act, const void *x, int64_t from, void *y, int64_t to, const float *cos,
                                    const float *sin, int64_t half, float sign) {
  FOR_VECTORS(i, n, 0, 2 * half) {
    float swapped[WIDTH] = {0}, c[WIDTH] = {0}, s[WIDTH] = {0};
    const vf v = vload(act, x, from + i, n);
    for (int64_t lane = 0; lane < n; lane++) { /* n is even: WIDTH and rotary are */
      swapped[lane] = v[lane ^ 1];
      c[lane] = cos[(i + lane) / 2];
      s[lane] = (lane & 1 ? sign : -sign) * sin[(i + lane) / 2];
    }
    vstore(act, y, to + i, n, v * vget(c) + vget(swapped) * vget(s));
  }
}

static void NAME(copy)(int32_t act, const void *x, int64_t from, void *y, int64_t to, int64_t count) {
  FOR_VECTORS(i, n, 0, count) vstore(act, y, to + i, n, vload(act, x, from + i, n));
}

#endif
