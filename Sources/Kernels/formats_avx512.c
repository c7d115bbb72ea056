/* Decoders and plain encoders of the AVX-512 level. */
#include "coded.h"
#include "half.h"

#if defined(__x86_64__)
#include <immintrin.h>
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c,bmi,bmi2"))), apply_to = function)

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

/* The 16 entries are a register. 32 values share a scale where rows begin at multiples of 32 within a block. */
static inline __attribute__((always_inline)) void decode_coded(const float *table, pk_decode_fn *slow, const void *row, int64_t first, int64_t count, void *out) {
  const pk_coded_row r = pk_coded_row_at(row);
  const int64_t whole = r.phase % 32 == 0 && first % 32 == 0 ? count / 32 * 32 : 0;
  const __m512 entries = _mm512_loadu_ps(table);
  const __m512i low = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23), high = _mm512_add_epi32(low, _mm512_set1_epi32(8));
  float *to = out;
  for (int64_t i = 0; i < whole; i += 32, to += 32) {
    const __m512 scaled = _mm512_mul_ps(entries, _mm512_set1_ps(pk_coded_scale(&r, (r.phase + first + i) >> r.shift)));
    const __m512i bytes = _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)(r.codes + (first + i) / 2)));
    const __m512 even = _mm512_permutexvar_ps(_mm512_srli_epi32(bytes, 4), scaled), odd = _mm512_permutexvar_ps(bytes, scaled);
    _mm512_storeu_ps(to, _mm512_permutex2var_ps(even, low, odd));
    _mm512_storeu_ps(to + 16, _mm512_permutex2var_ps(even, high, odd));
  }
  if (whole < count) slow(row, first + whole, count - whole, to);
}
static void decode_nf4(const void *row, int64_t first, int64_t count, void *out) { decode_coded(pk_nf4_values, pk_decode_nf4, row, first, count, out); }
static void decode_fp4(const void *row, int64_t first, int64_t count, void *out) { decode_coded(pk_fp4_values, pk_decode_fp4, row, first, count, out); }

pk_decode_fn *pk_decoder_avx512(int32_t type) {
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

pk_encode_fn *pk_encoder_avx512(int32_t type) {
  return type == PK_F16 ? encode_f16 : type == PK_BF16 ? encode_bf16 : NULL;
}

#pragma clang attribute pop
#else
pk_decode_fn *pk_decoder_avx512(int32_t type) { (void)type; return NULL; }
pk_encode_fn *pk_encoder_avx512(int32_t type) { (void)type; return NULL; }
#endif
