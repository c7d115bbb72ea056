/* Softmax cross-entropy and softmax over rows. A row is taken in three sweeps (maximum, exponentials and their sum,
 * scaling); the exponentials are kept in place, so each is computed once. */
#ifndef LEVEL
#define AVX2_IS_ENOUGH
#define BODY "loss.c"
#include "levels.h"

void pk_cross_entropy(int32_t level, float *logits, int64_t rows, int64_t n, int64_t ld, const int32_t *labels,
                      float softcap, float grad_scale, float *row_loss, int32_t part, int32_t parts) {
  const pk_range share = pk_share(rows, 1, part, parts);
  for (int64_t r = share.begin; r < share.end; r++) {
    float *row = logits + r * ld;
    if (labels[r] == -100) {
      row_loss[r] = 0;
      if (grad_scale != 0) memset(row, 0, (size_t)n * sizeof(float));
    } else if (softcap != 0) {
      row_loss[r] = AT_LEVEL(level, capped_cross_entropy_row)(row, n, labels[r], softcap, grad_scale);
    } else {
      row_loss[r] = AT_LEVEL(level, cross_entropy_row)(row, n, labels[r], grad_scale);
    }
  }
}

void pk_softmax_rows(int32_t level, float *x, int64_t rows, int64_t n, int64_t ld, int32_t part, int32_t parts) {
  const pk_range share = pk_share(rows, 1, part, parts);
  for (int64_t r = share.begin; r < share.end; r++) AT_LEVEL(level, softmax_row)(x + r * ld, n);
}

#else

INLINE float NAME(row_maximum)(const float *x, int64_t n) {
  vf top[4] = {-INFINITY, -INFINITY, -INFINITY, -INFINITY};
  int64_t i = 0;
  for (; i + 4 * WIDTH <= n; i += 4 * WIDTH) {
    for (int k = 0; k < 4; k++) top[k] = vmax(top[k], vget(x + i + k * WIDTH));
  }
  float maximum = vtop(vmax(vmax(top[0], top[1]), vmax(top[2], top[3])));
  for (; i < n; i++) maximum = maximum > x[i] ? maximum : x[i];
  return maximum == -INFINITY ? 0 : maximum;
}

/* Σ e^(x − shift); the terms are stored in `terms` unless it is NULL (it may be x). The lanes beyond n count 0. */
INLINE float NAME(sum_exponentials)(const float *x, int64_t n, float shift, float *terms) {
  vf sum[4] = {0, 0, 0, 0};
  int64_t i = 0;
  for (; i + 4 * WIDTH <= n; i += 4 * WIDTH) {
    for (int k = 0; k < 4; k++) {
      const vf e = vexp(vget(x + i + k * WIDTH) - shift);
      if (terms) vput(terms + i + k * WIDTH, e);
      sum[k] += e;
    }
  }
  for (int64_t m; i < n; i += WIDTH) {
    m = pk_min(WIDTH, n - i);
    vf e = vexp(vload(PK_F32, x, i, m) - shift);
    if (m < WIDTH) e = vlanes() < (vi)(int32_t)m ? e : 0.0f;
    if (terms) vstore(PK_F32, terms, i, m, e);
    sum[0] += e;
  }
  return vsum((sum[0] + sum[1]) + (sum[2] + sum[3]));
}

INLINE void NAME(scale_row)(float *x, int64_t n, float factor) {
  FOR_VECTORS(i, m, 0, n) vstore(PK_F32, x, i, m, vload(PK_F32, x, i, m) * factor);
}

/* d loss / d logit = softmax − one-hot(label). */
static float NAME(cross_entropy_row)(float *x, int64_t n, int32_t label, float grad_scale) {
  const float target = x[label], maximum = NAME(row_maximum)(x, n);
  const float sum = NAME(sum_exponentials)(x, n, maximum, grad_scale != 0 ? x : NULL);
  if (grad_scale != 0) {
    NAME(scale_row)(x, n, grad_scale / sum);
    x[label] -= grad_scale;
  }
  return logf(sum) + (maximum - target);
}

/* The same for logits l = cap·tanh(x/cap); d l / d x = 1 − (l/cap)². */
static float NAME(capped_cross_entropy_row)(float *x, int64_t n, int32_t label, float cap, float grad_scale) {
  const float maximum = cap * tanhf(NAME(row_maximum)(x, n) / cap); /* tanh is monotonic */
  const float target = cap * tanhf(x[label] / cap);
  vf total = 0;
  FOR_VECTORS(i, m, 0, n) {
    vf e = vexp(cap * vtanh(vload(PK_F32, x, i, m) / cap) - maximum);
    if (m < WIDTH) e = vlanes() < (vi)(int32_t)m ? e : 0.0f;
    total += e;
  }
  const float sum = vsum(total), factor = grad_scale / sum;
  if (grad_scale != 0) {
    const float slope = tanhf(x[label] / cap);
    FOR_VECTORS(i, m, 0, n) {
      const vf t = vtanh(vload(PK_F32, x, i, m) / cap);
      vstore(PK_F32, x, i, m, factor * vexp(cap * t - maximum) * (1.0f - t * t));
    }
    x[label] -= grad_scale * (1.0f - slope * slope);
  }
  return logf(sum) + (maximum - target);
}

static void NAME(softmax_row)(float *x, int64_t n) {
  const float sum = NAME(sum_exponentials)(x, n, NAME(row_maximum)(x, n), x);
  NAME(scale_row)(x, n, 1.0f / sum);
}

#endif
