/* RMSNorm and LayerNorm. Rows are divided among the parts; gradients of weights are divided over columns. */
#ifndef LEVEL
#define AVX2_IS_ENOUGH
#define BODY "norms.c"
#include "levels.h"

void pk_rmsnorm_forward(int32_t level, int32_t act, const void *x, const float *weight, float offset, float eps,
                        void *y, float *inv, int64_t rows, int64_t n, int32_t part, int32_t parts) {
  AT_LEVEL(level, rmsnorm_forward)(act, x, weight, offset, eps, y, inv, n, pk_share(rows, 1, part, parts));
}

void pk_rmsnorm_backward(int32_t level, int32_t act, const void *x, const float *weight, float offset,
                         const float *inv, const void *dy, void *dx, int32_t accumulate, int64_t rows, int64_t n,
                         int32_t part, int32_t parts) {
  AT_LEVEL(level, rmsnorm_backward)(act, x, weight, offset, inv, dy, dx, accumulate, n, pk_share(rows, 1, part, parts));
}

void pk_rmsnorm_weight_backward(int32_t level, int32_t act, const void *x, const float *inv, const void *dy,
                                float *dweight, int64_t rows, int64_t n, int32_t part, int32_t parts) {
  AT_LEVEL(level, rmsnorm_weight_backward)(act, x, inv, dy, dweight, rows, n, pk_share(n, PK_GRAIN, part, parts));
}

void pk_layernorm_forward(int32_t level, int32_t act, const void *x, const float *weight, const float *bias, float eps,
                          void *y, float *stats, int64_t rows, int64_t n, int32_t part, int32_t parts) {
  AT_LEVEL(level, layernorm_forward)(act, x, weight, bias, eps, y, stats, n, pk_share(rows, 1, part, parts));
}

void pk_layernorm_backward(int32_t level, int32_t act, const void *x, const float *weight, const float *stats,
                           const void *dy, void *dx, int32_t accumulate, int64_t rows, int64_t n, int32_t part,
                           int32_t parts) {
  AT_LEVEL(level, layernorm_backward)(act, x, weight, stats, dy, dx, accumulate, n, pk_share(rows, 1, part, parts));
}

void pk_layernorm_weight_backward(int32_t level, int32_t act, const void *x, const float *stats, const void *dy,
                                  float *dweight, float *dbias, int64_t rows, int64_t n, int32_t part, int32_t parts) {
  AT_LEVEL(level, layernorm_weight_backward)
  (act, x, stats, dy, dweight, dbias, rows, n, pk_share(n, PK_GRAIN, part, parts));
}

#else

static void NAME(rmsnorm_forward)(int32_t act, const void *x, const float *weight, float offset, float eps, void *y,
                                  float *inv, int64_t n, pk_range rows) {
  for (int64_t r = rows.begin; r < rows.end; r++) {
    const int64_t row = r * n;
    vf squares = 0;
    FOR_VECTORS(i, m, 0, n) {
      const vf v = vload(act, x, row + i, m);
      squares += v * v;
    }
    const float scale = 1.0f / sqrtf(vsum(squares) / (float)n + eps);
    if (inv) inv[r] = scale;
    FOR_VECTORS(i, m, 0, n) {
      vstore(act, y, row + i, m, vload(act, x, row + i, m) * scale * (vload(PK_F32, weight, i, m) + offset));
    }
  }
}

/* With x̂ = x·inv and g = dy·(weight + offset):  dx = inv · (g − x̂ · mean(g·x̂)). */
static void NAME(rmsnorm_backward)(int32_t act, const void *x, const float *weight, float offset, const float *inv,
                                   const void *dy, void *dx, int32_t accumulate, int64_t n, pk_range rows) {
  for (int64_t r = rows.begin; r < rows.end; r++) {
    const int64_t row = r * n;
    const float scale = inv[r];
    vf dot = 0;
    FOR_VECTORS(i, m, 0, n) {
      const vf g = vload(act, dy, row + i, m) * (vload(PK_F32, weight, i, m) + offset);
      dot += g * vload(act, x, row + i, m);
    }
    const float back = vsum(dot) / (float)n * scale * scale; /* mean(g·x̂)·inv */
    FOR_VECTORS(i, m, 0, n) {
      const vf g = vload(act, dy, row + i, m) * (vload(PK_F32, weight, i, m) + offset);
      vf d = scale * (g - back * vload(act, x, row + i, m));
      if (accumulate) d += vload(act, dx, row + i, m);
      vstore(act, dx, row + i, m, d);
    }
  }
}

