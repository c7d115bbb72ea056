/* Activation functions, their derivatives, and gated products (SwiGLU, GeGLU). */
#ifndef LEVEL
#define BODY "activations.c"
#include "levels.h"

void pk_activation_forward(int32_t level, int32_t act, int32_t kind, const void *x, void *y, size_t count, int32_t part,
                           int32_t parts) {
  AT_LEVEL(level, activation_forward)(act, kind, x, y, pk_share((int64_t)count, PK_GRAIN, part, parts));
}

void pk_activation_backward(int32_t level, int32_t act, int32_t kind, const void *x, const void *dy, void *dx,
                            int32_t accumulate, size_t count, int32_t part, int32_t parts) {
  AT_LEVEL(level, activation_backward)
  (act, kind, x, dy, dx, accumulate, pk_share((int64_t)count, PK_GRAIN, part, parts));
}

void pk_glu_forward(int32_t level, int32_t act, int32_t kind, const void *gate, const void *up, void *y, size_t count,
                    int32_t part, int32_t parts) {
  AT_LEVEL(level, glu_forward)(act, kind, gate, up, y, pk_share((int64_t)count, PK_GRAIN, part, parts));
}

void pk_glu_backward(int32_t level, int32_t act, int32_t kind, const void *gate, const void *up, const void *dy,
                     void *d_gate, void *d_up, void *y, size_t count, int32_t part, int32_t parts) {
  AT_LEVEL(level, glu_backward)
  (act, kind, gate, up, dy, d_gate, d_up, y, pk_share((int64_t)count, PK_GRAIN, part, parts));
}

#else

/* f(x), and f'(x) in *slope. Where only one is used the compiler drops the rest. */
INLINE vf NAME(evaluate)(int32_t kind, vf x, vf *slope) {
  switch (kind) {
    case PK_SILU: {
      const vf s = vsigmoid(x);
      *slope = s + s * x * (1.0f - s);
      return x * s;
    }
    case PK_GELU: {
      vf density;
      const vf phi = vnormal(x, &density);
      *slope = phi + x * density;
      return x * phi;
    }
    case PK_GELU_TANH: {
      const float k = 0.797884561f, c = 0.044715f; /* √(2/π) */
      const vf square = x * x;
      const vf t = vtanh(k * x * (1.0f + c * square));
      *slope = 0.5f * (1.0f + t) + 0.5f * x * (1.0f - t * t) * k * (1.0f + 3.0f * c * square);
      return 0.5f * x * (1.0f + t);
    }
    case PK_RELU:
      *slope = x > 0.0f ? (vf)1.0f : (vf)0.0f;
      return x < 0.0f ? 0.0f : x; /* a NaN stays */
    case PK_TANH: {
      const vf t = vtanh(x);
      *slope = 1.0f - t * t;
      return t;
    }
    case PK_SIGMOID: {
      const vf s = vsigmoid(x);
      *slope = s * (1.0f - s);
      return s;
    }
    default: { /* PK_QUICK_GELU */
      const vf s = vsigmoid(1.702f * x);
      *slope = s + 1.702f * s * x * (1.0f - s);
      return x * s;
    }
  }
}

static void NAME(activation_forward)(int32_t act, int32_t kind, const void *x, void *y, pk_range share) {
  FOR_VECTORS(i, n, share.begin, share.end) {
    vf slope;
    vstore(act, y, i, n, NAME(evaluate)(kind, vload(act, x, i, n), &slope));
  }
}

static void NAME(activation_backward)(int32_t act, int32_t kind, const void *x, const void *dy, void *dx,
                                      int32_t accumulate, pk_range share) {
  FOR_VECTORS(i, n, share.begin, share.end) {
    vf slope;
    NAME(evaluate)(kind, vload(act, x, i, n), &slope);
    vf d = vload(act, dy, i, n) * slope;
    if (accumulate) d += vload(act, dx, i, n);
    vstore(act, dx, i, n, d);
  }
}

static void NAME(glu_forward)(int32_t act, int32_t kind, const void *gate, const void *up, void *y, pk_range share) {
  FOR_VECTORS(i, n, share.begin, share.end) {
    vf slope;
    vstore(act, y, i, n, NAME(evaluate)(kind, vload(act, gate, i, n), &slope) * vload(act, up, i, n));
  }
}

static void NAME(glu_backward)(int32_t act, int32_t kind, const void *gate, const void *up, const void *dy,
                               void *d_gate, void *d_up, void *y, pk_range share) {
  FOR_VECTORS(i, n, share.begin, share.end) {
    vf slope;
    const vf f = NAME(evaluate)(kind, vload(act, gate, i, n), &slope);
    const vf u = vload(act, up, i, n), d = vload(act, dy, i, n);
    vstore(act, d_gate, i, n, d * u * slope);
    vstore(act, d_up, i, n, d * f);
    if (y) vstore(act, y, i, n, f * u);
  }
}

#endif
