/* Vectors of WIDTH lanes for the instruction set being compiled (see levels.h), in clang's vector extension: + − × ÷,
 * comparisons (all-ones or zero lanes) and ?: work lane by lane, and a·b + c contracts to one FMA where there is one.
 * Also: loads and stores of activations (f32 or bf16), exp and tanh. No include guard: included once per level.
 */
#define INLINE static inline __attribute__((always_inline))

#define vf NAME(vf) /* float */
#define vi NAME(vi) /* int32 */
#define vu NAME(vu) /* uint32 */
#define vh NAME(vh) /* uint16 */
#define vd NAME(vd) /* double */
typedef float vf __attribute__((ext_vector_type(WIDTH)));
typedef int32_t vi __attribute__((ext_vector_type(WIDTH)));
typedef uint32_t vu __attribute__((ext_vector_type(WIDTH)));
typedef uint16_t vh __attribute__((ext_vector_type(WIDTH)));
typedef double vd __attribute__((ext_vector_type(WIDTH)));

/* Walks i over [begin, end) in vectors; n is the number of lanes in use (WIDTH except in the last). */
#define FOR_VECTORS(i, n, begin, end)                                                              \
  for (int64_t i = (begin), n; i < (end) && ((n = (end) - i < WIDTH ? (end) - i : WIDTH), 1); i += WIDTH)

/* ---- bit patterns ---- */

#define vbits NAME(vbits)
INLINE vu vbits(vf x) { return __builtin_bit_cast(vu, x); }
#define vfloat NAME(vfloat)
INLINE vf vfloat(vu x) { return __builtin_bit_cast(vf, x); }

/* ---- bf16 ---- */

#define vwiden NAME(vwiden)
INLINE vf vwiden(vh x) { return vfloat(__builtin_convertvector(x, vu) << 16); }

/* Round to nearest even; a NaN stays a quiet NaN. The instruction of level 3 does the same but takes subnormals as 0. */
#define vround NAME(vround)
INLINE vh vround(vf x) {
#if LEVEL == 3
  return __builtin_bit_cast(vh, _mm512_cvtneps_pbh(__builtin_bit_cast(__m512, x)));
#else
  const vu u = vbits(x);
  const vu rounded = (u + 0x7fff + (u >> 16 & 1)) >> 16, nan = u >> 16 | 64;
  return __builtin_convertvector((u & 0x7fffffff) > 0x7f800000 ? nan : rounded, vh);
#endif
}

/* ---- f16: exact, and to nearest even ---- */

#define vwiden_f16 NAME(vwiden_f16)
INLINE vf vwiden_f16(vh x) {
#if LEVEL >= 2
  return __builtin_bit_cast(vf, _mm512_cvtph_ps(__builtin_bit_cast(__m256i, x)));
#elif LEVEL == 1
  return __builtin_bit_cast(vf, _mm256_cvtph_ps(__builtin_bit_cast(__m128i, x)));
#else
  vf y = 0;
  for (int lane = 0; lane < WIDTH; lane++) y[lane] = pk_f16_to_f32(x[lane]);
  return y;
#endif
}

#define vround_f16 NAME(vround_f16)
INLINE vh vround_f16(vf x) {
#if LEVEL >= 2
  return __builtin_bit_cast(vh, _mm512_cvtps_ph(__builtin_bit_cast(__m512, x), _MM_FROUND_TO_NEAREST_INT));
#elif LEVEL == 1
  return __builtin_bit_cast(vh, _mm256_cvtps_ph(__builtin_bit_cast(__m256, x), _MM_FROUND_TO_NEAREST_INT));
#else
  vh y = 0;
  for (int lane = 0; lane < WIDTH; lane++) y[lane] = pk_f32_to_f16(x[lane]);
  return y;
#endif
}

/* ---- memory: element i… of an array of type act (PK_F32 or PK_BF16); n lanes, the others 0 ---- */

/* The last vector of a row, out of line: it stands in every loop and is rare in all. */
#define APART static __attribute__((noinline, minsize, unused))
APART vf NAME(vload_part)(int32_t act, const void *p, int64_t i, int64_t n) {
  float part[WIDTH] = {0};
  for (int64_t lane = 0; lane < n; lane++) {
    part[lane] = act == PK_F32 ? ((const float *)p)[i + lane] : pk_bf16_to_f32(((const uint16_t *)p)[i + lane]);
  }
  vf x;
  memcpy(&x, part, sizeof x);
  return x;
}

