/* Softmax cross-entropy over logits that come by blocks of columns: no row of f32 logits exists as a whole. What is kept of
 * them is f16, eleven bits against bf16's eight, and only for the gradient, which is rounded to bf16 in the same place; losses
 * are sums of the f32 values. */
#ifndef LEVEL
#define AVX2_IS_ENOUGH
#define BODY "loss_blocks.c"
#include "levels.h"

void pk_softmax_observe(int32_t level, const float *logits, int64_t rows, int64_t n, int64_t first, const int32_t *labels, float softcap, float *top, float *sum,
                        float *target, uint16_t *halves, int64_t ld_halves, int32_t part, int32_t parts) {
  const pk_range share = pk_share(rows, 1, part, parts);
  for (int64_t r = share.begin; r < share.end; r++) {
    const float *row = logits + r * n;
    const int64_t label = labels[r] - first;
    if (label >= 0 && label < n) target[r] = softcap != 0 ? softcap * tanhf(row[label] / softcap) : row[label];
    AT_LEVEL(level, observe)(row, n, softcap, top + r, sum + r, halves ? halves + r * ld_halves + first : NULL);
  }
}

void pk_softmax_gradient(int32_t level, uint16_t *halves, int64_t rows, int64_t n, const int32_t *labels, const float *top, const float *sum, const float *target,
                         float softcap, float grad_scale, float *row_loss, int32_t part, int32_t parts) {
  const pk_range share = pk_share(rows, 1, part, parts);
  for (int64_t r = share.begin; r < share.end; r++) {
    uint16_t *row = halves ? halves + r * n : NULL;
    const float log_sum = top[r] + logf(sum[r]);
    row_loss[r] = labels[r] == -100 ? 0 : log_sum - target[r];
    if (!row) continue;
    if (labels[r] == -100) {
      memset(row, 0, (size_t)n * 2);
      continue;
    }
    AT_LEVEL(level, gradient)(row, n, log_sum, softcap, grad_scale);
    const float t = softcap != 0 ? target[r] / softcap : 0;
    row[labels[r]] = pk_f32_to_bf16((expf(target[r] - log_sum) - 1) * (1 - t * t) * grad_scale);
  }
}

#else

/* One more block of a row. */
static void NAME(observe)(const float *x, int64_t n, float softcap, float *top, float *sum, uint16_t *halves) {
  vf largest = -INFINITY;
  FOR_VECTORS(i, m, 0, n) {
    vf v = vload(PK_F32, x, i, m);
    if (softcap != 0) v = softcap * vtanh(v / softcap);
    if (halves) vstore16(halves + i, m, vround_f16(v));
    if (m < WIDTH) v = vlanes() < (vi)(int32_t)m ? v : -INFINITY;
    largest = vmax(largest, v);
  }
  const float before = *top, found = vtop(largest), now = found > before ? found : before;
  const float shift = now == -INFINITY ? 0 : now;
  vf sums[2] = {0, 0};
  FOR_VECTORS(i, m, 0, n) {
    vf v = vload(PK_F32, x, i, m);
    if (softcap != 0) v = softcap * vtanh(v / softcap);
    vf e = vexp(v - shift);
    if (m < WIDTH) e = vlanes() < (vi)(int32_t)m ? e : 0.0f;
    sums[i / WIDTH & 1] += e;
  }
  *sum = (before == now ? *sum : *sum * expf(before - shift)) + vsum(sums[0] + sums[1]);
  *top = now;
}

/* (e^(l − log Σ) · (1 − (l/cap)²)) · scale; the label's own value is put right by the caller. */
static void NAME(gradient)(uint16_t *halves, int64_t n, float log_sum, float softcap, float grad_scale) {
  const float unit = 1.44269504f, shift = log_sum * unit;
  FOR_VECTORS(i, m, 0, n) {
    const vf l = vwiden_f16(vload16(halves + i, m));
    vf g = vexp2_coarse(l * unit - shift) * grad_scale;
    if (softcap != 0) g *= 1.0f - (l / softcap) * (l / softcap);
    vstore16(halves + i, m, vround(g));
  }
}

#endif
