/* Decoders and plain encoders of the AVX2 level. */
#include "formats.h"
#include "half.h"

#if defined(__x86_64__)
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

pk_decode_fn *pk_decoder_avx2(int32_t type) {
  switch (type) {
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
