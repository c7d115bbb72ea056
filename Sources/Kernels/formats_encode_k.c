/* Encoders of the K formats: a search, as no closed form exists. Each sub-block tries a few step sizes around the one its
 * range suggests; for the levels a step gives, the best scale (and minimum) in the least-squares sense is a 1×1 (2×2)
 * linear system; the candidate of least weighted error wins. Errors count by magnitude, x² for q6_K and |x| + rms for
 * q4_K/q5_K: large weights matter more to the product. Then the scales themselves are rounded to 6 (8) bits under
 * one f16 per super-block and the levels are chosen again for the scales that were stored.
 * Not bit-equal with ggml (which searches in another order); its error is the yardstick of the tests.
 *
 * The lanes of the vectors are the step sizes: each lane adds up its sums in the order of the values, without fused
 * multiply-adds, so all instruction sets make the same bytes. */
#ifndef LEVEL
#pragma STDC FP_CONTRACT OFF
#include "formats.h"
#define BODY "formats_encode_k.c"
#include "levels.h"

#define ENCODERS(F) F(q2_K) F(q3_K) F(q4_K) F(q5_K) F(q6_K)
#define PORTABLE(T) \
  void pk_encode_##T(const float *values, void *blocks, size_t count) { encode_##T##_portable(values, blocks, count); }
ENCODERS(PORTABLE)

pk_encode_fn *pk_encoder_k(int32_t level, int32_t type) {
#if defined(__x86_64__)
#define PICK(T) level >= PK_LEVEL_AVX2 ? encode_##T##_avx2 : encode_##T##_portable
#else
#define PICK(T) ((void)level, encode_##T##_portable)
#endif
  switch (type) {
    case PK_Q2_K: return PICK(q2_K);
    case PK_Q3_K: return PICK(q3_K);
    case PK_Q4_K: return PICK(q4_K);
    case PK_Q5_K: return PICK(q5_K);
    case PK_Q6_K: return PICK(q6_K);
    default: return NULL;
  }
}

#elif LEVEL <= 1 /* wider vectors are no faster: divisions take as much longer */

#if LEVEL == 0
static void store16(uint8_t *p, uint16_t h) { memcpy(p, &h, 2); }

/* Nearest level; NaN gives `low`. */
static int nearest(float x, int low, int high) {
  if (!(x > (float)low)) return low;
  return x >= (float)high ? high : (int)(x + 0.5f) - ((float)(int)(x + 0.5f) > x + 0.5f);
}
#endif

/* The same in lanes. */
INLINE vf NAME(nearest)(vf x, float low, float high) {
  x = x > low ? x : low;
  x = (x < high ? x : high) + 0.5f;
  const vf whole = __builtin_convertvector(__builtin_convertvector(x, vi), vf);
  return whole > x ? whole - 1.0f : whole;
}

/* 0, 1, 2 … less `middle`. */
INLINE vf NAME(steps)(int64_t first, float middle) { return __builtin_convertvector(vlanes() + (vi)(int32_t)first, vf) - middle; }

