/* The decoders: what each block format means. Layouts and formulas are those of GGUF files (block_q4_0 … block_q6_K);
 * products and sums are rounded separately, as in the `gguf` package, so that the values are the same bits at every level.
 * Scales are whatever the file holds: NaN and infinity pass through.
 *
 * A decoder reads a run of a row: values first … first+count−1. In block formats both are multiples of 32, so a super-block
 * of 256 may be entered at any of its sub-blocks.
 *
 * This file is compiled once per instruction set (formats_decode.c, formats_avx2.c, formats_avx512.c): the loops below
 * are short, of fixed length and free of branches, which the compiler turns into vector code as good as intrinsics.
 * The including file defines DECODER(name) and LINKAGE and has included formats.h and half.h. */
#pragma STDC FP_CONTRACT OFF
/* Without it the compiler unrolls these loops completely before it looks for vectors. */
#define VECTOR _Pragma("clang loop vectorize(enable) unroll(disable)")

LINKAGE void DECODER(f32)(const void *restrict row, int64_t first, int64_t count, void *restrict out) {
  memcpy(out, (const float *)row + first, (size_t)count * 4);
}

/* A byte each: sign, four bits of exponent (bias 7), three of mantissa; no infinities, NaN is all ones. */
LINKAGE void DECODER(f8_e4m3)(const void *restrict row, int64_t first, int64_t count, void *restrict out) {
  const uint8_t *restrict p = (const uint8_t *)row + first;
  float *restrict values = out;
  VECTOR
  for (int64_t i = 0; i < count; i++) {
    const uint32_t sign = (uint32_t)(p[i] & 0x80) << 24, magnitude = p[i] & 0x7f;
    const float tiny = (float)(int32_t)magnitude * 0x1p-9f; /* of exponent 0 */
    const uint32_t normal = magnitude == 0x7f ? 0x7fc00000 : (magnitude << 20) + (120u << 23);
    values[i] = pk_float(sign | (magnitude < 8 ? pk_bits(tiny) : normal));
  }
}

/* The upper byte of an f16. */
LINKAGE void DECODER(f8_e5m2)(const void *restrict row, int64_t first, int64_t count, void *restrict out) {
  const uint8_t *restrict p = (const uint8_t *)row + first;
  float *restrict values = out;
  VECTOR
  for (int64_t i = 0; i < count; i++) values[i] = pk_f16_to_f32((uint16_t)(p[i] << 8));
}

LINKAGE void DECODER(f16)(const void *restrict row, int64_t first, int64_t count, void *restrict out) {
  const uint8_t *restrict p = (const uint8_t *)row + 2 * first;
  float *restrict values = out;
  VECTOR
  for (int64_t i = 0; i < count; i++) values[i] = pk_f16_to_f32(pk_load16(p + 2 * i));
}

LINKAGE void DECODER(bf16)(const void *restrict row, int64_t first, int64_t count, void *restrict out) {
  const uint8_t *restrict p = (const uint8_t *)row + 2 * first;
  float *restrict values = out;
  VECTOR
  for (int64_t i = 0; i < count; i++) values[i] = pk_bf16_to_f32(pk_load16(p + 2 * i));
}

/* { f16 d; u8 nibbles[16] }: d·(q − 8); value i in the low nibble i, value 16+i in the high one. */
LINKAGE void DECODER(q4_0)(const void *restrict row, int64_t first, int64_t count, void *restrict out) {
  const uint8_t *restrict p = (const uint8_t *)row + first / 32 * 18;
  float *restrict values = out;
  for (int64_t b = 0; b < count / 32; b++, p += 18, values += 32) {
    const float d = pk_f16_to_f32(pk_load16(p));
    VECTOR
    for (int i = 0; i < 16; i++) {
      values[i] = d * (float)((p[2 + i] & 15) - 8);
      values[i + 16] = d * (float)((p[2 + i] >> 4) - 8);
    }
  }
}

