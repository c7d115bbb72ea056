/* Activations kept for the backward pass in 8 bits: blocks of 32 values with one bf16 scale, rounded up, 1.0625 bytes a value. The
 * error is at most 1/252 of the block's largest value, about what bf16 loses on it. Plain loops that the compiler turns into vectors:
 * maxima and rounding are done on integers, which need no promise about NaN. Left to itself the compiler unrolls them to
 * 32 scalar steps before it looks for vectors: three times slower and thirty times longer. */
#define VECTOR _Pragma("clang loop unroll(disable)")
#ifndef LEVEL
#define AVX2_IS_ENOUGH
#define BODY "compress.c"
#include "levels.h"

void pk_compress(int32_t level, int32_t act, const void *x, int8_t *q, uint16_t *scales, size_t count, int32_t part, int32_t parts) {
  AT_LEVEL(level, compress)(act, x, q, scales, pk_share((int64_t)count / 32, 2, part, parts));
}

void pk_decompress(int32_t level, int32_t act, const int8_t *q, const uint16_t *scales, void *y, size_t count, int32_t part, int32_t parts) {
  AT_LEVEL(level, decompress)(act, q, scales, y, pk_share((int64_t)count / 32, 2, part, parts));
}

#else

static void NAME(compress)(int32_t act, const void *x, int8_t *q, uint16_t *scales, pk_range blocks) {
  for (int64_t block = blocks.begin; block < blocks.end; block++) {
    uint32_t bits[32];
    if (act == PK_F32) {
      memcpy(bits, (const float *)x + block * 32, sizeof bits);
    } else {
      const uint16_t *from = (const uint16_t *)x + block * 32;
      VECTOR for (int i = 0; i < 32; i++) bits[i] = (uint32_t)from[i] << 16;
    }
    uint32_t largest = 0; /* as bits: the order of non-negative floats is that of integers */
    VECTOR for (int i = 0; i < 32; i++) {
      const uint32_t magnitude = bits[i] & 0x7fffffff;
      largest = magnitude > largest ? magnitude : largest;
    }
    float values[32], most;
    memcpy(values, bits, sizeof bits);
    memcpy(&most, &largest, sizeof most);
    most /= 127;
    memcpy(&largest, &most, sizeof most);
    scales[block] = (uint16_t)((largest + 0xffff) >> 16); /* up: no integer is beyond 127 */
    const float scale = pk_bf16_to_f32(scales[block]), inverse = scale > 1e-35f ? 1 / scale : 0;
    int8_t *to = q + block * 32;
    VECTOR for (int i = 0; i < 32; i++) {
      const float moved = values[i] * inverse + 12582912.0f; /* 1.5 · 2²³: the integer is in the low bits, rounded to even */
      int32_t integer;
      memcpy(&integer, &moved, sizeof integer);
      to[i] = (int8_t)(integer - 0x4b400000);
    }
  }
}

static void NAME(decompress)(int32_t act, const int8_t *q, const uint16_t *scales, void *y, pk_range blocks) {
  for (int64_t block = blocks.begin; block < blocks.end; block++) {
    const float scale = pk_bf16_to_f32(scales[block]);
    const int8_t *from = q + block * 32;
    float values[32];
    VECTOR for (int i = 0; i < 32; i++) values[i] = (float)from[i] * scale;
    if (act == PK_F32) {
      memcpy((float *)y + block * 32, values, sizeof values);
    } else {
      uint16_t *to = (uint16_t *)y + block * 32;
      VECTOR for (int i = 0; i < 32; i++) {
        uint32_t bits; /* to nearest even; finite, because the scale is */
        memcpy(&bits, values + i, sizeof bits);
        to[i] = (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
      }
    }
  }
}

#endif