static void NAME(rmsnorm_weight_backward)(int32_t act, const void *x, const float *inv, const void *dy, float *dweight,
                                          int64_t rows, int64_t n, pk_range columns) {
  FOR_VECTORS(c, m, columns.begin, columns.end) {
    vf sum = 0;
    for (int64_t r = 0; r < rows; r++) sum += vload(act, dy, r * n + c, m) * (vload(act, x, r * n + c, m) * inv[r]);
    vstore(PK_F32, dweight, c, m, vload(PK_F32, dweight, c, m) + sum);
  }
}

static void NAME(layernorm_forward)(int32_t act, const void *x, const float *weight, const float *bias, float eps,
                                    void *y, float *stats, int64_t n, pk_range rows) {
  for (int64_t r = rows.begin; r < rows.end; r++) {
    const int64_t row = r * n;
    vf sum = 0;
    FOR_VECTORS(i, m, 0, n) sum += vload(act, x, row + i, m);
    const float mean = vsum(sum) / (float)n;
    vf squares = 0; /* around the mean: no cancellation */
    FOR_VECTORS(i, m, 0, n) {
      vf v = vload(act, x, row + i, m) - mean;
      if (m < WIDTH) v = vlanes() < (vi)(int32_t)m ? v : 0.0f;
      squares += v * v;
    }
    const float scale = 1.0f / sqrtf(vsum(squares) / (float)n + eps);
    if (stats) {
      stats[2 * r] = mean;
      stats[2 * r + 1] = scale;
    }
    FOR_VECTORS(i, m, 0, n) {
      vf v = (vload(act, x, row + i, m) - mean) * scale;
      if (weight) v *= vload(PK_F32, weight, i, m);
      if (bias) v += vload(PK_F32, bias, i, m);
      vstore(act, y, row + i, m, v);
    }
  }
}

/* With x̂ = (x − mean)/std and g = dy·weight:  dx = (g − mean(g) − x̂ · mean(g·x̂)) / std. */
static void NAME(layernorm_backward)(int32_t act, const void *x, const float *weight, const float *stats,
                                     const void *dy, void *dx, int32_t accumulate, int64_t n, pk_range rows) {
  for (int64_t r = rows.begin; r < rows.end; r++) {
    const int64_t row = r * n;
    const float mean = stats[2 * r], scale = stats[2 * r + 1];
    vf sum = 0, dot = 0;
    FOR_VECTORS(i, m, 0, n) {
      vf g = vload(act, dy, row + i, m); /* 0 in the lanes beyond n */
      if (weight) g *= vload(PK_F32, weight, i, m);
      sum += g;
      dot += g * ((vload(act, x, row + i, m) - mean) * scale);
    }
    const float mean_g = vsum(sum) / (float)n, mean_gx = vsum(dot) / (float)n;
    FOR_VECTORS(i, m, 0, n) {
      vf g = vload(act, dy, row + i, m);
      if (weight) g *= vload(PK_F32, weight, i, m);
      const vf normal = (vload(act, x, row + i, m) - mean) * scale;
      vf d = scale * (g - mean_g - normal * mean_gx);
      if (accumulate) d += vload(act, dx, row + i, m);
      vstore(act, dx, row + i, m, d);
    }
  }
}

static void NAME(layernorm_weight_backward)(int32_t act, const void *x, const float *stats, const void *dy,
                                            float *dweight, float *dbias, int64_t rows, int64_t n, pk_range columns) {
  FOR_VECTORS(c, m, columns.begin, columns.end) {
    vf weight_sum = 0, bias_sum = 0;
    for (int64_t r = 0; r < rows; r++) {
      const vf d = vload(act, dy, r * n + c, m);
      weight_sum += d * ((vload(act, x, r * n + c, m) - stats[2 * r]) * stats[2 * r + 1]);
      bias_sum += d;
    }
    if (dweight) vstore(PK_F32, dweight, c, m, vload(PK_F32, dweight, c, m) + weight_sum);
    if (dbias) vstore(PK_F32, dbias, c, m, vload(PK_F32, dbias, c, m) + bias_sum);
  }
}

#endif