/* { f16 d, m; u8 nibbles[16] }: d·q + m */
LINKAGE void DECODER(q4_1)(const void *restrict row, int64_t first, int64_t count, void *restrict out) {
  const uint8_t *restrict p = (const uint8_t *)row + first / 32 * 20;
  float *restrict values = out;
  for (int64_t b = 0; b < count / 32; b++, p += 20, values += 32) {
    const float d = pk_f16_to_f32(pk_load16(p)), m = pk_f16_to_f32(pk_load16(p + 2));
    VECTOR
    for (int i = 0; i < 16; i++) {
      values[i] = d * (float)(p[4 + i] & 15) + m;
      values[i + 16] = d * (float)(p[4 + i] >> 4) + m;
    }
  }
}

/* { f16 d; u32 fifth bits; u8 nibbles[16] }: d·(q − 16) */
LINKAGE void DECODER(q5_0)(const void *restrict row, int64_t first, int64_t count, void *restrict out) {
  const uint8_t *restrict p = (const uint8_t *)row + first / 32 * 22;
  float *restrict values = out;
  for (int64_t b = 0; b < count / 32; b++, p += 22, values += 32) {
    const float d = pk_f16_to_f32(pk_load16(p));
    const uint32_t high = pk_load32(p + 2);
    VECTOR
    for (int i = 0; i < 16; i++) {
      values[i] = d * (float)((int)((p[6 + i] & 15) | (high >> i & 1) << 4) - 16);
      values[i + 16] = d * (float)((int)((p[6 + i] >> 4) | (high >> (i + 16) & 1) << 4) - 16);
    }
  }
}

/* { f16 d, m; u32 fifth bits; u8 nibbles[16] }: d·q + m */
LINKAGE void DECODER(q5_1)(const void *restrict row, int64_t first, int64_t count, void *restrict out) {
  const uint8_t *restrict p = (const uint8_t *)row + first / 32 * 24;
  float *restrict values = out;
  for (int64_t b = 0; b < count / 32; b++, p += 24, values += 32) {
    const float d = pk_f16_to_f32(pk_load16(p)), m = pk_f16_to_f32(pk_load16(p + 2));
    const uint32_t high = pk_load32(p + 4);
    VECTOR
    for (int i = 0; i < 16; i++) {
      values[i] = d * (float)((p[8 + i] & 15) | (high >> i & 1) << 4) + m;
      values[i + 16] = d * (float)((p[8 + i] >> 4) | (high >> (i + 16) & 1) << 4) + m;
    }
  }
}

/* { f16 d; i8 q[32] }: d·q */
LINKAGE void DECODER(q8_0)(const void *restrict row, int64_t first, int64_t count, void *restrict out) {
  const uint8_t *restrict p = (const uint8_t *)row + first / 32 * 34;
  float *restrict values = out;
  for (int64_t b = 0; b < count / 32; b++, p += 34, values += 32) {
    const float d = pk_f16_to_f32(pk_load16(p));
    VECTOR
    for (int i = 0; i < 32; i++) values[i] = d * (float)(int8_t)p[2 + i];
  }
}

/* { f16 d; u8 nibbles[16] }: d·level[q]; nibbles as in q4_0. */
LINKAGE void DECODER(iq4_nl)(const void *restrict row, int64_t first, int64_t count, void *restrict out) {
  const uint8_t *restrict p = (const uint8_t *)row + first / 32 * 18;
  float *restrict values = out;
  for (int64_t b = 0; b < count / 32; b++, p += 18, values += 32) {
    const float d = pk_f16_to_f32(pk_load16(p));
    for (int i = 0; i < 16; i++) {
      values[i] = d * (float)pk_iq4_nl_levels[p[2 + i] & 15];
      values[i + 16] = d * (float)pk_iq4_nl_levels[p[2 + i] >> 4];
    }
  }
}

/* { u8 scales[16]; u8 quarters[64]; f16 d, dmin }: a scale (low nibble) and a minimum (high) for 16 values:
 * (d·scale)·q − dmin·minimum; in each half of 128 values a byte holds two bits of values 32 apart. */