#define vload NAME(vload)
INLINE vf vload(int32_t act, const void *p, int64_t i, int64_t n) {
  if (n != WIDTH) return NAME(vload_part)(act, p, i, n);
  if (act == PK_F32) {
    vf x;
    memcpy(&x, (const float *)p + i, sizeof x);
    return x;
  }
  vh h;
  memcpy(&h, (const uint16_t *)p + i, sizeof h);
  return vwiden(h);
}

APART void NAME(vstore_part)(int32_t act, void *p, int64_t i, int64_t n, vf x) {
  const vh h = vround(x);
  if (act == PK_F32) {
    memcpy((float *)p + i, &x, (size_t)n * sizeof(float));
  } else {
    memcpy((uint16_t *)p + i, &h, (size_t)n * sizeof(uint16_t));
  }
}

#define vstore NAME(vstore)
INLINE void vstore(int32_t act, void *p, int64_t i, int64_t n, vf x) {
  if (n != WIDTH) {
    NAME(vstore_part)(act, p, i, n, x);
  } else if (act == PK_F32) {
    memcpy((float *)p + i, &x, sizeof x);
  } else {
    const vh h = vround(x);
    memcpy((uint16_t *)p + i, &h, sizeof h);
  }
}

/* n lanes of 16 bits, as they are. */
#define vload16 NAME(vload16)
INLINE vh vload16(const uint16_t *p, int64_t n) {
  vh x = 0;
  if (n == WIDTH) {
    memcpy(&x, p, sizeof x);
  } else {
    uint16_t part[WIDTH] = {0};
    memcpy(part, p, (size_t)n * 2);
    memcpy(&x, part, sizeof x);
  }
  return x;
}
#define vstore16 NAME(vstore16)
INLINE void vstore16(uint16_t *p, int64_t n, vh x) { memcpy(p, &x, (size_t)n * 2); }

/* All lanes, f32. */
#define vget NAME(vget)
INLINE vf vget(const float *p) {
  vf x;
  memcpy(&x, p, sizeof x);
  return x;
}
#define vput NAME(vput)
INLINE void vput(float *p, vf x) { memcpy(p, &x, sizeof x); }

