/* Activation functions, their derivatives, and gated products (SwiGLU, GeGLU). */
#ifndef LEVEL
#define AVX2_IS_ENOUGH
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

/* f(x), and f'(x) in *slope. Where only one is used the compiler drops the rest. coarse: the results become bf16. */
INLINE vf NAME(evaluate)(int coarse, int32_t kind, vf x, vf *slope) {
  switch (kind) {
    case PK_SILU: {
      const vf s = coarse ? vsigmoid_coarse(x) : vsigmoid(x);
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

/* The loops, compiled for each type of activations. */

INLINE void NAME(activation_forward_as)(int32_t act, int32_t kind, const void *x, void *y, pk_range share) {
  FOR_VECTORS(i, n, share.begin, share.end) {
    vf slope;
    vstore(act, y, i, n, NAME(evaluate)(act == PK_BF16, kind, vload(act, x, i, n), &slope));
  }
}

INLINE void NAME(activation_backward_as)(int32_t act, int32_t kind, const void *x, const void *dy, void *dx, int32_t accumulate, pk_range share) {
  FOR_VECTORS(i, n, share.begin, share.end) {
    vf slope;
    NAME(evaluate)(act == PK_BF16, kind, vload(act, x, i, n), &slope);
    vf d = vload(act, dy, i, n) * slope;
    if (accumulate) d += vload(act, dx, i, n);
    vstore(act, dx, i, n, d);
  }
}

INLINE void NAME(glu_forward_as)(int32_t act, int32_t kind, const void *gate, const void *up, void *y, pk_range share) {
  FOR_VECTORS(i, n, share.begin, share.end) {
    vf slope;
    vstore(act, y, i, n, NAME(evaluate)(act == PK_BF16, kind, vload(act, gate, i, n), &slope) * vload(act, up, i, n));
  }
}

INLINE void NAME(glu_backward_as)(int32_t act, int32_t kind, const void *gate, const void *up, const void *dy, void *d_gate, void *d_up, void *y,
                                  pk_range share) {
  FOR_VECTORS(i, n, share.begin, share.end) {
    vf slope;
    const vf f = NAME(evaluate)(act == PK_BF16, kind, vload(act, gate, i, n), &slope);
    const vf u = vload(act, up, i, n), d = vload(act, dy, i, n);
    vstore(act, d_gate, i, n, d * u * slope);
    vstore(act, d_up, i, n, d * f);
    if (y) vstore(act, y, i, n, f * u);
  }
}

#define EACH_TYPE(act, f, ...) ((act) == PK_F32 ? f(PK_F32, __VA_ARGS__) : f(PK_BF16, __VA_ARGS__))

static void NAME(activation_forward)(int32_t act, int32_t kind, const void *x, void *y, pk_range share) {
  EACH_TYPE(act, NAME(activation_forward_as), kind, x, y, share);
}

static void NAME(activation_backward)(int32_t act, int32_t kind, const void *x, const void *dy, void *dx, int32_t accumulate, pk_range share) {
  EACH_TYPE(act, NAME(activation_backward_as), kind, x, dy, dx, accumulate, share);
}

/* SwiGLU, the most frequent, has loops without a choice inside. */
static void NAME(glu_forward)(int32_t act, int32_t kind, const void *gate, const void *up, void *y, pk_range share) {
  if (kind == PK_SILU) {
    EACH_TYPE(act, NAME(glu_forward_as), PK_SILU, gate, up, y, share);
  } else {
    EACH_TYPE(act, NAME(glu_forward_as), kind, gate, up, y, share);
  }
}

static void NAME(glu_backward)(int32_t act, int32_t kind, const void *gate, const void *up, const void *dy, void *d_gate, void *d_up, void *y, pk_range share) {
  if (kind == PK_SILU) {
    EACH_TYPE(act, NAME(glu_backward_as), PK_SILU, gate, up, dy, d_gate, d_up, y, share);
  } else {
    EACH_TYPE(act, NAME(glu_backward_as), kind, gate, up, dy, d_gate, d_up, y, share);
  }
}

#undef EACH_TYPE

#endif
