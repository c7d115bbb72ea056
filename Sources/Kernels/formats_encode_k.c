/* Encoders of the K formats: a search, as no closed form exists. Each sub-block tries a few step sizes around the one its
 * range suggests; for the levels a step gives, the best scale (and minimum) in the least-squares sense is a 1×1 (2×2)
 * linear system; the candidate of least weighted error wins. Errors count by magnitude, x² for q6_K and |x| + rms for
 * q4_K/q5_K: large weights matter more to the product. Then the scales themselves are rounded to 6 (8) bits under
 * one f16 per super-block and the levels are chosen again for the scales that were stored.
 * Not bit-equal with ggml (which searches in another order); its error is the yardstick of the tests. */
#include "formats.h"
#include "half.h"

#include <math.h>

static void store16(uint8_t *p, uint16_t h) { memcpy(p, &h, 2); }

/* Nearest level; NaN gives `low`. */
static int nearest(float x, int low, int high) {
  if (!(x > (float)low)) return low;
  return x >= (float)high ? high : (int)floorf(x + 0.5f);
}

/* x ≈ scale·q − minimum with q in 0…levels, scale ≥ 0, minimum ≥ 0. */
static void fit_affine(const float *x, int count, int levels, float *scale, float *minimum) {
  float low = 0, high = x[0], sum = 0;
  for (int i = 0; i < count; i++) {
    if (x[i] < low) low = x[i];
    if (x[i] > high) high = x[i];
    sum += x[i] * x[i];
  }
  *scale = 0, *minimum = -low;
  if (!(high > low) || !isfinite(high - low)) return;
  const float rms = sqrtf(sum / (float)count);
  float best = INFINITY;
  for (int step = -10; step <= 10; step++) {
    const float inverse = ((float)levels + 0.1f * (float)step) / (high - low);
    float w = 0, wq = 0, wqq = 0, wx = 0, wqx = 0;
    for (int i = 0; i < count; i++) {
      const float weight = rms + fabsf(x[i]), q = (float)nearest((x[i] - low) * inverse, 0, levels);
      w += weight, wq += weight * q, wqq += weight * q * q, wx += weight * x[i], wqx += weight * q * x[i];
    }
    const float determinant = w * wqq - wq * wq;
    if (!(determinant > 0)) continue;
    float s = (w * wqx - wq * wx) / determinant, m = (wq * wqx - wqq * wx) / determinant;
    if (m < 0) m = 0, s = wqx / wqq; /* the format cannot shift upwards */
    if (!(s > 0)) continue;
    float error = 0;
    for (int i = 0; i < count; i++) {
      const float q = (float)nearest((x[i] + m) / s, 0, levels), e = s * q - m - x[i];
      error += (rms + fabsf(x[i])) * e * e;
    }
    if (error < best) best = error, *scale = s, *minimum = m;
  }
}

/* Scales and minima of 8 sub-blocks, their six-bit forms packed into 12 bytes, d and dmin in front: 16 bytes. */
static void encode_affine_header(const float x[256], int levels, uint8_t header[16], float scale[8], float minimum[8]) {
  float largest_scale = 0, largest_minimum = 0;
  for (int s = 0; s < 8; s++) {
    fit_affine(x + 32 * s, 32, levels, &scale[s], &minimum[s]);
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
    scale[s] = d * (float)sc, minimum[s] = dmin * (float)m;
    if (s < 4) {
      packed[s] |= (uint8_t)sc, packed[s + 4] |= (uint8_t)m;
    } else {
      packed[s + 4] |= (uint8_t)((sc & 15) | (m & 15) << 4);
      packed[s - 4] |= (uint8_t)(sc >> 4 << 6), packed[s] |= (uint8_t)(m >> 4 << 6);
    }
  }
}

static int affine_level(float x, float scale, float minimum, int levels) {
  return scale > 0 ? nearest((x + minimum) / scale, 0, levels) : 0;
}

void pk_encode_q4_K(const float *values, void *blocks, size_t count) {
  uint8_t *p = blocks;
  float scale[8], minimum[8];
  for (size_t b = 0; b < count / 256; b++, p += 144, values += 256) {
    encode_affine_header(values, 15, p, scale, minimum);
    memset(p + 16, 0, 128);
    for (int i = 0; i < 256; i++) {
      const int s = i / 32, q = affine_level(values[i], scale[s], minimum[s], 15);
      p[16 + 32 * (s / 2) + i % 32] |= (uint8_t)(q << 4 * (s & 1));
    }
  }
}

void pk_encode_q5_K(const float *values, void *blocks, size_t count) {
  uint8_t *p = blocks;
  float scale[8], minimum[8];
  for (size_t b = 0; b < count / 256; b++, p += 176, values += 256) {
    encode_affine_header(values, 31, p, scale, minimum);
    memset(p + 16, 0, 160);
    for (int i = 0; i < 256; i++) {
      const int s = i / 32, q = affine_level(values[i], scale[s], minimum[s], 31);
      p[16 + i % 32] |= (uint8_t)(q >> 4 << s);
      p[48 + 32 * (s / 2) + i % 32] |= (uint8_t)((q & 15) << 4 * (s & 1));
    }
  }
}