/* Lanes 0, 1, 2, … */
#define vlanes NAME(vlanes)
INLINE vi vlanes(void) {
  static const int32_t lane[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  vi x;
  memcpy(&x, lane, sizeof x);
  return x;
}

/* ---- maximum, and sums over the lanes (halves first) ---- */

/* A NaN in b wins, one in a is lost: vmax(running, new) followed by a sum of exponentials keeps every NaN visible. */
#define vmax NAME(vmax)
INLINE vf vmax(vf a, vf b) { return a > b ? a : b; }

typedef float NAME(v4) __attribute__((ext_vector_type(4)));
typedef float NAME(v8) __attribute__((ext_vector_type(8)));

#define vsum NAME(vsum)
INLINE float vsum(vf x) {
#if WIDTH == 16
  const NAME(v8) half = x.lo + x.hi;
  const NAME(v4) quarter = half.lo + half.hi;
#elif WIDTH == 8
  const NAME(v4) quarter = x.lo + x.hi;
#else
  const NAME(v4) quarter = x;
#endif
  return (quarter.x + quarter.z) + (quarter.y + quarter.w);
}

#define vtop NAME(vtop)
INLINE float vtop(vf x) {
  float top = x[0];
  for (int lane = 1; lane < WIDTH; lane++) top = top > x[lane] ? top : x[lane];
  return top;
}

/* ---- elementary functions ---- */

/* Adding 1.5·2²³ rounds to an integer, which then stands in the low mantissa bits. */
#define VMAGIC 12582912.0f

/* 2ⁿ from n + VMAGIC, n in −127 … 128; n = −127 gives 0 and 128 infinity. */
#define vpow2 NAME(vpow2)
INLINE vf vpow2(vf n_magic) { return vfloat((vbits(n_magic) << 23) + (127u << 23)); }

/* eˣ, error ≤ 1.2 ulp; 0 below −87.7 (no subnormal results), infinite above 88.4, NaN for NaN.
 * x = n·ln 2 + r with |r| ≤ ln 2 / 2, ln 2 in two pieces; eʳ = 1 + r + r²·P(r), P a minimax polynomial (3e-9). */
#define vexp NAME(vexp)
INLINE vf vexp(vf x) {
  x = x < -88.0f ? -88.0f : x;
  x = x > 89.0f ? 89.0f : x;
  const vf z = x * 1.44269504f + VMAGIC;
  const vf n = z - VMAGIC;
  const vf r = (x - n * 0.693359375f) - n * -2.12194440e-4f;
  vf p = 0.00138145394f * r + 0.00836874545f;
  p = p * r + 0.041668389f;
  p = p * r + 0.166665211f;
  p = p * r + 0.49999994f;
  return (p * (r * r) + r + 1.0f) * vpow2(z);
}

/* 2ᵗ for t ≤ 127, relative error 3e-6 (far below bf16's 4e-3); 0 for −∞. For what becomes bf16. */
#define vexp2_coarse NAME(vexp2_coarse)
INLINE vf vexp2_coarse(vf t) {
#if LEVEL >= 2
  const vf f = __builtin_bit_cast(vf, _mm512_reduce_ps(__builtin_bit_cast(__m512, t), 0)); /* t − the nearest integer */
#else
  t = t < -127.0f ? -127.0f : t; /* 0 below −126.5 */
  const vf z = t + VMAGIC;
  const vf f = t - (z - VMAGIC);
#endif
  vf p = 0.0095701011f * f + 0.055917859f;
  p = p * f + 0.240247443f;
  p = p * f + 0.693121791f;
  p = p * f + 0.999999285f;
#if LEVEL >= 2
  return __builtin_bit_cast(vf, _mm512_scalef_ps(__builtin_bit_cast(__m512, p), __builtin_bit_cast(__m512, t - f)));
#else
  return p * vpow2(z);
#endif
}

#define vsigmoid NAME(vsigmoid)
INLINE vf vsigmoid(vf x) { return 1.0f / (1.0f + vexp(-x)); }

/* The same with a relative error of 4e-6, for results that become bf16. */
#define vsigmoid_coarse NAME(vsigmoid_coarse)
INLINE vf vsigmoid_coarse(vf x) {
  vf t = x * -1.44269504f;
  t = t > 126.0f ? 126.0f : t; /* no infinity below */
  const vf d = 1.0f + vexp2_coarse(t);
#if LEVEL >= 2
  const vf r = __builtin_bit_cast(vf, _mm512_rcp14_ps(__builtin_bit_cast(__m512, d))); /* to 2⁻¹⁴, then a step of Newton's */
  return r + r * (1.0f - d * r);
#else
  return 1.0f / d;
#endif
}

/* tanh, error ≤ 3 ulp: x + x³·P(x²) up to 0.625 (minimax 4e-9), beyond that 1 − 2/(e²ˣ + 1). */
#define vtanh NAME(vtanh)
INLINE vf vtanh(vf x) {
  const vf s = x * x;
  vf p = -0.00570498733f * s + 0.0206390880f;
  p = p * s - 0.0537397154f;
  p = p * s + 0.133314416f;
  p = p * s - 0.333332807f;
  const vf small = p * s * x + x;
  const vf large = 1.0f - 2.0f / (vexp(2.0f * x) + 1.0f);
  return ((x < 0.625f) & (x > -0.625f)) ? small : large;
}

/* Φ(x), the normal distribution function, and its density φ(x); error of Φ ≤ 3 ulp on both sides (no 1 + erf).
 * For z = |x|: Φ(−z) = e^(−z²/2) · t·P(t) with t = 1/(1 + 0.35 z), P minimax (3e-8) on z ≤ 14. */
#define vnormal NAME(vnormal)
INLINE vf vnormal(vf x, vf *density) {
  const vf z = x < 0.0f ? -x : x;
  const vf t = 1.0f / (1.0f + 0.35f * z);
  vf p = -0.0291459356f * t + 0.143971726f;
  p = p * t - 0.255714297f;
  p = p * t + 0.159174189f;
  p = p * t - 0.0231098514f;
  p = p * t + 0.105508007f;
  p = p * t + 0.119832866f;
  p = p * t + 0.139861867f;
  p = p * t + 0.139621407f;
  const vf e = vexp(-0.5f * z * z);
  const vf tail = e * (t * p);
  *density = 0.398942280f * e;
  return x < 0.0f ? tail : 1.0f - tail;
}
