/* Inside of the format table: the portable decoders and encoders, and the decoders of the faster levels. */
#ifndef PK_FORMATS_H
#define PK_FORMATS_H

#include "half.h"
#include "kernels.h"
#include "share.h"

/* Decodes a run of a row: values first … first+count−1; in block formats both are multiples of 32. */
typedef void pk_decode_fn(const void *row, int64_t first, int64_t count, void *values);
typedef void pk_encode_fn(const float *values, void *blocks, size_t count);

/* formats_decode.c: the definition of every format, to f32. All levels give these bits. */
pk_decode_fn pk_decode_f32, pk_decode_f16, pk_decode_bf16, pk_decode_q4_0, pk_decode_q4_1, pk_decode_q5_0,
    pk_decode_q5_1, pk_decode_q8_0, pk_decode_q2_K, pk_decode_q3_K, pk_decode_q4_K, pk_decode_q5_K, pk_decode_q6_K,
    pk_decode_iq4_nl, pk_decode_tq1_0, pk_decode_tq2_0, pk_decode_f8_e4m3, pk_decode_f8_e5m2;
/* formats_coded.c */
pk_decode_fn pk_decode_nf4, pk_decode_fp4, pk_decode_blockwise8, pk_decode_int8;

/* formats_encode.c, formats_encode_k.c, formats_encode_few.c, formats_coded.c */
pk_encode_fn pk_encode_f32, pk_encode_f16, pk_encode_bf16, pk_encode_q4_0, pk_encode_q4_1, pk_encode_q5_0,
    pk_encode_q5_1, pk_encode_q8_0, pk_encode_q2_K, pk_encode_q3_K, pk_encode_q4_K, pk_encode_q5_K, pk_encode_q6_K,
    pk_encode_iq4_nl, pk_encode_tq1_0, pk_encode_tq2_0, pk_encode_f8_e4m3, pk_encode_f8_e5m2, pk_encode_int8;

/* formats_avx2.c, formats_avx512.c: NULL where the level has no version of its own. */
pk_decode_fn *pk_decoder_avx2(int32_t type);
pk_decode_fn *pk_decoder_avx512(int32_t type);
/* formats_bf16.c: the same values rounded to bf16 (level AVX512_BF16). */
pk_decode_fn *pk_decoder_bf16(int32_t type);

/* The same for the encoders of plain types, and of the K formats (formats_encode_k.c). */
pk_encode_fn *pk_encoder_avx2(int32_t type);
pk_encode_fn *pk_encoder_avx512(int32_t type);
pk_encode_fn *pk_encoder_k(int32_t level, int32_t type);

/* The fastest decoder to f32 / encoder of a type at a level (NULL: unknown type). */
pk_decode_fn *pk_decoder(int32_t level, int32_t type);
pk_encode_fn *pk_encoder(int32_t level, int32_t type);

/* The six-bit factors of sub-block s (0 … 7) of a q4_K or q5_K super-block, which begins with f16 d, f16 dmin and 8 scales
 * and minima in 12 bytes. A value is (d·scale)·q − dmin·minimum. */
typedef struct pk_k_factors {
  int scale, minimum;
} pk_k_factors;

/* The levels of iq4_nl. */
extern const int8_t pk_iq4_nl_levels[16];

static inline pk_k_factors pk_k_factors_of(const uint8_t *block, int s) {
  const uint8_t *p = block + 4;
  return s < 4 ? (pk_k_factors){p[s] & 63, p[s + 4] & 63}
               : (pk_k_factors){(p[s + 4] & 15) | (p[s - 4] >> 6) << 4, (p[s + 4] >> 4) | (p[s] >> 6) << 4};
}

#endif
