/* Inside of the format table: the portable decoders and encoders, and the decoders of the faster levels. */
#ifndef PK_FORMATS_H
#define PK_FORMATS_H

#include "kernels.h"

typedef void pk_decode_fn(const void *blocks, float *values, size_t count);
typedef void pk_encode_fn(const float *values, void *blocks, size_t count);

/* formats_decode.c: the definition of every format. All levels give these bits. */
pk_decode_fn pk_decode_f32, pk_decode_f16, pk_decode_bf16, pk_decode_q4_0, pk_decode_q4_1, pk_decode_q5_0,
    pk_decode_q5_1, pk_decode_q8_0, pk_decode_q4_K, pk_decode_q5_K, pk_decode_q6_K;

/* formats_encode.c, formats_encode_k.c */
pk_encode_fn pk_encode_f32, pk_encode_f16, pk_encode_bf16, pk_encode_q4_0, pk_encode_q4_1, pk_encode_q5_0,
    pk_encode_q5_1, pk_encode_q8_0, pk_encode_q4_K, pk_encode_q5_K, pk_encode_q6_K;

/* formats_avx2.c, formats_avx512.c: NULL where the level has no version of its own. */
pk_decode_fn *pk_decoder_avx2(int32_t type);
pk_decode_fn *pk_decoder_avx512(int32_t type);

/* The same for the encoders of plain types. */
pk_encode_fn *pk_encoder_avx2(int32_t type);
pk_encode_fn *pk_encoder_avx512(int32_t type);

/* The fastest decoder / encoder of a type at a level (NULL: unknown type). */
pk_decode_fn *pk_decoder(int32_t level, int32_t type);
pk_encode_fn *pk_encoder(int32_t level, int32_t type);

/* The six-bit scales and minima of a q4_K or q5_K super-block: 8 of each in 12 bytes. */
static inline void pk_k_scales(const uint8_t packed[12], uint8_t scales[8], uint8_t minima[8]) {
  for (int i = 0; i < 4; i++) {
    scales[i] = packed[i] & 63;
    minima[i] = packed[i + 4] & 63;
    scales[i + 4] = (uint8_t)((packed[i + 8] & 15) | (packed[i] >> 6) << 4);
    minima[i + 4] = (uint8_t)((packed[i + 8] >> 4) | (packed[i + 4] >> 6) << 4);
  }
}

/* Share `part` of `parts` of `units` things: [*first, *end). Borders depend on nothing else. */
static inline void pk_share(int64_t units, int32_t part, int32_t parts, int64_t *first, int64_t *end) {
  *first = units * part / parts;
  *end = units * (part + 1) / parts;
}

#endif