/* x ≈ scale·q with q in −side…side−1; the scale may be negative (the side with more levels serves the larger extreme). */
static float fit_symmetric(const float x[16], int side) {
  float extreme = 0;
  for (int i = 0; i < 16; i++) {
    if (fabsf(x[i]) > fabsf(extreme)) extreme = x[i];
  }
  if (extreme == 0 || !isfinite(extreme)) return 0;
  float best = -1, scale = extreme / (float)-side;
  for (int step = -9; step <= 9; step++) {
    const float inverse = -((float)side + 0.1f * (float)step) / extreme;
    float qq = 0, qx = 0;
    for (int i = 0; i < 16; i++) {
      const float weight = x[i] * x[i], q = (float)nearest(x[i] * inverse, -side, side - 1);
      qq += weight * q * q, qx += weight * q * x[i];
    }
    if (qq > 0 && qx * qx > best * qq) best = qx * qx / qq, scale = qx / qq; /* Σwx² − (Σwqx)²/Σwq² is least */
  }
  return scale;
}

void pk_encode_q6_K(const float *values, void *blocks, size_t count) {
  uint8_t *p = blocks;
  for (size_t b = 0; b < count / 256; b++, p += 210, values += 256) {
    float scale[16], extreme = 0;
    for (int s = 0; s < 16; s++) {
      scale[s] = fit_symmetric(values + 16 * s, 32);
      if (fabsf(scale[s]) > fabsf(extreme)) extreme = scale[s];
    }
    const uint16_t d16 = pk_f32_to_f16(extreme / -128);
    const float d = pk_f16_to_f32(d16);
    memset(p, 0, 192);
    store16(p + 208, d16);
    for (int s = 0; s < 16; s++) {
      const int sc = d != 0 && isfinite(d) ? nearest(scale[s] / d, -128, 127) : 0;
      p[192 + s] = (uint8_t)(int8_t)sc;
      scale[s] = sc == 0 ? 0 : d * (float)sc;
    }
    for (int i = 0; i < 256; i++) {
      const float sc = scale[i / 16];
      const int q = (sc != 0 ? nearest(values[i] / sc, -32, 31) : 0) + 32;
      const int half = i / 128, quarter = i / 32 & 3;
      p[64 * half + 32 * (quarter & 1) + i % 32] |= (uint8_t)((q & 15) << 4 * (quarter >> 1));
      p[128 + 32 * half + i % 32] |= (uint8_t)(q >> 4 << 2 * quarter);
    }
  }
}

/* A scale and a minimum of four bits for 16 values of two. */
void pk_encode_q2_K(const float *values, void *blocks, size_t count) {
  uint8_t *p = blocks;
  for (size_t b = 0; b < count / 256; b++, p += 84, values += 256) {
    float scale[16], minimum[16], largest_scale = 0, largest_minimum = 0;
    for (int s = 0; s < 16; s++) {
      fit_affine(values + 16 * s, 16, 3, &scale[s], &minimum[s]);
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
      for (int i = 16 * s; i < 16 * s + 16; i++) {
        const int q = affine_level(values[i], d * (float)sc, dmin * (float)m, 3);
        p[16 + 32 * (i / 128) + i % 32] |= (uint8_t)(q << 2 * (i / 32 & 3));
      }
    }
  }
}

/* A signed scale of six bits for 16 values of three. */
void pk_encode_q3_K(const float *values, void *blocks, size_t count) {
  uint8_t *p = blocks;
  for (size_t b = 0; b < count / 256; b++, p += 110, values += 256) {
    float scale[16], extreme = 0;
    for (int s = 0; s < 16; s++) {
      scale[s] = fit_symmetric(values + 16 * s, 4);
      if (fabsf(scale[s]) > fabsf(extreme)) extreme = scale[s];
    }
    const uint16_t d16 = pk_f32_to_f16(extreme / -32);
    const float d = pk_f16_to_f32(d16);
    memset(p, 0, 110);
    store16(p + 108, d16);
    for (int s = 0; s < 16; s++) {
      const int sc = d != 0 && isfinite(d) ? nearest(scale[s] / d, -32, 31) : 0, stored = sc + 32;
      p[96 + (s & 7)] |= (uint8_t)((stored & 15) << 4 * (s >> 3));
      p[104 + (s & 3)] |= (uint8_t)(stored >> 4 << 2 * (s >> 2));
      const float step = d * (float)sc;
      for (int i = 16 * s; i < 16 * s + 16; i++) {
        const int q = (sc != 0 ? nearest(values[i] / step, -4, 3) : 0) + 4;
        p[32 + 32 * (i / 128) + i % 32] |= (uint8_t)((q & 3) << 2 * (i / 32 & 3));
        p[i % 32] |= (uint8_t)(q >> 2 << i / 32);
      }
    }
  }
}
