/* Optimizer steps and checks of gradients, all f32. */
#ifndef LEVEL
#define AVX2_IS_ENOUGH
#define BODY "optimizer.c"
#include "levels.h"

/* m = β₁m + (1−β₁)g,  v = β₂v + (1−β₂)g²,
 * w = w(1 − lr·decay) − lr/(1−β₁ᵗ) · m / (√v/√(1−β₂ᵗ) + eps)      (Loshchilov & Hutter, arXiv 1711.05101; torch's order) */
void pk_adamw(int32_t level, float *w, const float *g, float *m, float *v, size_t count, float grad_scale, float lr,
              float beta1, float beta2, float eps, float weight_decay, int64_t step, int32_t part, int32_t parts) {
  const double correction1 = 1 - pow((double)beta1, (double)step), correction2 = 1 - pow((double)beta2, (double)step);
  const pk_adamw_factors factors = {
      .grad_scale = grad_scale,
      .beta1 = beta1,
      .rest1 = (float)(1 - (double)beta1),
      .beta2 = beta2,
      .rest2 = (float)(1 - (double)beta2),
      .keep = (float)(1 - (double)lr * weight_decay),
      .step_size = (float)(lr / correction1),
      .root_correction = (float)(1 / sqrt(correction2)),
      .eps = eps,
  };
  AT_LEVEL(level, adamw)(w, g, m, v, &factors, pk_share((int64_t)count, PK_GRAIN, part, parts));
}

void pk_sgd(int32_t level, float *w, const float *g, float *buf, size_t count, float grad_scale, float lr,
            float momentum, float weight_decay, int64_t step, int32_t part, int32_t parts) {
  AT_LEVEL(level, sgd)
  (w, g, buf, grad_scale, lr, momentum, weight_decay, step <= 1, pk_share((int64_t)count, PK_GRAIN, part, parts));
}

double pk_sumsq(int32_t level, const float *x, size_t count) { return AT_LEVEL(level, sumsq)(x, (int64_t)count); }

int32_t pk_all_finite(int32_t level, int32_t type, const void *x, size_t count) {
  return AT_LEVEL(level, all_finite)(type, x, (int64_t)count);
}

#else

#if LEVEL == 0
typedef struct pk_adamw_factors {
  float grad_scale, beta1, rest1, beta2, rest2, keep, step_size, root_correction, eps;
} pk_adamw_factors;
#endif

static void NAME(adamw)(float *w, const float *g, float *m, float *v, const pk_adamw_factors *f, pk_range share) {
  FOR_VECTORS(i, n, share.begin, share.end) {
    const vf gradient = vload(PK_F32, g, i, n) * f->grad_scale;
    const vf first = f->beta1 * vload(PK_F32, m, i, n) + f->rest1 * gradient;
    const vf second = f->beta2 * vload(PK_F32, v, i, n) + f->rest2 * gradient * gradient;
    const vf denominator = __builtin_elementwise_sqrt(second) * f->root_correction + f->eps;
    vstore(PK_F32, m, i, n, first);
    vstore(PK_F32, v, i, n, second);
    vstore(PK_F32, w, i, n, f->keep * vload(PK_F32, w, i, n) - f->step_size * (first / denominator));
  }
}

static void NAME(sgd)(float *w, const float *g, float *buf, float grad_scale, float lr, float momentum,
                      float weight_decay, int32_t first, pk_range share) {
  FOR_VECTORS(i, n, share.begin, share.end) {
    const vf weight = vload(PK_F32, w, i, n);
    vf d = vload(PK_F32, g, i, n) * grad_scale + weight_decay * weight;
    if (buf) {
      if (!first) d += momentum * vload(PK_F32, buf, i, n);
      vstore(PK_F32, buf, i, n, d);
    }
    vstore(PK_F32, w, i, n, weight - lr * d);
  }
}

static double NAME(sumsq)(const float *x, int64_t count) {
  vd sum[2] = {0, 0};
  int64_t i = 0;
  for (; i + 2 * WIDTH <= count; i += 2 * WIDTH) {
    for (int k = 0; k < 2; k++) {
      const vd v = __builtin_convertvector(vget(x + i + k * WIDTH), vd);
      sum[k] += v * v;
    }
  }
  double total = 0;
  for (; i < count; i++) total += (double)x[i] * x[i];
  for (int lane = 0; lane < WIDTH; lane++) total += sum[0][lane] + sum[1][lane];
  return total;
}

/* A value is not finite when its exponent is all ones. */
static int32_t NAME(all_finite)(int32_t type, const void *x, int64_t count) {
  int32_t bad = 0;
  if (type == PK_F32) {
    const uint32_t *bits = x;
    for (int64_t i = 0; i < count; i++) bad |= (bits[i] & 0x7f800000) == 0x7f800000;
  } else {
    const uint16_t exponent = type == PK_BF16 ? 0x7f80 : 0x7c00, *bits = x;
    for (int64_t i = 0; i < count; i++) bad |= (bits[i] & exponent) == exponent;
  }
  return !bad;
}

#endif
