/* Portable encoders of the simple formats, bit-equal with ggml's reference quantisers (as in the `gguf` package):
 * the scale comes from the block's extremes, levels are computed with the unrounded f32 scale, the stored one is f16.
 * NaN input becomes level 0 of its block; infinities give an infinite scale. */
#include "formats.h"
#include "half.h"

#include <math.h>

#pragma STDC FP_CONTRACT OFF

static void store16(uint8_t *p, uint16_t h) { memcpy(p, &h, 2); }

static float inverse(float d) { return d == 0 ? 0 : 1 / d; }

/* Truncates to a level; comparisons are arranged so that NaN gives 0. */
static uint8_t level(float x, int highest) {
  if (!(x > 0)) return 0;
  return x >= (float)highest ? (uint8_t)highest : (uint8_t)x;
}

/* The value of greatest magnitude, the first of equals, with its sign. */
static float extreme(const float x[32]) {
  float best = 0, magnitude = 0;
  for (int i = 0; i < 32; i++) {
    if (fabsf(x[i]) > magnitude) magnitude = fabsf(x[i]), best = x[i];
  }
  return best;
}

static void range(const float x[32], float *low, float *high) {
  *low = x[0], *high = x[0];
  for (int i = 1; i < 32; i++) {
    if (x[i] < *low) *low = x[i];
    if (x[i] > *high) *high = x[i];
  }
}

/* Nibbles of 32 levels; the fifth bits, if any, are returned. */
static uint32_t pack(const uint8_t q[32], uint8_t nibbles[16]) {
  uint32_t high = 0;
  for (int i = 0; i < 32; i++) high |= (uint32_t)(q[i] >> 4 & 1) << i;
  for (int i = 0; i < 16; i++) nibbles[i] = (uint8_t)((q[i] & 15) | q[i + 16] << 4);
  return high;
}

void pk_encode_f32(const float *values, void *blocks, size_t count) { memcpy(blocks, values, count * 4); }

void pk_encode_f16(const float *values, void *blocks, size_t count) {
  uint8_t *p = blocks;
  for (size_t i = 0; i < count; i++) store16(p + 2 * i, pk_f32_to_f16(values[i]));
}

void pk_encode_bf16(const float *values, void *blocks, size_t count) {
  uint8_t *p = blocks;
  for (size_t i = 0; i < count; i++) store16(p + 2 * i, pk_f32_to_bf16(values[i]));
}

/* d = extreme / −8, so that the extreme itself is exact at level 0. */
void pk_encode_q4_0(const float *values, void *blocks, size_t count) {
  uint8_t *p = blocks, q[32];
  for (size_t b = 0; b < count / 32; b++, p += 18, values += 32) {
    const float d = extreme(values) / -8, id = inverse(d);
    for (int i = 0; i < 32; i++) q[i] = level(values[i] * id + 8.5f, 15);
    store16(p, pk_f32_to_f16(d));
    pack(q, p + 2);
  }
}

void pk_encode_q4_1(const float *values, void *blocks, size_t count) {
  uint8_t *p = blocks, q[32];
  for (size_t b = 0; b < count / 32; b++, p += 20, values += 32) {
    float low, high;
    range(values, &low, &high);
    const float d = (high - low) / 15, id = inverse(d);
    for (int i = 0; i < 32; i++) q[i] = level((values[i] - low) * id + 0.5f, 15);
    store16(p, pk_f32_to_f16(d));
    store16(p + 2, pk_f32_to_f16(low));
    pack(q, p + 4);
  }
}

void pk_encode_q5_0(const float *values, void *blocks, size_t count) {
  uint8_t *p = blocks, q[32];
  for (size_t b = 0; b < count / 32; b++, p += 22, values += 32) {
    const float d = extreme(values) / -16, id = inverse(d);
    for (int i = 0; i < 32; i++) q[i] = level(values[i] * id + 16.5f, 31);
    store16(p, pk_f32_to_f16(d));
    const uint32_t fifth = pack(q, p + 6);
    memcpy(p + 2, &fifth, 4);
  }
}

void pk_encode_q5_1(const float *values, void *blocks, size_t count) {
  uint8_t *p = blocks, q[32];
  for (size_t b = 0; b < count / 32; b++, p += 24, values += 32) {
    float low, high;
    range(values, &low, &high);
    const float d = (high - low) / 31, id = inverse(d);
    for (int i = 0; i < 32; i++) q[i] = level((values[i] - low) * id + 0.5f, 31);
    store16(p, pk_f32_to_f16(d));
    store16(p + 2, pk_f32_to_f16(low));
    const uint32_t fifth = pack(q, p + 8);
    memcpy(p + 4, &fifth, 4);
  }
}

void pk_encode_q8_0(const float *values, void *blocks, size_t count) {
  uint8_t *p = blocks;
  for (size_t b = 0; b < count / 32; b++, p += 34, values += 32) {
    float magnitude = 0;
    for (int i = 0; i < 32; i++) magnitude = fabsf(values[i]) > magnitude ? fabsf(values[i]) : magnitude;
    const float d = magnitude / 127, id = inverse(d);
    for (int i = 0; i < 32; i++) {
      /* roundf, half away from zero, by truncation: the largest float below a half does not carry what is less than a half */
      const float x = values[i] * id, y = x >= 127 ? 127 : x <= -127 ? -127 : x == x ? x : 0;
      p[2 + i] = (uint8_t)(int8_t)(int32_t)(y + copysignf(0.49999997f, y));
    }
    store16(p, pk_f32_to_f16(d));
  }
}