LINKAGE void DECODER(q2_K)(const void *restrict row, int64_t first, int64_t count, void *restrict out) {
  float *restrict values = out;
  for (int64_t sub = first / 32; sub < (first + count) / 32; sub++, values += 32) {
    const uint8_t *restrict p = (const uint8_t *)row + sub / 8 * 84;
    const int s = (int)(sub & 7);
    const float d = pk_f16_to_f32(pk_load16(p + 80)), dmin = pk_f16_to_f32(pk_load16(p + 82));
    const uint8_t *restrict q = p + 16 + 32 * (s / 4);
    for (int half = 0; half < 2; half++) {
      const uint8_t factors = p[2 * s + half];
      const float scale = d * (float)(factors & 15), minimum = dmin * (float)(factors >> 4);
      VECTOR
      for (int i = 16 * half; i < 16 * half + 16; i++) values[i] = scale * (float)(q[i] >> 2 * (s & 3) & 3) - minimum;
    }
  }
}

/* { u8 high[32]; u8 quarters[64]; u8 scales[12]; f16 d }: (d·(scale − 32))·(q − 4), a six-bit scale for 16 values; bit s of
 * high[i] is the third bit of value i of sub-block s. */
LINKAGE void DECODER(q3_K)(const void *restrict row, int64_t first, int64_t count, void *restrict out) {
  float *restrict values = out;
  for (int64_t sub = first / 32; sub < (first + count) / 32; sub++, values += 32) {
    const uint8_t *restrict p = (const uint8_t *)row + sub / 8 * 110;
    const int s = (int)(sub & 7);
    const float d = pk_f16_to_f32(pk_load16(p + 108));
    const uint8_t *restrict q = p + 32 + 32 * (s / 4), *scales = p + 96;
    for (int half = 0; half < 2; half++) {
      const int n = 2 * s + half, factor = (scales[n & 7] >> 4 * (n >> 3) & 15) | (scales[8 + (n & 3)] >> 2 * (n >> 2) & 3) << 4;
      const float scale = d * (float)(factor - 32);
      VECTOR
      for (int i = 16 * half; i < 16 * half + 16; i++) values[i] = scale * (float)((q[i] >> 2 * (s & 3) & 3) + 4 * (p[i] >> s & 1) - 4);
    }
  }
}

/* Ternary. { u8 quarters[64]; f16 d }: d·(q − 1), bits as in q2_K. */
LINKAGE void DECODER(tq2_0)(const void *restrict row, int64_t first, int64_t count, void *restrict out) {
  float *restrict values = out;
  for (int64_t sub = first / 32; sub < (first + count) / 32; sub++, values += 32) {
    const uint8_t *restrict p = (const uint8_t *)row + sub / 8 * 66, *restrict q = p + 32 * (sub >> 2 & 1);
    const float d = pk_f16_to_f32(pk_load16(p + 64));
    const int shift = 2 * (int)(sub & 3);
    VECTOR
    for (int i = 0; i < 32; i++) values[i] = d * (float)((q[i] >> shift & 3) - 1);
  }
}

/* { u8 digits[48]; u8 rest[4]; f16 d }: d·(t − 1); a byte b is the fraction b/256 whose first digits to the base of three are
 * five values 32 apart (bytes 0…31), 16 apart (32…47), or four values 4 apart (rest). */
LINKAGE void DECODER(tq1_0)(const void *restrict row, int64_t first, int64_t count, void *restrict out) {
  static const uint8_t powers[5] = {1, 3, 9, 27, 81};
  float *restrict values = out;
  for (int64_t run = first / 16; run < (first + count) / 16; run++, values += 16) {
    const uint8_t *restrict p = (const uint8_t *)row + run / 16 * 54;
    const float d = pk_f16_to_f32(pk_load16(p + 52));
    const int n = (int)(run & 15);
    if (n == 15) {
      for (int i = 0; i < 16; i++) values[i] = d * (float)((((uint8_t)(p[48 + i % 4] * powers[i / 4])) * 3 >> 8) - 1);
      continue;
    }
    const uint8_t *restrict bytes = p + (n < 10 ? 16 * (n & 1) : 32);
    const uint8_t power = powers[n < 10 ? n / 2 : n - 10];
    VECTOR
    for (int i = 0; i < 16; i++) values[i] = d * (float)((((uint8_t)(bytes[i] * power)) * 3 >> 8) - 1);
  }
}