/* x ≈ scale·q − minimum with q in 0…levels, scale ≥ 0, minimum ≥ 0. */
static __attribute__((noinline)) void NAME(fit_affine)(const float *x, int count, int levels, float *scale, float *minimum) {
  enum { tried = 21, vectors = (tried + WIDTH - 1) / WIDTH };
  float low = 0, high = x[0], sum = 0, weights[32], w = 0, wx = 0;
  for (int i = 0; i < count; i++) {
    if (x[i] < low) low = x[i];
    if (x[i] > high) high = x[i];
    sum += x[i] * x[i];
  }
  *scale = 0, *minimum = -low;
  if (!(high > low) || !isfinite(high - low)) return;
  const float rms = sqrtf(sum / (float)count);
  for (int i = 0; i < count; i++) {
    weights[i] = rms + fabsf(x[i]);
    w += weights[i], wx += weights[i] * x[i];
  }
  vf inverse[vectors], wq[vectors], wqq[vectors], wqx[vectors], s[vectors], m[vectors], error[vectors];
  for (int v = 0; v < vectors; v++) {
    inverse[v] = ((float)levels + 0.1f * NAME(steps)(v * WIDTH, 10)) / (high - low);
    wq[v] = wqq[v] = wqx[v] = error[v] = 0;
  }
  for (int i = 0; i < count; i++) {
    for (int v = 0; v < vectors; v++) {
      const vf q = NAME(nearest)((x[i] - low) * inverse[v], 0, (float)levels), t = weights[i] * q;
      wq[v] += t, wqq[v] += t * q, wqx[v] += t * x[i];
    }
  }
  vi usable[vectors];
  for (int v = 0; v < vectors; v++) {
    const vf determinant = w * wqq[v] - wq[v] * wq[v];
    s[v] = (w * wqx[v] - wq[v] * wx) / determinant, m[v] = (wq[v] * wqx[v] - wqq[v] * wx) / determinant;
    s[v] = m[v] < 0.0f ? wqx[v] / wqq[v] : s[v]; /* the format cannot shift upwards */
    m[v] = m[v] < 0.0f ? 0.0f : m[v];
    usable[v] = (determinant > 0.0f) & (s[v] > 0.0f);
  }
  for (int i = 0; i < count; i++) {
    for (int v = 0; v < vectors; v++) {
      const vf q = NAME(nearest)((x[i] + m[v]) / s[v], 0, (float)levels), e = s[v] * q - m[v] - x[i];
      error[v] += weights[i] * e * e;
    }
  }
  float best = INFINITY;
  for (int step = 0; step < tried; step++) {
    const int v = step / WIDTH, lane = step % WIDTH;
    if (usable[v][lane] && error[v][lane] < best) best = error[v][lane], *scale = s[v][lane], *minimum = m[v][lane];
  }
}

/* q[i] = the nearest level to (x[i] + add) / scale; 0 where there is no scale. */
INLINE void NAME(choose)(const float *x, int count, float add, float scale, int low, int high, int8_t *q) {
  typedef int8_t bytes __attribute__((ext_vector_type(WIDTH)));
  for (int i = 0; i < count; i += WIDTH) {
    const vf level = NAME(nearest)((vget(x + i) + add) / scale, (float)low, (float)high);
    const bytes packed = __builtin_convertvector(scale != 0 ? level : 0.0f, bytes);
    memcpy(q + i, &packed, sizeof packed);
  }
}

/* Scales and minima of 8 sub-blocks, their six-bit forms packed into 12 bytes, d and dmin in front: 16 bytes; and the levels. */
static __attribute__((noinline)) void NAME(encode_affine)(const float x[256], int levels, uint8_t header[16], int8_t q[256]) {
  float scale[8], minimum[8], largest_scale = 0, largest_minimum = 0;
  for (int s = 0; s < 8; s++) {
    NAME(fit_affine)(x + 32 * s, 32, levels, &scale[s], &minimum[s]);
    if (scale[s] > largest_scale) largest_scale = scale[s];
    if (minimum[s] > largest_minimum) largest_minimum = minimum[s];
  }
  const uint16_t d16 = pk_f32_to_f16(largest_scale / 63), dmin16 = pk_f32_to_f16(largest_minimum / 63);
  const float d = pk_f16_to_f32(d16), dmin = pk_f16_to_f32(dmin16);
  memset(header, 0, 16);
  store16(header, d16);
  store16(header + 2, dmin16);
  uint8_t *packed = header + 4;
  for (int s = 0; s < 8; s++) {
    const int sc = d > 0 ? nearest(scale[s] / d, 0, 63) : 0, m = dmin > 0 ? nearest(minimum[s] / dmin, 0, 63) : 0;
    if (s < 4) {
      packed[s] |= (uint8_t)sc, packed[s + 4] |= (uint8_t)m;
    } else {
      packed[s + 4] |= (uint8_t)((sc & 15) | (m & 15) << 4);
      packed[s - 4] |= (uint8_t)(sc >> 4 << 6), packed[s] |= (uint8_t)(m >> 4 << 6);
    }
    NAME(choose)(x + 32 * s, 32, dmin * (float)m, d * (float)sc, 0, levels, q + 32 * s);
  }
}

