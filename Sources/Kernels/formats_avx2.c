/* Decoders and plain encoders of the AVX2 level. */
#include "coded.h"
#include "half.h"

#if defined(__x86_64__)
#include <immintrin.h>
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c,bmi,bmi2"))), apply_to = function)

#define DECODER(name) decode_##name
#define LINKAGE static
#include "formats_decode.h"

static void encode_f16(const float *values, void *blocks, size_t count) {
  uint8_t *p = blocks;
  for (size_t i = 0; i < count; i++) {
    const uint16_t h = pk_f32_to_f16(values[i]);
    memcpy(p + 2 * i, &h, 2);
  }
}

static void encode_bf16(const float *values, void *blocks, size_t count) {
  uint8_t *p = blocks;
  for (size_t i = 0; i < count; i++) {
    const uint16_t h = pk_f32_to_bf16(values[i]);
    memcpy(p + 2 * i, &h, 2);
  }
}

/* Entries by the lowest four bits of each word, from two registers of eight. */
static inline __attribute__((always_inline)) __m256 entries_of(__m256 low, __m256 high, __m256i words) {
  const __m256 upper = _mm256_castsi256_ps(_mm256_slli_epi32(words, 28));
  return _mm256_blendv_ps(_mm256_permutevar8x32_ps(low, words), _mm256_permutevar8x32_ps(high, words), upper);
}

/* 32 values share a scale where rows begin at multiples of 32 within a block. */
static inline __attribute__((always_inline)) void decode_coded(const float *table, pk_decode_fn *slow, const void *row, int64_t first, int64_t count, void *out) {
  const pk_coded_row r = pk_coded_row_at(row);
  const int64_t whole = r.phase % 32 == 0 && first % 32 == 0 ? count / 32 * 32 : 0;
  float *to = out;
  for (int64_t i = 0; i < whole; i += 32) {
    const __m256 scale = _mm256_set1_ps(pk_coded_scale(&r, (r.phase + first + i) >> r.shift));
    const __m256 low = _mm256_mul_ps(_mm256_loadu_ps(table), scale), high = _mm256_mul_ps(_mm256_loadu_ps(table + 8), scale);
    for (int half = 0; half < 2; half++, to += 16) {
      const __m256i bytes = _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)(r.codes + (first + i) / 2 + 8 * half)));
      const __m256 even = entries_of(low, high, _mm256_srli_epi32(bytes, 4)), odd = entries_of(low, high, bytes);
      const __m256 a = _mm256_unpacklo_ps(even, odd), b = _mm256_unpackhi_ps(even, odd);
      _mm256_storeu_ps(to, _mm256_permute2f128_ps(a, b, 0x20));
      _mm256_storeu_ps(to + 8, _mm256_permute2f128_ps(a, b, 0x31));
    }
  }
  if (whole < count) slow(row, first + whole, count - whole, to);
}
static void decode_nf4(const void *row, int64_t first, int64_t count, void *out) { decode_coded(pk_nf4_values, pk_decode_nf4, row, first, count, out); }
static void decode_fp4(const void *row, int64_t first, int64_t count, void *out) { decode_coded(pk_fp4_values, pk_decode_fp4, row, first, count, out); }

pk_decode_fn *pk_decoder_avx2(int32_t type) {
  switch (type) {
    case PK_NF4: return decode_nf4;
    case PK_FP4: return decode_fp4;
    case PK_F32: return decode_f32;
    case PK_F16: return decode_f16;
    case PK_BF16: return decode_bf16;
    case PK_Q4_0: return decode_q4_0;
    case PK_Q4_1: return decode_q4_1;
    case PK_Q5_0: return decode_q5_0;
    case PK_Q5_1: return decode_q5_1;
    case PK_Q8_0: return decode_q8_0;
    case PK_Q2_K: return decode_q2_K;
    case PK_Q3_K: return decode_q3_K;
    case PK_Q4_K: return decode_q4_K;
    case PK_Q5_K: return decode_q5_K;
    case PK_Q6_K: return decode_q6_K;
    case PK_IQ4_NL: return decode_iq4_nl;
    case PK_TQ1_0: return decode_tq1_0;
    case PK_TQ2_0: return decode_tq2_0;
    case PK_F8_E4M3: return decode_f8_e4m3;
    case PK_F8_E5M2: return decode_f8_e5m2;
    default: return NULL;
  }
}

pk_encode_fn *pk_encoder_avx2(int32_t type) {
  return type == PK_F16 ? encode_f16 : type == PK_BF16 ? encode_bf16 : NULL;
}

#pragma clang attribute pop
#else
pk_decode_fn *pk_decoder_avx2(int32_t type) { (void)type; return NULL; }
pk_encode_fn *pk_encoder_avx2(int32_t type) { (void)type; return NULL; }
#endif
