/* Encoders of the formats of few bits that are no K formats: iq4_nl, the ternary ones, and f8. */
#include "formats.h"
#include "half.h"

#include <math.h>

#pragma STDC FP_CONTRACT OFF

static void store16(uint8_t *p, uint16_t h) { memcpy(p, &h, 2); }

const int8_t pk_iq4_nl_levels[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};

/* The nearest level. */
static int iq4_nl_code(float x) {
  int q = 0;
  while (q < 15 && x > 0.5f * (float)(pk_iq4_nl_levels[q] + pk_iq4_nl_levels[q + 1])) q++;
  return q;
}

/* The levels are denser around 0. A search as for the K formats: steps around the one that makes the extreme the last level
 * (of either end); for the codes of a step the best d is that of least squares, errors weighted by x². */
void pk_encode_iq4_nl(const float *values, void *blocks, size_t count) {
  uint8_t *p = blocks;
  for (size_t b = 0; b < count / 32; b++, p += 18, values += 32) {
    float extreme = 0;
    for (int i = 0; i < 32; i++) {
      if (fabsf(values[i]) > fabsf(extreme)) extreme = values[i];
    }
    float best = -1, d = 0;
    for (int step = -14; extreme != 0 && isfinite(extreme) && step <= 14; step++) {
      const float ends[2] = {-127, 113};
      for (int end = 0; end < 2; end++) {
        const float inverse = (ends[end] + (float)step) / extreme;
        float ll = 0, lx = 0;
        for (int i = 0; i < 32; i++) {
          const float l = (float)pk_iq4_nl_levels[iq4_nl_code(values[i] * inverse)], w = values[i] * values[i];
          ll += w * l * l, lx += w * l * values[i];
        }
        if (ll > 0 && lx * lx > best * ll) best = lx * lx / ll, d = lx / ll;
      }
    }
    store16(p, pk_f32_to_f16(d));
    const float stored = pk_f16_to_f32(pk_f32_to_f16(d)), inverse = stored != 0 ? 1 / stored : 0;
    for (int i = 0; i < 16; i++) p[2 + i] = (uint8_t)(iq4_nl_code(values[i] * inverse) | iq4_nl_code(values[i + 16] * inverse) << 4);
  }
}

/* −1, 0, 1 as 0, 1, 2 by the largest magnitude, which is returned; halves away from zero. */
static float ternary(const float x[256], uint8_t t[256]) {
  float d = 0;
  for (int i = 0; i < 256; i++) {
    if (fabsf(x[i]) > d) d = fabsf(x[i]);
  }
  const float inverse = d == 0 ? 0 : 1 / d;
  for (int i = 0; i < 256; i++) {
    const float v = x[i] * inverse;
    t[i] = v >= 0.5f ? 2 : v <= -0.5f ? 0 : 1;
  }
  return d;
}

void pk_encode_tq2_0(const float *values, void *blocks, size_t count) {
  uint8_t *p = blocks, t[256];
  for (size_t b = 0; b < count / 256; b++, p += 66, values += 256) {
    store16(p + 64, pk_f32_to_f16(ternary(values, t)));
    memset(p, 0, 64);
    for (int i = 0; i < 256; i++) p[32 * (i / 128) + i % 32] |= (uint8_t)(t[i] << 2 * (i / 32 & 3));
  }
}

/* `digits` values `stride` apart as the digits of a fraction of 243, in 256ths and rounded up: multiplying gives them back. */
static uint8_t fraction(const uint8_t *t, int digits, int stride) {
  int sum = 0;
  for (int n = 0; n < 5; n++) sum = 3 * sum + (n < digits ? t[n * stride] : 0);
  return (uint8_t)((sum * 256 + 242) / 243);
}

void pk_encode_tq1_0(const float *values, void *blocks, size_t count) {
  uint8_t *p = blocks, t[256];
  for (size_t b = 0; b < count / 256; b++, p += 54, values += 256) {
    store16(p + 52, pk_f32_to_f16(ternary(values, t)));
    for (int i = 0; i < 32; i++) p[i] = fraction(t + i, 5, 32);
    for (int i = 0; i < 16; i++) p[32 + i] = fraction(t + 160 + i, 5, 16);
    for (int i = 0; i < 4; i++) p[48 + i] = fraction(t + 240 + i, 4, 4);
  }
}

/* Round to nearest even to `mantissa` bits; exponents begin at `least` (as f32 has them), `overflow` is what is too large. */
static uint8_t narrow(float f, int mantissa, uint32_t least, uint32_t limit, uint8_t overflow, uint8_t nan) {
  const uint32_t u = pk_bits(f), sign = u >> 24 & 0x80, magnitude = u & 0x7fffffff;
  const int drop = 23 - mantissa;
  if (magnitude > 0x7f800000) return (uint8_t)(sign | nan);
  if (magnitude >= limit) return (uint8_t)(sign | overflow);
  if (magnitude < least << 23) { /* below: adding a power of two rounds at the last bit */
    const float shift = pk_float((least + (uint32_t)drop) << 23);
    return (uint8_t)(sign | (pk_bits(pk_float(magnitude) + shift) - pk_bits(shift)));
  }
  const uint32_t rounded = magnitude + (1u << (drop - 1)) - 1 + (magnitude >> drop & 1);
  return (uint8_t)(sign | ((rounded >> drop) - ((least - 1) << mantissa)));
}

void pk_encode_f8_e4m3(const float *values, void *blocks, size_t count) {
  uint8_t *p = blocks;
  for (size_t i = 0; i < count; i++) p[i] = narrow(values[i], 3, 121, 0x43f00000 /* 480 */, 0x7f, 0x7f);
}

void pk_encode_f8_e5m2(const float *values, void *blocks, size_t count) {
  uint8_t *p = blocks;
  for (size_t i = 0; i < count; i++) p[i] = narrow(values[i], 2, 113, 0x47800000 /* 65536 */, 0x7c, 0x7f);
}