static void NAME(encode_q4_K)(const float *values, void *blocks, size_t count) {
  uint8_t *p = blocks;
  int8_t q[256];
  for (size_t b = 0; b < count / 256; b++, p += 144, values += 256) {
    NAME(encode_affine)(values, 15, p, q);
    for (int i = 0; i < 128; i++) {
      const int8_t *pair = q + i / 32 * 64 + i % 32;
      p[16 + i] = (uint8_t)(pair[0] | pair[32] << 4);
    }
  }
}

static void NAME(encode_q5_K)(const float *values, void *blocks, size_t count) {
  uint8_t *p = blocks;
  int8_t q[256];
  for (size_t b = 0; b < count / 256; b++, p += 176, values += 256) {
    NAME(encode_affine)(values, 31, p, q);
    memset(p + 16, 0, 160);
    for (int s = 0; s < 8; s++) {
      for (int i = 0; i < 32; i++) {
        p[16 + i] |= (uint8_t)(q[32 * s + i] >> 4 << s);
        p[48 + 32 * (s / 2) + i] |= (uint8_t)((q[32 * s + i] & 15) << 4 * (s & 1));
      }
    }
  }
}

/* x ≈ scale·q with q in −side…side−1; the scale may be negative (the side with more levels serves the larger extreme). */
static __attribute__((noinline)) float NAME(fit_symmetric)(const float x[16], int side) {
  enum { tried = 19, vectors = (tried + WIDTH - 1) / WIDTH };
  float extreme = 0;
  for (int i = 0; i < 16; i++) {
    if (fabsf(x[i]) > fabsf(extreme)) extreme = x[i];
  }
  if (extreme == 0 || !isfinite(extreme)) return 0;
  vf inverse[vectors], qq[vectors], qx[vectors];
  for (int v = 0; v < vectors; v++) {
    inverse[v] = -((float)side + 0.1f * NAME(steps)(v * WIDTH, 9)) / extreme;
    qq[v] = qx[v] = 0;
  }
  for (int i = 0; i < 16; i++) {
    for (int v = 0; v < vectors; v++) {
      const vf q = NAME(nearest)(x[i] * inverse[v], (float)-side, (float)(side - 1)), t = x[i] * x[i] * q;
      qq[v] += t * q, qx[v] += t * x[i];
    }
  }
  float best = -1, scale = extreme / (float)-side;
  for (int step = 0; step < tried; step++) {
    const float a = qq[step / WIDTH][step % WIDTH], b = qx[step / WIDTH][step % WIDTH];
    if (a > 0 && b * b > best * a) best = b * b / a, scale = b / a; /* Σwx² − (Σwqx)²/Σwq² is least */
  }
  return scale;
}

/* The scales of 16 sub-blocks and the one furthest from 0. */
INLINE float NAME(fit_symmetric_all)(const float *x, int side, float scale[16]) {
  float extreme = 0;
  for (int s = 0; s < 16; s++) {
    scale[s] = NAME(fit_symmetric)(x + 16 * s, side);
    if (fabsf(scale[s]) > fabsf(extreme)) extreme = scale[s];
  }
  return extreme;
}