/* { f16 d, dmin; u8 scales[12]; u8 nibbles[128] }: sub-block s of 32: (d·scale[s])·q − dmin·minimum[s];
 * sub-blocks 2j and 2j+1 are the low and high nibbles of bytes 32j … 32j+31. */
LINKAGE void DECODER(q4_K)(const void *restrict row, int64_t first, int64_t count, void *restrict out) {
  float *restrict values = out;
  for (int64_t sub = first / 32; sub < (first + count) / 32; sub++, values += 32) {
    const uint8_t *restrict p = (const uint8_t *)row + sub / 8 * 144;
    const int s = (int)(sub & 7);
    const pk_k_factors k = pk_k_factors_of(p, s);
    const float scale = pk_f16_to_f32(pk_load16(p)) * (float)k.scale, minimum = pk_f16_to_f32(pk_load16(p + 2)) * (float)k.minimum;
    const uint8_t *restrict q = p + 16 + 32 * (s / 2);
    const int shift = 4 * (s & 1);
    VECTOR
    for (int i = 0; i < 32; i++) values[i] = scale * (float)(q[i] >> shift & 15) - minimum;
  }
}

/* q4_K with u8 high[32] before the nibbles: bit s of high[i] is the fifth bit of value i of sub-block s. */
LINKAGE void DECODER(q5_K)(const void *restrict row, int64_t first, int64_t count, void *restrict out) {
  float *restrict values = out;
  for (int64_t sub = first / 32; sub < (first + count) / 32; sub++, values += 32) {
    const uint8_t *restrict p = (const uint8_t *)row + sub / 8 * 176;
    const int s = (int)(sub & 7);
    const pk_k_factors k = pk_k_factors_of(p, s);
    const float scale = pk_f16_to_f32(pk_load16(p)) * (float)k.scale, minimum = pk_f16_to_f32(pk_load16(p + 2)) * (float)k.minimum;
    const uint8_t *restrict high = p + 16, *restrict q = p + 48 + 32 * (s / 2);
    const int shift = 4 * (s & 1);
    VECTOR
    for (int i = 0; i < 32; i++) {
      values[i] = scale * (float)((q[i] >> shift & 15) | (high[i] >> s & 1) << 4) - minimum;
    }
  }
}

/* { u8 low[128]; u8 high[64]; i8 scales[16]; f16 d }: (d·scale)·(q − 32), a scale for 16 values. In each half of 128
 * values the 64 low bytes hold the low nibbles of values 0…63 and 64…127, the 32 high bytes two bits each of the four 32s. */
LINKAGE void DECODER(q6_K)(const void *restrict row, int64_t first, int64_t count, void *restrict out) {
  float *restrict values = out;
  for (int64_t sub = first / 32; sub < (first + count) / 32; sub++, values += 32) {
    const uint8_t *restrict p = (const uint8_t *)row + sub / 8 * 210;
    const int half = (int)(sub >> 2 & 1), quarter = (int)(sub & 3);
    const float d = pk_f16_to_f32(pk_load16(p + 208));
    const uint8_t *restrict low = p + 64 * half + 32 * (quarter & 1), *restrict high = p + 128 + 32 * half;
    const int8_t *scales = (const int8_t *)p + 192 + 2 * (sub & 7);
    const float scale[2] = {d * (float)scales[0], d * (float)scales[1]};
    VECTOR
    for (int i = 0; i < 32; i++) {
      const int q = (low[i] >> 4 * (quarter >> 1) & 15) | (high[i] >> 2 * quarter & 3) << 4;
      values[i] = scale[i / 16] * (float)(q - 32);
    }
  }
}
