/* Choosing a token: passes over the logits of a whole vocabulary. */
#ifndef LEVEL
#define AVX2_IS_ENOUGH
#define BODY "sampling.c"
#include "levels.h"

int64_t pk_largest(int32_t level, const float *x, int64_t n) { return AT_LEVEL(level, largest)(x, n); }

float pk_weigh_tokens(int32_t level, const float *logits, int64_t n, float largest, float scale, float *weights) {
  return AT_LEVEL(level, weigh_tokens)(logits, n, largest, scale, weights);
}

int64_t pk_at_least(const float *x, int64_t n, float least, int32_t *found) {
  int64_t count = 0;
  for (int64_t i = 0; i < n; i++) { /* written always, counted where it holds: no branch to foresee */
    found[count] = (int32_t)i;
    count += x[i] >= least;
  }
  return count;
}

#else

static int64_t NAME(largest)(const float *x, int64_t n) {
  vf top = -INFINITY;
  vi first = 0, bad = 0; /* the vector in which a lane's largest stands first */
  const int64_t whole = n / WIDTH * WIDTH;
  for (int64_t i = 0; i < whole; i += WIDTH) {
    const vf v = vget(x + i);
    const vi above = v > top;
    top = above ? v : top;
    first = above ? (vi)(int32_t)i : first;
    bad |= v != v;
  }
  int is_bad = 0;
  int64_t best = -1;
  float largest = -INFINITY;
  for (int lane = 0; lane < WIDTH; lane++) {
    is_bad |= bad[lane];
    const int64_t at = first[lane] + lane;
    if (top[lane] > largest || (top[lane] == largest && best >= 0 && at < best)) largest = top[lane], best = at;
  }
  for (int64_t i = whole; i < n; i++) {
    is_bad |= x[i] != x[i];
    if (x[i] > largest) largest = x[i], best = i;
  }
  for (int64_t i = 0; is_bad && i < n; i++) {
    if (x[i] != x[i]) return -2 - i;
  }
  return best;
}

static float NAME(weigh_tokens)(const float *logits, int64_t n, float largest, float scale, float *weights) {
  vf sum = 0;
  FOR_VECTORS(i, m, 0, n) {
    const vf t = (vload(PK_F32, logits, i, m) - largest) * scale;
    vf w = t > -30.0f ? vexp(t) : 0.0f;
    if (m < WIDTH) w = vlanes() < (vi)(int32_t)m ? w : 0.0f;
    vstore(PK_F32, weights, i, m, w);
    sum += w;
  }
  return vsum(sum);
}

#endif