static void NAME(encode_q6_K)(const float *values, void *blocks, size_t count) {
  uint8_t *p = blocks;
  int8_t q[256];
  for (size_t b = 0; b < count / 256; b++, p += 210, values += 256) {
    float scale[16];
    const uint16_t d16 = pk_f32_to_f16(NAME(fit_symmetric_all)(values, 32, scale) / -128);
    const float d = pk_f16_to_f32(d16);
    store16(p + 208, d16);
    for (int s = 0; s < 16; s++) {
      const int sc = d != 0 && isfinite(d) ? nearest(scale[s] / d, -128, 127) : 0;
      p[192 + s] = (uint8_t)(int8_t)sc;
      NAME(choose)(values + 16 * s, 16, 0, sc == 0 ? 0 : d * (float)sc, -32, 31, q + 16 * s);
    }
    for (int i = 0; i < 64; i++) { /* low four bits: quarters 0 and 2, 1 and 3 of each half share a byte */
      const int8_t *of = q + i / 32 * 128 + i % 32;
      const int a = of[0] + 32, c = of[32] + 32, e = of[64] + 32, g = of[96] + 32;
      uint8_t *low = p + i / 32 * 64 + i % 32;
      low[0] = (uint8_t)((a & 15) | (e & 15) << 4);
      low[32] = (uint8_t)((c & 15) | (g & 15) << 4);
      p[128 + i] = (uint8_t)(a >> 4 | c >> 4 << 2 | e >> 4 << 4 | g >> 4 << 6);
    }
  }
}

/* A scale and a minimum of four bits for 16 values of two. */
static void NAME(encode_q2_K)(const float *values, void *blocks, size_t count) {
  uint8_t *p = blocks;
  int8_t q[256];
  for (size_t b = 0; b < count / 256; b++, p += 84, values += 256) {
    float scale[16], minimum[16], largest_scale = 0, largest_minimum = 0;
    for (int s = 0; s < 16; s++) {
      NAME(fit_affine)(values + 16 * s, 16, 3, &scale[s], &minimum[s]);
      if (scale[s] > largest_scale) largest_scale = scale[s];
      if (minimum[s] > largest_minimum) largest_minimum = minimum[s];
    }
    const uint16_t d16 = pk_f32_to_f16(largest_scale / 15), dmin16 = pk_f32_to_f16(largest_minimum / 15);
    const float d = pk_f16_to_f32(d16), dmin = pk_f16_to_f32(dmin16);
    memset(p, 0, 84);
    store16(p + 80, d16);
    store16(p + 82, dmin16);
    for (int s = 0; s < 16; s++) {
      const int sc = d > 0 ? nearest(scale[s] / d, 0, 15) : 0, m = dmin > 0 ? nearest(minimum[s] / dmin, 0, 15) : 0;
      p[s] = (uint8_t)(sc | m << 4);
      NAME(choose)(values + 16 * s, 16, dmin * (float)m, d * (float)sc, 0, 3, q + 16 * s);
    }
    for (int i = 0; i < 256; i++) p[16 + 32 * (i / 128) + i % 32] |= (uint8_t)(q[i] << 2 * (i / 32 & 3));
  }
}

/* A signed scale of six bits for 16 values of three. */
static void NAME(encode_q3_K)(const float *values, void *blocks, size_t count) {
  uint8_t *p = blocks;
  int8_t q[256];
  for (size_t b = 0; b < count / 256; b++, p += 110, values += 256) {
    float scale[16];
    const uint16_t d16 = pk_f32_to_f16(NAME(fit_symmetric_all)(values, 4, scale) / -32);
    const float d = pk_f16_to_f32(d16);
    memset(p, 0, 110);
    store16(p + 108, d16);
    for (int s = 0; s < 16; s++) {
      const int sc = d != 0 && isfinite(d) ? nearest(scale[s] / d, -32, 31) : 0, stored = sc + 32;
      p[96 + (s & 7)] |= (uint8_t)((stored & 15) << 4 * (s >> 3));
      p[104 + (s & 3)] |= (uint8_t)(stored >> 4 << 2 * (s >> 2));
      NAME(choose)(values + 16 * s, 16, 0, sc == 0 ? 0 : d * (float)sc, -4, 3, q + 16 * s);
    }
    for (int i = 0; i < 256; i++) {
      p[32 + 32 * (i / 128) + i % 32] |= (uint8_t)(((q[i] + 4) & 3) << 2 * (i / 32 & 3));
      p[i % 32] |= (uint8_t)((q[i] + 4) >> 2 << i / 32);
    }
  }
}

#endif
